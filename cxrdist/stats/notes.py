"""Sentences on what weakens the numbers of a comparison."""

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING

from cxrdist.stats.meanings import AVERAGES, MICRO
from cxrdist.stats.metrics import METRICS
from cxrdist.stats.undefined import NEEDS, OTHERWISE, UNLABELLED

if TYPE_CHECKING:
    from cxrdist.stats.comparison import Comparison, Estimate, FindingCount

FEW_POSITIVES = 10
"""With fewer positive (or negative) patients, or images where those are drawn, an interval is named as shaky."""
FEW_SEEDS = 5
"""With fewer files, little is known of the spread between training seeds."""
CUT = 0.05
"""Share of undefined redraws from which the interval of a calibration slope is named as cut."""


def notes(comparison: "Comparison") -> list[str]:
    """Return a sentence for everything that weakens the numbers."""
    found = chain(
        (note for count in comparison.counts for note in _of_count(comparison, count)),
        _without_number(comparison),
        _left_out_redraws(comparison),
        _without_average(comparison),
        _of_seeds(comparison) if comparison.options.hierarchical else (),
        (f"{name}: {', '.join(k)} left out; not in every file." for name, k in comparison.dropped.items()),
    )
    return list(found)


def _of_count(comparison: "Comparison", count: "FindingCount") -> Iterator[str]:
    if count.one_class:
        absent = _absent(count)
        what = "labelled" if len(absent) == 2 else "positive" if absent == {1} else "negative"
        lost = [name for name in comparison.options.metrics if _lost(name, absent)]
        if not lost:
            yield f"{count.finding}: no {what} image; read its numbers with care."
            return
        averages = "the averages" if len(lost) == len(comparison.options.metrics) else "their averages"
        yield f"{count.finding}: no {what} image, so no {_titles(lost)}; left out of {averages}."
        return
    clustered = comparison.options.cluster == "patient_id"
    positive = count.positive_patients if clustered else count.positive
    negative = count.negative_patients if clustered else count.negative
    fewer = min(positive, negative)
    if fewer < FEW_POSITIVES:
        what = "positive" if positive <= negative else "negative"
        images = count.positive if positive <= negative else count.negative
        unit = "patient" if clustered else "image"
        of = f" ({images} images)" if clustered and images != fewer else ""
        yield f"{count.finding}: only {fewer} {what} {unit}{_s(fewer)}{of}; read its interval with care."


def _absent(count: "FindingCount") -> set[int]:
    return {target for target, n in ((1, count.positive), (0, count.negative)) if not n}


def _lost(metric: str, absent: set[int]) -> bool:
    """Return whether a metric does not exist without the classes that are absent."""
    return len(absent) == 2 or bool(absent & {*NEEDS.get(metric, ())})


def _without_number(comparison: "Comparison") -> Iterator[str]:
    """Say which findings have no number on the full sample though the classes that it needs are there."""
    absent = {count.finding: _absent(count) for count in comparison.counts}
    found: dict[tuple[str, str], dict[str, list[str]]] = {}  # (finding, reason) -> metric -> models
    for one in comparison.estimates:
        if not math.isnan(one.value) or one.finding in AVERAGES or _lost(one.metric, absent[one.finding]):
            continue
        reason = OTHERWISE.get(one.metric, UNLABELLED)
        if METRICS[one.metric].needs_threshold and math.isnan(one.threshold):
            reason = "the validation predictions lack the finding or a class of it, so there is no threshold"
        found.setdefault((one.finding, reason), {}).setdefault(one.metric, []).append(one.model)
    for (finding, reason), by_metric in found.items():
        for models in dict.fromkeys(tuple(names) for names in by_metric.values()):
            metrics = [metric for metric, names in by_metric.items() if tuple(names) == models]
            whose = "" if len(models) == len(comparison.models) else f" of {_and(models)}"
            left_out = "; left out of the averages for all models" if comparison.options.averages else ""
            yield f"{finding}: {_titles(metrics)}{whose} {_is(metrics)} undefined, as {reason}{left_out}."


def _left_out_redraws(comparison: "Comparison") -> Iterator[str]:
    """Say which intervals rest on fewer redraws than were made, and why."""
    redraws = comparison.options.n_resamples
    groups: dict[tuple[str, str, int, int], dict[str, list[str]]] = {}  # -> metric -> models
    for one in comparison.estimates:
        if one.redraws_undefined and not math.isnan(one.value):
            key = one.finding, _reason(comparison, one), one.redraws_undefined, one.redraws_one_class
            groups.setdefault(key, {}).setdefault(one.metric, []).append(one.model)
    for (finding, reason, count, _), by_metric in groups.items():
        for models in dict.fromkeys(tuple(names) for names in by_metric.values()):
            metrics = [metric for metric, names in by_metric.items() if tuple(names) == models]
            whose = "" if len(models) == len(comparison.models) else f" of {_and(models)}"
            cut = ""
            if "calibration_slope" in metrics and count > CUT * redraws:
                cut = " The interval of the slope is cut: those left out are the steepest."
            what = (
                f"{finding.capitalize()} {_titles(metrics)}"
                if finding in AVERAGES
                else (f"{finding}: {_titles(metrics)}")
            )
            yield (
                f"{what}{whose} {_was(metrics)} undefined in {count} of {redraws} redraws, which are left out of "
                f"the interval: {reason}.{cut}"
            )


def _reason(comparison: "Comparison", one: "Estimate") -> str:
    if one.finding in AVERAGES and one.finding != MICRO:
        culprits = [
            other.finding
            for other in comparison.estimates
            if (other.model, other.metric) == (one.model, one.metric)
            and other.finding not in AVERAGES
            and other.redraws_undefined
            and not math.isnan(other.value)
        ]
        return f"{_or(culprits)} had none there" if culprits else UNLABELLED
    lacked, rest = one.redraws_one_class, one.redraws_undefined - one.redraws_one_class
    needed = NEEDS.get(one.metric, ())
    lost = "a class" if len(needed) == 2 else "all images with it" if needed == (1,) else "all images without it"
    otherwise = OTHERWISE.get(one.metric, UNLABELLED)
    if not rest:
        return f"they lost {lost}"
    return f"{lacked} lost {lost}; in {rest} {otherwise}" if lacked else f"in them {otherwise}"


def _without_average(comparison: "Comparison") -> Iterator[str]:
    for name in comparison.options.metrics:
        metric = METRICS[name]
        if metric.target is not None and set(comparison.options.averages) - {MICRO}:
            yield (
                f"{metric.title}: no average over findings, in which values on either side of {metric.target:g} would "
                "cancel."
            )


def _of_seeds(comparison: "Comparison") -> Iterator[str]:
    files = {one.model: len(one.by_member) for one in comparison.estimates}
    for model, n in files.items():
        if n == 1:
            yield f"{model}: one file, so no spread between seeds is in its interval."
        elif n < FEW_SEEDS:
            yield f"{model}: {n} files, so its interval is wide: few seeds tell little of how far seeds lie apart."
    seeds = comparison.train_seeds
    for model, reference in dict.fromkeys((d.model, d.reference) for d in comparison.differences):
        same = model in seeds and reference in seeds and set(seeds[model]) == set(seeds[reference])
        if not same and max(files[model], files[reference]) > 1:
            yield f"{model} and {reference}: not known to have the same training seeds, so not paired by seed."


def _titles(metrics: Sequence[str]) -> str:
    return ", ".join(METRICS[name].title for name in metrics)


def _is(metrics: Sequence[str]) -> str:
    return "is" if len(metrics) == 1 else "are"


def _was(metrics: Sequence[str]) -> str:
    return "was" if len(metrics) == 1 else "were"


def _and(names: Iterable[str]) -> str:
    return " and ".join(names)


def _or(names: Iterable[str]) -> str:
    return " or ".join(names)


def _s(number: int) -> str:
    return "" if number == 1 else "s"
