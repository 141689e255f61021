"""Confidence intervals from redraws: percentile, basic, BCa.  Shapes: R redraws, P units (patients, or images).

All three are of Efron & Tibshirani 1993 (chapters 13, 14) and Davison & Hinkley 1997 (5.2, 5.3), and equal those of
`scipy.stats.bootstrap` on the same redraws.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from scipy.special import ndtr, ndtri

from cxrdist.errors import unknown

IntervalMethod = Literal["percentile", "basic", "bca"]
"""How bounds are read off the redraws."""

ROUNDING = 1e-13
"""Relative spread at or below which values that differ by the order of additions only are taken as equal."""


@dataclass(frozen=True)
class Interval:
    """Bounds of a confidence interval, in units of the number; NaN where nothing was defined."""

    low: float
    high: float


UNDEFINED = Interval(float("nan"), float("nan"))


def interval(
    theta: np.ndarray,
    *,
    method: IntervalMethod = "percentile",
    confidence_level: float = 0.95,
    point: float | None = None,
    jackknife: np.ndarray | None = None,
    strata: Sequence[np.ndarray] = (),
) -> Interval:
    """Return the two-sided interval of a number from its redraws.

    - *percentile*: quantiles of the redraws, interpolated linearly (Hyndman & Fan 1996, definition 7).
    - *basic*: the percentile interval mirrored at `point`.
    - *bca*: percentiles corrected for median bias and for a spread that changes with the number (Efron 1987, JASA
      82:171; DiCiccio & Efron 1996, Stat Sci 11:189).  A redraw that ties with `point` is half below it.

    Undefined (NaN) redraws are left out.  Where all others are equal, the percentile and BCa intervals are that one
    value.  BCa is undefined (NaN) where `point` lies outside all redraws, since no bias correction reaches there.

    Args:
        theta: (R,) the number in each redraw.
        method: One of the above.
        confidence_level: In (0, 1).
        point: The number on the sample as it is; needed by basic and BCa.
        jackknife: (P,) the number with one unit left out; needed by BCa, see `acceleration`.
        strata: Those that the redraws were drawn in, as `Units.strata`; only BCa asks.

    Raises:
        ValueError: If `method` is unknown, what it needs is missing, or `confidence_level` is outside (0, 1).
    """
    if method not in get_args(IntervalMethod):
        raise ValueError(unknown("`method`", method, get_args(IntervalMethod)))
    if not 0 < confidence_level < 1:
        raise ValueError(f"`confidence_level` must be in (0, 1), got {confidence_level}.")
    if method != "percentile" and point is None:
        raise ValueError(f"`point` must be given for the method {method!r}, got None.")
    if method == "bca" and jackknife is None:
        raise ValueError("`jackknife` must be given for the method 'bca', got None.")
    theta = np.asarray(theta, dtype=np.float64)
    defined = theta[~np.isnan(theta)]
    if not len(defined):
        return UNDEFINED
    tails = np.array([(1 - confidence_level) / 2, 1 - (1 - confidence_level) / 2])
    if method == "bca" and np.ptp(defined) > 0:
        assert point is not None and jackknife is not None
        tails = _corrected(tails, defined, point, acceleration(jackknife, strata))
        if np.isnan(tails).any():
            return UNDEFINED
    low, high = np.quantile(defined, tails)
    if method == "basic":
        assert point is not None
        low, high = 2 * point - high, 2 * point - low
    return Interval(float(low), float(high))


def raised_interval(theta: np.ndarray, *, point: float, confidence_level: float = 0.95) -> Interval:
    """Return the interval of a number of 0 or more that sampling raises and redraws raise again: calibration error.

    Noise in every bin adds to the error, so `point` lies above the truth and redraws above `point`, often all of them:
    the percentile interval then holds neither.  What noise adds is about the same to the square of the error, so this
    is the basic interval of squares (a basic interval is best taken on the scale on which the spread is constant:
    Davison & Hinkley 1997, 5.2.2), not below 0, and up to `point` at least, as the truth may lie anywhere below it.
    It is wide where the error is mostly noise; in simulations nominal 95 % intervals held the truth in 91 to 100 %.

    Undefined (NaN) redraws are left out; NaN without any, or without `point`.

    Args:
        theta: (R,) the number in each redraw; below 0, where only seeds may have shifted it, it counts as 0.
        point: The number on the sample as it is.
        confidence_level: In (0, 1).

    Raises:
        ValueError: If `confidence_level` is outside (0, 1).
    """
    squares = interval(
        np.square(np.maximum(theta, 0.0)), method="basic", confidence_level=confidence_level, point=point**2
    )
    low, high = (float(np.sqrt(np.maximum(bound, 0.0))) for bound in (squares.low, squares.high))
    return Interval(min(low, point), max(high, point)) if not np.isnan(low) else UNDEFINED


def percentile_interval(theta: np.ndarray, *, confidence_level: float = 0.95) -> Interval:
    """Return the percentile interval of the (R,) redraws `theta` (Efron & Tibshirani 1993, 13.3); NaN are left out.

    Raises:
        ValueError: If `confidence_level` is outside (0, 1).
    """
    return interval(theta, confidence_level=confidence_level)


def acceleration(jackknife: np.ndarray, strata: Sequence[np.ndarray] = ()) -> float:
    """Return BCa's acceleration, a sixth of the skewness of the (P,) values with one unit left out, in [-1/6, 1/6].

    With `strata` the influence of a unit is what it does beside the others of its stratum, since how many units a
    stratum has never varies; a stratum of one has none.  Units without which the number is undefined (the only positive
    patient) are left out.  0, that is no correction, where no two values of a stratum are left or they do not differ: a
    statistic that no single unit moves.  Efron & Tibshirani 1993, equation 14.15; Davison & Hinkley 1997, 5.3.2 for
    strata, with ``(n - 1) (mean without - without)`` of n units for a unit's empirical influence.

    Args:
        jackknife: (P,).
        strata: Units of each stratum, arrays of numbers in [0, P); empty: one stratum of all.
    """
    values = np.asarray(jackknife, dtype=np.float64)
    known = ~np.isnan(values)
    largest = np.abs(values[known]).max(initial=0.0)
    influence = []
    for units in strata or (np.arange(len(values)),):
        one = values[units][known[units]]
        if len(one) > 1 and np.ptp(one) > ROUNDING * largest:
            influence.append((one.mean() - one) * ((len(one) - 1) / len(one)))
    if not influence:
        return 0.0
    pooled = np.concatenate(influence)
    pooled /= np.abs(pooled).max()  # the skewness has no scale; cubes of 1e-5 and less lose nothing this way
    return float(np.sum(pooled**3) / (6 * np.sum(pooled**2) ** 1.5))


def _corrected(tails: np.ndarray, defined: np.ndarray, point: float, accelerated: float) -> np.ndarray:
    """Return the (2,) tail shares that BCa reads off instead of `tails`; NaN where there are none."""
    below = np.count_nonzero(defined < point) + np.count_nonzero(defined <= point)
    bias = ndtri(below / (2 * len(defined)))
    if np.isnan(point) or not np.isfinite(bias):
        return np.full(2, np.nan)
    shifted = bias + ndtri(tails)
    shrunk = 1 - accelerated * shifted
    # At 0 and below, the bound has run through infinity; only a bias and a level beyond all use get there.
    return np.where(shrunk > 0, ndtr(bias + shifted / np.where(shrunk > 0, shrunk, 1.0)), np.nan)
