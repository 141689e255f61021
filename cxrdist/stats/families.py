"""Many tests at once: false discovery rate, family-wise error.  Shapes: M tests of one family, R redraws.

Which tests make one family is said before the data are seen.  Undefined (NaN) tests stay NaN and do not count.
"""

from collections.abc import Callable
from typing import Literal

import numpy as np

from cxrdist.errors import unknown

Adjustment = Literal["bh", "by", "holm", "none"]
"""Benjamini-Hochberg, Benjamini-Yekutieli, Holm, or p as it is."""

Correction = Literal[Adjustment, "max_t"]
"""One of these, or Westfall & Young's from redraws."""

NO_SPREAD = 1e-12
"""Redraws of a difference that spread no wider than this differ by rounding only."""


def adjust(p: np.ndarray, method: Adjustment) -> np.ndarray:
    """Return the (M,) adjusted p-values of one family of (M,) p-values.

    - "bh" bounds the share of false among all claimed differences (Benjamini & Hochberg 1995, JRSS B 57:289),
    - "by" does under any dependence (Benjamini & Yekutieli 2001, Ann Stat 29:1165),
    - "holm" bounds the chance of even one false claim, under any dependence (Holm 1979, Scand J Stat 6:65),
    - "none" bounds nothing over the family.

    Raises:
        ValueError: If `method` is unknown or a p-value is outside [0, 1].
    """
    if method not in _METHODS:
        raise ValueError(unknown("`method`", method, _METHODS))
    p = np.asarray(p, dtype=np.float64)
    tested = ~np.isnan(p)
    if (p[tested] < 0).any() or (p[tested] > 1).any():
        raise ValueError("`p` must be in [0, 1], got a value outside.")
    q = np.full(p.shape, np.nan)
    order = np.flatnonzero(tested)[np.argsort(p[tested], kind="stable")]
    if len(order):
        q[order] = np.minimum(_METHODS[method](p[order]), 1.0)
    return q


def adjust_redrawn(p: np.ndarray, delta: np.ndarray, point: np.ndarray, correction: Correction) -> np.ndarray:
    """Return the (M,) adjusted p-values of one family of differences, by `adjust` or `max_t`; never below (M,) `p`.

    Args:
        p: (M,) of each difference.
        delta: (R, M) its redraws, which all share.
        point: (M,) its value.
        correction: How.

    Raises:
        ValueError: As of these two.
    """
    if correction != "max_t":
        return adjust(p, correction)
    # max-T is symmetric and p is not, so where redraws are skewed it could fall below the p beside it.
    return np.maximum(p, max_t(delta, point))


def benjamini_hochberg(p: np.ndarray) -> np.ndarray:
    """Return `adjust` of (M,) p-values by Benjamini & Hochberg 1995 (JRSS B 57:289), step-up.

    For independent or positively dependent tests.

    Raises:
        ValueError: If a p-value is outside [0, 1].
    """
    return adjust(p, "bh")


def max_t(delta: np.ndarray, point: np.ndarray) -> np.ndarray:
    """Return (M,) p-values adjusted for the family-wise error by the largest of all studentised differences.

    Step-down (Westfall & Young 1993, chapter 2; Romano & Wolf 2005, JASA 100:94).  Redraws are centred on the
    observed difference, which is the null hypothesis, and each test is measured in the standard deviation of its
    redraws; the largest difference is held against the largest centred one of each redraw, the second largest against
    the largest of the rest, and so on.  Since redraws are shared, tests that move together are not paid for twice.  The
    observed sample counts as a redraw, so the smallest p is 1 / (R + 1); for one test, two-sided and symmetric,
    ``p = (#{|d - point| >= |point|} + 1) / (R + 1)``.

    Where a test is undefined in a redraw, its value is taken from the next redraw that has one: every maximum is over
    all tests, and two tests are at most less dependent, which makes p larger (Sidak 1967, JASA 62:626).  A test whose
    redraws do not spread leaves the others as they are; its own p is 1 if its difference is 0, the smallest otherwise.

    Args:
        delta: (R, M) redraws of the differences, a row is one redraw for all tests.
        point: (M,) observed differences; NaN (or a column of NaN) is no test.

    Raises:
        ValueError: If the shapes differ.
    """
    delta, point = np.asarray(delta, dtype=np.float64), np.asarray(point, dtype=np.float64)
    if delta.ndim != 2 or point.shape != delta.shape[1:]:
        raise ValueError(f"`delta` and `point` must have the shapes (R, M) and (M,), got {delta.shape}, {point.shape}.")
    p = np.full(point.shape, np.nan)
    tested = np.flatnonzero(~np.isnan(point) & ~np.isnan(delta).all(axis=0))
    if not len(tested):
        return p
    filled = _filled(delta[:, tested])
    spread = filled.std(axis=0)
    flat = spread <= NO_SPREAD
    scale = np.where(flat, 1.0, spread)
    observed = np.abs(point[tested]) / scale
    observed[flat] = np.where(observed[flat] <= NO_SPREAD, 0.0, np.inf)
    centred = np.abs(filled - point[tested]) / scale
    order = np.argsort(-observed, kind="stable")
    largest_of_rest = np.maximum.accumulate(centred[:, order[::-1]], axis=1)[:, ::-1]
    exceeding = np.count_nonzero(largest_of_rest >= observed[order], axis=0)
    p[tested[order]] = np.maximum.accumulate((exceeding + 1) / (len(delta) + 1))
    return p


def _filled(delta: np.ndarray) -> np.ndarray:
    """Return (R, M) `delta` with every NaN replaced by the next number of its column, after the last by the first."""
    filled = delta.copy()
    for column in filled.T:
        defined = np.flatnonzero(~np.isnan(column))
        missing = np.flatnonzero(np.isnan(column))
        column[missing] = column[defined[np.searchsorted(defined, missing) % len(defined)]]
    return filled


def _bh(ascending: np.ndarray) -> np.ndarray:
    # The factor first: p times a number of at least 1 is never rounded to below p.
    scaled = ascending * (len(ascending) / np.arange(1, len(ascending) + 1))
    return np.minimum.accumulate(scaled[::-1])[::-1]


def _by(ascending: np.ndarray) -> np.ndarray:
    """Benjamini & Yekutieli 2001 (Ann Stat 29:1165), theorem 1.3: the price of any dependence is a harmonic sum."""
    return _bh(ascending) * np.sum(1 / np.arange(1, len(ascending) + 1))


def _holm(ascending: np.ndarray) -> np.ndarray:
    """Holm 1979 (Scand J Stat 6:65): step-down Bonferroni."""
    return np.maximum.accumulate(ascending * np.arange(len(ascending), 0, -1))


def _as_it_is(ascending: np.ndarray) -> np.ndarray:
    return ascending


_METHODS: dict[str, Callable[[np.ndarray], np.ndarray]] = {"bh": _bh, "by": _by, "holm": _holm, "none": _as_it_is}
