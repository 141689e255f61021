"""Area under the ROC curve as the Mann-Whitney statistic.  Shapes: N images, K findings, P units, B redraws.

The AUROC is the chance that a positive image scores above a negative one, ties counting one half (Mann & Whitney 1947,
Ann Math Stat 18:50; Hanley & McNeil 1982, Radiology 143:29).  The scores never change between redraws, only how often
each image counts; so images are sorted once (`auroc_statistic`) and a redraw is one walk over integer counts.  With
integer counts every sum is exact, hence the result has one rounding (the last division) and does not depend on the
order of images or on how redraws are grouped.
"""

from dataclasses import dataclass

import numpy as np

from cxrdist.stats.kernels import WIDE, auroc_under
from cxrdist.stats.resample import Units


@dataclass(frozen=True)
class SortedAuroc:
    """The AUROC (Hanley & McNeil 1982) of one model on one finding, its images sorted; a `resample.Statistic`."""

    units: np.ndarray
    """(E,) int32 as of `kernels.auroc_under`."""
    groups: np.ndarray
    """(G, 3) int64 as of `kernels.auroc_under`."""
    n_units: int
    """P."""

    def under(self, counts: np.ndarray) -> np.ndarray:
        """Return the (B,) AUROCs under the (P, B) uint16 or float64 `counts`; NaN where a class has no weight.

        Raises:
            ValueError: If `counts` do not have P rows, or might add up to more than 32 bits.
        """
        check_counts(counts, self.n_units)
        return auroc_under(counts, self.units, self.groups)


def auroc_statistic(targets: np.ndarray, scores: np.ndarray, units: Units) -> SortedAuroc:
    """Return the AUROC of one finding, prepared for redraws of `units` (Hanley & McNeil 1982).

    Args:
        targets: (N,) of 1, 0, or NaN for masked images, which take no part.
        scores: (N,), any real numbers; higher means more likely present, only their order counts.
        units: What is redrawn.

    Raises:
        ValueError: If the shapes differ, a target is none of 0, 1, NaN, a labelled score is NaN, or `units` are others.
    """
    targets, scores = checked(targets, scores)
    order, groups = sorted_groups(targets, scores)
    # Where no negative lies between two positives, both win over the same: they are one group.
    untied = groups[:, 1] == groups[:, 2]
    joins = untied[1:] & untied[:-1] & (groups[1:, 0] == groups[:-1, 2])
    first, last = (
        np.flatnonzero(np.r_[True, ~joins][: len(groups)]),
        np.flatnonzero(np.r_[~joins, True][-len(groups) :]),
    )
    merged = np.stack([groups[first, 0], groups[last, 1], groups[last, 2]], axis=1) if len(groups) else groups
    return SortedAuroc(units_of(order, targets, units), merged, units.n)


def auroc(targets: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Return the AUROC of one finding, in [0, 1] (Hanley & McNeil 1982); NaN if one class is absent.

    Args:
        targets: (N,) of 1, 0, or NaN for masked images.
        scores: (N,), higher means more likely present; only their order counts.
        weights: (N,) non-negative; an integer weight w is the same as the image repeated w times.

    Raises:
        ValueError: If shapes or values are wrong.
    """
    statistic = auroc_statistic(targets, scores, Units(np.arange(len(targets)), len(targets)))
    return float(statistic.under(as_counts(weights, len(targets)))[0])


def checked(targets: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both as (N,) float64.

    Raises:
        ValueError: If the shapes differ, a target is none of 0, 1, NaN, or the score of a labelled image is NaN.
    """
    targets, scores = np.asarray(targets, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    if targets.ndim != 1 or targets.shape != scores.shape:
        raise ValueError(f"`targets` and `scores` must have one shape (N,), got {targets.shape} and {scores.shape}.")
    known = ~np.isnan(targets)
    if not np.isin(targets[known], (0.0, 1.0)).all():
        raise ValueError("`targets` must be 0, 1, or NaN for masked, got another value. Apply a label policy first.")
    if np.isnan(scores[known]).any():
        raise ValueError(f"`scores` must be numbers, got {np.isnan(scores[known]).sum()} NaN.")
    return targets, scores


def sorted_groups(targets: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the known images by ascending score, (E,), positives first among equals; and the positives' groups.

    The (G, 3) groups, one for each distinct score of a positive, are start, end of the positives, end of the tied.
    `targets` and `scores` are (N,) as of `checked`.
    """
    images = np.concatenate([np.flatnonzero(targets == 1), np.flatnonzero(targets == 0)])
    order = images[np.argsort(scores[images], kind="stable")]
    ladder = scores[order]
    starts = np.flatnonzero(np.r_[True, ladder[1:] != ladder[:-1]][: len(order)])
    ends = np.r_[starts[1:], len(order)][: len(starts)]
    running = np.r_[0, np.cumsum(targets[order] == 1)]
    positives = running[ends] - running[starts]
    held = positives > 0
    return order, np.stack([starts, starts + positives, ends], axis=1)[held].astype(np.int64)


def units_of(order: np.ndarray, targets: np.ndarray, units: Units) -> np.ndarray:
    """Return the (E,) int32 units of the images in `order`, (E,) numbers of the (N,) `targets`.

    Raises:
        ValueError: If `units` are not those of these N images, or not in [0, P).
    """
    of_image = np.asarray(units.of_image)
    if of_image.shape != targets.shape:
        raise ValueError(f"`units` must be those of {len(targets)} images, got the shape {of_image.shape}.")
    if len(of_image) and not (of_image.min() >= 0 and of_image.max() < units.n):
        raise ValueError(f"`units` must be in [0, {units.n}), got {of_image.min()} to {of_image.max()}.")
    return of_image[order].astype(np.int32)


def as_counts(weights: np.ndarray | None, n_images: int) -> np.ndarray:
    """Return (N, 1) counts of single images from their (N,) weights: uint16 of small integers, so sums are exact.

    Raises:
        ValueError: If the shape is wrong or a weight is negative or no finite number.
    """
    if weights is None:
        return np.ones((n_images, 1), dtype=np.uint16)
    weights = np.asarray(weights)
    if weights.shape != (n_images,):
        raise ValueError(f"`weights` must have the shape ({n_images},) of `targets`, got {weights.shape}.")
    if not ((weights >= 0) & np.isfinite(weights)).all():
        raise ValueError("`weights` must be 0 or more, got a negative number or NaN.")
    if np.issubdtype(weights.dtype, np.integer) or weights.dtype == np.bool_:
        largest = int(weights.max(initial=0))
        if largest < 2**16 and largest * n_images <= WIDE:
            return weights.astype(np.uint16)[:, None]
    return weights.astype(np.float64)[:, None]


def check_counts(counts: np.ndarray, n_units: int) -> None:
    """Refuse `counts` that are not (P, B): kernels read rows unchecked.

    Raises:
        ValueError: If there is not a row for each of `n_units`.
    """
    if len(counts) != n_units:
        raise ValueError(f"`counts` must have a row for each of {n_units} units, got {len(counts)}.")
