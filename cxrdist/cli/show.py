"""Tables in the terminal; plain text where it is no terminal."""

import sys
from collections.abc import Iterable, Sequence

UNBOUNDED = 10_000


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows under a heading; the first column is left-aligned, the others right.

    Nothing is cut off to fit: in a narrow terminal cells fold, and a table piped into a file is as wide as it is.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False, width=None if sys.stdout.isatty() else UNBOUNDED)
    # Texts, so that a name like `[red]` is shown as it is and not taken for markup.
    table = Table(title=Text(title) if title else None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for number, name in enumerate(columns):
        table.add_column(Text(name), justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    console.print(table)
