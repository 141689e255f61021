"""Building single shards of a finished folder again, to the byte."""

from pathlib import Path

from cxrdist.datasets.shard_format import (
    INDEX,
    OPEN_CLIP_SIZES,
    REJECTS,
    TIMM_INFO,
    Manifest,
    Shard,
    read_index,
)
from cxrdist.dispatch import Map
from cxrdist.errors import UserError
from cxrdist.pack.build import Task, build_shard, tar_path
from cxrdist.pack.plan import Plan, PlannedShard
from cxrdist.pack.tar import file_sha256


def tables_are_whole(shards: Path, manifest: Manifest) -> bool:
    """Return whether the tables beside the manifest are there, and as it says."""
    hashes = {INDEX: manifest.index_sha256, REJECTS: manifest.rejects_sha256}
    whole = all((shards / name).is_file() and file_sha256(shards / name) == hash_ for name, hash_ in hashes.items())
    return whole and (shards / TIMM_INFO).is_file() and (shards / OPEN_CLIP_SIZES).is_file()


def broken_shards(shards: Path, manifest: Manifest) -> list[Shard]:
    """Return the shards that are missing or do not have their hash."""
    return [shard for shard in manifest.shards if not _is_whole(shards / shard.name, shard)]


def rebuild(plan: Plan, manifest: Manifest, broken: list[Shard], work: Path, shards: Path, spread: Map) -> None:
    """Build the `broken` shards again from their source files.

    Raises:
        UserError: If they come out with other bytes: a source file or a decoder has changed.
    """
    images = {image.image_id: image for image in plan.images}
    keys = read_index(shards).groupby("shard", sort=False)["key"].agg(list).to_dict()
    entries = {}
    tasks = []
    for number, shard in enumerate(broken):
        planned = PlannedShard(shard.split, number, tuple(images[key] for key in keys[shard.name]))
        entries[planned.name] = shard
        tasks.append(Task(planned, plan.findings, manifest.preprocessing, work))
    for planned, record in spread(build_shard, tasks):
        shard = entries[planned.name]
        if record.tar.sha256 != shard.sha256:
            raise UserError(
                f"A shard built again must have the hash of its manifest entry, got another [{shard.name}]. "
                f"A source file or a decoder's version has changed: pack into a new folder."
            )
        tar_path(work, planned).replace(shards / shard.name)


def _is_whole(path: Path, shard: Shard) -> bool:
    return path.is_file() and path.stat().st_size == shard.bytes and file_sha256(path) == shard.sha256
