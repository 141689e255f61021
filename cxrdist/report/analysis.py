"""The statistics of a report: comparison, thresholds and rates per dataset, the families of tests over all."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from cxrdist.errors import UsageError, UserError, unknown
from cxrdist.report.cells import Cell, ReportOptions
from cxrdist.stats.compare import adjust, compare
from cxrdist.stats.comparison import Comparison
from cxrdist.stats.metrics import METRICS
from cxrdist.stats.predictions import Predictions
from cxrdist.stats.resample import MapFunction
from cxrdist.stats.threshold import choose_threshold, operating_point, roc_curve

RATES = ("threshold", "sensitivity", "specificity", "ppv", "npv", "accuracy", "f1")


@dataclass(frozen=True)
class RocLine:
    """A curve to draw: false and true positive rate, (T,) each."""

    false_positive_rate: np.ndarray
    true_positive_rate: np.ndarray


@dataclass(frozen=True)
class DatasetResult:
    """Everything computed for one dataset."""

    name: str
    cells: tuple[Cell, ...]
    """All cells of this dataset, those without predictions included."""
    missing: dict[str, str]
    """Strategy without any test predictions -> why."""
    comparison: Comparison | None
    """None if no strategy has predictions, or if they cannot be compared (`fault`)."""
    fault: str
    """Why there is no comparison; empty if there is one."""
    rates: dict[tuple[str, str], dict[str, float]]
    """(strategy, finding) -> rates on test at the validation threshold, mean over seeds; NaN where undefined."""
    curves: dict[tuple[str, str], RocLine]
    """(strategy, finding) -> ROC curve on test, mean over seeds."""
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class StudyResult:
    """Everything computed for a report."""

    strategies: tuple[str, ...]
    """The reference first, then as given."""
    datasets: tuple[DatasetResult, ...]
    seeds: tuple[int, ...]
    options: ReportOptions


def analyse(cells: Sequence[Cell], options: ReportOptions, map: MapFunction = map) -> StudyResult:
    """Return the statistics of `cells`; the grid is every strategy x dataset x seed that any cell names.

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
    names = dict.fromkeys(cell.files.dataset for cell in cells)
    datasets = [
        _dataset(name, [cell for cell in cells if cell.files.dataset == name], strategies, seeds, options, map)
        for name in names
    ]
    compared = [i for i, one in enumerate(datasets) if one.comparison]
    # The families are declared over the whole report: one table, one false discovery rate.
    adjusted = adjust([one.comparison for one in datasets if one.comparison])
    for i, comparison in zip(compared, adjusted, strict=True):
        datasets[i] = replace(datasets[i], comparison=comparison)
    return StudyResult(tuple(strategies), tuple(datasets), seeds, options)


def _dataset(
    name: str,
    cells: Sequence[Cell],
    strategies: Sequence[str],
    seeds: Sequence[int],
    options: ReportOptions,
    map: MapFunction,
) -> DatasetResult:
    done = {strategy: _finished(cells, strategy) for strategy in strategies}
    missing, warnings = _missing(name, cells, done, seeds)
    files = {strategy: [cell.test for cell in ours if cell.test] for strategy, ours in done.items() if ours}
    comparison, fault = None, "" if files else "No strategy has test predictions."
    if files:
        try:
            comparison = _compare(done, files, options, map)
        except UserError as error:
            fault = str(error)
    rates: dict[tuple[str, str], dict[str, float]] = {}
    curves: dict[tuple[str, str], RocLine] = {}
    if comparison:
        warnings += comparison.warnings()
        if comparison.reference is None:
            warnings.append(f"The reference {options.reference} is missing, so no difference is given.")
        for strategy in files:
            for count in comparison.counts:
                rates[strategy, count.finding] = _mean_rates(done[strategy], count.finding, options.threshold)
                line = _mean_curve([cell.test for cell in done[strategy] if cell.test], count.finding)
                if line:
                    curves[strategy, count.finding] = line
    return DatasetResult(name, tuple(cells), missing, comparison, fault, rates, curves, tuple(warnings))


def _compare(
    done: dict[str, list[Cell]], files: dict[str, list[Predictions]], options: ReportOptions, map: MapFunction
) -> Comparison:
    reference = options.reference if options.reference in files else None
    validation = {strategy: [cell.val for cell in done[strategy] if cell.val] for strategy in files}
    if any(len(validation[strategy]) < len(files[strategy]) for strategy in files):
        # A guard names the file that is not there; what needs no threshold is given all the same.
        kept = tuple(name for name in options.metrics if not METRICS[name].needs_threshold)
        options, validation = options.model_copy(update={"metrics": kept}), {}
    comparison = compare(
        files,
        reference=reference,
        validation=validation,
        train_seeds={strategy: [cell.files.seed for cell in done[strategy] if cell.test] for strategy in files},
        options=options,
        map=map,
    )
    return comparison if reference else replace(comparison, differences=())


def _finished(cells: Sequence[Cell], strategy: str) -> list[Cell]:
    return sorted((c for c in cells if c.files.strategy == strategy and c.test), key=lambda cell: cell.files.seed)


def _missing(
    dataset: str, cells: Sequence[Cell], done: dict[str, list[Cell]], seeds: Sequence[int]
) -> tuple[dict[str, str], list[str]]:
    """Return the strategies without any result and why, and a sentence for every cell or file that is not there."""
    missing: dict[str, str] = {}
    sentences: list[str] = []
    for strategy, finished in done.items():
        ours = [cell for cell in cells if cell.files.strategy == strategy]
        faults = [fault for cell in ours for fault in cell.faults]
        sentences += faults
        if not finished:
            missing[strategy] = " ".join(faults) or f"{strategy} was not run on {dataset}."
            sentences += [] if faults else [missing[strategy]]
            continue
        left = [seed for seed in seeds if seed not in {cell.files.seed for cell in finished}]
        if left:
            which = ", ".join(str(seed) for seed in left)
            sentences.append(
                f"{strategy} on {dataset}: seed{'s' * (len(left) != 1)} {which} missing; "
                f"its numbers are from {len(finished)} of {len(seeds)} seeds."
            )
    return missing, sentences


def _mean_rates(cells: Sequence[Cell], finding: str, rule: str) -> dict[str, float]:
    by_seed = []
    for cell in cells:
        threshold = float("nan")
        if cell.val and finding in cell.val.findings:
            threshold = choose_threshold(*_column(cell.val, finding), rule)
        if cell.test is None or np.isnan(threshold):
            by_seed.append(dict.fromkeys(RATES, float("nan")))
            continue
        point = operating_point(*_column(cell.test, finding), threshold)
        by_seed.append({rate: getattr(point, rate) for rate in RATES})
    return {rate: float(np.mean([one[rate] for one in by_seed])) for rate in RATES}


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


def _column(predictions: Predictions, finding: str) -> tuple[np.ndarray, np.ndarray]:
    k = predictions.findings.index(finding)
    return predictions.targets[:, k], predictions.scores[:, k]
