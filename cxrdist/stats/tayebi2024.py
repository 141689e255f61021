"""The statistics of Tayebi Arasteh et al. 2024 (Eur Radiol Exp 8:10, public code vit-med), to replicate its numbers.

Shapes: N images, K findings, R redraws, B redraws worked out together, S models.  Not how cxrdist compares models:

- *Images* are drawn, N of N, although images of one patient are not independent; all models share the draws.
- *P* is the share of redraws in which model 1 is not above model 2, and if that is more than 0.05, the other direction
  is tried; where neither is at most 0.05, the first is told.  It is one-sided both ways and can be 0.
- *Standard deviations* are over redraws (with R below); that of the label mean is over redraws and labels together,
  mostly the distance between labels.
- *Thresholds* for accuracy, sensitivity, specificity and F1 maximise Youden's index on the redrawn test sample itself.
  Images that score above it are called, the image at the threshold is not.
- P-values are not adjusted: the released code adjusts each alone, which changes nothing.

What that code does not say: masked labels take no part in their finding, and a redraw without both classes, at which
that code stops, is left out and counted.  Its draws are unseeded, so numbers agree up to the noise of redraws.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np

from cxrdist.errors import UsageError
from cxrdist.stats.auroc import SortedAuroc, auroc_statistic
from cxrdist.stats.compiling import compiled
from cxrdist.stats.meanings import MACRO
from cxrdist.stats.resample import TOGETHER, MapFunction, Units

CONVENTION = "tayebi2024"
LABEL = (
    "Convention tayebi2024, for replication of Tayebi Arasteh et al. 2024 only, not the statistics of cxrdist: redraws "
    "of images, not of patients; one-sided P with the direction chosen afterwards; standard deviation of the mean over "
    "redraws and labels together; thresholds found on the test sample; P-values not adjusted."
)
METRICS = ("auroc", "accuracy", "sensitivity", "specificity", "f1")
LEVEL = 0.05
EPSILON = 1e-15
"""What that code adds to denominators."""


@dataclass(frozen=True)
class Value:
    """Mean and standard deviation of one metric over the redraws, as that paper prints them."""

    model: str
    finding: str
    """Or `MACRO`, the label mean."""
    metric: str
    mean: float
    standard_deviation: float
    undefined: int
    """Redraws left out: without both classes of the finding (`MACRO`: of any)."""


@dataclass(frozen=True)
class Verdict:
    """That paper's P of one pair of models on one finding."""

    model: str
    other: str
    finding: str
    p: float
    higher: str | None
    """Which model has the significantly higher AUROC by that paper's rule; None: neither."""


@dataclass(frozen=True)
class Replication:
    """All numbers of the convention; every way out of it says which convention they are of."""

    models: tuple[str, ...]
    findings: tuple[str, ...]
    """Those with both classes."""
    left_out: tuple[str, ...]
    """Findings with one class only."""
    values: tuple[Value, ...]
    verdicts: tuple[Verdict, ...]
    n_images: int
    n_resamples: int
    seed: int

    def value(self, model: str, finding: str, metric: str = "auroc") -> Value:
        """Return one value."""
        wanted = (model, finding, metric)
        return next(one for one in self.values if (one.model, one.finding, one.metric) == wanted)

    def rows(self) -> list[dict[str, Any]]:
        """Return a row per model, finding and metric."""
        return [{"convention": CONVENTION} | asdict(one) for one in self.values]

    def difference_rows(self) -> list[dict[str, Any]]:
        """Return a row per pair of models and finding."""
        return [{"convention": CONVENTION} | asdict(one) for one in self.verdicts]

    def to_json(self) -> str:
        """Return everything as JSON text; undefined numbers are null."""
        about = {name: getattr(self, name) for name in ("models", "findings", "left_out", "n_images", "n_resamples")}
        tree = {"convention": CONVENTION, "label": LABEL, **about, "seed": self.seed}
        rows = {"values": self.rows(), "differences": self.difference_rows()}
        for row in (*rows["values"], *rows["differences"]):
            row.update({name: None for name, one in row.items() if isinstance(one, float) and np.isnan(one)})
        return json.dumps(tree | rows, indent=2)

    def text(self) -> str:
        """Return the numbers as that code prints them, in percent, under the name of the convention."""
        lines = [LABEL, f"{self.n_images} images, {self.n_resamples} redraws, seed {self.seed}."]
        if self.left_out:
            lines.append(f"Left out, with one class only: {', '.join(self.left_out)}.")
        for metric in METRICS:
            lines += ["", f"{metric}, % +- standard deviation [{CONVENTION}]"]
            for finding in (*self.findings, MACRO):
                shown = [(model, self.value(model, finding, metric)) for model in self.models]
                cells = [f"{name} {100 * one.mean:.2f} +- {100 * one.standard_deviation:.2f}" for name, one in shown]
                undefined = shown[0][1].undefined
                note = f" ({undefined} redraws without both classes left out)" if undefined else ""
                lines.append(f"  {finding}: {' | '.join(cells)}{note}")
        lines += ["", f"P of AUROC [{CONVENTION}]"]
        for one in self.verdicts:
            size = f"P < {1 / self.n_resamples:g}" if one.p == 0 else f"P = {one.p:.3f}"
            said = f"{one.higher} significantly higher" if one.higher else "not significantly different"
            lines.append(f"  {one.model} against {one.other}, {one.finding}: {size}, {said}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Descent:
    """One model on one finding, its images sorted: Youden's threshold and its rates in each redraw."""

    images: np.ndarray
    """(n,) int64, the images with a label by descending score."""
    positive: np.ndarray
    """(n,) bool."""
    begins: np.ndarray
    """(n,) bool: the first of a run of equal scores with a positive among them."""
    ends: np.ndarray
    """(n,) bool: the last of such a run."""

    def rates(self, counts: np.ndarray) -> np.ndarray:
        """Return (4, B) accuracy, sensitivity, specificity, F1 under the (N, B) `counts`; NaN without both classes."""
        tp, fp, n_positive, n_negative = _above_youden(counts, self.images, self.positive, self.begins, self.ends)
        fn, tn = n_positive - tp, n_negative - fp
        with np.errstate(invalid="ignore"):
            rates = np.stack(
                [
                    (tp + tn) / (n_positive + n_negative + EPSILON),
                    tp / (n_positive + EPSILON),
                    tn / (n_negative + EPSILON),
                    2 * tp / (2 * tp + fn + fp + EPSILON),
                ]
            )
        return np.where((n_positive > 0) & (n_negative > 0), rates, np.nan)


def replicate(
    targets: np.ndarray,
    scores: Mapping[str, np.ndarray],
    findings: Sequence[str],
    *,
    pairs: Sequence[tuple[str, str]] | None = None,
    n_resamples: int = 1000,
    seed: int = 0,
    map: MapFunction = map,
) -> Replication:
    """Return the numbers of Tayebi Arasteh et al. 2024 for models on the same test images.

    Args:
        targets: (N, K) of 1, 0, NaN for masked.
        scores: Model -> (N, K), higher means more likely present; one prediction file per model.
        findings: K names.
        pairs: (model 1, model 2) to be tested; None: every pair, in the order of `scores`.
        n_resamples: R; that paper has 1,000.
        seed: The images of redraw r are ``stream(seed, Purpose.BOOTSTRAP, r).integers(0, N, N)``.
        map: Where to work.

    Raises:
        ValueError: If shapes or values are wrong.
        UsageError: If `n_resamples` is below 1, or no finding has both classes.
    """
    targets = np.asarray(targets, dtype=np.float64)
    if targets.ndim != 2 or targets.shape[1] != len(findings):
        raise ValueError(f"`targets` must have the shape (N, {len(findings)}), got {targets.shape}.")
    for name, one in scores.items():
        if np.shape(one) != targets.shape:
            raise ValueError(f"`scores` must have the shape {targets.shape}, got {np.shape(one)} [{name}].")
    if n_resamples < 1:
        raise UsageError(f"`n_resamples` must be 1 or more, got {n_resamples}.")
    chosen = np.flatnonzero((targets == 1).any(axis=0) & (targets == 0).any(axis=0))
    if not len(chosen):
        raise UsageError("A finding must have images with and without it, got none that has.")
    units = Units(np.arange(len(targets)), len(targets))
    sorted_ = [
        [_sorted(targets[:, k], np.asarray(one, dtype=np.float64)[:, k], units) for k in chosen]
        for one in scores.values()
    ]
    calls = [range(first, min(first + TOGETHER, n_resamples)) for first in range(0, n_resamples, TOGETHER)]
    theta = np.concatenate(list(map(partial(_redrawn, sorted_, units, seed), calls)))  # (R, S, K, metrics)
    kept = tuple(findings[int(k)] for k in chosen)
    auroc = {name: theta[:, s, :, 0] for s, name in enumerate(scores)}
    tested = list(combinations(scores, 2)) if pairs is None else list(pairs)
    return Replication(
        models=tuple(scores),
        findings=kept,
        left_out=tuple(name for name in findings if name not in kept),
        values=tuple(
            value
            for s, name in enumerate(scores)
            for m, metric in enumerate(METRICS)
            for value in _values(name, kept, metric, theta[:, s, :, m])
        ),
        verdicts=tuple(verdict for pair in tested for verdict in _verdicts(pair, kept, auroc)),
        n_images=len(targets),
        n_resamples=n_resamples,
        seed=seed,
    )


def one_sided_p(first: np.ndarray, second: np.ndarray) -> tuple[float, int]:
    """Return the P of Tayebi Arasteh et al. 2024 of two models' (R,) redraws, and which is told to be higher.

    That is 1, 2, or 0 for neither.

    Redraws undefined (NaN) in one of them are left out; P is NaN if none is left.
    """
    defined = ~(np.isnan(first) | np.isnan(second))
    if not defined.any():
        return float("nan"), 0
    n = int(defined.sum())
    first_not_above = (n - np.count_nonzero(first[defined] > second[defined])) / n
    second_not_above = (n - np.count_nonzero(second[defined] > first[defined])) / n
    if first_not_above <= LEVEL:
        return first_not_above, 1
    return (second_not_above, 2) if second_not_above <= LEVEL else (first_not_above, 0)


def _values(model: str, findings: Sequence[str], metric: str, theta: np.ndarray) -> list[Value]:
    undefined = np.isnan(theta)
    rows = [
        Value(model, finding, metric, *_mean_and_deviation(theta[:, k]), int(undefined[:, k].sum()))
        for k, finding in enumerate(findings)
    ]
    return [*rows, Value(model, MACRO, metric, *_mean_and_deviation(theta), int(undefined.any(axis=1).sum()))]


def _mean_and_deviation(theta: np.ndarray) -> tuple[float, float]:
    """Over redraws, and over labels together with them where there are several; both NaN where nothing is defined."""
    whole = theta if theta.ndim == 1 else theta[~np.isnan(theta).any(axis=1)]
    defined = whole[~np.isnan(whole)]
    return (float(defined.mean()), float(defined.std())) if len(defined) else (float("nan"), float("nan"))


def _verdicts(pair: tuple[str, str], findings: Sequence[str], auroc: Mapping[str, np.ndarray]) -> list[Verdict]:
    first, second = (np.column_stack([auroc[name], auroc[name].mean(axis=1)]) for name in pair)
    verdicts = []
    for k, finding in enumerate((*findings, MACRO)):
        p, higher = one_sided_p(first[:, k], second[:, k])
        verdicts.append(Verdict(*pair, finding, p, pair[higher - 1] if higher else None))
    return verdicts


def _sorted(targets: np.ndarray, scores: np.ndarray, units: Units) -> tuple[SortedAuroc, Descent]:
    known = np.flatnonzero(~np.isnan(targets))
    images = known[np.argsort(-scores[known], kind="stable")]
    positive = targets[images] == 1
    changes = np.diff(scores[images]) != 0
    begins, ends = np.append(True, changes), np.append(changes, True)
    run = np.cumsum(begins) - 1
    held = (np.bincount(run, weights=positive) > 0)[run]
    return auroc_statistic(targets, scores, units), Descent(images, positive, begins & held, ends & held)


def _redrawn(
    models: Sequence[Sequence[tuple[SortedAuroc, Descent]]], units: Units, seed: int, redraws: Sequence[int]
) -> np.ndarray:
    """Return (B, S, K, metrics)."""
    counts = units.draw(redraws, seed)
    return np.stack(
        [
            np.stack([np.vstack([auroc.under(counts), descent.rates(counts)]).T for auroc, descent in model], axis=1)
            for model in models
        ],
        axis=1,
    )


@compiled
def _above_youden(
    counts: np.ndarray, images: np.ndarray, positive: np.ndarray, begins: np.ndarray, ends: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return (B,) true and false positives among images that score above Youden's threshold, (B,) positives, negatives.

    Of equal maxima the highest threshold counts, and one above all scores comes first, as in scikit-learn's
    `roc_curve`; so do the roundings.  Only a positive can raise the index, so other scores are no candidates.
    """
    lanes = counts.shape[1]
    tp, fp = np.zeros(lanes, np.int64), np.zeros(lanes, np.int64)
    for i in range(images.shape[0]):
        total = tp if positive[i] else fp
        for b in range(lanes):
            total[b] += counts[images[i], b]
    n_positive, n_negative = tp.copy(), fp.copy()
    tp_above, fp_above = np.zeros(lanes, np.int64), np.zeros(lanes, np.int64)
    best_tp, best_fp = np.zeros(lanes, np.int64), np.zeros(lanes, np.int64)
    best = np.zeros(lanes)
    tp[:] = 0
    fp[:] = 0
    for i in range(images.shape[0]):
        if begins[i]:
            tp_above[:] = tp
            fp_above[:] = fp
        total = tp if positive[i] else fp
        for b in range(lanes):
            total[b] += counts[images[i], b]
        if ends[i]:
            for b in range(lanes):
                youden = tp[b] / n_positive[b] - fp[b] / n_negative[b]
                if youden > best[b]:
                    best[b], best_tp[b], best_fp[b] = youden, tp_above[b], fp_above[b]
    return best_tp, best_fp, n_positive, n_negative
