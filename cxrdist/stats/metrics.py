"""All metrics by name: what they mean to a reader, and how they are prepared for redraws."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from cxrdist.stats.auroc import auroc_statistic
from cxrdist.stats.calibration import (
    brier_statistic,
    calibration_intercept_statistic,
    calibration_slope_statistic,
    ece_statistic,
    log_loss_statistic,
)
from cxrdist.stats.labelled import point
from cxrdist.stats.precision import average_precision_statistic
from cxrdist.stats.rates import rate_statistic
from cxrdist.stats.resample import Statistic, Units

Prepare = Callable[[np.ndarray, np.ndarray, Units, float | None], Statistic]


@dataclass(frozen=True)
class Metric:
    """One number per model and finding."""

    name: str
    """As in options and columns."""
    title: str
    """As in tables."""
    meaning: str
    """One sentence for a clinician."""
    better: Literal["higher", "lower", "target"]
    target: float | None
    """The right value where neither higher nor lower is better, else None."""
    needs_threshold: bool
    prepare: Prepare
    """``prepare(targets (N,), scores (N,), units, threshold)``; the threshold only counts where it is needed."""

    def value(
        self,
        targets: np.ndarray,
        scores: np.ndarray,
        weights: np.ndarray | None = None,
        *,
        threshold: float | None = None,
    ) -> float:
        """Return the metric of one finding under (N,) image `weights`, as in a redraw; NaN where undefined.

        Raises:
            ValueError: If a shape or value is wrong, or a threshold is missing.
        """
        return point(lambda units: self.prepare(targets, scores, units, threshold), len(targets), weights)


def _without_threshold(
    statistic: Callable[[np.ndarray, np.ndarray, Units], Statistic],
    targets: np.ndarray,
    scores: np.ndarray,
    units: Units,
    threshold: float | None,
) -> Statistic:
    del threshold
    return statistic(targets, scores, units)


def _of_scores(
    name: str,
    title: str,
    meaning: str,
    statistic: Callable[[np.ndarray, np.ndarray, Units], Any],
    better: Literal["higher", "lower", "target"],
    target: float | None = None,
) -> Metric:
    return Metric(name, title, meaning, better, target, False, partial(_without_threshold, statistic))


def _of_calls(name: str, title: str, meaning: str) -> Metric:
    return Metric(name, title, meaning, "higher", None, True, partial(rate_statistic, name))


_ALL = (
    _of_scores(
        "auroc",
        "AUROC",
        "The chance that an image with the finding scores higher than one without it; 0.5 is guessing, 1 is perfect.",
        auroc_statistic,
        "higher",
    ),
    _of_scores(
        "auprc",
        "AUPRC",
        "Average precision: how right the calls are, averaged over all findings detected as the threshold falls; "
        "guessing gives the prevalence.",
        average_precision_statistic,
        "higher",
    ),
    _of_calls("sensitivity", "Sensitivity", "The share of images with the finding that are called."),
    _of_calls("specificity", "Specificity", "The share of images without the finding that are not called."),
    _of_calls("ppv", "PPV", "The share of calls that are right, at the prevalence of this sample."),
    _of_calls(
        "npv", "NPV", "The share of images not called that are free of the finding, at this sample's prevalence."
    ),
    _of_calls("f1", "F1", "The harmonic mean of sensitivity and PPV; images rightly not called do not count."),
    _of_calls(
        "accuracy", "Accuracy", "The share of images called rightly; for a rare finding, never calling does well."
    ),
    _of_calls(
        "balanced_accuracy", "Balanced accuracy", "The mean of sensitivity and specificity; 0.5 is guessing, 1 perfect."
    ),
    _of_calls(
        "mcc", "MCC", "The correlation between calls and truth (Matthews): 1 is perfect, 0 guessing, -1 always wrong."
    ),
    _of_scores(
        "brier",
        "Brier score",
        "The mean squared distance of the probability from what was true (1 or 0); 0 is perfect.",
        brier_statistic,
        "lower",
    ),
    _of_scores(
        "log_loss",
        "Log loss",
        "The mean surprise at what was true, given the probability; being sure and wrong costs most, 0 is perfect.",
        log_loss_statistic,
        "lower",
    ),
    _of_scores(
        "ece",
        "ECE",
        "The mean gap between predicted probability and observed share, over 15 groups of images of like probability.",
        ece_statistic,
        "lower",
    ),
    _of_scores(
        "calibration_slope",
        "Calibration slope",
        "Whether probabilities are too extreme (below 1) or too timid (above 1); 1 is right.",
        calibration_slope_statistic,
        "target",
        1.0,
    ),
    _of_scores(
        "calibration_intercept",
        "Calibration intercept",
        "Whether probabilities are too high on the whole (below 0) or too low (above 0); 0 is right.",
        calibration_intercept_statistic,
        "target",
        0.0,
    ),
)

METRICS: dict[str, Metric] = {metric.name: metric for metric in _ALL}
"""Name -> metric, in the order of tables."""
