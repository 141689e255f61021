"""Area under the ROC curve as the Mann-Whitney statistic.  Shapes: N images, K findings, R redraws.

The AUROC is the chance that a positive image scores above a negative one, ties counting one half.  The scores never
change between redraws, only how often each image counts; so images are ranked once (`rank_pairs`) and a redraw is one
running sum over integer weights.  With integer weights every sum is exact, hence the result has one rounding (the last
division) and does not depend on the order of images or on how redraws are grouped.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class RankedPairs:
    """One finding of one model, ranked: where each positive falls among the sorted negatives."""

    positives: np.ndarray
    """(m,) rows of the images with target 1."""
    negatives: np.ndarray
    """(n,) rows of the images with target 0, by ascending score."""
    below: np.ndarray
    """(m,) how many negatives score less than each positive."""
    below_or_tied: np.ndarray
    """(m,) how many negatives score less than or the same as each positive."""

    def auroc(self, weights: np.ndarray) -> np.ndarray:
        """Return the (B,) AUROC under each column of the (N, B) image `weights`; NaN where a class has no weight."""
        negative = np.take(weights, self.negatives, axis=0)
        positive = np.take(weights, self.positives, axis=0)
        running = np.zeros((len(self.negatives) + 1, weights.shape[1]), dtype=weights.dtype)
        np.cumsum(negative, axis=0, out=running[1:])
        # A positive wins over the negatives below it and half-wins over the tied; twice that is below + below_or_tied.
        twice_wins = (positive * (running[self.below] + running[self.below_or_tied])).sum(axis=0)
        pairs = positive.sum(axis=0) * running[-1]
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(pairs > 0, twice_wins / (2 * pairs), np.nan)


def rank_pairs(targets: np.ndarray, scores: np.ndarray) -> RankedPairs:
    """Return the ranking of one finding.

    Args:
        targets: (N,) of 1, 0, or NaN for masked images, which take no part.
        scores: (N,), any real numbers; higher means more likely present.

    Raises:
        ValueError: If the shapes differ, a target is none of 0, 1, NaN, or a score is NaN.
    """
    targets, scores = np.asarray(targets, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    if targets.ndim != 1 or targets.shape != scores.shape:
        raise ValueError(f"`targets` and `scores` must have one shape (N,), got {targets.shape} and {scores.shape}.")
    known = ~np.isnan(targets)
    if not np.isin(targets[known], (0.0, 1.0)).all():
        raise ValueError("`targets` must be 0, 1, or NaN for masked, got another value. Apply a label policy first.")
    if np.isnan(scores[known]).any():
        raise ValueError(f"`scores` must be numbers, got {np.isnan(scores[known]).sum()} NaN.")
    positives, negatives = np.flatnonzero(targets == 1), np.flatnonzero(targets == 0)
    negatives = negatives[np.argsort(scores[negatives], kind="stable")]
    ladder = scores[negatives]
    return RankedPairs(
        positives=positives,
        negatives=negatives,
        below=np.searchsorted(ladder, scores[positives], side="left"),
        below_or_tied=np.searchsorted(ladder, scores[positives], side="right"),
    )


def auroc(targets: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Return the AUROC of one finding, in [0, 1]; NaN if one class is absent.

    Args:
        targets: (N,) of 1, 0, or NaN for masked images.
        scores: (N,), higher means more likely present; only their order counts.
        weights: (N,) non-negative; an integer weight w is the same as the image repeated w times.

    Raises:
        ValueError: If shapes or values are wrong.
    """
    ranked = rank_pairs(targets, scores)
    if weights is None:
        counts = np.ones(len(targets), dtype=np.int64)
    else:
        counts = np.asarray(weights)
        counts = counts.astype(np.int64 if np.issubdtype(counts.dtype, np.integer) else np.float64)
        if counts.shape != np.shape(targets):
            raise ValueError(f"`weights` must have the shape {np.shape(targets)} of `targets`, got {counts.shape}.")
        if not (counts >= 0).all():
            raise ValueError("`weights` must be 0 or more, got a negative number or NaN.")
    return float(ranked.auroc(counts[:, None])[0])


def macro(values: np.ndarray, included: np.ndarray) -> np.ndarray:
    """Return the mean of the (..., K) AUROCs over the `included` findings; NaN where one of them is undefined.

    Which findings are included, (K,) bool, is decided once, on the full sample: those with both classes.  A redraw in
    which one of them lost a class has no macro mean: averaging the rest would mix means over different findings, and
    one easy rare finding that comes and goes would shift the whole interval.  Labels and redraws are shared, so the
    rule falls alike on every model.
    """
    chosen = np.asarray(values, dtype=np.float64)[..., included]
    return chosen.mean(axis=-1) if chosen.shape[-1] else np.full(chosen.shape[:-1], np.nan)
