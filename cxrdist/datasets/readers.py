"""Table files to rows of text cells: CSV, Parquet, JSON, JSON Lines, COCO, XML, and lines by pattern.

Text stays text: ids of 30 digits do not survive a float.
"""

import gzip
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from cxrdist.datasets.codes import code
from cxrdist.datasets.delimited import LARGEST_HEADER, decode, header_cells, rows_of
from cxrdist.datasets.layouts import SPREADSHEET_SUFFIXES, TableFile, Xml
from cxrdist.errors import UserError

Cells = dict[str, str]
BLANKS = frozenset(("", "nan", "none", "null", "n/a"))
LIST_SEPARATOR = "|"
"""Between the entries of a cell that holds several: a list in JSON, the values of several rows of one image."""
SPREADSHEETS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")
"""How files of spreadsheet programs begin, of any name."""
LARGEST_XML = 2**24
"""Bytes of one XML file; a report is a few thousand."""


def read_table(
    path: Path, how: TableFile | None = None, columns: Mapping[str, set[str]] | None = None
) -> Iterator[Cells]:
    """Yield each row's cells as text, by column name stripped and in lower case; blank cells are left out.

    Args:
        path: The file; ``.gz`` is inflated.
        how: How it is written; by default the name says it.
        columns: The columns wanted, each with the words that are not blank in it though they look so (``none`` can be
            a grade); in lower case.  None wants all.

    Raises:
        UserError: If the file is no readable table.
    """
    how = how or TableFile(files=[f"*{path.suffix}"])
    renamed = {old.strip().lower(): new.strip().lower() for old, new in how.rename.items()}
    allowed = {column.strip().lower(): {code(value) for value in values} for column, values in how.where.items()}
    blanks = {column: BLANKS - words | {""} for column, words in (columns or {}).items()}
    blanks |= {column: blanks.get(column, BLANKS) - words | {""} for column, words in allowed.items()}
    names: dict[str, str] = {}  # one string a column: rows by the hundred thousand are kept
    for row in _rows(path, how):
        cells: Cells = {}
        for column, value in row:
            name = names.get(column)
            if name is None:
                plain = column.strip().lower()
                name = names[column] = renamed.get(plain, plain)
            text = value.strip()
            blank = text.lower() in blanks.get(name, BLANKS)
            if name and name not in cells and not blank and (columns is None or name in blanks):
                cells[name] = text
        if cells and all(column not in cells or code(cells[column]) in allowed[column] for column in allowed):
            yield cells


def header_of(path: Path, separator: str | None = None) -> set[str]:
    """Return the column names of a table, stripped and in lower case; nothing if it cannot be read.

    `separator` is what the fact file says of it.
    """
    name = path.name.lower().removesuffix(".gz")
    try:
        if name.endswith(".parquet"):
            import pyarrow.parquet as pq  # noqa: PLC0415 - slow to import, and most tables are CSV

            return {str(column).strip().lower() for column in pq.read_schema(path).names}
        with _open(path) as file:
            text = decode(file.read(LARGEST_HEADER), whole=False)
        if name.endswith((".json", ".jsonl")):  # often one name or bracket per line
            return {match.lower() for match in re.findall(r'"([^"\\]{1,80})"\s*:', text)}
        return {column.strip().lower() for column in header_cells(text, separator)}
    except Exception:  # whatever a damaged file does to the library, it is no table with these columns
        return set()


def spreadsheet_hint(paths: Iterable[str], patterns: Iterable[str]) -> str:
    """Return what to do where a spreadsheet lies in place of a table of one of the patterns, else nothing."""
    for pattern in patterns:
        beginning = pattern.rsplit("/", 1)[-1].rpartition(".")[0]
        names = [f"{beginning}{suffix}".lower() for suffix in SPREADSHEET_SUFFIXES if beginning]
        if any(fnmatchcase(path.rsplit("/", 1)[-1].lower(), name) for path in paths for name in names):
            return f" There is a spreadsheet of that name: save it as CSV, to be found as {pattern}."
    return ""


def read_list(path: Path, where: str = "") -> list[str]:
    """Return the non-empty lines of a text file; `where` as in `read_text`."""
    return [line.strip() for line in read_text(path, where).splitlines() if line.strip()]


def read_text(path: Path, where: str = "") -> str:
    """Return the text of a file, as `decode` does; `where` names it in errors: its own name can be a patient's.

    Raises:
        UserError: If it cannot be read, or if it is a spreadsheet.
    """
    place = f" [in {where}]" if where else ""
    try:
        with _open(path) as file:
            data = file.read()
    except (OSError, EOFError, zlib.error):
        raise UserError(f"A table must be a whole file, got a damaged one{place}.") from None
    if data.startswith(SPREADSHEETS):
        raise UserError(f"A table must be CSV, Parquet or JSON, got a spreadsheet{place}. Save it as CSV.")
    return decode(data)


def _rows(path: Path, how: TableFile) -> Iterator[Iterable[tuple[str, str]]]:
    name = path.name.lower().removesuffix(".gz")
    where = " or ".join(how.files)
    if how.xml:
        yield from _xml_rows(path, how.xml)
    elif how.lines:
        yield from _line_rows(path, how.lines, where)
    elif name.endswith(".parquet"):
        yield from _parquet_rows(path, where)
    elif name.endswith((".json", ".jsonl")):
        yield from (_flat(row) for row in _json_rows(path, where))
    else:
        yield from rows_of(read_text(path, where), how.separator, how.header, where)


def _line_rows(path: Path, lines: Sequence[str], where: str) -> Iterator[Iterable[tuple[str, str]]]:
    patterns = [re.compile(pattern, re.IGNORECASE) for pattern in lines]
    strange = 0
    for line in read_list(path, where):
        match = next((found for found in (pattern.fullmatch(line) for pattern in patterns) if found), None)
        if match is None:
            strange += 1
            continue
        yield [(name, value or "") for name, value in match.groupdict().items()]
    if strange:
        raise UserError(
            f"Each line must be of a form that the fact file knows, got {strange} that are not [in {where}]. "
            f"Add a pattern to `lines`."
        )


def _parquet_rows(path: Path, where: str) -> Iterator[Iterable[tuple[str, str]]]:
    import pyarrow as pa  # noqa: PLC0415 - slow to import, and most tables are CSV
    import pyarrow.parquet as pq  # noqa: PLC0415

    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches():
                yield from (_flat(row) for row in batch.to_pylist())
    except (OSError, pa.ArrowException, ValueError, OverflowError):  # texts that are none, dates of no calendar
        raise UserError(f"A table must be Parquet, got an unreadable one [in {where}].") from None


def _json_rows(path: Path, where: str) -> Iterator[Mapping[str, Any]]:
    """Yield objects of a list, of lines, or of a COCO file: there an image with its annotations' categories."""
    text = read_text(path, where)
    wrong = UserError(f"A table must be JSON with an object per row, got an unreadable one [in {where}].")
    try:
        tree = json.loads(text)
        rows = tree if isinstance(tree, list) else _coco(tree) if "images" in tree else [tree]
    except (ValueError, TypeError, RecursionError):
        try:
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
        except (ValueError, RecursionError):
            raise wrong from None
    except (KeyError, AttributeError):
        raise wrong from None
    if not all(isinstance(row, dict) for row in rows):
        raise wrong
    yield from rows


def _coco(tree: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row per image: its own fields, and ``categories``, the names of its annotations."""
    names = {category["id"]: category["name"] for category in tree.get("categories", [])}
    found: dict[Any, list[str]] = {}
    for annotation in tree.get("annotations", []):
        name = names[annotation["category_id"]]
        listed = found.setdefault(annotation["image_id"], [])
        if name not in listed:
            listed.append(name)
    return [{**image, "categories": found.get(image["id"], [])} for image in tree["images"]]


def _flat(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in row.items():
        if isinstance(value, list | tuple):
            texts = [_scalar(part) for part in value if not isinstance(part, list | tuple | dict)]
            yield str(name), LIST_SEPARATOR.join(dict.fromkeys(texts))
        elif not isinstance(value, dict):
            yield str(name), _scalar(value)


def _scalar(value: Any) -> str:
    return "" if value is None else str(int(value)) if isinstance(value, bool) else str(value)


def _xml_rows(path: Path, how: Xml) -> Iterator[Iterable[tuple[str, str]]]:
    try:
        with _open(path) as file:
            data = file.read(LARGEST_XML + 1)
        if len(data) > LARGEST_XML or b"<!ENTITY" in data:  # a small file can name itself into gigabytes
            raise ValueError
        top = ElementTree.fromstring(data)
    except (OSError, EOFError, zlib.error, ValueError, ElementTree.ParseError):
        raise UserError("An XML report must be a whole file without entities, got a damaged one.") from None
    for record in top.findall(how.record):
        yield [
            (name, LIST_SEPARATOR.join(_xml_values(top if where.startswith("/") else record, where.lstrip("/"))))
            for name, where in how.cells.items()
        ]


def _xml_values(element: ElementTree.Element, where: str) -> Iterator[str]:
    path, _, attribute = where.partition("@")
    found = element.findall(path) if path else [element]
    for part in found:
        yield (part.get(attribute, "") if attribute else "".join(part.itertext())).strip()


def _open(path: Path) -> Any:
    return gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb")
