"""The last step: duplicates out, shards to their final names, tables, and the manifest at the very end.

Everything here is a pure function of the shard records, so after a stop it is simply done again.
"""

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cxrdist import __version__
from cxrdist.datasets.records import SPLITS
from cxrdist.datasets.shard_format import (
    EXTENSIONS,
    FORMAT_VERSION,
    INDEX,
    MANIFEST,
    OPEN_CLIP_SIZES,
    REJECT_COLUMNS,
    REJECTS,
    TIMM_INFO,
    Manifest,
    Shard,
    finding_column,
    index_columns,
    is_frontal,
    shard_name,
    soft_column,
)
from cxrdist.pack.build import SampleRecord, ShardRecord, Tar, tar_path, write_file, write_shard
from cxrdist.pack.plan import Left, Plan, PlannedShard
from cxrdist.pack.tar import file_sha256, sync_folder

Records = list[tuple[PlannedShard, ShardRecord]]


@dataclass(frozen=True)
class Final:
    """A planned shard on its way to its final name."""

    planned: PlannedShard
    record: ShardRecord
    name: str
    kept: list[SampleRecord]

    @property
    def unchanged(self) -> bool:
        """Whether the tar is the one already built."""
        return len(self.kept) == len(self.record.samples)


def find_duplicates(records: Records) -> dict[str, str]:
    """Return ``{key left out: key kept}`` for samples whose pixels are equal.

    The one of the most held-out split stays (test, then val, then train), so that no test image is seen in training;
    within a split the first key.
    """
    order = [(SPLITS.index(shard.split), sample) for shard, record in records for sample in record.samples]
    order.sort(key=lambda pair: (-pair[0], pair[1].place.key))
    first: dict[str, str] = {}
    left = {}
    for _, sample in order:
        kept = first.setdefault(sample.pixels_sha256, sample.place.key)
        if kept != sample.place.key:
            left[sample.place.key] = kept
    return left


def place_finals(plan: Plan, records: Records, duplicates: dict[str, str]) -> list[Final]:
    """Return the shards that remain, numbered without gaps per split."""
    finals: list[Final] = []
    numbers: Counter[str] = Counter()
    for shard, record in records:
        kept = [sample for sample in record.samples if sample.place.key not in duplicates]
        if kept:
            name = shard_name(plan.dataset.name, shard.split, numbers[shard.split])
            finals.append(Final(shard, record, name, kept))
            numbers[shard.split] += 1
    return finals


def is_at_hand(work: Path, shards: Path, final: Final) -> bool:
    """Return whether the built tar is still in the work folder, or already at its final name."""
    places = [tar_path(work, final.planned), *([shards / final.name] if final.unchanged else [])]
    return any(path.is_file() and path.stat().st_size == final.record.tar.bytes for path in places)


def move_shard(work: Path, shards: Path, final: Final, extension: str) -> tuple[Tar, list[SampleRecord]]:
    """Bring one shard to its final name, without its duplicates; return the tar and its samples there."""
    built, target = tar_path(work, final.planned), shards / final.name
    if final.unchanged:
        if built.exists():
            built.replace(target)
        return final.record.tar, final.kept
    tar, places = write_shard(target, extension, _read_members(built, final.kept))
    return tar, [sample.model_copy(update={"place": place}) for sample, place in zip(final.kept, places, strict=True)]


def finish(plan: Plan, records: Records, work: Path, shards: Path) -> tuple[Manifest, dict[str, Left]]:
    """Write everything but the private map and the manifest; return the manifest and all rejects by image id."""
    how = plan.how
    duplicates = find_duplicates(records)
    finals = place_finals(plan, records, duplicates)
    entries: list[Shard] = []
    samples: list[tuple[Shard, SampleRecord]] = []
    for final in finals:
        tar, moved = move_shard(work, shards, final, EXTENSIONS[how.format])
        entry = Shard(
            name=final.name, split=final.planned.split, samples=len(moved), bytes=tar.bytes, sha256=tar.sha256
        )
        entries.append(entry)
        samples += [(entry, sample) for sample in moved]
    sync_folder(shards)
    rejects = [
        *(left for _, left in plan.rejects),
        *(left for _, record in records for left in record.rejects),
        *(Left(key, "duplicate_pixels", f"same pixels as {kept}") for key, kept in duplicates.items()),
    ]
    assert len(samples) + len(rejects) == plan.rows, "every row is a sample or a reject"
    write_file(shards / REJECTS, _reject_table(rejects), work)
    write_file(shards / INDEX, _index(plan, samples), work)
    write_file(shards / TIMM_INFO, _json(_timm_info(plan, entries)), work)
    write_file(shards / OPEN_CLIP_SIZES, _json({entry.name: entry.samples for entry in entries}), work)
    manifest = _manifest(plan, entries, rejects, shards)
    return manifest, {left.image_id: left for left in rejects}


def write_manifest(manifest: Manifest, work: Path, shards: Path) -> None:
    """Write the manifest; from here on the shard folder is finished."""
    write_file(shards / MANIFEST, _json(manifest.tree()), work)


def _manifest(plan: Plan, entries: list[Shard], rejects: list[Left], shards: Path) -> Manifest:
    """Return what vouches for the tars and tables that lie in `shards` now."""
    return Manifest(
        format_version=FORMAT_VERSION,
        dataset=plan.dataset.name,
        title=plan.dataset.title,
        namespace=plan.dataset.namespace,
        id_key=plan.pseudonyms.fingerprint,
        derived=[finding for finding in plan.findings if finding in plan.dataset.derived],
        patients_known=plan.dataset.patients_known,
        complete=True,
        rows=plan.rows,
        splits={split: sum(entry.samples for entry in entries if entry.split == split) for split in SPLITS},
        rejects=dict(sorted(Counter(left.reason for left in rejects).items())),
        findings=list(plan.findings),
        soft=list(plan.soft),
        preprocessing=plan.how,
        facts=plan.facts,
        variant=plan.dataset.variant,
        changes=plan.changes,
        policy=plan.dataset.policy,
        code_version=__version__,
        samples_per_shard=plan.shard_length,
        inputs=plan.inputs,
        index_sha256=file_sha256(shards / INDEX),
        rejects_sha256=file_sha256(shards / REJECTS),
        shards=entries,
    )


def _read_members(path: Path, samples: Iterable[SampleRecord]) -> Iterator[tuple[str, bytes, bytes]]:
    with path.open("rb") as file:
        for sample in samples:
            place = sample.place
            file.seek(place.image_offset)
            image = file.read(place.image_bytes)
            file.seek(place.json_offset)
            yield place.key, image, file.read(place.json_bytes)


def _reject_table(rejects: list[Left]) -> bytes:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(REJECT_COLUMNS)
    table.writerows(sorted((left.image_id, left.reason, left.detail) for left in rejects))
    return text.getvalue().encode()


def _index(plan: Plan, samples: list[tuple[Shard, SampleRecord]]) -> bytes:
    planned = {image.image_id: image for image in plan.images}
    images = [planned[sample.place.key] for _, sample in samples]
    how = plan.how
    values = {
        "key": (pa.string(), [sample.place.key for _, sample in samples]),
        "split": (pa.string(), [entry.split for entry, _ in samples]),
        "shard": (pa.string(), [entry.name for entry, _ in samples]),
        **{
            name: (pa.int64(), [getattr(sample.place, name) for _, sample in samples])
            for name in ("image_offset", "image_bytes", "crc32", "json_offset", "json_bytes")
        },
        "image_id": (pa.string(), [image.image_id for image in images]),
        "patient_id": (pa.string(), [image.patient_id for image in images]),
        "study_id": (pa.string(), [image.study_id for image in images]),
        "projection": (pa.string(), [sample.projection for _, sample in samples]),
        "frontal": (
            pa.bool_(),
            [
                is_frontal(sample.projection, noted=bool(image.row.notes.get("frontal")), packed=how.projection)
                for (_, sample), image in zip(samples, images, strict=True)
            ],
        ),
        "sex": (pa.string(), [sample.sex for _, sample in samples]),
        "age": (pa.int16(), [sample.age for _, sample in samples]),
        "height": (pa.int32(), [sample.height for _, sample in samples]),
        "width": (pa.int32(), [sample.width for _, sample in samples]),
        "origin": (pa.string(), [image.row.origin for image in images]),
        "kind": (pa.string(), [sample.kind for _, sample in samples]),
        "transfer_syntax": (pa.string(), [sample.transfer_syntax for _, sample in samples]),
        "bits": (pa.int8(), [sample.bits for _, sample in samples]),
        **{
            finding_column(finding): (pa.int8(), [image.row.findings.get(finding) for image in images])
            for finding in plan.findings
        },
        **{
            soft_column(finding): (pa.float32(), [image.row.soft.get(finding) for image in images])
            for finding in plan.soft
        },
    }
    assert list(values) == index_columns(plan.findings, plan.soft)
    table = pa.table({name: pa.array(column, kind) for name, (kind, column) in values.items()})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", version="2.6", store_schema=False)
    return sink.getvalue().to_pybytes()


def _timm_info(plan: Plan, entries: list[Shard]) -> dict[str, object]:
    splits = {}
    for split in SPLITS:
        own = [entry for entry in entries if entry.split == split]
        if own:
            splits[split] = {
                "name": split,
                "num_samples": sum(entry.samples for entry in own),
                "filenames": [entry.name for entry in own],
                "shard_lengths": [entry.samples for entry in own],
            }
    return {"name": plan.dataset.name, "splits": splits}


def _json(tree: object) -> bytes:
    return (json.dumps(tree, indent=1, ensure_ascii=True) + "\n").encode()
