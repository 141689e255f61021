"""What every statistic starts from: the labelled images of a finding.  Shapes: N images, n labelled, P units."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from cxrdist.stats.resample import Statistic, Units


@dataclass(frozen=True)
class Labelled:
    """The images whose label is known, in the order given; masked images take no part in anything."""

    positive: np.ndarray
    """(n,) bool: the finding is present."""
    scores: np.ndarray
    """(n,) float64."""
    unit: np.ndarray
    """(n,) int64 in [0, P): which unit brings the image."""

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
        ValueError: If the shapes differ, a target is none of 0, 1, NaN, or a score is NaN or out of range.
    """
    targets, scores = np.asarray(targets, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    if targets.ndim != 1 or targets.shape != scores.shape:
        raise ValueError(f"`targets` and `scores` must have one shape (N,), got {targets.shape} and {scores.shape}.")
    if units.of_image.shape != targets.shape:
        raise ValueError(f"`units` must be those of {len(targets)} images, got {len(units.of_image)}.")
    known = np.flatnonzero(~np.isnan(targets))
    targets, scores = targets[known], scores[known]
    if not np.isin(targets, (0.0, 1.0)).all():
        raise ValueError("`targets` must be 0, 1, or NaN for masked, got another value. Apply a label policy first.")
    if np.isnan(scores).any():
        raise ValueError(f"`scores` must be numbers, got {np.isnan(scores).sum()} NaN.")
    if probabilities and not ((scores >= 0) & (scores <= 1)).all():
        raise ValueError(
            f"`scores` must be probabilities in [0, 1], got {scores.min():g} to {scores.max():g}. "
            "Calibration is not defined for other scores."
        )
    return Labelled(targets == 1, scores, units.of_image[known])


def point(prepare: Callable[[Units], Statistic], n_images: int, weights: np.ndarray | None) -> float:
    """Return a statistic under (N,) `weights` of the images (None: all 1), worked out as in a redraw of images.

    An integer weight w is the same as the image repeated w times.

    Raises:
        ValueError: If a weight is negative or NaN, or there is not one for each image.
    """
    counts = np.ones(n_images) if weights is None else np.asarray(weights, dtype=np.float64)
    if counts.shape != (n_images,):
        raise ValueError(f"`weights` must have the shape ({n_images},) of `targets`, got {counts.shape}.")
    if not (np.isfinite(counts) & (counts >= 0)).all():
        raise ValueError("`weights` must be 0 or more, got a negative number, infinity or NaN.")
    return float(prepare(Units(np.arange(n_images), n_images)).under(counts[:, None])[0])
