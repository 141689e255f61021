"""Tables in the terminal; plain text where it is no terminal."""

import os
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

UNBOUNDED = 10_000
BETWEEN, EDGES = 3, 2
"""Characters between two columns of a table, and at both its ends together."""


def print_table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    keys: int = 1,
    width: int | None = None,
) -> None:
    """Print rows under a heading; the first column is left-aligned, the others right.

    Nothing is cut off to fit, and no number is broken: where a table is wider than the terminal, it comes in blocks of
    columns, and where not even one column fits beside the keys, a line per cell.  A table piped into a file is as wide
    as it is, unless `COLUMNS` is set.

    Args:
        title: Line above it; empty for none.
        columns: Headings.
        rows: A cell per column.
        keys: How many leading columns say what a row is about; every block repeats them.
        width: In characters; None: that of the terminal.
    """
    from rich.console import Console
    from rich.text import Text

    if width is None and not sys.stdout.isatty() and not os.environ.get("COLUMNS", "").isdigit():
        width = UNBOUNDED
    console = Console(highlight=False, width=width)
    table = [[str(cell) for cell in row] for row in rows]
    if title:
        # Not the table's own, which would fold at the width of a block.
        console.print(Text(title, style="table.title"))
    blocks = _blocks(columns, table, keys, console.width)
    for widths in blocks:
        _print_block(console, columns, table, widths)
    if not blocks:
        _print_lines(console, columns, table, keys)


def _blocks(columns: Sequence[str], rows: Sequence[Sequence[str]], keys: int, width: int) -> list[dict[int, int]]:
    """Return for each block its columns with their widths; none if a column does not fit beside the keys.

    A block is as many columns as fit.  Headings fold between words; cells of keys do so where it makes fewer blocks.
    """
    cells = [max((_length(row[i]) for row in rows), default=0) for i in range(len(columns))]
    whole = [max(cells[i], _length(name)) for i, name in enumerate(columns)]
    if _total(whole) <= width:
        return [dict(enumerate(whole))]
    least = [max(cells[i], _longest_word([name])) for i, name in enumerate(columns)]
    folded = [_longest_word([columns[i], *(row[i] for row in rows)]) for i in range(keys)]
    found = []
    while True:
        found.append(_packed(least, keys, width))
        give = max(range(keys), key=lambda i: least[i] - folded[i])
        if least[give] == folded[give]:
            break
        least[give] -= 1
    return min((blocks for blocks in found if blocks), key=len, default=[])


def _packed(widths: Sequence[int], keys: int, width: int) -> list[dict[int, int]]:
    """Return blocks with keys of just these widths, none if a column does not fit."""
    first = dict(enumerate(widths[:keys]))
    blocks = [first]
    for i in range(keys, len(widths)):
        if _total([*blocks[-1].values(), widths[i]]) > width and len(blocks[-1]) > keys:
            blocks.append(first)
        blocks[-1] = {**blocks[-1], i: widths[i]}
    return blocks if all(_total([*block.values()]) <= width for block in blocks) else []


def _print_block(
    console: "Console", columns: Sequence[str], rows: Sequence[Sequence[str]], widths: dict[int, int]
) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    # Texts, so that a name like `[red]` is shown as it is and not taken for markup.
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for i, width in widths.items():
        table.add_column(Text(columns[i]), justify="right" if i else "left", overflow="fold", width=width)
    for row in rows:
        table.add_row(*(Text(row[i]) for i in widths))
    console.print(table)


def _print_lines(console: "Console", columns: Sequence[str], rows: Sequence[Sequence[str]], keys: int) -> None:
    """Print each row as its keys and a line per cell; a cell that does not fit behind its heading goes below it."""
    from rich.text import Text

    for row in rows:
        console.print()
        for name, cell in zip(columns[:keys], row[:keys], strict=True):
            console.print(Text(f"{name}: {cell}", overflow="fold"))
        for name, cell in zip(columns[keys:], row[keys:], strict=True):
            fits = _length(name) + len("  : ") + _length(cell) <= console.width
            console.print(Text(f"  {name}: {cell}" if fits else f"  {name}:\n{cell}", overflow="fold"))
    console.print()


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + BETWEEN * (len(widths) - 1) + EDGES


def _length(text: str) -> int:
    """Return how many characters of a terminal a text takes; those of Chinese take two."""
    from rich.cells import cell_len

    return max((cell_len(line) for line in text.splitlines()), default=0)


def _longest_word(texts: Iterable[str]) -> int:
    return max((_length(word) for text in texts for word in text.split()), default=0)
