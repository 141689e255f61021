"""Checks of rigor that the result files themselves can answer; the caller adds those that need more."""

import math
from collections.abc import Callable, Sequence
from itertools import chain

import numpy as np

from cxrdist.report.analysis import DatasetResult, StudyResult
from cxrdist.report.cells import Cell, Guard
from cxrdist.stats.comparison import FindingCount
from cxrdist.stats.notes import FEW_POSITIVES

SE_RATIO = (2 / 3, 3 / 2)
"""Bootstrap over DeLong standard error of a difference: outside, one of the two is wrong or the sample too small."""
NAMED = 3
"""How many exceptions a guard spells out."""


def check(study: StudyResult) -> list[Guard]:
    """Return the guards of a study, passed or not, in the order a reader asks them."""
    return [
        _guard("Every cell of the grid has results", _unfinished(study), _grid_size(study)),
        _guard("Patients of validation and test are disjoint", _per_dataset(study, _shared_patients), _sizes(study)),
        _guard(
            "All strategies are judged on the same test images, patients and labels",
            _per_dataset(study, lambda one: one.misaligned),
            _agreement(study),
        ),
        _guard(
            "Thresholds come from validation, never from test",
            _per_dataset(study, _without_threshold),
            f"every rate uses the {study.options.threshold} threshold of the same run's validation predictions",
        ),
        _guard("All strategies had the same budget", _per_dataset(study, _unequal_budget), _budgets(study)),
        _guard("Seeds are recorded", _unrecorded_seeds(study), _seeds(study)),
        _delong(study),
    ]


def _guard(name: str, exceptions: Sequence[str], good: str) -> Guard:
    if not exceptions:
        return Guard(name, True, good)
    more = f" (and {len(exceptions) - NAMED} more)" if len(exceptions) > NAMED else ""
    return Guard(name, False, "; ".join(text.rstrip(".") for text in exceptions[:NAMED]) + more)


def _per_dataset(study: StudyResult, exception: Callable[[DatasetResult], str]) -> list[str]:
    found = ((one.name, exception(one)) for one in study.datasets)
    return [text if name in text else f"{name}: {text}" for name, text in found if text]


def _cells(study: StudyResult) -> list[Cell]:
    return [cell for one in study.datasets for cell in one.cells]


def _unfinished(study: StudyResult) -> list[str]:
    return [
        cell.label
        for one in study.datasets
        for cell in sorted(one.cells, key=lambda cell: (study.strategies.index(cell.files.strategy), cell.files.seed))
        if not cell.test
    ]


def _grid_size(study: StudyResult) -> str:
    variants = {one.variant for one in study.datasets if one.variant}
    counts = (
        (len(study.strategies), "strategy", "strategies"),
        (len({one.dataset for one in study.datasets}), "dataset", "datasets"),
        *([(len(variants), "variant", "variants")] if variants else []),
        (len(study.seeds), "seed", "seeds"),
    )
    words = " × ".join(f"{count} {single if count == 1 else several}" for count, single, several in counts)
    declared = len(_cells(study))
    limited = declared < math.prod(count for count, _, _ in counts)
    return f"{words}; {declared} cells, the others are not in the grid by design" if limited else words


def _shared_patients(one: DatasetResult) -> str:
    val = set(chain.from_iterable(cell.val.patient_id for cell in one.cells if cell.val))
    test = set(chain.from_iterable(cell.test.patient_id for cell in one.cells if cell.test))
    shared = len(val & test)
    return f"{shared} patient{_s(shared)} in both" if shared else ""


def _sizes(study: StudyResult) -> str:
    parts = []
    for one in study.datasets:
        counts = []
        for split in ("val", "test"):
            files = next((getattr(cell, split) for cell in one.cells if getattr(cell, split)), None)
            counts.append(f"{len(np.unique(files.patient_id))} {split}" if files else f"no {split}")
        # Variants of a dataset have the same patients.
        parts.append(f"{one.dataset} {' / '.join(counts)}")
    return "patients: " + ", ".join(dict.fromkeys(parts))


def _has_results(one: DatasetResult) -> bool:
    # A dataset without any is missing from the grid, which another guard tells.
    return any(cell.test for cell in one.cells)


def _agreement(study: StudyResult) -> str:
    empty = [one.name for one in study.datasets if not _has_results(one)]
    agree = "image ids, patient ids and labels agree between all prediction files of a dataset"
    if not empty:
        return agree
    nothing = f"nothing to compare on {', '.join(empty)}"
    return nothing if len(empty) == len(study.datasets) else f"{agree}; {nothing}"


def _without_threshold(one: DatasetResult) -> str:
    return f"no rates are given there. {one.no_rates}" if one.no_rates else ""


def _budget(cell: Cell) -> tuple[int, int] | None:
    steps, batch = cell.fact("steps", "max_steps", "total_steps"), cell.fact("global_batch_size")
    trained = [line["step"] for line in cell.metrics if line["kind"] == "train"]
    steps = steps if isinstance(steps, int) else max(trained, default=None)
    return (steps, batch) if isinstance(steps, int) and isinstance(batch, int) else None


def _unequal_budget(one: DatasetResult) -> str:
    by_strategy = {cell.label: _budget(cell) for cell in one.cells if cell.test}
    unknown = [label for label, budget in by_strategy.items() if budget is None]
    if unknown:
        return f"steps or global batch size not recorded for {', '.join(unknown[:NAMED])}"
    images = {label: math.prod(budget) for label, budget in by_strategy.items() if budget}
    if len(set(images.values())) < 2:
        return ""
    most, least = max(images, key=lambda k: images[k]), min(images, key=lambda k: images[k])
    return f"{most} saw {images[most]} training images, {least} saw {images[least]}"


def _budgets(study: StudyResult) -> str:
    parts: dict[str, list[str]] = {}
    for one in study.datasets:
        budget = next((b for b in (_budget(cell) for cell in one.cells if cell.test) if b), None)
        if budget:
            parts.setdefault(f"{budget[0]} steps × {budget[1]} images", []).append(one.name)
    told = [f"{'; '.join(names)}: {budget}" for budget, names in parts.items()]
    if len(parts) == 1 and len(study.datasets) > NAMED:
        told = [f"everywhere {budget}" for budget in parts]
    return ", ".join(told) or "nothing was trained"


def _unrecorded_seeds(study: StudyResult) -> list[str]:
    wrong = []
    for cell in _cells(study):
        seed = cell.fact("seed")
        if cell.test and seed != cell.files.seed:
            wrong.append(f"{cell.label}: recorded {'nothing' if seed is None else seed}")
    return wrong


def _seeds(study: StudyResult) -> str:
    return f"training {', '.join(str(seed) for seed in study.seeds)}; redraws {study.options.seed}"


def _delong(study: StudyResult) -> Guard:
    """Hold bootstrap against closed form: the standard errors of every difference that has enough images."""
    name = "DeLong's test agrees with the bootstrap"
    ratios = [ratio for one in study.datasets for ratio in _ratios(one)]
    if not ratios:
        unit = "patients" if study.options.cluster == "patient_id" else "images"
        return Guard(name, True, f"nothing to check: no difference with {FEW_POSITIVES} {unit} of each class")
    outside = sum(not SE_RATIO[0] <= ratio <= SE_RATIO[1] for ratio in ratios)
    detail = (
        f"standard errors of {len(ratios)} differences, bootstrap / DeLong (Obuchowski's clusters): "
        f"median {np.median(ratios):.2f}, range {min(ratios):.2f} to {max(ratios):.2f}"
    )
    bounds = f"; {outside} outside {SE_RATIO[0]:.2f} to {SE_RATIO[1]:.2f}" if outside else ""
    return Guard(name, not outside, detail + bounds)


def _ratios(one: DatasetResult) -> list[float]:
    """Return bootstrap over DeLong, of patients alone: DeLong's formula knows nothing of training seeds."""
    comparison = one.comparison
    if not comparison:
        return []
    enough = {c.finding for c in comparison.counts if _fewer(c, comparison.options.cluster) >= FEW_POSITIVES}
    return [
        d.standard_error_patients / d.delong.standard_error
        for d in comparison.differences
        if d.finding in enough and d.delong and d.delong.standard_error > 0
    ]


def _fewer(count: FindingCount, cluster: str) -> int:
    """Return how many patients, or images where those are redrawn, the rarer class has."""
    if cluster == "patient_id":
        return min(count.positive_patients, count.negative_patients)
    return min(count.positive, count.negative)


def _s(count: int) -> str:
    return "" if count == 1 else "s"
