"""From a folder on disk to rows: every image that the source names becomes a row or a reject with a reason."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cxrdist.datasets.cells import read_age, read_id, read_projection, read_sex
from cxrdist.datasets.codes import code
from cxrdist.datasets.detect import home_of
from cxrdist.datasets.facts import FactFile
from cxrdist.datasets.labels import Findings, Labeller, Unlabelled, combine_readers, merge_rows, shares
from cxrdist.datasets.layouts import FolderLayout, TableLayout
from cxrdist.datasets.records import SPLITS, Import, ProjectionFilter, Reject, Row, Split
from cxrdist.datasets.splits import OfficialSplits, carve_all, carve_validation, crossing_patients
from cxrdist.datasets.tables import Record, Tables, folder_records, table_records
from cxrdist.datasets.tree import ImageFiles, Tree
from cxrdist.errors import UserError
from cxrdist.findings import NO_FINDING
from cxrdist.log import get_logger, track

Notes = dict[str, str | int | float | bool]
OTHER_ORIGIN = "other"
logger = get_logger(__name__)


class UnknownLabelsError(UserError):
    """Codes or words that the fact file does not know.

    A label cell can hold free text, and so a name: the words are for the holder's private file, not for a message.
    """

    def __init__(self, message: str, words: Counter[str]) -> None:
        super().__init__(message)
        self.words = words


@dataclass(frozen=True)
class _Context:
    """What each record is judged by."""

    facts: FactFile
    tree: Tree
    labeller: Labeller
    official: OfficialSplits
    projection: ProjectionFilter


@dataclass(frozen=True)
class _Labels:
    """What the rows of one image say together."""

    findings: Findings
    notes: Notes
    soft: dict[str, float]


def import_dataset(
    facts: FactFile, root: Path | Sequence[Path], *, projection: ProjectionFilter = "frontal", shown: bool = False
) -> Import:
    """Return a row or a reject for each image that the source names, sorted by source.

    For tables those are the images in the tables and the image files that no table names; for folder trees the image
    files that fit the layout.

    Args:
        facts: What is known of the dataset.
        root: The folder that holds it, at most 4 levels above its markers; or several that hold it together.
        projection: ``frontal`` rejects every image that is known to be neither PA nor AP, or not known at all.
        shown: Show progress.

    Raises:
        UsageError: If `root` is no folder.
        UserError: If it is empty, or if a table or list is missing or unreadable, or if it holds unknown labels.
    """
    tree = Tree([root] if isinstance(root, Path) else root)
    tree.include(facts.beside)
    home = home_of(facts, tree)
    if shown:
        logger.info("Reading the folders and tables of %s.", facts.title)
    labeller = Labeller(facts)
    context = _Context(facts, tree, labeller, OfficialSplits(facts, tree, home), projection)
    files = _files(facts, tree)
    rows: list[Row] = []
    rejects: list[Reject] = []
    seen: set[str] = set()
    tables = Tables(facts, tree, home)
    images = list(_images(tables, home, files))
    tables.check()
    for records in track(images, "read tables", len(images), shown=shown):
        seen.update(*((record.source, *record.others) for record in records))
        outcome = _judge(context, records)
        if isinstance(outcome, Row):
            rows.append(outcome)
        else:
            rejects.append(outcome)
        rejects += [Reject(record.source, "duplicate_row") for record in _surplus(facts, records)]
    if files is not None:
        unnamed = list(_unnamed(files, seen))
        if isinstance(facts.layout, TableLayout) and facts.layout.unnamed == "reject":
            rejects += unnamed
        elif unnamed:
            logger.warning("%d image files here are in no table of %s, and left alone.", len(unnamed), facts.title)
    _check_labels(facts, labeller)
    if facts.splits.crossing == "reject":
        rows, crossed = _without_crossing(rows)
        rejects += crossed
    rows = _with_validation(context, rows)
    crossing = crossing_patients((row.patient, row.split) for row in rows)
    if crossing:
        # The official lists win: changing them would make results incomparable with the literature's.
        logger.warning("%d patients of %s are in more than one official split.", crossing, facts.title)
    return Import(sorted(rows, key=lambda row: row.source), sorted(rejects, key=lambda reject: reject.source))


def _images(tables: Tables, home: str, files: ImageFiles | None) -> Iterator[list[Record]]:
    """Yield the records of each image, in the order of the first."""
    facts = tables.facts
    if isinstance(facts.layout, FolderLayout):
        for record in folder_records(facts.layout, tables, home):
            yield [_rewritten(facts, record)]
        return
    grouped: dict[str, list[Record]] = {}
    assert files is not None
    for record in table_records(facts.layout, tables, files):
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
    excluded = [f"another {column}" for column, values in facts.keep.items() if _is(record, column, values) is False]
    excluded += [f"by {column}" for column, values in facts.drop.items() if _is(record, column, values)]
    if excluded:
        return Reject(record.source, "excluded_by_source", excluded[0])
    labelled = _labels(context, records)
    shown = read_projection(facts, record.cells)
    patients = {read_id(facts.columns.patient, each.cells) or each.image for each in _counting(facts, records)}
    official = context.official.of(record)
    if isinstance(labelled, Unlabelled):
        return Reject(record.source, labelled.reason, labelled.detail)
    if context.projection == "frontal" and not (shown.frontal or shown.by_header):
        return Reject(record.source, "projection_filtered", shown.projection)
    if not record.found:
        return Reject(record.source, "missing_file")
    if len(patients) > 1 or (official is None and context.official.exist):
        return Reject(
            record.source, "excluded_by_source", "of several patients" if len(patients) > 1 else "in no official split"
        )
    patient, notes = patients.pop(), labelled.notes
    if shown.frontal and shown.projection == "unknown":
        notes["frontal"] = True
    if shown.by_header:
        notes["projection_from_header"] = True
    return Row(
        source=record.source,
        path=context.tree.path(record.source),
        patient=patient,
        study=read_id(facts.columns.study, record.cells) or record.image,
        split=official or carve_all(facts, patient),
        findings=labelled.findings,
        projection=shown.projection,
        sex=read_sex(facts, record.cells),
        age=read_age(facts.columns.age, record.cells),
        notes=notes,
        pixels=facts.pixels.hints(record.cells),
        origin=_origin(facts, record),
        soft=labelled.soft,
    )


def _is(record: Record, column: str, values: list[str]) -> bool | None:
    """Return whether the column holds one of the values; None where it is blank."""
    text = record.cells.get(column.lower())
    return None if text is None else code(text) in {code(value) for value in values}


def _labels(context: _Context, records: list[Record]) -> _Labels | Unlabelled:
    layout = context.facts.layout
    how = layout.readers if isinstance(layout, TableLayout) else None
    readers: dict[str, list[Findings]] = {}
    problem = Unlabelled("no_label_row")
    for number, record in enumerate(_counting(context.facts, records)):
        reading = context.labeller.findings(record.cells) if record.labelled else problem
        if isinstance(reading, Unlabelled):
            problem = reading
            continue
        reader = record.cells.get((layout.reader or "").lower(), "") if isinstance(layout, TableLayout) else ""
        readers.setdefault(reader or (str(number) if how else ""), []).append(reading)
    told = [merge_rows(readings) for readings in readers.values()]
    if not told:
        return problem
    if how is None or len(told) == 1:
        return _Labels(told[0], {}, shares(told) if how == "mean" else {})
    findings, no_majority = combine_readers(told, how)
    if no_majority and NO_FINDING in findings:
        findings[NO_FINDING] = 0  # somebody saw something: not normal, though nothing is agreed on
    notes: Notes = {"readers": len(told)}
    if no_majority:
        notes["no_majority"] = True
    return _Labels(findings, notes, shares(told) if how == "mean" else {})


def _origin(facts: FactFile, record: Record) -> str | None:
    if facts.origin is None:
        return None
    known = {text.lower(): word for text, word in facts.origin.words.items()}
    return known.get(record.cells.get(facts.origin.column.lower(), "").lower(), OTHER_ORIGIN)


def _counting(facts: FactFile, records: list[Record]) -> list[Record]:
    """Return the records of one image that count: all where rows add up, else the first."""
    layout = facts.layout
    several = isinstance(layout, TableLayout) and (layout.readers or layout.repeats == "union")
    return records if several else records[:1]


def _surplus(facts: FactFile, records: list[Record]) -> list[Record]:
    return records[len(_counting(facts, records)) :]


def _files(facts: FactFile, tree: Tree) -> ImageFiles | None:
    """Return the image files that tables can name; a folder tree names its own."""
    layout = facts.layout
    if isinstance(layout, FolderLayout):
        return None
    return ImageFiles(tree, parts=layout.match_parts, within=layout.within, suffixes=layout.suffixes)


def _unnamed(files: ImageFiles, seen: set[str]) -> Iterator[Reject]:
    """Yield a reject for each image file that no table names; a second copy of a named image is a duplicate."""
    for path in files.paths:
        if path not in seen:
            yield Reject(path, "duplicate_row" if files.is_copy(path, seen) else "no_label_row")


def _without_crossing(rows: list[Row]) -> tuple[list[Row], list[Reject]]:
    """Return the rows of each patient's most held-out split, and a reject for each other row."""
    held_out: dict[str, int] = {}
    for row in rows:
        held_out[row.patient] = max(held_out.get(row.patient, 0), SPLITS.index(row.split))
    kept = [row for row in rows if SPLITS.index(row.split) == held_out[row.patient]]
    lost = [row for row in rows if SPLITS.index(row.split) < held_out[row.patient]]
    return kept, [Reject(row.source, "excluded_by_source", "the patient is held out") for row in lost]


def _with_validation(context: _Context, rows: list[Row]) -> list[Row]:
    """Return `rows` with a validation split carved from the training patients, where the source has none."""
    if not context.official.exist or any(row.split == "val" for row in rows):
        return rows
    splits: Iterable[Split] = (
        carve_validation(context.facts, row.patient) if row.split == "train" else row.split for row in rows
    )
    return [replace(row, split=split) for row, split in zip(rows, splits, strict=True)]


def _check_labels(facts: FactFile, labeller: Labeller) -> None:
    if labeller.unknown:
        raise UnknownLabelsError(
            f"The labels of {facts.title} must be known to its fact file, got {len(labeller.unknown)} unknown ones. "
            f"{labeller.way_out}",
            labeller.unknown,
        )
