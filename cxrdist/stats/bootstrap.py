"""Paired bootstrap of patients.  Shapes: N images, K findings, R redraws, P patients, S models.

Patients are drawn with replacement and bring all their images, because images of one patient are not independent
(Obuchowski 1997; Field & Welsh 2007).  Every model sees the same redraws, so differences between models are paired.
Redraw r is a pure function of (seed, r): any map function and any grouping of redraws give the same bits.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from cxrdist.seeds import Purpose, stream
from cxrdist.stats.auroc import RankedPairs, macro, rank_pairs

MapFunction = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]
"""The builtin `map`, an executor's or a cluster's: calls a function on each item and yields the results in order."""

REDRAWS_PER_CALL = 50
"""Redraws worked out together in one call of the mapped function: some megabytes for tens of thousands of images."""


@dataclass(frozen=True)
class Redraws:
    """Bootstrap distribution of the AUROC; the last column of everything is the macro mean over findings."""

    point: dict[str, np.ndarray]
    """Model -> (K + 1,) AUROC on the full sample; NaN where a finding has one class."""
    theta: dict[str, np.ndarray]
    """Model -> (R, K + 1); rows are independent redraws of patients, shared by all models."""
    undefined: np.ndarray
    """(K + 1,) number of redraws in which a class was absent (last: of any finding in the mean), for all models."""
    n_patients: int

    @property
    def n_resamples(self) -> int:
        """Number of redraws, R."""
        return len(next(iter(self.theta.values())))


@dataclass(frozen=True)
class _Plan:
    """All a worker needs: plain arrays, so that it pickles small."""

    ranked: list[list[RankedPairs | None]]  # S x K; None where the full sample has one class
    patient_of_image: np.ndarray  # (N,) in [0, P)
    n_patients: int
    seed: int


def redraw_counts(n_patients: int, redraw: int, seed: int) -> np.ndarray:
    """Return (P,) how often each patient is drawn in redraw number `redraw`; the sum is P."""
    rng = stream(seed, Purpose.BOOTSTRAP, redraw)
    return np.bincount(rng.integers(0, n_patients, n_patients), minlength=n_patients)


def bootstrap_auroc(
    targets: np.ndarray,
    scores: Mapping[str, np.ndarray],
    clusters: np.ndarray,
    *,
    n_resamples: int,
    seed: int,
    map: MapFunction = map,
) -> Redraws:
    """Return the AUROC of every model and finding on the full sample and in each redraw.

    Args:
        targets: (N, K) of 1, 0, NaN for masked.
        scores: Model -> (N, K), higher means more likely present.
        clusters: (N,) patient of each image; patients are numbered in the sorted order of these ids.
        n_resamples: R.
        seed: Redraw r comes from ``stream(seed, Purpose.BOOTSTRAP, r)``.
        map: Where to work: the builtin, or one with its order of results.

    Raises:
        ValueError: If shapes or values are wrong, or `n_resamples` is below 1.
    """
    targets = np.asarray(targets, dtype=np.float64)
    _check_shapes(targets, scores, clusters, n_resamples)
    patients, patient_of_image = np.unique(clusters, return_inverse=True)
    both_classes = (targets == 1).any(axis=0) & (targets == 0).any(axis=0)
    ranked = [
        [rank_pairs(targets[:, k], matrix[:, k]) if both_classes[k] else None for k in range(targets.shape[1])]
        for matrix in (np.asarray(values, dtype=np.float64) for values in scores.values())
    ]
    once = np.ones((len(targets), 1), dtype=np.int64)
    plan = _Plan(ranked, patient_of_image.astype(np.int64), len(patients), seed)
    calls = [
        range(first, min(first + REDRAWS_PER_CALL, n_resamples)) for first in range(0, n_resamples, REDRAWS_PER_CALL)
    ]
    theta = np.concatenate(list(map(partial(_redraws_of_call, plan), calls)), axis=1)  # (S, R, K)
    theta = np.concatenate([theta, macro(theta, both_classes)[..., None]], axis=-1)
    full = _auroc_under(plan, once)[:, 0]
    full = np.concatenate([full, macro(full, both_classes)[..., None]], axis=-1)
    return Redraws(
        point=dict(zip(scores, full, strict=True)),
        theta=dict(zip(scores, theta, strict=True)),
        undefined=np.isnan(theta[0]).sum(axis=0),
        n_patients=len(patients),
    )


def average(redraws: Redraws, groups: Mapping[str, Sequence[str]]) -> Redraws:
    """Return `redraws` with each group of models (the seeds of a strategy) replaced by the mean of their AUROCs.

    The mean is taken inside each redraw, so the interval is that of the mean over these seeds.
    """
    return Redraws(
        point={
            name: np.mean([redraws.point[member] for member in members], axis=0) for name, members in groups.items()
        },
        theta={
            name: np.mean([redraws.theta[member] for member in members], axis=0) for name, members in groups.items()
        },
        undefined=redraws.undefined,
        n_patients=redraws.n_patients,
    )


def _redraws_of_call(plan: _Plan, redraws: Sequence[int]) -> np.ndarray:
    """Return (S, len(redraws), K)."""
    counts = np.stack([redraw_counts(plan.n_patients, redraw, plan.seed) for redraw in redraws], axis=1)  # (P, B)
    return _auroc_under(plan, counts[plan.patient_of_image])


def _auroc_under(plan: _Plan, weights: np.ndarray) -> np.ndarray:
    """Return (S, B, K) under each column of the (N, B) image weights."""
    n_findings = len(plan.ranked[0])
    values = np.full((len(plan.ranked), weights.shape[1], n_findings), np.nan)
    for model, findings in enumerate(plan.ranked):
        for k, pairs in enumerate(findings):
            if pairs is not None:
                values[model, :, k] = pairs.auroc(weights)
    return values


def _check_shapes(
    targets: np.ndarray, scores: Mapping[str, np.ndarray], clusters: np.ndarray, n_resamples: int
) -> None:
    if n_resamples < 1:
        raise ValueError(f"`n_resamples` must be 1 or more, got {n_resamples}.")
    if targets.ndim != 2 or not len(targets):
        raise ValueError(f"`targets` must have the shape (N, K) with at least one image, got {targets.shape}.")
    if not scores:
        raise ValueError("`scores` must hold at least one model, got none.")
    for name, values in scores.items():
        if np.shape(values) != targets.shape:
            raise ValueError(
                f"`scores` must have the shape {targets.shape} of `targets`, got {np.shape(values)} [{name}]."
            )
    if np.shape(clusters) != targets.shape[:1]:
        raise ValueError(f"`clusters` must have the shape ({len(targets)},), got {np.shape(clusters)}.")
