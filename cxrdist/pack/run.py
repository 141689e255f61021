"""Packing a dataset: import, plan, build, finish.  Each step may be stopped anywhere and is gone on with."""

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from cxrdist.datasets.records import Import
from cxrdist.datasets.shard_format import MANIFEST, Manifest, read_manifest
from cxrdist.dispatch import Map, process_map
from cxrdist.errors import UserError
from cxrdist.log import get_logger, progress
from cxrdist.pack.build import Task, build_shard, read_record, record_path, tar_path
from cxrdist.pack.changes import changes_path, keep_changes
from cxrdist.pack.finish import (
    Records,
    find_duplicates,
    finish,
    is_at_hand,
    place_finals,
    write_manifest,
)
from cxrdist.pack.options import PackOptions
from cxrdist.pack.plan import DatasetName, Left, Plan, make_plan, recipe_of
from cxrdist.pack.pseudonyms import (
    MapLine,
    Pseudonyms,
    default_id_key,
    id_map_path,
    open_id_key,
    refuse_inside,
    write_id_map,
)
from cxrdist.pack.repair import broken_shards, rebuild, tables_are_whole
from cxrdist.pack.ways_out import OF_REASON, refuse_difference, way_out_of_rejects
from cxrdist.pack.work import remove_work_folder, work_folder

BAD_IMAGE = ("missing_file", "unreadable", "unsupported", "constant_image", "too_large")
"""Reasons that speak of a broken download rather than of a choice; `max_reject` counts these."""

log = get_logger(__name__)


def pack_rows(
    dataset: DatasetName,
    found: Import,
    out: Path,
    options: PackOptions,
    *,
    spread: Map | None = None,
    shown: bool = True,
) -> Manifest:
    """Pack what an importer found into the shard folder `out`; see `pack_dataset`.

    Raises:
        UserError: If there is nothing to pack, too much of it is broken, or `out` holds something else.
    """
    id_key = options.id_key or default_id_key()
    id_map = id_map_path(dataset.name, id_key, options.id_map)
    refuse_inside(id_key, out, "The id key")
    refuse_inside(id_map, out, "The id map")
    plan = make_plan(dataset, found, options, Pseudonyms(open_id_key(id_key), dataset.namespace))
    spread = spread or process_map(options.workers, ordered=False)
    finished = read_manifest(out) if (out / MANIFEST).exists() else None
    if finished:
        refuse_difference(recipe_of(finished), plan.recipe(), out)
    if finished and tables_are_whole(out, finished):
        manifest = finished
        broken = broken_shards(out, manifest)
        log.info("%s is packed already; %d of %d shards are broken.", out, len(broken), len(manifest.shards))
        if broken:
            with work_folder(out, plan) as work:
                rebuild(plan, manifest, broken, work, out, spread)
    else:
        with work_folder(out, plan) as work:
            (out / MANIFEST).unlink(missing_ok=True)
            records = _build(plan, work, out, spread, shown=shown)
            manifest, left = finish(plan, records, work, out)
            write_id_map(id_map, _map_lines(plan, left))
            if plan.changes:
                keep_changes(changes_path(dataset.name, id_key), plan.changes, dataset.changes)
            write_manifest(manifest, work, out)
    remove_work_folder(out)
    if manifest.without_training:
        log.warning("Warning: %s", manifest.without_training)
    private = [f"id key {id_key}", f"id map {id_map}"]
    private += [f"changed facts {changes_path(dataset.name, id_key)}"] if plan.changes else []
    log.info("Private files, to be kept and never passed on: %s.", ", ".join(private))
    return manifest


def _build(plan: Plan, work: Path, out: Path, spread: Map, *, shown: bool) -> Records:
    """Build what an earlier start has not built; return the records of all planned shards, in their order."""
    records = dict(_finished(plan, work, out))
    guard = _RejectGuard(plan)
    how = plan.how
    tasks = [Task(shard, plan.findings, how, work) for shard in plan.shards if shard.name not in records]
    with progress(f"pack {plan.dataset.name}", plan.image_count, shown=shown) as bar:
        for shard, record in records.values():
            guard.add(record.rejects)
            bar.skip(len(shard.images))
        built: Any = spread(build_shard, tasks)
        try:
            for shard, record in built:
                records[shard.name] = (shard, record)
                guard.add(record.rejects)
                bar.advance(len(shard.images), f"{guard.bad} bad" if guard.bad else "")
        finally:
            getattr(built, "close", int)()  # ends the workers; the built-in map has none
    ordered = [records[shard.name] for shard in plan.shards]
    if not any(record.samples for _, record in ordered):
        lefts = [left for _, left in plan.rejects] + [left for _, record in ordered for left in record.rejects]
        way_out = way_out_of_rejects(Counter(left.reason for left in lefts))
        raise UserError(f"A pack must keep at least one image, got only rejects: {counts_by_reason(lefts)}. {way_out}")
    return ordered


def _finished(plan: Plan, work: Path, out: Path) -> Iterator[tuple[str, Any]]:
    """Yield the planned shards whose record and tar are there."""
    found = [(shard, record) for shard in plan.shards if (record := read_record(work, shard))]
    moved = {}
    if len(found) == len(plan.shards):  # then the last step may have begun to move tars to their final names
        moved = {final.planned.name: final for final in place_finals(plan, found, find_duplicates(found))}
    for shard, record in found:
        built = tar_path(work, shard)
        final = moved.get(shard.name)
        whole = built.is_file() and built.stat().st_size == record.tar.bytes
        if whole or (final and is_at_hand(work, out, final)):
            yield shard.name, (shard, record)
        else:
            record_path(work, shard).unlink()


class _RejectGuard:
    """Stops the pack as soon as it is certain that more images are broken than allowed."""

    def __init__(self, plan: Plan) -> None:
        self._rejects = [left for _, left in plan.rejects if left.reason in BAD_IMAGE]
        self._tried = plan.image_count + len(self._rejects)
        self._share = plan.options.max_reject
        self.add([])

    @property
    def bad(self) -> int:
        """Number of broken images so far."""
        return len(self._rejects)

    def add(self, rejects: Iterable[Left]) -> None:
        """Count the rejects of one shard."""
        self._rejects += [left for left in rejects if left.reason in BAD_IMAGE]
        if self.bad > self._share * self._tried:
            missing = 2 * sum(left.reason == "missing_file" for left in self._rejects) > self.bad
            raise UserError(
                f"At most {self._share:.1%} of {self._tried} images may be broken or missing (`--max-reject`), "
                f"got {self.bad} so far: {counts_by_reason(self._rejects)}. Nothing is lost: see whether the download "
                f"is whole, or raise `--max-reject` and run the same command again; it goes on where it stopped."
                f"{' ' + OF_REASON['missing_file'] if missing else ''}"
            )


def counts_by_reason(rejects: Iterable[Left]) -> str:
    """Return for example ``3 unreadable, 1 missing_file``."""
    return ", ".join(f"{count} {reason}" for reason, count in Counter(left.reason for left in rejects).most_common())


def _map_lines(plan: Plan, left: dict[str, Left]) -> Iterator[MapLine]:
    for reject, pseudonymous in plan.rejects:
        yield MapLine(reject.source, pseudonymous.image_id, None, None, None, reject.reason)
    for image in plan.images:  # after the rejects: a repeated row is a sample as well
        reason = left[image.image_id].reason if image.image_id in left else None
        yield MapLine(
            image.row.source,
            image.image_id,
            image.patient_id,
            image.study_id,
            image.row.split,
            None if reason == "duplicate_row" else reason,
        )
