"""From a folder on disk to rows: every image that the source names becomes a row or a reject with a reason."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from cxrdist.datasets.cells import read_age, read_id, read_projection, read_sex
from cxrdist.datasets.detect import home_of
from cxrdist.datasets.facts import FactFile, FolderLayout
from cxrdist.datasets.labels import Findings, Labeller, combine_readers
from cxrdist.datasets.records import Import, Reject, Row, Split
from cxrdist.datasets.splits import (
    ListedSplits,
    carve_all,
    carve_validation,
    crossing_patients,
    has_official,
    official_split,
    read_split_lists,
)
from cxrdist.datasets.tables import Record, folder_records, table_records
from cxrdist.datasets.tree import ImageFiles, check_root
from cxrdist.errors import UserError
from cxrdist.findings import NO_FINDING
from cxrdist.log import get_logger

Filter = Literal["frontal", "all"]
Notes = dict[str, str | int | float | bool]
logger = get_logger(__name__)


@dataclass(frozen=True)
class _Context:
    """What each record is judged by."""

    facts: FactFile
    root: Path
    labeller: Labeller
    listed: ListedSplits
    projection: Filter


def import_dataset(facts: FactFile, root: Path, *, projection: Filter = "frontal") -> Import:
    """Return a row or a reject for each image that the source names, sorted by source.

    For tables those are the images in the tables and the image files that no table names; for folder trees the image
    files that fit the layout.

    Args:
        facts: What is known of the dataset.
        root: The folder that holds it, at most 4 levels above its markers.
        projection: ``frontal`` rejects every image that is not known to be PA or AP.

    Raises:
        UsageError: If `root` is no folder.
        UserError: If it is empty, or if a table or list is missing or unreadable, or if it holds unknown labels.
    """
    check_root(root)
    home = home_of(facts, root)
    files = _files(facts, root)
    labeller = Labeller(facts)
    context = _Context(facts, root, labeller, read_split_lists(facts, root), projection)
    rows: list[Row] = []
    rejects: list[Reject] = []
    seen: set[str] = set()
    for records in _images(facts, root, home, files):
        seen.add(records[0].source)
        outcome = _judge(context, records)
        if isinstance(outcome, Row):
            rows.append(outcome)
        else:
            rejects.append(outcome)
        rejects += [Reject(record.source, "duplicate_row") for record in _surplus(facts, records)]
    if files is not None:
        rejects += _unnamed(files, seen)
    _check_labels(facts, labeller)
    rows = _with_validation(facts, rows)
    crossing = crossing_patients((row.patient, row.split) for row in rows)
    if crossing:
        # The official lists win: changing them would make results incomparable with the literature's.
        logger.warning("%d patients of %s are in more than one official split.", crossing, facts.title)
    return Import(sorted(rows, key=lambda row: row.source), sorted(rejects, key=lambda reject: reject.source))


def _images(facts: FactFile, root: Path, home: str, files: ImageFiles | None) -> Iterator[list[Record]]:
    """Yield the records of each image, in the order of the first."""
    if isinstance(facts.layout, FolderLayout):
        for record in folder_records(facts.layout, root, home):
            yield [_rewritten(facts, record)]
        return
    grouped: dict[str, list[Record]] = {}
    assert files is not None
    for record in table_records(facts, facts.layout, root, files):
        grouped.setdefault(record.source, []).append(_rewritten(facts, record))
    yield from grouped.values()


def _rewritten(facts: FactFile, record: Record) -> Record:
    if not facts.replace:
        return record
    cells = dict(record.cells)
    for column, values in facts.replace.items():
        text = cells.get(column.lower())
        changed = {old.lower(): new for old, new in values.items()}
        if text is not None and text.lower() in changed:
            cells[column.lower()] = changed[text.lower()]
    return replace(record, cells=cells)


def _judge(context: _Context, records: list[Record]) -> Row | Reject:
    facts, record = context.facts, records[0]
    for column, allowed in facts.keep.items():
        text = record.cells.get(column.lower())
        if text is not None and text.lower() not in [value.lower() for value in allowed]:
            return Reject(record.source, "excluded_by_source", f"another {column}")
    labelled = _labels(context, records)
    if labelled is None:
        return Reject(record.source, "excluded_by_source", "the source leaves it unlabelled")
    projection, frontal = read_projection(facts, record.cells)
    if context.projection == "frontal" and not frontal:
        return Reject(record.source, "projection_filtered", projection)
    if not record.found:
        return Reject(record.source, "missing_file")
    patient = read_id(facts.columns.patient, record.cells) or record.image
    official = official_split(facts, record, context.listed)
    if official is None and has_official(facts):
        return Reject(record.source, "excluded_by_source", "in no official split")
    findings, notes = labelled
    if frontal and projection == "unknown":
        notes["frontal"] = True
    return Row(
        source=record.source,
        path=context.root / record.source,
        patient=patient,
        study=read_id(facts.columns.study, record.cells) or record.image,
        split=official or carve_all(facts, patient),
        findings=findings,
        projection=projection,
        sex=read_sex(facts.columns.sex, record.cells),
        age=read_age(facts.columns.age, record.cells),
        notes=notes,
    )


def _labels(context: _Context, records: list[Record]) -> tuple[Findings, Notes] | None:
    how = getattr(context.facts.layout, "readers", None)
    readings = [context.labeller.findings(record.cells) for record in (records if how else records[:1])]
    told = [reading for reading in readings if reading is not None]
    if not told:
        return None
    if how is None or len(told) == 1:
        return told[0], {}
    findings, no_majority = combine_readers(told, how)
    if no_majority and NO_FINDING in findings:
        findings[NO_FINDING] = 0  # somebody saw something: not normal, though nothing is agreed on
    notes: Notes = {"readers": len(told)}
    if no_majority:
        notes["no_majority"] = True
    return findings, notes


def _surplus(facts: FactFile, records: list[Record]) -> list[Record]:
    return [] if getattr(facts.layout, "readers", None) else records[1:]


def _files(facts: FactFile, root: Path) -> ImageFiles | None:
    """Return the image files that tables can name; a folder tree names its own."""
    layout = facts.layout
    if isinstance(layout, FolderLayout):
        return None
    return ImageFiles(root, parts=layout.match_parts, within=layout.within)


def _unnamed(files: ImageFiles, seen: set[str]) -> Iterator[Reject]:
    """Yield a reject for each image file that no table names; a second copy of a named image is a duplicate."""
    for path in files.paths:
        if path not in seen:
            yield Reject(path, "duplicate_row" if files.copies(path) in seen else "no_label_row")


def _with_validation(facts: FactFile, rows: list[Row]) -> list[Row]:
    """Return `rows` with a validation split carved from the training patients, where the source has none."""
    if not has_official(facts) or any(row.split == "val" for row in rows):
        return rows
    splits: Iterable[Split] = (
        carve_validation(facts, row.patient) if row.split == "train" else row.split for row in rows
    )
    return [replace(row, split=split) for row, split in zip(rows, splits, strict=True)]


def _check_labels(facts: FactFile, labeller: Labeller) -> None:
    if labeller.unknown:
        shown = ", ".join(repr(word) for word, _ in labeller.unknown.most_common(5))
        raise UserError(
            f"The labels of {facts.title} must be known to its fact file, got {len(labeller.unknown)} unknown ones: "
            f"{shown}. Add them there to `findings` or to `others`."
        )
