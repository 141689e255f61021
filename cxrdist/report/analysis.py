"""The statistics of a report: comparison, thresholds and rates per dataset, the families of tests over all."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cxrdist.errors import UsageError, UserError, unknown
from cxrdist.report.cells import Cell, ReportOptions, row_name
from cxrdist.stats.adjusted import adjust
from cxrdist.stats.calibration import ReliabilityCurve, ece, reliability_curve
from cxrdist.stats.compare import compare
from cxrdist.stats.comparison import Comparison
from cxrdist.stats.files import Groups, by_label, labels_of, validation_thresholds
from cxrdist.stats.levels import subgroup_masks
from cxrdist.stats.metrics import METRICS
from cxrdist.stats.predictions import Predictions, align
from cxrdist.stats.resample import MapFunction
from cxrdist.stats.tayebi2024 import CONVENTION, Replication, replicate
from cxrdist.stats.threshold import operating_point, roc_curve

RATES = ("threshold", "sensitivity", "specificity", "ppv", "npv", "accuracy", "f1")

IMAGES_PER_BIN = 20
"""Images that a point of a reliability curve should rest on."""
BINS = (5, 15)
"""Fewest and most points of a reliability curve."""


@dataclass(frozen=True)
class RocLine:
    """A curve to draw: false and true positive rate, (T,) each."""

    false_positive_rate: np.ndarray
    true_positive_rate: np.ndarray


@dataclass(frozen=True)
class Reliability:
    """What a strategy predicted of a finding and what was true, in groups of equally many images."""

    files: tuple[ReliabilityCurve, ...]
    """One per seed."""
    pooled: ReliabilityCurve
    """Of the images of all seeds together."""
    ece: float
    """Mean over seeds of the expected calibration error, as in the tables."""


@dataclass(frozen=True)
class DatasetResult:
    """Everything computed for one dataset, or one variant of it: what strategies are compared within."""

    dataset: str
    variant: str
    """Empty in a study without variants."""
    cells: tuple[Cell, ...]
    """All its cells, those without predictions included."""
    absent: frozenset[str]
    """Strategies that have no cell here, by the design of the study."""
    missing: dict[str, str]
    """Strategy without any test predictions -> why."""
    comparison: Comparison | None
    """None if no strategy has predictions, or if they cannot be compared (`fault`)."""
    fault: str
    """Why there is no comparison; empty if there is one."""
    misaligned: str
    """Why the strategies' test files are not of the same images, patients and labels; empty if they are."""
    no_rates: str
    """Why no threshold could be taken from validation, so that no rate is given; empty if there are thresholds."""
    rates: dict[tuple[str, str], dict[str, float]]
    """(strategy, finding) -> rates on test at the validation threshold, mean over seeds; NaN where undefined.

    Empty without thresholds (`no_rates`).
    """
    curves: dict[tuple[str, str], RocLine]
    """(strategy, finding) -> ROC curve on test, mean over seeds."""
    reliability: dict[tuple[str, str], Reliability]
    """(strategy, finding) -> reliability on test, where the finding has both classes."""
    replication: Replication | None
    """Its numbers under the convention of another study, if that was asked for."""
    warnings: tuple[str, ...]

    @property
    def name(self) -> str:
        """Return what a reader knows it by."""
        return row_name(self.dataset, self.variant)


@dataclass(frozen=True)
class StudyResult:
    """Everything computed for a report."""

    strategies: tuple[str, ...]
    """The reference first, then as given."""
    datasets: tuple[DatasetResult, ...]
    seeds: tuple[int, ...]
    options: ReportOptions


def analyse(cells: Sequence[Cell], options: ReportOptions, map: MapFunction = map) -> StudyResult:
    """Return the statistics of `cells`, which are the whole grid: what none of them is of is absent by design.

    Raises:
        UsageError: If there are no cells or none of the reference strategy.
    """
    strategies = list(dict.fromkeys(cell.files.strategy for cell in cells))
    if not strategies:
        raise UsageError("A report must have at least one cell, got none. Run the study first.")
    if options.reference not in strategies:
        raise UsageError(unknown("`reference`", options.reference, strategies))
    strategies.sort(key=lambda name: name != options.reference)
    seeds = tuple(sorted({cell.files.seed for cell in cells}))
    rows: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        rows.setdefault((cell.files.dataset, cell.files.variant), []).append(cell)
    datasets = [_dataset(*names, ours, strategies, options, map) for names, ours in rows.items()]
    compared = [i for i, one in enumerate(datasets) if one.comparison]
    # The families are declared over the whole report: one table, one false discovery rate.
    adjusted = adjust([one.comparison for one in datasets if one.comparison])
    for i, comparison in zip(compared, adjusted, strict=True):
        datasets[i] = replace(datasets[i], comparison=comparison)
    return StudyResult(tuple(strategies), tuple(datasets), seeds, options)


def _dataset(
    dataset: str,
    variant: str,
    cells: Sequence[Cell],
    strategies: Sequence[str],
    options: ReportOptions,
    map: MapFunction,
) -> DatasetResult:
    absent = frozenset(strategies) - {cell.files.strategy for cell in cells}
    done = {strategy: _finished(cells, strategy) for strategy in strategies if strategy not in absent}
    missing, warnings = _missing(row_name(dataset, variant), cells, done)
    files = {strategy: [cell.test for cell in ours if cell.test] for strategy, ours in done.items() if ours}
    result = DatasetResult(
        dataset=dataset,
        variant=variant,
        cells=tuple(cells),
        absent=absent,
        missing=missing,
        comparison=None,
        fault="",
        misaligned="",
        no_rates="",
        rates={},
        curves={},
        reliability={},
        replication=None,
        warnings=(),
    )
    if not files:
        return replace(result, fault="No strategy has test predictions.", warnings=tuple(warnings))
    groups = labels_of(files)
    try:
        base = next(iter(align(by_label(groups, files)).predictions.values()))
    except UserError as error:
        return replace(result, fault=str(error), misaligned=str(error), warnings=tuple(warnings))
    thresholds, no_rates = _thresholds(groups, done, base, options)
    subgroups, dropped = _subgroups(base, options)
    warnings += [f"No sensitivity, specificity or other rate is given. {no_rates}"] if no_rates else []
    warnings += dropped
    kept = tuple(metric for metric in options.metrics if thresholds or not METRICS[metric].needs_threshold)
    asked = options.model_copy(update={"metrics": kept, "subgroups": subgroups})
    try:
        comparison = _compare(done, files, asked, map)
    except UserError as error:
        return replace(result, fault=str(error), no_rates=no_rates, warnings=tuple(warnings))
    warnings += comparison.warnings()
    if comparison.reference is None:
        why = "is not part of the grid here" if options.reference in absent else "is missing"
        warnings.append(f"The reference {options.reference} {why}, so no difference is given.")
    replication = None
    if options.convention is not None:
        replication, told = _replicated(done, files, options, map)
        warnings += told
    rates: dict[tuple[str, str], dict[str, float]] = {}
    curves: dict[tuple[str, str], RocLine] = {}
    reliability: dict[tuple[str, str], Reliability] = {}
    for strategy, ours in files.items():
        for count in comparison.counts:
            finding = count.finding
            if thresholds:
                limits = [thresholds[label][base.findings.index(finding)] for label in groups[strategy]]
                rates[strategy, finding] = _rates(comparison, strategy, ours, finding, limits)
            line = _mean_curve(ours, finding)
            if line:
                curves[strategy, finding] = line
                reliability[strategy, finding] = _reliability(comparison, strategy, ours, finding)
    return replace(
        result,
        comparison=comparison,
        no_rates=no_rates,
        rates=rates,
        curves=curves,
        reliability=reliability,
        replication=replication,
        warnings=tuple(warnings),
    )


def _replicated(
    done: Mapping[str, Sequence[Cell]],
    files: Mapping[str, Sequence[Predictions]],
    options: ReportOptions,
    map: MapFunction,
) -> tuple[Replication | None, list[str]]:
    """Return the strategies' numbers under the asked convention, each by its first seed, and what to say of them."""
    aligned = align({name: some[0] for name, some in files.items()}).predictions
    base = next(iter(aligned.values()))
    reference = options.reference
    try:
        found = replicate(
            base.targets,
            {name: one.scores for name, one in aligned.items()},
            base.findings,
            pairs=[(name, reference) for name in aligned if name != reference] if reference in aligned else [],
            n_resamples=options.n_resamples,
            seed=options.seed,
            map=map,
        )
    except UserError as error:
        return None, [f"No numbers of convention {CONVENTION}. {error}"]
    if all(len(some) == 1 for some in files.values()):
        return found, []
    which = ", ".join(str(seed) for seed in sorted({done[name][0].files.seed for name in files}))
    return found, [f"Convention {CONVENTION} has one file per model: its numbers are of seed {which} alone."]


def _thresholds(
    groups: Groups, done: Mapping[str, Sequence[Cell]], base: Predictions, options: ReportOptions
) -> tuple[dict[str, np.ndarray], str]:
    """Return label -> (K,) thresholds; or none, for any strategy, and why.

    What needs no threshold is given all the same.
    """
    lacking = [cell.label for strategy in groups for cell in done[strategy] if not cell.val]
    if lacking:
        return {}, f"No validation predictions for {', '.join(lacking)}."
    validation = {strategy: [cell.val for cell in done[strategy] if cell.val] for strategy in groups}
    try:
        # The findings' table has rates whichever metrics are asked for.
        rates = options.model_copy(update={"metrics": ("sensitivity",)})
        return validation_thresholds(groups, validation, base, rates), ""
    except UserError as error:
        return {}, str(error)


def _subgroups(base: Predictions, options: ReportOptions) -> tuple[tuple[str, ...], list[str]]:
    """Return the columns by which this dataset can be parted, and a sentence for each other that was asked for."""
    kept, dropped = [], []
    for name in options.subgroups:
        try:
            if name in base.extra:
                subgroup_masks(base.extra[name], name)
                kept.append(name)
            else:
                dropped.append(f"No subgroups by {name}: the prediction files have no such column.")
        except UserError as error:
            dropped.append(f"No subgroups by {name}. {error}")
    return tuple(kept), dropped


def _compare(
    done: Mapping[str, Sequence[Cell]],
    files: Mapping[str, Sequence[Predictions]],
    options: ReportOptions,
    map: MapFunction,
) -> Comparison:
    """Return the comparison of the strategies in `files`; without the reference, it has no differences."""
    compared = options.reference in files
    # Every pair would be compared without a reference; so it is the first, whose few differences are thrown away.
    reference = options.reference if compared else next(iter(files))
    comparison = compare(
        files,
        reference=reference,
        validation={strategy: [cell.val for cell in done[strategy] if cell.val] for strategy in files},
        train_seeds={strategy: [cell.files.seed for cell in done[strategy]] for strategy in files},
        options=options if compared else options.model_copy(update={"permutations": 0}),
        map=map,
    )
    return comparison if compared else replace(comparison, reference=None, differences=(), options=options)


def _finished(cells: Sequence[Cell], strategy: str) -> list[Cell]:
    return sorted((c for c in cells if c.files.strategy == strategy and c.test), key=lambda cell: cell.files.seed)


def _missing(rows: str, cells: Sequence[Cell], done: dict[str, list[Cell]]) -> tuple[dict[str, str], list[str]]:
    """Return the strategies without any result and why, and a sentence for every cell or file that is not there."""
    missing: dict[str, str] = {}
    sentences: list[str] = []
    for strategy, finished in done.items():
        ours = [cell for cell in cells if cell.files.strategy == strategy]
        faults = [fault for cell in ours for fault in cell.faults]
        sentences += faults
        if not finished:
            missing[strategy] = " ".join(faults)
            continue
        seeds = sorted({cell.files.seed for cell in ours})
        left = [seed for seed in seeds if seed not in {cell.files.seed for cell in finished}]
        if left:
            which = ", ".join(str(seed) for seed in left)
            sentences.append(
                f"{strategy} on {rows}: seed{'s' * (len(left) != 1)} {which} missing; "
                f"its numbers are from {len(finished)} of {len(seeds)} seeds."
            )
    return missing, sentences


def _rates(
    comparison: Comparison,
    strategy: str,
    files: Sequence[Predictions],
    finding: str,
    thresholds: Sequence[float],
) -> dict[str, float]:
    """Return each rate of one strategy, mean over its files: the comparison's number where that was asked for."""
    points = [operating_point(*_column(one, finding), limit) for one, limit in zip(files, thresholds, strict=True)]
    found = {}
    for rate in RATES:
        if rate in comparison.options.metrics:
            found[rate] = comparison.estimate(strategy, finding, rate).value
        else:
            values = [getattr(point, rate) for point in points]
            found[rate] = math.nan if np.isnan(thresholds).any() else float(np.mean(values))
    return found


def _mean_curve(files: Sequence[Predictions], finding: str) -> RocLine | None:
    """Return the empirical curve of one file, or the vertical mean of several at 201 false positive rates."""
    curves = [curve for curve in (roc_curve(*_column(one, finding)) for one in files) if curve]
    if not curves:
        return None
    if len(curves) == 1:
        return RocLine(curves[0].false_positive_rate, curves[0].true_positive_rate)
    grid = np.linspace(0, 1, 201)
    lines = [np.interp(grid, curve.false_positive_rate, curve.true_positive_rate) for curve in curves]
    return RocLine(np.append(0.0, grid), np.append(0.0, np.mean(lines, axis=0)))


def _reliability(comparison: Comparison, strategy: str, files: Sequence[Predictions], finding: str) -> Reliability:
    columns = [_column(one, finding) for one in files]
    targets, scores = (np.concatenate(parts) for parts in zip(*columns, strict=True))
    labelled = int(np.count_nonzero(~np.isnan(columns[0][0])))
    bins = min(max(labelled // IMAGES_PER_BIN, BINS[0]), BINS[1])
    if "ece" in comparison.options.metrics:
        error = comparison.estimate(strategy, finding, "ece").value
    else:
        error = float(np.mean([ece(*column) for column in columns]))
    curves = tuple(reliability_curve(*column, n_bins=bins) for column in columns)
    return Reliability(curves, reliability_curve(targets, scores, n_bins=bins), error)


def _column(predictions: Predictions, finding: str) -> tuple[np.ndarray, np.ndarray]:
    k = predictions.findings.index(finding)
    return predictions.targets[:, k], predictions.scores[:, k]
