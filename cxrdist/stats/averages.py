"""One number over several findings: macro, weighted and micro averages.

Shapes: N images, K findings, P units, B redraws.  Macro and micro are those of Sokolova & Lapalme 2009 (Inf Process
Manag 45:427), weighted is scikit-learn's ``average="weighted"``.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from cxrdist.stats.auroc import checked, units_of
from cxrdist.stats.kernels import weighted_sums
from cxrdist.stats.metrics import Metric
from cxrdist.stats.resample import Statistic, Units

AverageKind = Literal["macro", "weighted"]


def average(
    values: np.ndarray, kind: AverageKind, support: np.ndarray | None = None, *, included: np.ndarray
) -> np.ndarray:
    """Return the macro (Sokolova & Lapalme 2009) or weighted average over findings of values in each redraw.

    Which findings are `included` is decided once, on the full sample: those where the metric is defined.  In a redraw
    where one of them has no value there is no average: averaging the rest would mix means over different findings, and
    one easy rare finding that comes and goes would shift the whole interval.  Labels and redraws are shared, so for
    most metrics the rule falls alike on every model.

    Args:
        values: (..., K), NaN where undefined.
        kind: ``macro``, every finding alike; ``weighted``, by its share of all positives, as scikit-learn does: a
            finding without positives weighs nothing, whether it has a value or not.
        support: (..., K) weight of the positives under the same counts (`support_statistic`); for ``weighted``.
        included: (K,) bool.

    Returns:
        (...) averages; NaN where undefined, without any finding included, and for ``weighted`` without positives.

    Raises:
        ValueError: If the kind is unknown or `support` is missing, though a finding is included.
    """
    chosen = np.asarray(values, dtype=np.float64)[..., included]
    if not chosen.shape[-1]:
        return np.full(chosen.shape[:-1], np.nan)
    if kind == "macro":
        return chosen.mean(axis=-1)
    if kind != "weighted" or support is None:
        raise ValueError(f"`kind` must be 'macro', or 'weighted' with `support`, got {kind!r}.")
    share = np.asarray(support, dtype=np.float64)[..., included]
    total = share.sum(axis=-1)
    parts = np.where(share > 0, share * chosen, 0.0).sum(axis=-1)
    return np.divide(parts, total, out=np.full(total.shape, np.nan), where=total > 0)


@dataclass(frozen=True)
class SupportStatistic:
    """The weight of a finding's positives (scikit-learn's support); a `Statistic`, never NaN."""

    positives: np.ndarray
    """(P, 1): how many of each unit's images have the finding."""

    def under(self, counts: np.ndarray) -> np.ndarray:
        """Return (B,) the sum of the (P, B) `counts` over positive images.

        Raises:
            ValueError: If `counts` do not have P rows, or are of another type than kernels take.
        """
        return weighted_sums(counts, self.positives)[0]


def support_statistic(targets: np.ndarray, units: Units) -> SupportStatistic:
    """Return the weight of the positives of one finding (scikit-learn's support), prepared.

    Args:
        targets: (N,) of 1, 0, or NaN for masked.
        units: Of the N images.

    Raises:
        ValueError: If a target is none of 0, 1, NaN, or `units` are others.
    """
    targets, _ = checked(targets, np.zeros(np.shape(targets)))
    present = np.flatnonzero(targets == 1)
    return SupportStatistic(np.bincount(units_of(present, targets, units), minlength=units.n)[:, None].astype(float))


def micro_statistic(
    metric: Metric,
    targets: np.ndarray,
    scores: np.ndarray,
    units: Units,
    thresholds: np.ndarray | None = None,
) -> Statistic:
    """Return a metric over all pairs of image and finding as if they were one finding, prepared.

    Sokolova & Lapalme 2009, and scikit-learn's ``average="micro"``.  A frequent finding counts more than a rare one,
    and scores of different findings are ranked against each other, so findings must share a scale of probability.  A
    redrawn unit brings all pairs of its images.

    Args:
        metric: Of `METRICS`.
        targets: (N, K) of 1, 0, or NaN for masked pairs, which take no part.
        scores: (N, K), probabilities where the metric asks for them.
        units: Of the N images.
        thresholds: (K,), each finding by its own, for metrics that need one; a NaN makes every value NaN.

    Raises:
        ValueError: If a shape or value is wrong, or thresholds are missing.
    """
    targets, scores = np.asarray(targets, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    if targets.ndim != 2 or targets.shape != scores.shape:
        raise ValueError(f"`targets` and `scores` must have one shape (N, K), got {targets.shape} and {scores.shape}.")
    findings = targets.shape[1]
    pairs = Units(np.repeat(units.of_image, findings), units.n, units.strata)
    if not metric.needs_threshold:
        return metric.prepare(targets.ravel(), scores.ravel(), pairs, None)
    if thresholds is None or thresholds.shape != (findings,):
        got = None if thresholds is None else thresholds.shape
        raise ValueError(f"`thresholds` must be ({findings},) for {metric.name}, got {got}.")
    # A call is 1, so that one threshold, 1, does for all; scores that are NaN stay so and are refused where labelled.
    called = np.where(np.isnan(scores), np.nan, scores >= thresholds)
    return metric.prepare(targets.ravel(), called.ravel(), pairs, float("nan") if np.isnan(thresholds).any() else 1.0)
