"""From redraws of a paired difference to p-values: no difference, non-inferiority, equivalence.  Shapes: R redraws.

Undefined (NaN) redraws are left out; p is NaN if none is left.  The observed sample counts as one of the redraws
(Davison & Hinkley 1997, 4.11; Phipson & Smyth 2010, Stat Appl Genet Mol Biol 9:39), so no p is ever 0.
"""

import numpy as np


def paired_test(delta: np.ndarray) -> float:
    """Return the two-sided p-value that the (R,) redraws of a paired difference are centred on zero.

    ``p = min(1, 2 min((#{d <= 0} + 1) / (R + 1), (#{d >= 0} + 1) / (R + 1)))``.  It inverts the percentile interval;
    the +1 counts the observed sample among the redraws (Davison & Hinkley 1997, 4.11), so p is never 0 and the smallest
    value that R redraws can give is 2 / (R + 1).
    """
    below, above = _share(delta, at_most=0.0), _share(-np.asarray(delta), at_most=0.0)
    return float(np.minimum(2 * min(below, above), 1.0))


def non_inferiority(delta: np.ndarray, margin: float) -> float:
    """Return the one-sided p-value that the first model is worse than the second by `margin` or more.

    ``p = (#{d <= -margin} + 1) / (R + 1)``.  It is at most alpha where the interval of confidence level 1 - 2 alpha
    lies above -margin, the usual way to read one (Piaggio et al. 2012, JAMA 308:2594).

    Args:
        delta: (R,) redraws of first minus second of a number that is better when higher; negate those of others.
        margin: The largest loss that does not matter, set before the data are seen; above 0, in units of `delta`.

    Raises:
        ValueError: If `margin` is not a number above 0.
    """
    _check_margin(margin)
    return _share(delta, at_most=-margin)


def equivalence(delta: np.ndarray, margin: float) -> float:
    """Return the p-value that two models differ by `margin` or more, in either direction.

    The larger of two one-sided p-values (Schuirmann 1987, J Pharmacokinet Biopharm 15:657).  It is at most alpha where
    the interval of confidence level 1 - 2 alpha lies within +-margin.

    Args:
        delta: (R,) redraws of the difference.
        margin: The largest difference that does not matter; above 0, in units of `delta`.

    Raises:
        ValueError: If `margin` is not a number above 0.
    """
    _check_margin(margin)
    return max(_share(delta, at_most=-margin), _share(-np.asarray(delta), at_most=-margin))


def _share(delta: np.ndarray, *, at_most: float) -> float:
    """Return the share of redraws at or below a value, the observed sample counted among them."""
    defined = np.asarray(delta)[~np.isnan(delta)]
    if not len(defined):
        return float("nan")
    return float((np.count_nonzero(defined <= at_most) + 1) / (len(defined) + 1))


def _check_margin(margin: float) -> None:
    if not 0 < margin < np.inf:
        raise ValueError(f"`margin` must be a number above 0, got {margin}.")
