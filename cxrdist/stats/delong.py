"""DeLong's test of two correlated AUROCs, a closed form to hold against the bootstrap.  Shapes: N images, S models.

DeLong, DeLong & Clarke-Pearson 1988 (Biometrics 44:837).  Fast by midranks (Sun & Xu 2014, IEEE Signal Processing
Letters 21:1389).  With clusters it is Obuchowski's extension (1997, Biometrics 53:567); where each image is its own
cluster the two are the same.
"""

from dataclasses import dataclass

import numpy as np
from scipy.stats import norm, rankdata

from cxrdist.stats.auroc import checked


@dataclass(frozen=True)
class DeLong:
    """AUROC of the first minus that of the second model, its standard error and two-sided p (DeLong et al. 1988)."""

    difference: float
    standard_error: float
    p: float


def delong_test(
    targets: np.ndarray, first: np.ndarray, second: np.ndarray, clusters: np.ndarray | None = None
) -> DeLong:
    """Return the test of DeLong et al. 1988 of two models on the same images; with clusters that of Obuchowski 1997.

    Args:
        targets: (N,) of 1, 0, NaN for masked.
        first: (N,) scores, or (S, N) of S models whose mean AUROC is meant.
        second: As `first`; S may differ.
        clusters: (N,) patient of each image, or None: every image on its own.

    Returns:
        NaN throughout if a class has fewer than two images (or clusters); p is NaN if the variance is 0 but the
        difference is not, since a degenerate sample says nothing about the spread.

    Raises:
        ValueError: If the shapes differ, a target is none of 0, 1, NaN, or the score of a labelled image is NaN.
    """
    for scores in (*np.atleast_2d(first), *np.atleast_2d(second)):
        checked(targets, scores)
    if clusters is not None and np.shape(clusters) != np.shape(targets):
        raise ValueError(f"`clusters` must have the shape {np.shape(targets)} of `targets`, got {np.shape(clusters)}.")
    known = ~np.isnan(np.asarray(targets, dtype=np.float64))
    positive = np.asarray(targets)[known] == 1
    groups = (
        np.arange(known.sum()) if clusters is None else np.unique(np.asarray(clusters)[known], return_inverse=True)[1]
    )
    undefined = DeLong(float("nan"), float("nan"), float("nan"))
    if min(len(np.unique(groups[positive])), len(np.unique(groups[~positive]))) < 2:
        return undefined
    # The mean of AUROCs has the mean of their placements, and a difference their difference: all is linear.
    ours = np.mean([_placements(positive, row[known]) for row in np.atleast_2d(first)], axis=0)
    theirs = np.mean([_placements(positive, row[known]) for row in np.atleast_2d(second)], axis=0)
    delta = ours - theirs
    difference = float(delta[positive].mean())
    error = float(np.sqrt(max(_variance(delta, difference, positive, groups), 0.0)))
    if error < 1e-15:
        return DeLong(difference, 0.0, 1.0 if abs(difference) < 1e-15 else float("nan"))
    return DeLong(difference, error, float(2 * norm.sf(abs(difference) / error)))


def _placements(positive: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return (N,): the share of negatives that a positive beats, the share of positives that beat a negative."""
    scores = np.asarray(scores, dtype=np.float64)
    n_positive, n_negative = positive.sum(), (~positive).sum()
    ranks = rankdata(scores)
    placements = np.empty(len(scores))
    placements[positive] = (ranks[positive] - rankdata(scores[positive])) / n_negative
    placements[~positive] = 1 - (ranks[~positive] - rankdata(scores[~positive])) / n_positive
    return placements


def _variance(delta: np.ndarray, difference: float, positive: np.ndarray, groups: np.ndarray) -> float:
    centred = delta - difference
    n_clusters = groups.max() + 1
    among_positive = np.bincount(groups[positive], centred[positive], n_clusters) / positive.sum()
    among_negative = np.bincount(groups[~positive], centred[~positive], n_clusters) / (~positive).sum()
    with_positive = len(np.unique(groups[positive]))
    with_negative = len(np.unique(groups[~positive]))
    return float(
        with_positive / (with_positive - 1) * np.sum(among_positive**2)
        + with_negative / (with_negative - 1) * np.sum(among_negative**2)
        + 2 * n_clusters / (n_clusters - 1) * np.sum(among_positive * among_negative)
    )
