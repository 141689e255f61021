"""Thresholds, chosen on validation data only, and what a threshold does to another sample.  Shapes: N images."""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from cxrdist.errors import UsageError, unknown
from cxrdist.stats.auroc import checked
from cxrdist.stats.labelled import labelled
from cxrdist.stats.rates import RATES
from cxrdist.stats.resample import Units

RuleKind = Literal["youden", "f1", "sensitivity", "specificity"]
RULES = ("youden", "f1", "sensitivity=X", "specificity=X")
"""How a threshold may be chosen, X in (0, 1]."""


@dataclass(frozen=True)
class Rule:
    """How a threshold is chosen, see `choose_threshold`; `least`, in (0, 1], is the rate that two of them reach."""

    kind: RuleKind
    least: float | None = None


@dataclass(frozen=True)
class OperatingPoint:
    """Counts and rates of ``score >= threshold`` against the targets; a rate is NaN where its denominator is 0.

    Counts are of images; the formulas are those of `rates`, which cite their sources.
    """

    threshold: float
    true_positive: int
    false_positive: int
    true_negative: int
    false_negative: int

    @property
    def sensitivity(self) -> float:
        """Share of present findings that are called."""
        return self._rate("sensitivity")

    @property
    def specificity(self) -> float:
        """Share of absent findings that are not called."""
        return self._rate("specificity")

    @property
    def ppv(self) -> float:
        """Share of calls that are right."""
        return self._rate("ppv")

    @property
    def npv(self) -> float:
        """Share of non-calls that are right."""
        return self._rate("npv")

    @property
    def accuracy(self) -> float:
        """Share of images called rightly."""
        return self._rate("accuracy")

    @property
    def balanced_accuracy(self) -> float:
        """Mean of sensitivity and specificity."""
        return self._rate("balanced_accuracy")

    @property
    def f1(self) -> float:
        """Harmonic mean of sensitivity and positive predictive value."""
        return self._rate("f1")

    @property
    def mcc(self) -> float:
        """Correlation of calls with the truth (Matthews)."""
        return self._rate("mcc")

    def _rate(self, name: str) -> float:
        cells = (self.true_positive, self.false_positive, self.true_negative, self.false_negative)
        return float(RATES[name](*np.array(cells, dtype=np.float64)))


@dataclass(frozen=True)
class RocCurve:
    """(T + 1,) points from (0, 0) to (1, 1), one per distinct score, thresholds descending from infinity.

    Fawcett 2006 (Pattern Recognit Lett 27:861), as scikit-learn's `roc_curve` without dropped points.
    """

    false_positive_rate: np.ndarray
    true_positive_rate: np.ndarray
    thresholds: np.ndarray


@dataclass(frozen=True)
class _Ladder:
    """What every observed score does as a threshold, (T,) descending; counts are exact."""

    thresholds: np.ndarray
    true_positive: np.ndarray
    false_positive: np.ndarray
    n_positive: int
    n_negative: int


def parse_rule(text: str) -> Rule:
    """Return the rule that `text` names: ``youden``, ``f1``, ``sensitivity=0.9`` or ``specificity=0.9``.

    Raises:
        UsageError: If it names none, or the rate to reach is not in (0, 1].
    """
    name, equals, level = (part.strip() for part in text.partition("="))
    kinds: tuple[RuleKind, ...] = get_args(RuleKind)
    kind = next((one for one in kinds if one == name), None)
    if kind is None:
        raise UsageError(unknown("A threshold rule", text, RULES))
    if kind in ("youden", "f1"):
        if equals:
            raise UsageError(f"The threshold rule {kind} must stand alone, got {text!r}. Leave out '={level}'.")
        return Rule(kind)
    try:
        least = float(level)
    except ValueError:
        least = float("nan")
    if not 0 < least <= 1:
        raise UsageError(
            f"The threshold rule {kind} must name a rate in (0, 1], got {text!r}. Write for example {kind}=0.9."
        )
    return Rule(kind, least)


def choose_threshold(targets: np.ndarray, scores: np.ndarray, rule: Rule | str) -> float:
    """Return the threshold t that a rule picks for ``score >= t``, among the observed scores.

    Call it with **validation data only**: a threshold found on the test sample flatters every rate reported there
    (Leeflang et al. 2008, Clin Chem 54:729).

    - ``youden``: the t with the largest sensitivity + specificity (Youden 1950, Cancer 3:32); among equals the highest.
    - ``f1``: the t with the largest F1; among equals the highest.
    - ``sensitivity=X``: the highest t whose sensitivity is at least X.
    - ``specificity=X``: the lowest t whose specificity is at least X; infinity, which calls nothing, if even the
      highest score does not reach it.

    Shares are compared as exact quotients of counts, so 9 of 10 reaches 0.9.

    Args:
        targets: (N,) of 1, 0, or NaN for masked images, which take no part.
        scores: (N,) real numbers.
        rule: A rule, or its text for `parse_rule`.

    Returns:
        The threshold; NaN if one class only.

    Raises:
        UsageError: If the rule's text is nonsense.
        ValueError: If a shape or value is wrong.
    """
    rule = parse_rule(rule) if isinstance(rule, str) else rule
    ladder = _ladder(targets, scores)
    if not ladder.n_positive or not ladder.n_negative:
        return float("nan")
    if rule.kind == "youden":
        # Youden's J times both class sizes: whole numbers, so that equals are equal.
        gain = ladder.true_positive * ladder.n_negative - ladder.false_positive * ladder.n_positive
        return float(ladder.thresholds[np.argmax(gain)])
    if rule.kind == "f1":
        f1 = 2 * ladder.true_positive / (ladder.true_positive + ladder.false_positive + ladder.n_positive)
        return float(ladder.thresholds[np.argmax(f1)])
    assert rule.least is not None, "parse_rule gives these two a rate"
    if rule.kind == "sensitivity":
        enough = ladder.true_positive / ladder.n_positive >= rule.least
        return float(ladder.thresholds[np.argmax(enough)])
    enough = (ladder.n_negative - ladder.false_positive) / ladder.n_negative >= rule.least
    return float(ladder.thresholds[enough][-1]) if enough.any() else float("inf")


def youden_threshold(targets: np.ndarray, scores: np.ndarray) -> float:
    """Return the threshold of `choose_threshold` with the rule ``youden``, (N,) each; validation data only.

    Raises:
        ValueError: If a shape or value is wrong.
    """
    return choose_threshold(targets, scores, Rule("youden"))


def roc_curve(targets: np.ndarray, scores: np.ndarray) -> RocCurve | None:
    """Return the empirical ROC curve of one finding (Fawcett 2006), or None if one class only.

    `targets` are (N,) of 1, 0, NaN for masked, `scores` (N,) real numbers.

    Raises:
        ValueError: If a shape or value is wrong.
    """
    ladder = _ladder(targets, scores)
    if not ladder.n_positive or not ladder.n_negative:
        return None
    return RocCurve(
        false_positive_rate=np.append(0.0, ladder.false_positive / ladder.n_negative),
        true_positive_rate=np.append(0.0, ladder.true_positive / ladder.n_positive),
        thresholds=np.append(np.inf, ladder.thresholds),
    )


def operating_point(targets: np.ndarray, scores: np.ndarray, threshold: float) -> OperatingPoint:
    """Return what ``score >= threshold`` does to one finding; the formulas are those of `RATES`.

    `targets` are (N,) of 1, 0, NaN for masked, which take no part, `scores` (N,) real numbers.

    Raises:
        ValueError: If a shape or value is wrong.
    """
    targets, scores = checked(targets, scores)
    called = scores >= threshold
    return OperatingPoint(
        threshold=threshold,
        true_positive=int(np.count_nonzero(called & (targets == 1))),
        false_positive=int(np.count_nonzero(called & (targets == 0))),
        true_negative=int(np.count_nonzero(~called & (targets == 0))),
        false_negative=int(np.count_nonzero(~called & (targets == 1))),
    )


def _ladder(targets: np.ndarray, scores: np.ndarray) -> _Ladder:
    n = len(np.asarray(targets))
    images = labelled(targets, scores, Units(np.arange(n), n))
    order = np.argsort(-images.scores, kind="stable")
    descending = images.scores[order]
    last_of_tie = np.flatnonzero(np.append(descending[1:] != descending[:-1], len(order) > 0)[: len(order)])
    true_positive = np.cumsum(images.positive[order])[last_of_tie]
    n_positive = int(images.positive.sum())
    return _Ladder(
        thresholds=descending[last_of_tie],
        true_positive=true_positive,
        false_positive=last_of_tie + 1 - true_positive,
        n_positive=n_positive,
        n_negative=len(order) - n_positive,
    )
