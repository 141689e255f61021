"""When two cells say the same."""

import re
from functools import lru_cache

_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)")


@lru_cache(maxsize=4096)
def code(text: str) -> str:
    """Return a number in one spelling (``1``, ``1.0`` and `` 1`` are the same), any other text in lower case."""
    text = text.strip()
    # A longer number would lose digits; 12e5 is part of somebody's id.
    return f"{float(text):.15g}" if len(text) < 16 and _NUMBER.fullmatch(text) else text.lower()


def key(text: str) -> str:
    """Return an id in one spelling: whole numbers that a spreadsheet has written as 12.0 are 12; 0012 is another id."""
    return re.sub(r"^(\d+)\.0+$", r"\1", text.strip().lower())
