"""All metrics by name: what they mean to a reader, and how they are prepared for redraws.

Shapes: N images, R redraws, P units.  Each is of the module that prepares it, which cites its source.
"""

import math
from collections.abc import Callable, Sequence
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
from cxrdist.stats.intervals import Interval, IntervalMethod, interval, raised_interval
from cxrdist.stats.labelled import point
from cxrdist.stats.meanings import MEANINGS
from cxrdist.stats.precision import average_precision_statistic
from cxrdist.stats.rates import RATES, rate_statistic
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
    bounds: tuple[float, float]
    """The least and the greatest value that there is."""
    raised_by_redraws: bool
    """Whether noise raises it, in the sample and once more in redraws, so that its interval is `raised_interval`."""
    prepare: Prepare
    """``prepare(targets (N,), scores (N,), units, threshold)``; the threshold only counts where it is needed."""

    def interval(
        self,
        theta: np.ndarray,
        *,
        point: float,
        method: IntervalMethod = "percentile",
        confidence_level: float = 0.95,
        jackknife: np.ndarray | None = None,
        strata: Sequence[np.ndarray] = (),
    ) -> Interval:
        """Return the interval of this metric's value, as of `intervals.interval`, within its `bounds`.

        Where redraws raise the metric, it is `raised_interval` whatever the method.  Differences between models are not
        for this: in them what redraws add cancels about, and bounds are others.

        Args:
            theta: (R,) the metric in each redraw.
            point: The metric on the sample as it is.
            method: As of `intervals.interval`, and so the others.
            confidence_level: In (0, 1).
            jackknife: (P,) the metric with one unit left out; needed by BCa.
            strata: (Ps,) each, in which redraws were drawn.

        Raises:
            ValueError: If the method is unknown, what it needs is missing, or the level is outside (0, 1).
        """
        if self.raised_by_redraws:
            return raised_interval(theta, point=point, confidence_level=confidence_level)
        found = interval(
            theta,
            method=method,
            confidence_level=confidence_level,
            point=point,
            jackknife=jackknife,
            strata=strata,
        )
        low, high = np.clip([found.low, found.high], *self.bounds)
        return Interval(float(low), float(high))

    def value(
        self,
        targets: np.ndarray,
        scores: np.ndarray,
        weights: np.ndarray | None = None,
        *,
        threshold: float | None = None,
    ) -> float:
        """Return the metric of one finding under (N,) image `weights`, as in a redraw; NaN where undefined.

        `targets` are (N,) of 1, 0, NaN for masked, `scores` (N,), probabilities where the metric asks for them.

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
    statistic: Callable[[np.ndarray, np.ndarray, Units], Any],
    better: Literal["higher", "lower", "target"],
    target: float | None = None,
    *,
    bounds: tuple[float, float] = (0.0, 1.0),
    raised_by_redraws: bool = False,
) -> Metric:
    prepare = partial(_without_threshold, statistic)
    return Metric(name, *MEANINGS[name], better, target, False, bounds, raised_by_redraws, prepare)


def _of_calls(name: str) -> Metric:
    bounds = (-1.0 if name == "mcc" else 0.0, 1.0)
    return Metric(name, *MEANINGS[name], "higher", None, True, bounds, False, partial(rate_statistic, name))


ANY = (-math.inf, math.inf)

_ALL = (
    _of_scores("auroc", auroc_statistic, "higher"),
    _of_scores("auprc", average_precision_statistic, "higher"),
    *(_of_calls(name) for name in RATES),
    _of_scores("brier", brier_statistic, "lower"),
    _of_scores("log_loss", log_loss_statistic, "lower", bounds=(0.0, math.inf)),
    _of_scores("ece", ece_statistic, "lower", raised_by_redraws=True),
    _of_scores("calibration_slope", calibration_slope_statistic, "target", 1.0, bounds=ANY),
    _of_scores("calibration_intercept", calibration_intercept_statistic, "target", 0.0, bounds=ANY),
)

METRICS: dict[str, Metric] = {metric.name: metric for metric in _ALL}
"""Name -> metric, in the order of tables."""
