"""Tests on other datasets: every strategy trained on A and tested on B, over the findings that both share.

A and B are one pair; strategies are compared within a pair, in the same redraws.  All pairs are one family of tests,
beside those of the strategies' own test splits.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cxrdist.errors import UserError
from cxrdist.report.analysis import StudyResult
from cxrdist.report.cells import Guard, ReportOptions
from cxrdist.stats.adjusted import adjust
from cxrdist.stats.compare import compare
from cxrdist.stats.comparison import Comparison
from cxrdist.stats.meanings import MACRO
from cxrdist.stats.predictions import Predictions, read_predictions
from cxrdist.stats.resample import MapFunction


@dataclass(frozen=True)
class ExternalFiles:
    """One cell on one other dataset, tested or not."""

    strategy: str
    trained: str
    """The cell's dataset."""
    tested: str
    """The other one."""
    seed: int
    path: Path
    """Predictions, of the findings that both share; not there before the test, nor if `why` says so."""
    variant: str = ""
    why: str = ""
    """Why there can be none."""
    mark: str = ""
    """Why the other dataset is none that the model has not met: patients, images or labels that it learned from."""

    @property
    def label(self) -> str:
        """Name in sentences."""
        return f"{self.strategy} of {pair_name(self.trained, self.tested, self.variant)}, seed {self.seed}"


def pair_name(trained: str, tested: str, variant: str) -> str:
    """Return what a report calls a pair of datasets, or a variant of it."""
    return f"{trained} → {tested}{f', {variant}' if variant else ''}"


@dataclass(frozen=True)
class PairResult:
    """All strategies trained on one dataset and tested on another one."""

    trained: str
    tested: str
    variant: str
    strategies: tuple[str, ...]
    """Those with a cell here by the design of the study."""
    comparison: Comparison | None
    """None if no strategy has predictions, or if they cannot be compared (`fault`)."""
    fault: str
    nothing: str
    """Why no strategy can have predictions (no finding shared ...); empty if any can."""
    own: dict[str, float]
    """Strategy -> mean AUROC on the test split of the dataset it was trained on, over the findings that count here and
    there; NaN if not known."""
    marks: dict[str, str]
    """Strategy -> why this is no dataset that it has not met; none where it is."""
    remarks: tuple[str, ...]

    @property
    def name(self) -> str:
        """Return what a reader knows it by."""
        return pair_name(self.trained, self.tested, self.variant)

    @property
    def findings(self) -> tuple[str, ...]:
        """Return the shared findings."""
        return tuple(count.finding for count in self.comparison.counts) if self.comparison else ()

    @property
    def missing(self) -> tuple[str, ...]:
        """Return the strategies that should have a number here and have none."""
        known = self.comparison.models if self.comparison else ()
        return () if self.nothing else tuple(name for name in self.strategies if name not in known)


@dataclass(frozen=True)
class Across:
    """Everything computed of tests on other datasets."""

    pairs: tuple[PairResult, ...]
    trained: tuple[str, ...]
    tested: tuple[str, ...]
    """Datasets that any model was tested on, its own among them."""
    variants: tuple[str, ...]

    def pair(self, trained: str, tested: str, variant: str) -> PairResult | None:
        """Return one pair; None if nobody asked for it."""
        wanted = trained, tested, variant
        return next((one for one in self.pairs if (one.trained, one.tested, one.variant) == wanted), None)


def analyse_external(files: Sequence[ExternalFiles], study: StudyResult, map: MapFunction = map) -> Across | None:
    """Return the statistics of tests on other datasets; None if there are none.

    `study` is of the same cells on their own test splits.
    """
    if not files:
        return None
    grouped: dict[tuple[str, str, str], list[ExternalFiles]] = {}
    for one in files:
        grouped.setdefault((one.trained, one.tested, one.variant), []).append(one)
    order = {(one.dataset, one.variant): i for i, one in enumerate(study.datasets)}
    names = sorted(grouped, key=lambda name: order.get((name[0], name[2]), len(order)))
    pairs = [_pair(*name, grouped[name], study, map) for name in names]
    compared = [i for i, one in enumerate(pairs) if one.comparison]
    adjusted = adjust([one.comparison for one in pairs if one.comparison])
    for i, comparison in zip(compared, adjusted, strict=True):
        pairs[i] = replace(pairs[i], comparison=comparison)
    trained = dict.fromkeys(one.trained for one in pairs)
    tested = dict.fromkeys(one.tested for one in pairs)
    return Across(
        tuple(pairs),
        tuple(trained),
        (*trained, *(name for name in tested if name not in trained)),
        tuple(dict.fromkeys(one.variant for one in pairs)),
    )


def check_external_results(across: Across) -> Guard:
    """Return the guard that no test on another dataset is missing."""
    missing = [f"{name} of {one.name}" for one in across.pairs for name in one.missing]
    remarked = [text for one in across.pairs for text in one.remarks]
    count = sum(len(one.strategies) for one in across.pairs if not one.nothing)
    detail = f"{count} strategies on {len(across.pairs)} pairs of datasets"
    wrong = missing or remarked
    more = f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else ""
    told = "; ".join(text.rstrip(".") for text in wrong[:3]) + more
    return Guard("Every test on another dataset has results", not wrong, told or detail)


def _pair(
    trained: str, tested: str, variant: str, files: Sequence[ExternalFiles], study: StudyResult, map: MapFunction
) -> PairResult:
    strategies = tuple(name for name in study.strategies if any(one.strategy == name for one in files))
    read: dict[str, list[tuple[int, Predictions]]] = {}
    remarks = []
    for one in sorted(files, key=lambda one: (study.strategies.index(one.strategy), one.seed)):
        if one.why:
            continue
        if not one.path.is_file():
            remarks.append(f"{one.label}: missing.")
            continue
        try:
            read.setdefault(one.strategy, []).append((one.seed, read_predictions(one.path)))
        except UserError as error:
            remarks.append(f"{one.label}: {error}")
    fault, comparison = "", None
    if read:
        try:
            comparison = _compare(
                {name: [file for _, file in some] for name, some in read.items()},
                {name: [seed for seed, _ in some] for name, some in read.items()},
                study.options,
                map,
            )
        except UserError as error:
            fault = str(error)
    whys = list(dict.fromkeys(one.why for one in files))
    result = PairResult(
        trained=trained,
        tested=tested,
        variant=variant,
        strategies=strategies,
        comparison=comparison,
        fault=fault,
        nothing="" if "" in whys else "; ".join(whys),
        own={},
        marks={one.strategy: one.mark for one in files if one.mark},
        remarks=(*remarks, *([f"{pair_name(trained, tested, variant)}: {fault}"] if fault else [])),
    )
    return replace(result, own={name: _own(result, name, study) for name in strategies})


def _compare(
    files: Mapping[str, Sequence[Predictions]],
    seeds: Mapping[str, Sequence[int]],
    options: ReportOptions,
    map: MapFunction,
) -> Comparison:
    asked = options.model_copy(update={"metrics": ("auroc",), "averages": (MACRO,), "subgroups": (), "permutations": 0})
    compared = options.reference in files
    reference = options.reference if compared else next(iter(files))
    found = compare(files, reference=reference, train_seeds=seeds, options=asked, map=map)
    return found if compared else replace(found, reference=None, differences=())


def _own(pair: PairResult, strategy: str, study: StudyResult) -> float:
    """Return the strategy's mean on its own test split over the findings that count in both."""
    home = next((one for one in study.datasets if (one.dataset, one.variant) == (pair.trained, pair.variant)), None)
    if home is None or home.comparison is None or pair.comparison is None:
        return math.nan
    there, here = home.comparison, pair.comparison
    if strategy not in there.models or strategy not in here.models:
        return math.nan
    at_home = {count.finding for count in there.counts}
    found = [
        there.estimate(strategy, finding).value
        for finding in pair.findings
        if finding in at_home and not math.isnan(here.estimate(strategy, finding).value)
    ]
    known = [value for value in found if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan
