"""Layouts to records: cells by column name, and the image they speak of."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from sys import intern

from cxrdist.datasets.cells import read_cell
from cxrdist.datasets.codes import code
from cxrdist.datasets.facts import FactFile, columns_of, columns_read
from cxrdist.datasets.layouts import Cell, FolderLayout, Join, NamedBy, TableFile, TableLayout, Text
from cxrdist.datasets.readers import Cells, header_of, read_table, read_text
from cxrdist.datasets.records import Split
from cxrdist.datasets.tree import MARKER_LEVELS, ImageFiles, Tree, find, is_image, stem
from cxrdist.errors import UserError

LARGEST_TEXT = 2**20


@dataclass(frozen=True)
class Record:
    """One row of a source, or one file of a folder tree."""

    source: str
    """The image's path below the root; where there is no file, the name that the source gives it."""
    image: str
    """What names the image in any copy of the dataset: no suffix, no folder above those that tell images apart."""
    found: bool
    cells: Cells
    """By column name in lower case; a blank cell is not there."""
    split: Split | None = None
    """The official split of the table that the row is in."""
    labelled: bool = True
    """False where a table that must have a row for it has none."""
    others: tuple[str, ...] = ()
    """Further files that the row itself names for the same image (DICOM and PNG)."""


def table_records(facts: FactFile, layout: TableLayout, tree: Tree, images: ImageFiles) -> Iterator[Record]:
    """Yield a record per row of every table of the layout.

    Raises:
        UserError: If a required table is missing, or if there is none at all.
    """
    near = tree.near()
    joined = Joined(facts, layout.joins, tree, near)
    wanted = columns_read(facts)
    read = 0
    for table in layout.tables:
        columns = table.named_by.on if table.named_by else columns_of(layout.image)
        paths = _find_tables(table, columns, tree, near)
        if not paths and table.required:
            raise UserError(_lacks(facts, table.files, f"a column `{columns[0]}`"))
        read += len(paths)
        other = table.unless is not None and bool(find(near, table.unless))
        split = table.split_then if other else table.split
        studies = ImagesOfStudies(facts, table.named_by, layout.image, tree, near) if table.named_by and paths else None
        for path in paths:
            rows = read_table(tree.path(path), table, wanted)
            for cells in studies.named(rows) if studies else rows:
                named = [name for name in (read_cell(cell, cells) for cell in layout.image) if name]
                if not named:
                    continue  # a line without an image names none
                found = _found(images, [_in_folder(table.folder, name) for name in named])
                whole, labelled = joined.add(_interned(cells))
                name = _in_folder(table.folder, named[0])
                if found:
                    yield Record(found[0], images.name(name), True, whole, split, labelled, tuple(found[1:]))
                else:
                    yield Record(name, images.name(name), False, whole, split, labelled)
    if not read:
        names = [name for table in layout.tables for name in table.files]
        raise UserError(_lacks(facts, names, f"a column `{layout.image[0].column}`"))


def folder_records(facts: FactFile, layout: FolderLayout, tree: Tree, home: str) -> Iterator[Record]:
    """Yield a record per image of a folder tree whose marker lies in the folder `home`.

    A copy of the tree inside the tree does not fit the pattern from `home` on, and is passed over.
    """
    below = [path for path in tree.below(home) if is_image(path, layout.suffixes)]
    patterns = [re.compile(path, re.IGNORECASE) for path in layout.path]
    fitting = next((pattern for pattern in patterns if any(map(pattern.fullmatch, below))), patterns[0])
    names = [re.compile(name, re.IGNORECASE) for name in layout.names]
    texts = [_Texts(text, tree) for text in layout.texts]
    joined = Joined(facts, layout.joins, tree, tree.near())
    prefix = home if home.endswith(":") or not home else f"{home}/"
    for path in below:
        match = fitting.fullmatch(path)
        if match is None:
            continue
        name = stem(path.rsplit("/", 1)[-1])
        more = next((found for found in (pattern.fullmatch(name) for pattern in names) if found), None)
        groups = match.groupdict() | (more.groupdict() if more else {})
        cells = {group.lower(): text for group, text in groups.items() if text}
        for text in texts:
            cells = text.cells(name) | cells
        whole, labelled = joined.add({"name": name} | cells)
        yield Record(prefix + path, stem(path), True, whole, None, labelled)


class Joined:
    """The tables that add columns to the images' own rows.

    Several rows for one image: each column holds the different values, joined by ``|``.

    Raises:
        UserError: If a required table is missing.
    """

    def __init__(self, facts: FactFile, joins: list[Join], tree: Tree, near: list[str]) -> None:
        self._joins: list[tuple[Join, dict[tuple[str, ...], Cells]]] = []
        wanted = columns_read(facts)
        for join in joins:
            paths = _find_tables(join, join.on, tree, near)
            if not paths and join.required:
                raise UserError(_lacks(facts, join.files, f"columns {', '.join(join.on)}"))
            if not paths:
                continue
            rows: dict[tuple[str, ...], Cells] = {}
            for path in paths:
                for cells in read_table(tree.path(path), join, wanted):
                    key = _key(join, cells)
                    if key:
                        _merge(rows.setdefault(key, {}), _interned(cells))
            self._joins.append((join, rows))

    def add(self, cells: Cells) -> tuple[Cells, bool]:
        """Return `cells` with those of every table, and whether every table that must have a row for them has one."""
        labelled = True
        for join, rows in self._joins:
            key = _key(join, cells)
            more = rows.get(key) if key else None
            if more is None:
                labelled = labelled and join.unmatched == "keep"
            else:
                cells = cells | more if join.overwrite else more | cells
        return cells, labelled


class ImagesOfStudies:
    """The table that names the images of another table's rows; a row that names its image itself needs none."""

    def __init__(self, facts: FactFile, named_by: NamedBy, image: list[Cell], tree: Tree, near: list[str]) -> None:
        self._facts, self._by, self._image = facts, named_by, image
        self._images: dict[tuple[str, ...], list[Cells]] = {}
        self._paths = _find_tables(named_by, named_by.on, tree, near)
        for path in self._paths:
            for cells in read_table(tree.path(path), named_by, columns_read(facts)):
                key = _key(named_by, cells)
                if key:
                    self._images.setdefault(key, []).append(_interned(cells))

    def named(self, rows: Iterable[Cells]) -> Iterator[Cells]:
        """Yield each row once for every image of its study, with that image's cells.

        Raises:
            UserError: If the table is missing, and a row needs it.
        """
        for cells in rows:
            if any(read_cell(cell, cells) for cell in self._image):
                yield cells
                continue
            if not self._paths:
                raise UserError(_lacks(self._facts, self._by.files, f"columns {', '.join(self._by.on)}"))
            key = _key(self._by, cells)
            for image in self._images.get(key, []) if key else []:
                yield image | cells


class _Texts:
    """Text files beside the images."""

    def __init__(self, text: Text, tree: Tree) -> None:
        self._tree = tree
        self._patterns = [re.compile(pattern, re.IGNORECASE | re.MULTILINE) for pattern in text.patterns]
        wanted = text.folder.lower()
        files = [path for path in tree.files if path.lower().endswith(".txt")]
        self._files = {
            path.lower().rsplit("/", 1)[-1].removesuffix(".txt"): path
            for path in reversed(files)
            if wanted in path.lower().split("/")[:-1]
        }

    def cells(self, name: str) -> Cells:
        """Return what the text of the image `name` says; nothing where there is none, or it cannot be read."""
        path = self._files.get(name.lower())
        if path is None or self._tree.path(path).stat().st_size > LARGEST_TEXT:
            return {}
        try:
            text = read_text(self._tree.path(path))
        except UserError:
            return {}
        found: Cells = {}
        for pattern in self._patterns:
            match = pattern.search(text)
            for group, value in (match.groupdict() if match else {}).items():
                if value and value.strip():
                    found.setdefault(group.lower(), value.strip())
        return found


def _found(images: ImageFiles, names: list[str]) -> list[str]:
    return list(dict.fromkeys(path for path in map(images.find, names) if path))


def _in_folder(folder: str, name: str) -> str:
    name = name.replace("\\", "/")
    return f"{folder}/{name}" if folder else name


def _find_tables(table: TableFile, columns: list[str], tree: Tree, near: list[str]) -> list[str]:
    """Return the files of a table: the best one that has (one of) the columns, or all, if the table says so."""
    wanted = {column.lower() for column in columns}
    wanted |= {old.lower() for old, new in table.rename.items() if new.lower() in wanted}
    for pattern in table.files:
        paths = find(near, pattern)
        if not (table.lines or table.xml or table.header):
            paths = [path for path in paths if header_of_table(tree.path(path), table) & wanted]
        if paths:
            return sorted(paths) if table.every else paths[:1]
    return []


def header_of_table(path: Path, table: TableFile) -> set[str]:
    """Return the column names of a table, as `header_of`, for any separator."""
    names = header_of(path)
    if table.separator != ",":
        names = {part.strip() for name in names for part in name.split(table.separator)}
    # The beginning of a COCO file may tell nothing of its rows.
    return names | {"file_name", "categories"} if names & {"images", "annotations"} else names


def _key(join: Join | NamedBy, cells: Cells) -> tuple[str, ...] | None:
    values = [cells.get(column.strip().lower()) for column in join.on]
    return tuple(code(value) for value in values if value) if all(values) else None


def _merge(into: Cells, cells: Cells) -> None:
    for column, value in cells.items():
        old = into.get(column)
        if old is None:
            into[column] = value
        elif value not in old.split("|"):
            into[column] = f"{old}|{value}"


def _interned(cells: Cells) -> Cells:
    # Tables of hundreds of thousands of rows repeat a few values.
    return {name: intern(value) if len(value) < 16 else value for name, value in cells.items()}


def _lacks(facts: FactFile, files: list[str], what: str) -> str:
    names = " or ".join(dict.fromkeys(files))
    return (
        f"{facts.title} must have a table {names} with {what} at most {MARKER_LEVELS} levels below `--root`, got none. "
        f"Where it lies elsewhere, name that folder by a further `--root`."
    )
