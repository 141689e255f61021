"""Paired bootstrap of patients.  Shapes: N images, K findings, R redraws, P patients.

Patients are drawn with replacement and bring all their images, because images of one patient are not independent
(Obuchowski 1997, Biometrics 53:567; Field & Welsh 2007, JRSS B 69:369).  Every model, metric and finding sees the same
redraws, so differences between models are paired, and averages over findings are taken inside each redraw.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from cxrdist.stats.averages import average, micro_statistic, support_statistic
from cxrdist.stats.meanings import MICRO, WEIGHTED
from cxrdist.stats.metrics import METRICS
from cxrdist.stats.resample import MapFunction, Statistic, Units, full_sample, jackknife, redraw

Average = Literal["macro", "micro", "weighted"]

Column = tuple[str, str, str]
"""(model, metric, finding or average)."""


@dataclass(frozen=True)
class Redraws:
    """Every column (model, metric, finding or average) on the full sample and in every redraw, which all share."""

    point: dict[Column, float]
    """On the full sample; NaN where undefined."""
    theta: dict[Column, np.ndarray]
    """(R,) in each redraw; NaN where undefined."""
    without: dict[Column, np.ndarray]
    """(P,) with each unit left out; empty unless asked for."""


@dataclass(frozen=True)
class Sample:
    """What all models were asked: images, what is true of them, and what is redrawn."""

    findings: tuple[str, ...]
    """K names."""
    targets: np.ndarray
    """(N, K) of 1, 0, NaN for masked."""
    units: Units
    """Of the N images."""

    def __post_init__(self) -> None:
        if self.targets.ndim != 2 or not len(self.targets):
            raise ValueError(f"`targets` must have the shape (N, K) with at least one image, got {self.targets.shape}.")
        if self.targets.shape[1] != len(self.findings):
            raise ValueError(f"`findings` must be {self.targets.shape[1]} names, got {len(self.findings)}.")
        if np.shape(self.units.of_image) != self.targets.shape[:1]:
            got = np.shape(self.units.of_image)
            raise ValueError(f"`units` must be of {len(self.targets)} images, got the shape {got}.")


def bootstrap(
    sample: Sample,
    scores: Mapping[str, np.ndarray],
    *,
    metrics: Sequence[str] = ("auroc",),
    averages: Sequence[Average] = ("macro",),
    thresholds: Mapping[str, np.ndarray] | None = None,
    n_resamples: int,
    seed: int,
    leave_out: bool = False,
    averaged: Mapping[str, np.ndarray] | None = None,
    map: MapFunction = map,
) -> Redraws:
    """Return every metric of every model on every finding and average, on the full sample and in each redraw.

    The cluster bootstrap (Field & Welsh 2007), paired: all columns are worked out under the same (P, R) counts.

    Averages are over the findings whose metric is defined on the full sample for every model.  A redraw in which one
    of them is not (it lost a class) has no average: the mean of the rest would mix means over different findings, and
    one easy rare finding that comes and goes would shift the whole interval.

    Args:
        sample: What is true, and what is redrawn.
        scores: Model -> (N, K) probabilities.
        metrics: Names of `METRICS`.
        averages: Of `AVERAGES`.
        thresholds: Model -> (K,), for metrics at a threshold; NaN: undefined.
        n_resamples: R.
        seed: Redraw r is a pure function of (seed, r).
        leave_out: Whether to work out `Redraws.without` as well, as much work as P redraws.
        averaged: Metric -> (K,) bool, findings that its averages may be over; None: all.
        map: Where to work.

    Raises:
        ValueError: If shapes or values are wrong.
    """
    _check(sample, scores, n_resamples)
    statistics: dict[Column, Statistic] = {}
    for model, matrix in scores.items():
        for metric in metrics:
            at = thresholds[model] if thresholds is not None and METRICS[metric].needs_threshold else None
            for k, finding in enumerate(sample.findings):
                statistics[model, metric, finding] = METRICS[metric].prepare(
                    sample.targets[:, k], matrix[:, k], sample.units, None if at is None else float(at[k])
                )
            if MICRO in averages:
                statistics[model, metric, MICRO] = micro_statistic(
                    METRICS[metric], sample.targets, matrix, sample.units, at
                )
    supports = [support_statistic(sample.targets[:, k], sample.units) for k in range(len(sample.findings))]
    everything = [*statistics.values(), *(supports if WEIGHTED in averages else [])]
    full = full_sample(everything, sample.units)[None]
    included = _included(dict(zip(statistics, full[0], strict=False)), sample.findings, scores, metrics)
    if averaged is not None:
        included = {metric: held & averaged[metric] for metric, held in included.items()}

    def columns(values: np.ndarray) -> dict[Column, np.ndarray]:
        found = {column: values[:, i] for i, column in enumerate(statistics)}
        support = values[:, len(statistics) :] if WEIGHTED in averages else None
        for model in scores:
            for metric in metrics:
                matrix = np.stack([found[model, metric, finding] for finding in sample.findings], axis=-1)
                for kind in averages:
                    if kind != "micro":
                        found[model, metric, kind] = average(matrix, kind, support, included=included[metric])
        return found

    drawn = redraw(everything, sample.units, n_resamples=n_resamples, seed=seed, map=map)
    left_out = columns(jackknife(everything, sample.units, map=map)) if leave_out else {}
    return Redraws({name: float(value[0]) for name, value in columns(full).items()}, columns(drawn), left_out)


def rare_strata(ids: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return strata of patients by the rarest finding that each has, for `Units.strata`.

    A patient belongs to the rarest (by patients) of the findings that any of its images shows; those without any are
    one stratum.  So every redraw has about as many patients of a rare finding as the sample.  A stratum of one patient
    could not vary: a finding that would make one makes none, and a patient left over alone joins the largest.  Drawing
    within strata is the bootstrap of several samples (Davison & Hinkley 1997, 3.2); who is in which is our choice.

    Args:
        ids: (N,) patient of each image.
        targets: (N, K) of 1, 0, NaN for masked.

    Returns:
        For each stratum its patients, (Ps,) numbers in the sorted order of the ids, as of `whole_units`.
    """
    names, of_image = np.unique(ids, return_inverse=True)
    shows = np.zeros((len(names), targets.shape[1]), dtype=bool)
    np.logical_or.at(shows, of_image, targets == 1)
    stratum = np.full(len(names), -1)
    for k in np.argsort(-shows.sum(axis=0), kind="stable"):  # the rarest last, so that it has its way
        if shows[:, k].sum() > 1:
            stratum[shows[:, k]] = k
    for k in np.unique(stratum):
        if np.count_nonzero(stratum == k) == 1:
            stratum[stratum == k] = -1
    present, sizes = np.unique(stratum, return_counts=True)
    if len(present) > 1 and sizes[0] == 1:  # only the first, those without a finding, may still be one
        stratum[stratum == present[0]] = present[np.argmax(sizes)]
    return tuple(np.flatnonzero(stratum == k) for k in np.unique(stratum))


def _included(
    point: Mapping[Column, float], findings: Sequence[str], models: Mapping[str, np.ndarray], metrics: Sequence[str]
) -> dict[str, np.ndarray]:
    """Return (K,) for each metric: whether it is defined on the full sample for every model."""
    return {
        metric: np.array([all(not np.isnan(point[model, metric, finding]) for model in models) for finding in findings])
        for metric in metrics
    }


def _check(sample: Sample, scores: Mapping[str, np.ndarray], n_resamples: int) -> None:
    if n_resamples < 1:
        raise ValueError(f"`n_resamples` must be 1 or more, got {n_resamples}.")
    if not scores:
        raise ValueError("`scores` must hold at least one model, got none.")
    for name, values in scores.items():
        if np.shape(values) != sample.targets.shape:
            raise ValueError(
                f"`scores` must have the shape {sample.targets.shape} of `targets`, got {np.shape(values)} [{name}]."
            )
