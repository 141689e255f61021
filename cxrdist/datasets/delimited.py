"""Text with a row per line, as spreadsheets of all countries write it: its encoding, its separator, its quotes."""

import codecs
import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence

from cxrdist.errors import UserError

SEPARATORS = (",", ";", "\t")
"""Semicolons are what spreadsheets write where the comma stands in numbers."""
LARGEST_HEADER = 2**16
LARGEST_CELL = 2**27
"""Characters; radiology reports are longer than Python's default allows."""
_LINE = re.compile(r"[^\r\n]*(?:\r\n?|\n)|[^\r\n]+")
_SAID = re.compile(r'"?sep=([^\r\n])"?(\r\n?|\n)', re.IGNORECASE)
"""A first line by which spreadsheets tell each other the separator."""


def decode(data: bytes, *, whole: bool = True) -> str:
    """Return text in UTF-8 with or without a byte-order mark, in UTF-16 with one, or in Latin-1.

    Without `whole` it may end within a character.
    """
    marked = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return codecs.getincrementaldecoder("utf-16" if marked else "utf-8-sig")().decode(data, final=whole)
    except UnicodeDecodeError:
        return data.decode("latin-1")  # hand-kept tables are saved by spreadsheets


def header_cells(text: str, separator: str | None = None) -> list[str]:
    """Return the cells of the first line; `separator` as in `rows_of`."""
    text, separator = _separated(text[:LARGEST_HEADER], separator, ())
    return next(_reader(io.StringIO(text, newline=""), separator), [])


def rows_of(text: str, separator: str | None, header: Sequence[str], where: str) -> Iterator[Iterable[tuple[str, str]]]:
    """Yield the (column, cell) pairs of each row.

    Args:
        text: The whole table.
        separator: Between the cells; None: the one of `SEPARATORS` that the first line has most of.
        header: The columns' names, where the first line is none of names.
        where: What names the table in errors.

    Raises:
        UserError: If it is no such text, or if a quote that nobody closes has made one cell of many rows.
    """
    text, separator = _separated(text, separator, header)
    lines: list[str] = []
    rows = _reader(_kept(text, lines), separator)
    try:
        names = list(header) or next(rows, [])
        lines.clear()
        for number, row in enumerate(rows, 1 if header else 2):
            lost = _rows_within(lines, len(names), separator) if len(lines) > 1 else 0
            if lost:
                raise UserError(
                    f"Quotes in a table must be closed, got one in row {number} that makes one cell of {lost} more "
                    f"rows [in {where}]. Take it out there, or write it twice within quotes."
                )
            lines.clear()
            yield zip(names, row, strict=False)
    except csv.Error:
        raise UserError(f"A table must be CSV, got an unreadable one [in {where}].") from None


def _kept(text: str, lines: list[str]) -> Iterator[str]:
    """Yield the lines of the text, and add them to `lines`."""
    for found in _LINE.finditer(text):  # `io.StringIO` would hold the text once more, in four bytes a character
        lines.append(found[0])
        yield found[0]


def _reader(lines: Iterable[str], separator: str, *, strict: bool = False) -> Iterator[list[str]]:
    csv.field_size_limit(LARGEST_CELL)
    return csv.reader(lines, delimiter=separator, strict=strict)


def _separated(text: str, separator: str | None, header: Sequence[str]) -> tuple[str, str]:
    """Return the text without a first line that only tells the separator, and the separator."""
    said = _SAID.match(text)
    if said:
        return text[said.end() :], separator or said[1]
    if separator:
        return text, separator
    start = text[:LARGEST_HEADER]
    widths = {each: len(next(_reader(io.StringIO(start, newline=""), each), [])) for each in SEPARATORS}
    if header:  # a row of data: words in a cell may be separated by another
        return text, next((each for each in SEPARATORS if widths[each] == len(header)), SEPARATORS[0])
    return text, max(SEPARATORS, key=lambda each: widths[each])


def _rows_within(lines: Sequence[str], width: int, separator: str) -> int:
    """Return how many rows of the table the lines of one row seem to hold besides; 0 for a text of several lines.

    Few lines tell only where the table is wide, and one does where the quotes are wrong, too.
    """
    fits = [
        line.count(separator) >= width - 1
        and line.count('"') % 2 == 0
        and len(next(_reader([line], separator), [])) == width
        for line in lines[1:]
    ]
    found = sum(fits)
    inner = len(fits) if fits[-1] else len(fits) - 1  # the last one may end within a row
    if width < 2 or not found or found < 0.8 * inner:
        return 0
    try:
        for _ in _reader(lines, separator, strict=True):
            pass
        least = 3 if width >= 5 else 20
    except csv.Error:
        least = 1 if width >= 5 else 3
    return found if found >= least else 0
