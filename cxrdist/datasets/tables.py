"""Layouts to records: cells by column name, and the image they speak of."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from sys import intern

from cxrdist.datasets.cells import read_cell
from cxrdist.datasets.codes import key as id_key
from cxrdist.datasets.columns import columns_of, columns_read, required_columns
from cxrdist.datasets.facts import FactFile
from cxrdist.datasets.layouts import Cell, FolderLayout, Join, NamedBy, TableFile, TableLayout, Text
from cxrdist.datasets.readers import LIST_SEPARATOR, Cells, header_of, read_table, read_text
from cxrdist.datasets.records import Split
from cxrdist.datasets.tree import MARKER_LEVELS, ImageFiles, Tree, find, folder_prefix, is_image, stem
from cxrdist.errors import UserError, nearest
from cxrdist.log import get_logger

LARGEST_TEXT = 2**20
log = get_logger(__name__)


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


class Tables:
    """The tables of a dataset, found near its marker first, and the columns that were met in them."""

    def __init__(self, facts: FactFile, tree: Tree, home: str) -> None:
        self.facts, self.tree = facts, tree
        self.near = tree.near()
        self.columns: set[str] = set()
        self.absent: list[str] = []
        """Patterns of optional tables that are not here."""
        self._prefix = folder_prefix(home)
        self._wanted = columns_read(facts)

    def find(self, table: TableFile, columns: Sequence[str]) -> list[str]:
        """Return the files of a table: the best one that has (one of) the columns, or all, if the table says so."""
        wanted = {column.lower() for column in columns}
        wanted |= {old.lower() for old, new in table.rename.items() if new.lower() in wanted}
        for pattern in table.files:
            paths = find(self.near, pattern)
            if not (table.lines or table.xml or table.header):
                marked = self._marked(pattern)
                paths = [path for path in paths if (names := self._header(path, table)) & wanted and marked <= names]
            # Another dataset's table of the same name may lie nearer to the root.
            paths = [path for path in paths if path.startswith(self._prefix)] or paths
            if paths:
                return sorted(paths) if table.every else paths[:1]
        return []

    def rows(self, path: str, table: TableFile) -> Iterator[Cells]:
        """Yield the rows of a table that was found, with the columns that the facts name."""
        renamed = {old.strip().lower(): new.strip().lower() for old, new in table.rename.items()}
        self.columns |= {renamed.get(name, name) for name in self._header(path, table)}
        for cells in read_table(self.tree.path(path), table, self._wanted):
            self.columns.update(cells)
            yield cells

    def check(self) -> None:
        """Make sure that every column which the facts name is in a table.

        Raises:
            UserError: If one is in none; where an optional table is not here, that is a warning.
        """
        optional = {name.strip().lower() for name in self.facts.optional_columns}
        lacking = {
            names: where
            for names, where in required_columns(self.facts).items()
            if not (self.columns.intersection(names) or optional.intersection(names))
        }
        if lacking and not self.absent:
            raise UserError(
                "\n".join(
                    f"`{where}` must name a column of a table of {self.facts.title}, got {names[0]!r}, which none has."
                    f"{nearest(names[0], sorted(self.columns))}"
                    for names, where in lacking.items()
                )
            )
        if lacking:
            log.warning(
                "%s has no column %s here (nor %s): what they say is not known of any image.",
                self.facts.title,
                ", ".join(repr(names[0]) for names in lacking),
                ", ".join(dict.fromkeys(self.absent)),
            )

    def _header(self, path: str, table: TableFile) -> set[str]:
        """Return the column names of a table, with those of a COCO file."""
        names = header_of(self.tree.path(path), table.separator)
        # The beginning of a COCO file may tell nothing of its rows.
        return names | {"file_name", "categories"} if names & {"images", "annotations"} else names

    def _marked(self, pattern: str) -> set[str]:
        """Return the columns by which a marker knows the table of this name."""
        known = [marker.columns for marker in self.facts.markers if marker.paths == [pattern]]
        return {column.strip().lower() for column in known[0]} if known else set()


def table_records(layout: TableLayout, tables: Tables, images: ImageFiles) -> Iterator[Record]:
    """Yield a record per row of every table of the layout.

    Raises:
        UserError: If a required table is missing, or if there is none at all.
    """
    facts = tables.facts
    joined = Joined(layout.joins, tables)
    read = nameless = 0
    for table in layout.tables:
        columns = table.named_by.on if table.named_by else columns_of(layout.image)
        paths = tables.find(table, columns)
        if not paths and table.required:
            raise UserError(_lacks(facts, table.files, f"a column `{columns[0]}`"))
        if not paths:
            tables.absent.append(table.files[0])
        read += len(paths)
        other = table.unless is not None and bool(tables.find(TableFile(files=[table.unless]), columns))
        split = table.split_then if other else table.split
        studies = ImagesOfStudies(table.named_by, layout.image, tables) if table.named_by and paths else None
        for path in paths:
            rows = tables.rows(path, table)
            for cells in studies.named(rows) if studies else rows:
                named = [name for name in (read_cell(cell, cells) for cell in layout.image) if name]
                if not named:
                    nameless += 1
                    continue
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
    if nameless:
        log.warning("%d rows of the tables of %s name no image, and count as none.", nameless, facts.title)


def folder_records(layout: FolderLayout, tables: Tables, home: str) -> Iterator[Record]:
    """Yield a record per image of a folder tree whose marker lies in the folder `home`.

    A copy of the tree inside the tree does not fit the pattern from `home` on, and is passed over.
    """
    tree = tables.tree
    below = [path for path in tree.below(home) if is_image(path, layout.suffixes)]
    patterns = [re.compile(path, re.IGNORECASE) for path in layout.path]
    fitting = next((pattern for pattern in patterns if any(map(pattern.fullmatch, below))), patterns[0])
    names = [re.compile(name, re.IGNORECASE) for name in layout.names]
    texts = [_Texts(text, tree) for text in layout.texts]
    joined = Joined(layout.joins, tables)
    said = [*patterns, *names, *(re.compile(pattern) for text in layout.texts for pattern in text.patterns)]
    tables.columns |= {"name", *(group.lower() for pattern in said for group in pattern.groupindex)}
    prefix = folder_prefix(home)
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

    Several rows for one image must agree; where the facts say that each says more, a column holds the different values,
    joined by ``|``.

    Raises:
        UserError: If a required table is missing, or if rows for one image differ.
    """

    def __init__(self, joins: list[Join], tables: Tables) -> None:
        self._joins: list[tuple[Join, dict[tuple[str, ...], Cells]]] = []
        for join in joins:
            paths = tables.find(join, join.on)
            if not paths and join.required:
                raise UserError(_lacks(tables.facts, join.files, f"columns {', '.join(join.on)}"))
            if not paths:
                tables.absent.append(join.files[0])
                continue
            rows: dict[tuple[str, ...], Cells] = {}
            differing = set()
            for path in paths:
                for cells in tables.rows(path, join):
                    key = _key(join, cells)
                    if key and not _merge(rows.setdefault(key, {}), _interned(cells)):
                        differing.add(key)
            if differing and join.repeats == "error":
                raise UserError(
                    f"A joined table must have one row per image, or rows that agree, got {len(differing)} with others "
                    f"[in {join.files[0]}]. Name more columns in `on`, or say `repeats: union` if each row says more."
                )
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

    def __init__(self, named_by: NamedBy, image: list[Cell], tables: Tables) -> None:
        self._facts, self._by, self._image = tables.facts, named_by, image
        self._images: dict[tuple[str, ...], list[Cells]] = {}
        self._paths = tables.find(named_by, named_by.on)
        for path in self._paths:
            for cells in tables.rows(path, named_by):
                key = _key(named_by, cells)
                if key:
                    self._images.setdefault(key, []).append(_interned(cells))

    def named(self, rows: Iterable[Cells]) -> Iterator[Cells]:
        """Yield each row once for every image of its study, with that image's cells.

        A study without an image in the table is yielded as one, under its own name: it is a reject.

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
            lost = {self._image[0].column.strip().lower(): "/".join(key)} if key else {}
            for image in self._images.get(key, [lost]) if key else [lost]:
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


def _key(join: Join | NamedBy, cells: Cells) -> tuple[str, ...] | None:
    values = [cells.get(column.strip().lower()) for column in join.on]
    return tuple(id_key(value) for value in values if value) if all(values) else None


def _merge(into: Cells, cells: Cells) -> bool:
    """Add `cells` to those of the same image; return whether they agree."""
    agree = True
    for column, value in cells.items():
        old = into.get(column)
        if old is None:
            into[column] = value
        elif value not in old.split(LIST_SEPARATOR):
            into[column], agree = f"{old}{LIST_SEPARATOR}{value}", False
    return agree


def _interned(cells: Cells) -> Cells:
    # Tables of hundreds of thousands of rows repeat a few values.
    return {name: intern(value) if len(value) < 16 else value for name, value in cells.items()}


def _lacks(facts: FactFile, files: list[str], what: str) -> str:
    names = " or ".join(dict.fromkeys(files))
    return (
        f"{facts.title} must have a table {names} with {what} at most {MARKER_LEVELS} levels below `--root`, got none. "
        f"Where it lies elsewhere, name that folder by a further `--root`."
    )
