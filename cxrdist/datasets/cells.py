"""From cells to ids, projection, sex and age."""

import re
from collections.abc import Sequence

from cxrdist.datasets.facts import Age, Cell, FactFile
from cxrdist.datasets.records import Projection, Sex

MAX_AGE, TOP_AGE = 120, 90
YEARS = {"Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}
UNITS = {"years": "Y", "months": "M", "days": "D"}
SEXES: dict[str, Sex] = {"f": "F", "female": "F", "w": "F", "m": "M", "male": "M"}


def read_id(parts: Sequence[Cell], cells: dict[str, str]) -> str | None:
    """Return the id that `parts` make together, joined by ``/``; None if one of them is blank."""
    values = [read_cell(part, cells) for part in parts]
    return "/".join(value for value in values if value) if parts and all(values) else None


def read_cell(cell: Cell, cells: dict[str, str]) -> str | None:
    """Return the cell's text, or the part of it that its pattern matches."""
    text = cells.get(cell.column.lower())
    if text is None or cell.pattern is None:
        return text
    match = re.search(cell.pattern, text, re.IGNORECASE)
    return match[1] if match else None


def read_projection(facts: FactFile, cells: dict[str, str]) -> tuple[Projection, bool]:
    """Return the projection, and whether it is frontal (known even where PA or AP is not)."""
    known = {code.lower(): value for code, value in facts.projections.items()}
    codes = [read_cell(cell, cells) for cell in facts.columns.projection]
    value = next((known[code.lower()] for code in codes if code and code.lower() in known), known.get("*", "unknown"))
    if value == "frontal":
        return "unknown", True
    return value, value in ("PA", "AP")


def read_sex(cell: Cell | None, cells: dict[str, str]) -> Sex:
    """Return F or M where the source says it."""
    text = read_cell(cell, cells) if cell else None
    return SEXES.get((text or "").lower(), "unknown")


def read_age(age: Age | None, cells: dict[str, str]) -> int | None:
    """Return whole years; 90 stands for 90 and above, None for blank and impossible ages."""
    text = cells.get(age.column.lower()) if age else None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([YMWD]?)", text or "", re.IGNORECASE)
    if age is None or match is None:
        return None
    years = float(match[1]) * YEARS[match[2].upper() or UNITS[age.unit]]
    if years > MAX_AGE or (years == 0 and age.zero_is_missing):
        return None
    return min(int(years), TOP_AGE)
