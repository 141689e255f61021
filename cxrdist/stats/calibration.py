"""Whether a probability means what it says: Brier score, log loss, calibration error, slope and intercept.

Shapes: N images, n labelled, P units, B redraws, M bins.  Scores must be probabilities in [0, 1].

What is undefined is NaN: everything where no labelled image has weight; slope and intercept also where a class has
none, and the slope where the classes do not overlap (see `logistic`).  Scores are worked with in double precision.
"""

from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from cxrdist.stats.auroc import check_counts
from cxrdist.stats.binned import equal_mass_error
from cxrdist.stats.kernels import weighted_sums
from cxrdist.stats.labelled import Labelled, labelled, point
from cxrdist.stats.logistic import fit_intercepts, fit_slopes
from cxrdist.stats.resample import Units

N_BINS = 15
"""Bins of the calibration error, as in Guo et al. 2017 and Roelofs et al. 2022."""

LOG_LOSS_FLOOR = float(np.finfo(np.float64).eps)
"""Least probability of what happened, 2.2e-16: `sklearn.metrics.log_loss` clips double precision so."""

LOGIT_FLOOR = 1e-8
"""Probabilities are clipped to [1e-8, 1 - 1e-8] before the logit, which is then within ±18.4.

0 and 1 have no finite logit.  The R package CalibrationCurves puts these two values in their place; the largest
probability below 1 that single precision can hold is further from 1 (6e-8), so only 0, 1 and smaller numbers move.
"""


@dataclass(frozen=True)
class MeanStatistic:
    """The mean of a number that every labelled image has: Brier 1950, Good 1952; a `Statistic`."""

    sums: np.ndarray
    """(P, 2): of each unit, the sum of the numbers and how many."""

    def under(self, counts: np.ndarray) -> np.ndarray:
        """Return (B,) the mean under the (P, B) `counts`; NaN without weight.

        Raises:
            ValueError: If `counts` do not have P rows, or are of another type than kernels take.
        """
        total, weight = weighted_sums(counts, self.sums)
        return np.divide(total, weight, out=np.full(weight.shape, np.nan), where=weight > 0)


def brier_statistic(targets: np.ndarray, scores: np.ndarray, units: Units) -> MeanStatistic:
    """Return the mean of (p - y)², prepared (Brier 1950, Mon Weather Rev 78:1, halved: 0 best, 1 worst).

    `targets` (N,) of 1, 0, NaN for masked; `scores` (N,) probabilities.  ValueError for wrong shapes or values.
    """
    images = labelled(targets, scores, units, probabilities=True)
    return _mean((images.scores - images.positive) ** 2, images, units)


def log_loss_statistic(targets: np.ndarray, scores: np.ndarray, units: Units) -> MeanStatistic:
    """Return the mean of -ln(probability of what happened), prepared (Good 1952, JRSS B 14:107).

    A probability below `LOG_LOSS_FLOOR` counts as that, as in scikit-learn.
    `targets` (N,) of 1, 0, NaN for masked; `scores` (N,) probabilities.  ValueError for wrong shapes or values.
    """
    images = labelled(targets, scores, units, probabilities=True)
    happened = np.where(images.positive, images.scores, 1 - images.scores)
    return _mean(-np.log(np.clip(happened, LOG_LOSS_FLOOR, 1 - LOG_LOSS_FLOOR)), images, units)


@dataclass(frozen=True)
class CalibrationErrorStatistic:
    """Expected calibration error (see `ece_statistic`); a `Statistic`.  Images by ascending score."""

    unit: np.ndarray
    """(n,) int32."""
    scores: np.ndarray
    """(n,) float64, ascending."""
    positive: np.ndarray
    """(n,) bool."""
    n_units: int
    n_bins: int

    def under(self, counts: np.ndarray) -> np.ndarray:
        """Return (B,) the error under the (P, B) `counts`, binned anew in each column; NaN without weight.

        Raises:
            ValueError: If `counts` do not have P rows, or are of another type than kernels take.
        """
        check_counts(counts, self.n_units)
        return equal_mass_error(counts, self.unit, self.scores, self.positive, self.n_bins)


def ece_statistic(
    targets: np.ndarray, scores: np.ndarray, units: Units, n_bins: int = N_BINS
) -> CalibrationErrorStatistic:
    """Return the expected calibration error, prepared: the sum over bins of share of weight × |mean p - mean y|.

    Of the finding's probability, not of the likelier class's (Naeini, Cooper & Hauskrecht 2015, AAAI), in bins of equal
    mass (Nixon et al. 2019, CVPR Workshops; less biased than equal width, Roelofs et al. 2022, AISTATS).  Images are
    lined up by score, each as long as its weight; the line is cut into `n_bins` equal parts, and images that share a
    score stay together, in the part where their common middle lies (the upper one, if it lies on the cut).  So bins
    depend on the weights, ties never on the order of images, and a bin may stay empty.  The error of a finite sample is
    above zero even under perfect calibration, and more so in redraws; compare models by it, do not test it against
    zero.

    Args:
        targets: (N,) of 1, 0, or NaN for masked.
        scores: (N,) probabilities.
        units: What is redrawn.
        n_bins: M, 1 or more.

    Raises:
        ValueError: If a shape or value is wrong.
    """
    _check_bins(n_bins)
    images = labelled(targets, scores, units, probabilities=True)
    order = np.argsort(images.scores, kind="stable")
    return CalibrationErrorStatistic(images.unit[order], images.scores[order], images.positive[order], units.n, n_bins)


@dataclass(frozen=True)
class LogitStatistic:
    """Calibration slope or intercept (Cox 1958; see the two functions that prepare it); a `Statistic`."""

    unit: np.ndarray
    """(n,) int32."""
    logit: np.ndarray
    """(n,) log odds of the clipped probabilities."""
    positive: np.ndarray
    """(n,) bool."""
    n_units: int
    start: np.ndarray | None
    """(2,) intercept and slope of all images, from where the fits of a slope begin; None: the slope is held at 1."""

    def under(self, counts: np.ndarray) -> np.ndarray:
        """Return (B,) the slope or intercept under the (P, B) `counts`; NaN where it does not exist.

        Raises:
            ValueError: If `counts` do not have P rows, or are of another type than kernels take.
        """
        check_counts(counts, self.n_units)
        if self.start is None:
            return fit_intercepts(counts, self.unit, self.logit, self.positive)
        return fit_slopes(counts, self.unit, self.logit, self.positive, self.start)[1]


def calibration_slope_statistic(targets: np.ndarray, scores: np.ndarray, units: Units) -> LogitStatistic:
    """Return the slope b of ``logit P(y = 1) = a + b logit p``, prepared.

    Cox 1958 (Biometrika 45:562); Van Calster et al. 2016 (J Clin Epidemiol 74:167), 2019 (BMC Med 17:230).  1 is right;
    below 1 the probabilities are too extreme, above 1 too timid.  See `LOGIT_FLOOR` for p of 0 and 1.

    `targets` (N,) of 1, 0, NaN for masked; `scores` (N,) probabilities.  ValueError for wrong shapes or values.
    """
    one = _logits(targets, scores, units)
    once = np.ones((units.n, 1), dtype=np.uint16)
    start = fit_slopes(once, one.unit, one.logit, one.positive, np.full(2, np.nan))[:, 0]
    return replace(one, start=start)


def calibration_intercept_statistic(targets: np.ndarray, scores: np.ndarray, units: Units) -> LogitStatistic:
    """Return a of ``logit P(y = 1) = a + logit p``, calibration in the large, prepared.

    Van Calster et al. 2016 (J Clin Epidemiol 74:167), 2019 (BMC Med 17:230).  0 is right; below 0 the probabilities are
    too high on the whole, above 0 too low.  The slope is held at 1: the intercept of the model with a free slope tells
    something else.  See `LOGIT_FLOOR` for p of 0 and 1.

    `targets` (N,) of 1, 0, NaN for masked; `scores` (N,) probabilities.  ValueError for wrong shapes or values.
    """
    return _logits(targets, scores, units)


def brier(targets: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Return the Brier score of one finding, `targets`, `scores` and image `weights` (N,) each; see `brier_statistic`.

    Raises:
        ValueError: If a shape or value is wrong.
    """
    return point(partial(brier_statistic, targets, scores), len(targets), weights)


def log_loss(targets: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Return the log loss of one finding, `targets`, `scores` and image `weights` (N,) each; see `log_loss_statistic`.

    Raises:
        ValueError: If a shape or value is wrong.
    """
    return point(partial(log_loss_statistic, targets, scores), len(targets), weights)


def ece(targets: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None, *, n_bins: int = N_BINS) -> float:
    """Return the calibration error of one finding, `targets`, `scores` and `weights` (N,) each; see `ece_statistic`.

    Raises:
        ValueError: If a shape or value is wrong.
    """
    return point(partial(ece_statistic, targets, scores, n_bins=n_bins), len(targets), weights)


def calibration_slope(targets: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Return the slope of one finding, `targets`, `scores`, `weights` (N,) each; see `calibration_slope_statistic`.

    Raises:
        ValueError: If a shape or value is wrong.
    """
    return point(partial(calibration_slope_statistic, targets, scores), len(targets), weights)


def calibration_intercept(targets: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Return the intercept of one finding, (N,) arguments as of `calibration_slope`.

    See `calibration_intercept_statistic`.

    Raises:
        ValueError: If a shape or value is wrong.
    """
    return point(partial(calibration_intercept_statistic, targets, scores), len(targets), weights)


@dataclass(frozen=True)
class ReliabilityCurve:
    """The bins that hold an image, by ascending probability, (m,) each, m <= M (Niculescu-Mizil & Caruana 2005)."""

    mean_predicted: np.ndarray
    """Mean probability of the bin's images."""
    share_positive: np.ndarray
    """Share of them with the finding."""
    count: np.ndarray
    """int64: how many."""


def reliability_curve(targets: np.ndarray, scores: np.ndarray, n_bins: int = N_BINS) -> ReliabilityCurve:
    """Return what was predicted and what happened in the bins of `ece_statistic`.

    Niculescu-Mizil & Caruana 2005 (ICML), there with bins of equal width.  The error is
    ``sum(count / n * abs(mean_predicted - share_positive))``.  Without a labelled image, no points.

    Args:
        targets: (N,) of 1, 0, or NaN for masked.
        scores: (N,) probabilities.
        n_bins: M, 1 or more.

    Raises:
        ValueError: If a shape or value is wrong.
    """
    _check_bins(n_bins)
    n = len(targets)
    images = labelled(targets, scores, Units(np.arange(n), n), probabilities=True)
    values, of_value, tied = np.unique(images.scores, return_inverse=True, return_counts=True)
    twice_middle = 2 * np.cumsum(tied) - tied
    bins = twice_middle * n_bins // (2 * len(images.scores)) if len(values) else tied
    present = np.bincount(of_value, weights=images.positive, minlength=len(values))
    count = np.bincount(bins, weights=tied, minlength=n_bins)
    held = count > 0
    return ReliabilityCurve(
        mean_predicted=np.bincount(bins, weights=values * tied, minlength=n_bins)[held] / count[held],
        share_positive=np.bincount(bins, weights=present, minlength=n_bins)[held] / count[held],
        count=count[held].astype(np.int64),
    )


def _mean(numbers: np.ndarray, images: Labelled, units: Units) -> MeanStatistic:
    return MeanStatistic(images.totals(numbers, np.ones(len(numbers)), n_units=units.n))


def _logits(targets: np.ndarray, scores: np.ndarray, units: Units) -> LogitStatistic:
    images = labelled(targets, scores, units, probabilities=True)
    p = np.clip(images.scores, LOGIT_FLOOR, 1 - LOGIT_FLOOR)
    return LogitStatistic(images.unit, np.log(p) - np.log1p(-p), images.positive, units.n, None)


def _check_bins(n_bins: int) -> None:
    if n_bins < 1:
        raise ValueError(f"`n_bins` must be 1 or more, got {n_bins}.")
