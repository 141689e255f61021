"""Thresholds, chosen on validation data only, and what a threshold does to another sample."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class OperatingPoint:
    """Counts and rates of ``score >= threshold`` against the targets; a rate is NaN where its denominator is 0."""

    threshold: float
    true_positive: int
    false_positive: int
    true_negative: int
    false_negative: int

    @property
    def sensitivity(self) -> float:
        """Share of present findings that are called."""
        return _rate(self.true_positive, self.true_positive + self.false_negative)

    @property
    def specificity(self) -> float:
        """Share of absent findings that are not called."""
        return _rate(self.true_negative, self.true_negative + self.false_positive)

    @property
    def ppv(self) -> float:
        """Share of calls that are right."""
        return _rate(self.true_positive, self.true_positive + self.false_positive)

    @property
    def npv(self) -> float:
        """Share of non-calls that are right."""
        return _rate(self.true_negative, self.true_negative + self.false_negative)

    @property
    def accuracy(self) -> float:
        """Share of images called rightly."""
        right = self.true_positive + self.true_negative
        return _rate(right, right + self.false_positive + self.false_negative)

    @property
    def f1(self) -> float:
        """Harmonic mean of sensitivity and positive predictive value."""
        return _rate(2 * self.true_positive, 2 * self.true_positive + self.false_positive + self.false_negative)


@dataclass(frozen=True)
class RocCurve:
    """(T + 1,) points from (0, 0) to (1, 1), one per distinct score, thresholds descending from infinity."""

    false_positive_rate: np.ndarray
    true_positive_rate: np.ndarray
    thresholds: np.ndarray


def roc_curve(targets: np.ndarray, scores: np.ndarray) -> RocCurve | None:
    """Return the empirical ROC curve of one finding ((N,) each, NaN targets masked), or None if one class only."""
    known = ~np.isnan(np.asarray(targets, dtype=np.float64))
    positive, scores = np.asarray(targets)[known] == 1, np.asarray(scores, dtype=np.float64)[known]
    if positive.all() or not positive.any():
        return None
    order = np.argsort(-scores, kind="stable")
    last_of_tie = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)
    true_positive = np.cumsum(positive[order])[last_of_tie]
    false_positive = last_of_tie + 1 - true_positive
    return RocCurve(
        false_positive_rate=np.append(0.0, false_positive / (~positive).sum()),
        true_positive_rate=np.append(0.0, true_positive / positive.sum()),
        thresholds=np.append(np.inf, scores[order][last_of_tie]),
    )


def youden_threshold(targets: np.ndarray, scores: np.ndarray) -> float:
    """Return the observed score t that maximises sensitivity + specificity of ``score >= t``; NaN if one class only.

    Among equals the highest t wins.  Call it with validation data: a threshold found on the test sample flatters every
    rate reported there (Youden 1950; Leeflang et al. 2008).
    """
    curve = roc_curve(targets, scores)
    if curve is None:
        return float("nan")
    best = np.argmax((curve.true_positive_rate - curve.false_positive_rate)[1:])
    return float(curve.thresholds[1:][best])


def operating_point(targets: np.ndarray, scores: np.ndarray, threshold: float) -> OperatingPoint:
    """Return what ``score >= threshold`` does to one finding, (N,) each; masked (NaN) targets take no part."""
    targets = np.asarray(targets, dtype=np.float64)
    called = np.asarray(scores, dtype=np.float64) >= threshold
    return OperatingPoint(
        threshold=threshold,
        true_positive=int(np.count_nonzero(called & (targets == 1))),
        false_positive=int(np.count_nonzero(called & (targets == 0))),
        true_negative=int(np.count_nonzero(~called & (targets == 0))),
        false_negative=int(np.count_nonzero(~called & (targets == 1))),
    )


def _rate(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
