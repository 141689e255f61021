"""From cells to ids, projection, sex and age."""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from cxrdist.datasets.codes import code
from cxrdist.datasets.facts import Age, FactFile
from cxrdist.datasets.layouts import Cell
from cxrdist.datasets.readers import Cells
from cxrdist.datasets.records import FRONTAL, OLDEST, Projection, Sex

MAX_AGE = 120
YEARS = {"Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}
UNITS = {"years": "Y", "months": "M", "days": "D"}
SEXES: dict[str, Sex] = {
    **dict.fromkeys(("f", "w", "female", "woman", "weiblich", "frau", "femme", "féminin", "feminin"), "F"),
    **dict.fromkeys(("mujer", "femenino"), "F"),
    **dict.fromkeys(("m", "male", "man", "männlich", "maennlich", "mann", "homme", "masculin"), "M"),
    **dict.fromkeys(("hombre", "masculino", "varón", "varon"), "M"),
}
"""Words for the sex in tables of several languages; the letter H and others that are not alike everywhere are not."""


@dataclass(frozen=True)
class ProjectionCell:
    """What the tables say of an image's projection."""

    projection: Projection
    frontal: bool
    """Known to be PA or AP, even where the source does not say which."""
    by_header: bool = False
    """Only the file's own header tells."""


def read_id(parts: Sequence[Cell], cells: Cells) -> str | None:
    """Return the id that `parts` make together, joined by ``/``; None if one of them is blank."""
    values = [read_cell(part, cells) for part in parts]
    return "/".join(value for value in values if value) if parts and all(values) else None


def read_cell(cell: Cell, cells: Cells) -> str | None:
    """Return the cell's text, or the part of it that its pattern matches; of the first of its columns that has it."""
    for column in (cell.column, *cell.otherwise):
        text = cells.get(column.strip().lower())
        if text is None or cell.pattern is None:
            found = text
        else:
            match = re.search(cell.pattern, text, re.IGNORECASE)
            found = match[1] if match else None
        if found is not None:
            return found
    return None


def read_projection(facts: FactFile, cells: Cells) -> ProjectionCell:
    """Return what the first of the projection's columns with a known code says."""
    known = {text.lower(): value for text, value in facts.projections.items()}
    texts = [read_cell(cell, cells) for cell in facts.columns.projection]
    value = next((known[text.lower()] for text in texts if text and text.lower() in known), known.get("*", "unknown"))
    if value == "frontal":
        return ProjectionCell("unknown", True)
    if value == "header":
        return ProjectionCell("unknown", False, by_header=True)
    return ProjectionCell(value, value in FRONTAL)


def read_sex(facts: FactFile, cells: Cells) -> Sex:
    """Return F or M where the source says it."""
    text = read_cell(facts.columns.sex, cells) if facts.columns.sex else None
    if text is None:
        return "unknown"
    own = {code(name): sex for name, sex in facts.sexes.items()}
    return own.get(code(text)) or SEXES.get(unicodedata.normalize("NFC", text).lower().rstrip(". "), "unknown")


def read_age(age: Age | None, cells: Cells) -> int | None:
    """Return whole years; 90 stands for 90 and above, None for blank and impossible ages."""
    text = cells.get(age.column.strip().lower()) if age else None
    if age is None or text is None:
        return None
    if age.born:
        born, now = _year(text), _year(cells.get((age.at or "").strip().lower(), ""))
        years = None if born is None or now is None else float(now - born)
    else:
        match = re.fullmatch(
            r"(\d+(?:[.,]\d+)?)\s*([YMWD]?)(?:\s*(?:years?|yrs?|or more|or older|\+))*", text, re.IGNORECASE
        )
        years = float(match[1].replace(",", ".")) * YEARS[match[2].upper() or UNITS[age.unit]] if match else None
        if years is not None and age.since:
            then, now = (_year(cells.get((column or "").strip().lower(), "")) for column in (age.since, age.at))
            years = None if then is None or now is None else years + now - then
    if years is None or not 0 <= years <= MAX_AGE or (years == 0 and age.zero_is_missing):
        return None
    return min(int(years), OLDEST)


def _year(text: str) -> int | None:
    """Return the year of a date, whichever of day and month comes first; None where the year has two digits."""
    first = re.match(r"(1[89]\d\d|2\d\d\d)(?!\d)|(1[89]\d\d|2\d\d\d)(?=\d{4}(?!\d))", text)
    last = re.match(r"\d{1,2}([./-]) ?\d{1,2}\1 ?(1[89]\d\d|2\d\d\d)(?!\d)", text)
    return int(first[0]) if first else int(last[2]) if last else None
