"""Compare models on the same images: metrics with intervals, paired differences with p, and p adjusted over families.

Shapes: N images, K findings, R redraws, P patients.  A model may be several prediction files (its training seeds): its
value is then the mean of theirs, taken inside each redraw.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np

from cxrdist.errors import UsageError, unknown
from cxrdist.stats.adjusted import adjust
from cxrdist.stats.beside import Pair
from cxrdist.stats.bootstrap import Column, Redraws, Sample, bootstrap, rare_strata
from cxrdist.stats.comparison import Comparison, Difference, Estimate, FindingCount
from cxrdist.stats.files import (
    Files,
    Groups,
    by_label,
    by_seed,
    check_seeds,
    labels_of,
    shared_column,
    stacked,
    validation_thresholds,
)
from cxrdist.stats.inference import equivalence, non_inferiority, paired_test
from cxrdist.stats.intervals import Interval, interval
from cxrdist.stats.meanings import AVERAGES, MICRO
from cxrdist.stats.metrics import METRICS
from cxrdist.stats.options import StatisticsOptions
from cxrdist.stats.predictions import Predictions, align, check_patients
from cxrdist.stats.resample import MapFunction, Units, whole_units
from cxrdist.stats.seeds import combine_seeds, mean_over_files
from cxrdist.stats.subgroups import SubgroupPlan, SubgroupRow, compare_subgroups
from cxrdist.stats.undefined import lacking, of_one_unit, too_few_left, without_class


@dataclass(frozen=True)
class _Number:
    """One metric of one model, or a difference of two, on one finding or average."""

    theta: np.ndarray
    """(R,) in each redraw."""
    point: float
    """On the full sample."""
    without: np.ndarray | None
    """(P,) with each unit left out, where an interval asks for it."""
    patients: np.ndarray
    """(R,) in each redraw of patients alone; `theta` itself where no seeds are redrawn."""

    def __sub__(self, other: "_Number") -> "_Number":
        without = None if self.without is None or other.without is None else self.without - other.without
        delta = self.theta - other.theta
        patients = delta if self.patients is self.theta else self.patients - other.patients
        return _Number(delta, self.point - other.point, without, patients)


@dataclass(frozen=True)
class _Work:
    """What the numbers of one comparison are made from; a label is one file of a model."""

    groups: Groups
    files: dict[str, Predictions]
    sample: Sample
    thresholds: dict[str, np.ndarray]
    """Label -> (K,); empty if no metric needs them."""
    by_file: dict[Column, float]
    """(label, metric, finding) -> value on the full sample."""
    numbers: dict[Column, _Number]
    """(model, metric, finding) -> its files made one."""
    alone: set[tuple[str, str]]
    """(metric, finding) that rest on one unit of a class: no interval, no p, in no average."""
    lost: dict[str, tuple[np.ndarray, np.ndarray]]
    """Finding -> (R,) redraws that lost a class, by target; empty if every number has all its redraws."""
    train_seeds: Mapping[str, Sequence[int]]
    options: StatisticsOptions
    map: MapFunction


def compare(
    predictions: Mapping[str, Files],
    *,
    reference: str | None = None,
    validation: Mapping[str, Files] | None = None,
    train_seeds: Mapping[str, Sequence[int]] | None = None,
    options: StatisticsOptions | None = None,
    map: MapFunction = map,
) -> Comparison:
    """Return metrics and differences of models that predicted the same images.

    Args:
        predictions: Model -> its prediction file on the test split, or its files.
        reference: Model that all others are compared with; None compares every pair.
        validation: Model -> its predictions on the validation split, as many files, for metrics at a threshold.
        train_seeds: Model -> the training seed of each of its files, by which they are sorted; models with the same
            seeds draw the same ones where seeds are redrawn.
        options: What is worked out, and how.
        map: Where to work out the redraws.

    Raises:
        UsageError: If a setting is wrong, or the files' images, patients or labels differ.
    """
    options = options or StatisticsOptions()
    if not predictions:
        raise UsageError("A comparison must have at least one model, got none.")
    if reference is not None and reference not in predictions:
        raise UsageError(unknown("`reference`", reference, predictions))
    predictions, validation, seeds = by_seed(predictions, validation, train_seeds or {})
    groups = labels_of(predictions)
    check_seeds(groups, options)
    aligned = align(by_label(groups, predictions))
    base = next(iter(aligned.predictions.values()))
    check_patients(base, options.cluster)
    sample = Sample(base.findings, base.targets, _units(base, options))
    thresholds = validation_thresholds(groups, validation, base, options)
    alone = of_one_unit(sample, options.metrics)
    redraws = bootstrap(
        sample,
        {label: one.scores for label, one in aligned.predictions.items()},
        metrics=options.metrics,
        averages=options.averages,
        thresholds=thresholds,
        n_resamples=options.n_resamples,
        seed=options.seed,
        leave_out=options.interval == "bca",
        averaged={name: np.array([(name, k) not in alone for k in sample.findings]) for name in options.metrics},
        map=map,
    )
    numbers = _combined(redraws, groups, seeds, options)
    lost = {}
    if any(np.isnan(one.theta).any() and not math.isnan(one.point) for one in numbers.values()):
        lost = without_class(sample, n_resamples=options.n_resamples, seed=options.seed, map=map)
    work = _Work(
        groups, aligned.predictions, sample, thresholds, redraws.point, numbers, alone, lost, seeds, options, map
    )
    names = (*base.findings, *options.averages)
    models = list(predictions)
    pairs = [(name, reference) for name in models if name != reference] if reference else _pairs(models)
    comparison = Comparison(
        models=tuple(models),
        reference=reference,
        counts=tuple(FindingCount.of(base, k) for k in range(len(base.findings))),
        estimates=tuple(
            _estimate(work, name, metric, finding) for name in models for metric in options.metrics for finding in names
        ),
        differences=tuple(
            _difference(work, pair, metric, finding)
            for pair in pairs
            for metric in options.metrics
            for finding in names
            if _has_number(metric, finding)
        ),
        subgroups=_subgroups(work, base),
        dropped=aligned.dropped,
        n_images=len(base),
        n_patients=len(np.unique(base.patient_id)),
        train_seeds=seeds,
        options=options,
    )
    return adjust([comparison])[0]


def _subgroups(work: _Work, base: Predictions) -> tuple[SubgroupRow, ...]:
    """Return the rows of every column asked for, of the metric asked for first."""
    options = work.options
    if not options.subgroups:
        return ()
    columns = {name: shared_column(work.files, name) for name in options.subgroups}
    metric = METRICS[options.metrics[0]]
    plan = SubgroupPlan(
        n_resamples=options.n_resamples,
        seed=options.seed,
        metric=metric,
        thresholds=stacked(work.thresholds, work.groups) if metric.needs_threshold else None,
        confidence_level=1 - options.alpha,
        method=options.interval,
        minimum=options.subgroup_minimum,
        correction=options.correction,
        combine=lambda model, theta, point: combine_seeds(
            theta,
            point,
            hierarchical=options.hierarchical,
            seed=options.seed,
            strategy=model,
            train_seeds=work.train_seeds.get(model),
        ),
    )
    scores = stacked({label: one.scores for label, one in work.files.items()}, work.groups)
    sample = work.sample
    rows = compare_subgroups(
        sample.targets,
        scores,
        sample.findings,
        columns,
        sample.units,
        plan=plan,
        patients=base.patient_id,
        map=work.map,
    )
    return tuple(row for row in rows if _has_number(metric.name, row.finding))


def _units(base: Predictions, options: StatisticsOptions) -> Units:
    ids = base.patient_id if options.cluster == "patient_id" else base.image_id
    units = whole_units(ids)
    return replace(units, strata=rare_strata(ids, base.targets)) if options.stratified else units


def _combined(
    redraws: Redraws,
    groups: Groups,
    train_seeds: Mapping[str, Sequence[int]],
    options: StatisticsOptions,
) -> dict[Column, _Number]:
    """Return every number of every model, its files made one."""
    columns = [(metric, finding) for label, metric, finding in redraws.point if label == next(iter(redraws.point))[0]]
    found: dict[Column, _Number] = {}
    for model, labels in groups.items():
        of_file = [[(label, *column) for column in columns] for label in labels]
        together = partial(
            combine_seeds,
            _stack(redraws.theta, of_file),
            np.array([[redraws.point[column] for column in row] for row in of_file]),
            seed=options.seed,
            strategy=model,
            train_seeds=train_seeds.get(model),
        )
        theta, point = together(hierarchical=options.hierarchical)
        patients = together(hierarchical=False)[0] if options.hierarchical else None
        without = mean_over_files(_stack(redraws.without, of_file), axis=1) if redraws.without else None
        for i, column in enumerate(columns):
            left_out = None if without is None else without[:, i]
            drawn = theta[:, i]
            found[model, *column] = _Number(
                drawn, float(point[i]), left_out, drawn if patients is None else patients[:, i]
            )
    return found


def _stack(values: Mapping[Column, np.ndarray], of_file: Sequence[Sequence[Column]]) -> np.ndarray:
    """Return (R, S, C)."""
    return np.stack([np.stack([values[column] for column in row], axis=-1) for row in of_file], axis=1)


def _estimate(work: _Work, model: str, metric: str, finding: str) -> Estimate:
    labels = work.groups[model]
    if not _has_number(metric, finding):
        nothing = (math.nan,) * len(labels)
        return Estimate(model, metric, finding, math.nan, math.nan, math.nan, nothing, math.nan, 0, 0)
    number = work.numbers[model, metric, finding]
    # Not that of differences: a metric has bounds, and may be raised by redraws, which a difference is not.
    bounds = METRICS[metric].interval(number.theta, **_how(work, number))
    if (metric, finding) in work.alone:
        bounds = Interval(math.nan, math.nan)
    undefined = np.isnan(number.theta)
    lost = work.lost.get(finding)
    return Estimate(
        model=model,
        metric=metric,
        finding=finding,
        value=number.point,
        low=bounds.low,
        high=bounds.high,
        by_member=tuple(work.by_file[label, metric, finding] for label in labels),
        threshold=_threshold(work, model, metric, finding),
        redraws_undefined=int(undefined.sum()),
        redraws_one_class=0 if lost is None else int((undefined & lacking(metric, lost)).sum()),
    )


def _has_number(metric: str, finding: str) -> bool:
    """Return whether an average of the metric says anything: values around a target cancel (0.5 and 1.5 are not 1)."""
    return finding not in AVERAGES or finding == MICRO or METRICS[metric].target is None


def _how(work: _Work, number: _Number) -> dict[str, Any]:
    """Return what an interval is made with, besides the redraws."""
    return {
        "method": work.options.interval,
        "confidence_level": 1 - work.options.alpha,
        "point": number.point,
        "jackknife": number.without,
        "strata": work.sample.units.strata,
    }


def _threshold(work: _Work, model: str, metric: str, finding: str) -> float:
    if not METRICS[metric].needs_threshold or finding in AVERAGES:
        return math.nan
    k = work.sample.findings.index(finding)
    return float(mean_over_files(np.array([work.thresholds[label][k] for label in work.groups[model]]), axis=0))


def _difference(work: _Work, pair: tuple[str, str], metric: str, finding: str) -> Difference:
    ours, theirs = (work.numbers[model, metric, finding] for model in pair)
    difference = ours - theirs
    options, undefined = work.options, int(np.isnan(difference.theta).sum())
    if (metric, finding) in work.alone:
        difference = _without_redraws(difference)
    bounds = interval(difference.theta, **_how(work, difference))
    tested = _without_redraws(difference) if too_few_left(difference.theta) else difference
    delta = tested.theta
    beside = None if (metric, finding) in work.alone else _beside(work, pair, finding)
    return Difference(
        model=pair[0],
        reference=pair[1],
        metric=metric,
        finding=finding,
        value=difference.point,
        low=bounds.low,
        high=bounds.high,
        p=paired_test(delta),
        q=math.nan,
        standard_error=_deviation(difference.theta),
        standard_error_patients=_deviation(difference.patients),
        delong=beside.delong(metric) if beside else None,
        p_permutation=beside.permutation(metric, options.permutations, options.seed, work.map) if beside else math.nan,
        p_mcnemar=beside.mcnemar(metric, _limits(work, pair, finding)) if beside else math.nan,
        p_non_inferior=_non_inferior(delta, metric, options.margin),
        p_equivalent=math.nan if options.margin is None else equivalence(delta, options.margin),
        redraws_undefined=undefined,
        redraws=delta if options.correction == "max_t" else np.empty(0),
    )


def _without_redraws(number: _Number) -> _Number:
    """Return the number with its redraws undefined: then it has no p, and takes no part in a family."""
    nothing = np.full_like(number.theta, np.nan)
    return replace(number, theta=nothing, patients=nothing)


def _deviation(redraws: np.ndarray) -> float:
    defined = redraws[~np.isnan(redraws)]
    return float(np.std(defined, ddof=1)) if len(defined) > 1 else math.nan


def _non_inferior(delta: np.ndarray, metric: str, margin: float | None) -> float:
    """Return the p-value that the model is worse by the margin; NaN for a metric that has no worse direction."""
    sign = {"higher": 1, "lower": -1}.get(METRICS[metric].better)
    return math.nan if margin is None or sign is None else non_inferiority(sign * delta, margin)


def _beside(work: _Work, pair: tuple[str, str], finding: str) -> Pair | None:
    """Return two models' files on one finding; None for an average, which has no such tests."""
    if finding in AVERAGES:
        return None
    k = work.sample.findings.index(finding)
    first, second = (np.stack([work.files[label].scores[:, k] for label in work.groups[name]]) for name in pair)
    clustered = work.options.cluster == "patient_id"
    return Pair(work.sample.targets[:, k], first, second, work.sample.units, clustered)


def _limits(work: _Work, pair: tuple[str, str], finding: str) -> tuple[float, float] | None:
    """Return the thresholds of two models' first files; None where no metric needs any."""
    if not work.thresholds:
        return None
    k = work.sample.findings.index(finding)
    first, second = (float(work.thresholds[work.groups[name][0]][k]) for name in pair)
    return first, second


def _pairs(names: list[str]) -> list[tuple[str, str]]:
    """Return every pair, later against earlier, so that the first named is the reference where it takes part."""
    return [(second, first) for first, second in combinations(names, 2)]
