"""When two cells say the same."""

import math
from functools import lru_cache


@lru_cache(maxsize=4096)
def code(text: str) -> str:
    """Return a number in one spelling (``1``, ``1.0`` and `` 1`` are the same), any other text in lower case."""
    text = text.strip()
    try:
        number = float(text) if len(text) < 16 and "_" not in text else math.nan  # a longer number would lose digits
    except ValueError:
        number = math.nan
    return text.lower() if math.isnan(number) else f"{number:.15g}"
