"""What every statistic starts from: the labelled images of a finding.  Shapes: N images, n labelled, P units."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from cxrdist.stats.auroc import as_counts, checked, units_of
from cxrdist.stats.resample import Statistic, Units


@dataclass(frozen=True)
class Labelled:
    """The images whose label is known, in the order given; masked images take no part in anything."""

    positive: np.ndarray
    """(n,) bool: the finding is present."""
    scores: np.ndarray
    """(n,) float64."""
    unit: np.ndarray
    """(n,) int32 in [0, P): which unit brings the image."""

    def totals(self, *values: np.ndarray, n_units: int) -> np.ndarray:
        """Return (P, V): the sum of each of the V (n,) `values` over the images of each unit."""
        return np.stack([np.bincount(self.unit, weights=one, minlength=n_units) for one in values], axis=1)


def labelled(targets: np.ndarray, scores: np.ndarray, units: Units, *, probabilities: bool = False) -> Labelled:
    """Return the labelled images of one finding.

    Args:
        targets: (N,) of 1, 0, or NaN for masked images.
        scores: (N,) real numbers; those of masked images are not looked at.
        units: Of the N images.
        probabilities: Whether scores must be in [0, 1].

    Raises:
        ValueError: If the shapes differ, a target is none of 0, 1, NaN, a score is NaN or out of range, or `units` are
            others.
    """
    targets, scores = checked(targets, scores)
    known = np.flatnonzero(~np.isnan(targets))
    held = scores[known]
    if probabilities and not ((held >= 0) & (held <= 1)).all():
        raise ValueError(
            f"`scores` must be probabilities in [0, 1], got {held.min():g} to {held.max():g}. "
            "Calibration is not defined for other scores."
        )
    return Labelled(targets[known] == 1, held, units_of(known, targets, units))


def point(prepare: Callable[[Units], Statistic], n_images: int, weights: np.ndarray | None) -> float:
    """Return a statistic under (N,) `weights` of the images (None: all 1), worked out as in a redraw of images.

    An integer weight w is the same as the image repeated w times.

    Raises:
        ValueError: If a weight is negative or NaN, or there is not one for each image.
    """
    return float(prepare(Units(np.arange(n_images), n_images)).under(as_counts(weights, n_images))[0])
