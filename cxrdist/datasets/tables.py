"""Layouts to records: cells by column name, and the image they speak of."""

import csv
import gzip
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cxrdist.datasets.facts import FactFile, FolderLayout, Table, TableLayout
from cxrdist.datasets.records import Split
from cxrdist.datasets.tree import MARKER_LEVELS, ImageFiles, find, is_image, stem, walk
from cxrdist.errors import UserError

BLANK = ("", "nan", "none", "null", "n/a")


@dataclass(frozen=True)
class Record:
    """One row of a source, or one file of a folder tree."""

    source: str
    """The image's path below the root; where there is no file, the name that the source gives it."""
    image: str
    """What names the image in any copy of the dataset: no suffix, no folder above those that tell images apart."""
    found: bool
    cells: dict[str, str]
    """By column name in lower case; a blank cell is not there."""
    split: Split | None = None
    """The official split of the table that the row is in."""


def read_table(path: Path, rename: dict[str, str] | None = None) -> Iterator[dict[str, str]]:
    """Yield each row's cells as text, by column name stripped and in lower case; blank cells are left out.

    Text stays text: ids of 30 digits do not survive a float.

    Raises:
        UserError: If the file is no readable table.
    """
    csv.field_size_limit(2**27)  # radiology reports are longer than the default allows
    renamed = {old.lower(): new.lower() for old, new in (rename or {}).items()}
    rows = csv.reader(io.StringIO(_text(path), newline=""))
    try:
        header = [renamed.get(name.strip().lower(), name.strip().lower()) for name in next(rows, [])]
        for row in rows:
            cells = {}
            for name, value in zip(header, row, strict=False):
                text = value.strip()
                if name and name not in cells and text.lower() not in BLANK:
                    cells[name] = text
            if cells:
                yield cells
    except csv.Error:
        raise UserError(f"A table must be CSV, got an unreadable one [in {path.name}].") from None


def header_of(path: Path) -> set[str]:
    """Return the column names of a table, stripped and in lower case; nothing if it cannot be read."""
    try:
        with _open(path) as file:
            line = file.readline(2**16).decode("utf-8-sig", errors="replace")
    except (OSError, EOFError):
        return set()
    return {name.strip().lower() for name in next(csv.reader([line]), [])}


def table_records(facts: FactFile, layout: TableLayout, root: Path, images: ImageFiles) -> Iterator[Record]:
    """Yield a record per row of every table of the layout.

    Raises:
        UserError: If a required table is missing.
    """
    near = list(walk(root, levels=MARKER_LEVELS))
    for table in layout.tables:
        path = _find_table(table, layout, root, near)
        if path is None:
            if table.required:
                raise UserError(
                    f"{facts.title} must have a table {' or '.join(table.files)} with a column `{layout.image}` "
                    f"at most {MARKER_LEVELS} levels below `--root`, got none."
                )
            continue
        other = table.unless is not None and bool(find(near, table.unless))
        split = table.split_then if other else table.split
        for cells in read_table(root / path, table.rename):
            named = cells.get(layout.image.lower())
            if named is None:
                continue  # a line without an image names none
            source = images.find(named)
            yield Record(source or named.replace("\\", "/"), images.name(named), source is not None, cells, split)


def folder_records(layout: FolderLayout, root: Path, home: str) -> Iterator[Record]:
    """Yield a record per image of a folder tree whose marker lies in the folder `home` below `root`.

    A copy of the tree inside the tree does not fit the pattern from `home` on, and is passed over.
    """
    pattern = re.compile(layout.path, re.IGNORECASE)
    names = [re.compile(name, re.IGNORECASE) for name in layout.names]
    for path in walk(root / home):
        match = pattern.fullmatch(path) if is_image(path) else None
        if match is None:
            continue
        name = stem(path.rsplit("/", 1)[-1])
        more = next((found for found in (pattern.fullmatch(name) for pattern in names) if found), None)
        groups = match.groupdict() | (more.groupdict() if more else {})
        cells = {group.lower(): text for group, text in groups.items() if text}
        yield Record(f"{home}/{path}" if home else path, stem(path), True, cells)


def read_list(path: Path) -> list[str]:
    """Return the non-empty lines of a text file."""
    return [line.strip() for line in _text(path).splitlines() if line.strip()]


def _find_table(table: Table, layout: TableLayout, root: Path, near: list[str]) -> str | None:
    column = layout.image.lower()
    renamed = {old.lower() for old, new in table.rename.items() if new.lower() == column}
    for pattern in table.files:
        for path in find(near, pattern):
            if header_of(root / path) & {column, *renamed}:
                return path
    return None


def _open(path: Path) -> io.BufferedIOBase:
    return gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb")


def _text(path: Path) -> str:
    try:
        with _open(path) as file:
            data = file.read()
    except (OSError, EOFError):
        raise UserError(f"A table must be a whole file, got a damaged one [in {path.name}].") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")  # hand-kept tables are saved by spreadsheets
