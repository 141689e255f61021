"""From redraws to statements: percentile interval, two-sided paired test, false discovery rate."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Interval:
    """Bounds of a confidence interval; NaN where nothing was defined."""

    low: float
    high: float


def percentile_interval(theta: np.ndarray, *, confidence_level: float = 0.95) -> Interval:
    """Return the percentile interval of the (R,) redraws `theta`; undefined (NaN) redraws are left out.

    Quantiles are interpolated linearly (Hyndman & Fan 1996, definition 7).

    Raises:
        ValueError: If `confidence_level` is outside (0, 1).
    """
    if not 0 < confidence_level < 1:
        raise ValueError(f"`confidence_level` must be in (0, 1), got {confidence_level}.")
    defined = theta[~np.isnan(theta)]
    if not len(defined):
        return Interval(float("nan"), float("nan"))
    tail = (1 - confidence_level) / 2
    low, high = np.quantile(defined, [tail, 1 - tail])
    return Interval(float(low), float(high))


def paired_test(delta: np.ndarray) -> float:
    """Return the two-sided p-value that the (R,) redraws of a paired difference are centred on zero.

    ``p = min(1, 2 min((#{d <= 0} + 1) / (R + 1), (#{d >= 0} + 1) / (R + 1)))``.  It inverts the percentile interval;
    the +1 counts the observed sample among the redraws (Davison & Hinkley 1997, 4.11), so p is never 0 and the smallest
    value that R redraws can give is 2 / (R + 1).  Undefined (NaN) redraws are left out; NaN if none is left.
    """
    defined = delta[~np.isnan(delta)]
    if not len(defined):
        return float("nan")
    below = (np.count_nonzero(defined <= 0) + 1) / (len(defined) + 1)
    above = (np.count_nonzero(defined >= 0) + 1) / (len(defined) + 1)
    return float(min(1.0, 2 * min(below, above)))


def benjamini_hochberg(p: np.ndarray) -> np.ndarray:
    """Return the adjusted p-values (q) of one family of tests (Benjamini & Hochberg 1995, step-up).

    Undefined (NaN) entries stay NaN and do not count as tests.

    Raises:
        ValueError: If a p-value is outside [0, 1].
    """
    p = np.asarray(p, dtype=np.float64)
    q = np.full(p.shape, np.nan)
    tested = np.flatnonzero(~np.isnan(p))
    if not len(tested):
        return q
    if (p[tested] < 0).any() or (p[tested] > 1).any():
        raise ValueError("`p` must be in [0, 1], got a value outside.")
    order = tested[np.argsort(p[tested], kind="stable")]
    scaled = p[order] * len(order) / np.arange(1, len(order) + 1)
    q[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return q
