"""Average precision, the area under the precision-recall curve.  Shapes: N images, P units, B redraws.

The definition is scikit-learn's: the sum over the distinct scores, from the highest, of the gain in recall x the
precision there, without interpolation (Davis & Goadrich 2006, ICML, show that straight lines between points flatter).
"""

from dataclasses import dataclass

import numpy as np

from cxrdist.stats.auroc import as_counts, check_counts, checked, sorted_groups, units_of
from cxrdist.stats.kernels import average_precision_under
from cxrdist.stats.resample import Units


@dataclass(frozen=True)
class SortedPrecision:
    """The average precision (scikit-learn's) of one model on one finding, sorted; a `resample.Statistic`."""

    units: np.ndarray
    """(E,) int32 as of `kernels.average_precision_under`."""
    groups: np.ndarray
    """(G, 3) int64 as of `kernels.average_precision_under`."""
    n_units: int
    """P."""

    def under(self, counts: np.ndarray) -> np.ndarray:
        """Return the (B,) values under the (P, B) uint16 or float64 `counts`; NaN where positives have no weight.

        Raises:
            ValueError: If `counts` do not have P rows, or might add up to more than 32 bits.
        """
        check_counts(counts, self.n_units)
        return average_precision_under(counts, self.units, self.groups)


def average_precision_statistic(targets: np.ndarray, scores: np.ndarray, units: Units) -> SortedPrecision:
    """Return the average precision of one finding (scikit-learn's definition), prepared for redraws of `units`.

    Args:
        targets: (N,) of 1, 0, or NaN for masked images, which take no part.
        scores: (N,), any real numbers; higher means more likely present, only their order counts.
        units: What is redrawn.

    Raises:
        ValueError: If the shapes differ, a target is none of 0, 1, NaN, a labelled score is NaN, or `units` are others.
    """
    targets, scores = checked(targets, scores)
    order, groups = sorted_groups(targets, -scores)
    return SortedPrecision(units_of(order, targets, units), groups, units.n)


def average_precision(targets: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Return the average precision of one finding (scikit-learn's definition), in (0, 1]; NaN without a positive.

    Without skill it is the prevalence.  With positives alone it is 1.

    Args:
        targets: (N,) of 1, 0, or NaN for masked images.
        scores: (N,), higher means more likely present; only their order counts.
        weights: (N,) non-negative; an integer weight w is the same as the image repeated w times.

    Raises:
        ValueError: If shapes or values are wrong.
    """
    statistic = average_precision_statistic(targets, scores, Units(np.arange(len(targets)), len(targets)))
    return float(statistic.under(as_counts(weights, len(targets)))[0])
