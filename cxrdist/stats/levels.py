"""Levels of a column, to make subgroups of: bands of ages, words, quartiles.  Shapes: N images."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from cxrdist.errors import UsageError

MISSING = "missing"
NOT_KNOWN = ("", MISSING, "unknown", "nan", "<na>")
"""Words for a value that is not there, in any case."""
IMPLAUSIBLE = "implausible"
AGE_NAMES = ("age", "age_years", "patient_age")
AGE_BANDS = {"0-17": (0, 18), "18-39": (18, 40), "40-59": (40, 60), "60-79": (60, 80), "80+": (80, 121)}
"""Label -> first age and the age before which it ends, years."""
MOST_LEVELS = 20
"""Values of a column up to which each is a level of its own."""


def subgroup_masks(column: np.ndarray, name: str) -> dict[str, np.ndarray]:
    """Return level -> (N,) bool, for the values of a column; every image is in exactly one level.

    - A column named ``age`` (``age_years``, ``patient_age``), in years, is cut into `AGE_BANDS`; ages below 0 or above
      120 are the level `IMPLAUSIBLE`.
    - Up to `MOST_LEVELS` different values, of text or numbers, are a level each, in sorted order.
    - More different numbers are cut at their quartiles (Hyndman & Fan 1996, definition 1), up to and including each.
    - Values that are not there (None, NaN, `NOT_KNOWN`) are the level `MISSING`, the last.

    Raises:
        ValueError: If `column` is not (N,).
        UsageError: If a column of text has too many values, or one of ages or numbers holds something else.
    """
    column = np.asarray(column)
    if column.ndim != 1:
        raise ValueError(f"`column` must have the shape (N,), got {column.shape}.")
    missing = np.array([_is_missing(value) for value in column], dtype=bool)
    numbers = _numbers(column, missing, parse=name.lower() in AGE_NAMES)
    if name.lower() in AGE_NAMES:
        masks = _age_bands(numbers, missing, name)
    elif numbers is not None and len(np.unique(numbers[~missing])) > MOST_LEVELS:
        masks = _quartiles(numbers, missing, name)
    else:
        texts = [None if gone else _text(value) for value, gone in zip(column, missing, strict=True)]
        levels = _levels(texts, numbers)
        if len(levels) > MOST_LEVELS:
            raise UsageError(
                f"Column `{name}` must have at most {MOST_LEVELS} different values to make subgroups of, got "
                f"{len(levels)}. Group its values first, or name another column."
            )
        held = np.array(texts, dtype=object)
        masks = {level: held == level for level in levels}
    if missing.any():
        masks[MISSING] = missing
    return {level: mask for level, mask in masks.items() if mask.any()}


def values_told(column: np.ndarray) -> np.ndarray:
    """Return (N,) text that is the same for the same value however it was stored; empty for one that is not there.

    A number and its text (csv) are one, and so are true and its text; words in other cases are others.
    """
    return np.array(["" if _is_missing(value) else _plain(value) for value in np.asarray(column)], dtype=object)


def _plain(value: Any) -> str:
    told = _text(value)
    try:
        # Of longer digits (codes), a float would tell two apart no more.
        return _text(float(told)) if isinstance(value, str) and len(told) < 16 else told
    except ValueError:
        return told


def _is_missing(value: Any) -> bool:
    if value is None or (isinstance(value, str) and value.strip().lower() in NOT_KNOWN):
        return True
    try:
        return bool(value != value)  # noqa: PLR0124 - NaN and NaT
    except TypeError:  # pandas' NA has no truth value
        return True


def _numbers(column: np.ndarray, missing: np.ndarray, *, parse: bool) -> np.ndarray | None:
    """Return (N,) float64, NaN where missing, or None if a value is no number; text is read only if `parse`."""
    kinds = (int, float, np.integer, np.floating, *((str,) if parse else ()))
    known = column[~missing]
    if not all(isinstance(value, kinds) and not isinstance(value, (bool, np.bool_)) for value in known):
        return None
    numbers = np.full(len(column), np.nan)
    try:
        numbers[~missing] = [float(value) for value in known]
    except ValueError:
        return None
    return numbers


def _age_bands(ages: np.ndarray | None, missing: np.ndarray, name: str) -> dict[str, np.ndarray]:
    if ages is None:
        raise UsageError(f"Column `{name}` must hold ages in years, as numbers, got something else. Convert it first.")
    masks = {label: (ages >= first) & (ages < end) for label, (first, end) in AGE_BANDS.items()}
    return masks | {IMPLAUSIBLE: ~missing & ~np.any(list(masks.values()), axis=0)}


def _quartiles(numbers: np.ndarray, missing: np.ndarray, name: str) -> dict[str, np.ndarray]:
    known = numbers[~missing]
    if not np.isfinite(known).all():
        raise UsageError(f"Column `{name}` must hold finite numbers, got an infinite one. Mend or empty it.")
    bounds = [float(bound) for bound in np.unique(np.quantile(known, [0.25, 0.5, 0.75], method="inverted_cdf"))]
    masks = {f"up to {_text(bounds[0])}": numbers <= bounds[0]}
    for below, bound in pairwise(bounds):
        masks[f"over {_text(below)} up to {_text(bound)}"] = (numbers > below) & (numbers <= bound)
    return masks | {f"over {_text(bounds[-1])}": numbers > bounds[-1]}


def _levels(texts: Sequence[str | None], numbers: np.ndarray | None) -> list[str]:
    """Return the different texts, by number where they are numbers."""
    order = np.zeros(len(texts)) if numbers is None else numbers
    return list(dict.fromkeys(text for _, text in sorted((n, t) for n, t in zip(order, texts, strict=True) if t)))


def _text(value: Any) -> str:
    """Return what a value is told as: whole numbers without a point, since empty values make numbers float."""
    if isinstance(value, (float, np.floating)):
        return str(int(value)) if np.isfinite(value) and value == int(value) else str(float(value))
    return str(value).strip()
