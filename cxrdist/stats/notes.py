"""Sentences on what weakens the numbers of a comparison."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING

from cxrdist.stats.beside import CALLED
from cxrdist.stats.meanings import AVERAGES, MICRO, confidence
from cxrdist.stats.metrics import METRICS
from cxrdist.stats.undefined import MOST_UNDEFINED, NEEDS, OTHERWISE, UNLABELLED

if TYPE_CHECKING:
    from cxrdist.stats.comparison import Comparison, Estimate, FindingCount

FEW_POSITIVES = 10
"""With fewer positive (or negative) patients, or images where those are drawn, an interval is named as shaky."""
FEW_REDRAWS = 10
"""With fewer redraws beyond either end, an interval's ends are chance."""
FEW_SEEDS = 5
"""With fewer files, little is known of the spread between training seeds."""
CUT = 0.05
"""Share of undefined redraws from which the interval of a calibration slope is named as cut."""


def notes(comparison: "Comparison") -> list[str]:
    """Return a sentence for everything that weakens the numbers."""
    found = chain(
        (note for count in comparison.counts for note in _of_count(comparison, count)),
        _without_number(comparison),
        _few_units(comparison),
        _left_out_redraws(comparison),
        _withheld(comparison),
        _without_average(comparison),
        _of_seeds(comparison) if comparison.options.hierarchical else (),
        _untested(comparison),
        _of_margin(comparison),
        _few_redraws(comparison),
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
    alone = _alone(comparison, count)
    if alone:
        yield _of_one(comparison, count, alone)
        if len(alone) == len(comparison.options.metrics):
            return
    clustered = comparison.options.cluster == "patient_id"
    negative, positive = count.units(comparison.options.cluster)
    fewer = min(positive, negative)
    if fewer < FEW_POSITIVES:
        what = "positive" if positive <= negative else "negative"
        images = count.positive if positive <= negative else count.negative
        unit = "patient" if clustered else "image"
        of = f" ({images} images)" if clustered and images != fewer else ""
        yield f"{count.finding}: only {fewer} {what} {unit}{_s(fewer)}{of}; read its interval and p with care."


def _alone(comparison: "Comparison", count: "FindingCount") -> list[str]:
    """Return the metrics which need a class of the finding that one patient (or image) alone has."""
    if count.one_class:
        return []
    units = count.units(comparison.options.cluster)
    return [name for name in comparison.options.metrics if any(units[target] == 1 for target in NEEDS.get(name, ()))]


def _of_one(comparison: "Comparison", count: "FindingCount", metrics: Sequence[str]) -> str:
    units = count.units(comparison.options.cluster)
    target = next(target for name in metrics for target in NEEDS[name] if units[target] == 1)
    what, images = ("positive", count.positive) if target else ("negative", count.negative)
    every = len(metrics) == len(comparison.options.metrics)
    why = f"only 1 {what} image" if images == 1 else f"all {images} {what} images are of one patient"
    whose = "" if every else f" of its {_titles(metrics)}"
    averages = "the averages" if every else "their averages"
    left_out = f"; left out of {averages}" if comparison.options.averages else ""
    return f"{count.finding}: {why}, so no interval and no p{whose}{left_out}."


def _few_units(comparison: "Comparison") -> Iterator[str]:
    """Say that a sample is so small that a small p is not to be believed."""
    clustered = comparison.options.cluster == "patient_id"
    n = comparison.n_patients if clustered else comparison.n_images
    if n < FEW_POSITIVES:
        yield (
            f"Only {n} {'patients' if clustered else 'images'}: do not rely on any interval or p. Even if one model is "
            f"better for every one of them, an exact sign test gives p = {2 ** (1 - n):.2g}."
        )


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
    """Say which intervals rest on fewer redraws than were made, and why; those withheld rest on none."""
    redraws = comparison.options.n_resamples
    groups: dict[tuple[str, str, int, int], dict[str, list[str]]] = {}  # -> metric -> models
    alone = {(name, count.finding) for count in comparison.counts for name in _alone(comparison, count)}
    for one in comparison.estimates:
        if one.redraws_undefined and not math.isnan(one.value) and (one.metric, one.finding) not in alone:
            if one.finding == MICRO and math.isnan(one.low):  # one patient has a class of all findings together
                continue
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
        alone = {count.finding for count in comparison.counts if one.metric in _alone(comparison, count)}
        culprits = [
            other.finding
            for other in comparison.estimates
            if (other.model, other.metric) == (one.model, one.metric)
            and other.finding not in AVERAGES
            and other.finding not in alone
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


def _withheld(comparison: "Comparison") -> Iterator[str]:
    """Say which differences have no p because too many redraws are undefined."""
    alone = {(name, count.finding) for count in comparison.counts for name in _alone(comparison, count)}
    found: dict[tuple[str, tuple[str, ...]], list[str]] = {}  # (finding, pairs) -> metrics
    by_number: dict[tuple[str, str], list[str]] = {}
    for d in comparison.differences:
        many = d.redraws_undefined > MOST_UNDEFINED * comparison.options.n_resamples
        if many and not math.isnan(d.value) and (d.metric, d.finding) not in alone:
            by_number.setdefault((d.metric, d.finding), []).append(f"{d.model} and {d.reference}")
    for (metric, finding), pairs in by_number.items():
        found.setdefault((finding, tuple(pairs)), []).append(metric)
    every = len({(d.model, d.reference) for d in comparison.differences})
    for (finding, of), metrics in found.items():
        whose = "" if len(of) == every else f" of {'; '.join(of)}"
        yield (
            f"{finding.capitalize() if finding in AVERAGES else finding}: no p and no q of {_titles(metrics)}{whose}, "
            f"as over {100 * MOST_UNDEFINED:g} % of the redraws are undefined and the others are a biased choice."
        )


def _untested(comparison: "Comparison") -> Iterator[str]:
    """Say between which models a test beside the bootstrap was not made for the numbers of their files."""
    options = comparison.options
    files = {one.model: len(one.by_member) for one in comparison.estimates}
    pairs = list(dict.fromkeys((d.model, d.reference) for d in comparison.differences))
    if options.permutations and "auroc" in options.metrics:
        unlike = [f"{model} and {other}" for model, other in pairs if files[model] != files[other]]
        if unlike:
            yield f"No permutation p of {'; '.join(unlike)}: it needs as many files of the one as of the other."
    if set(options.metrics) & set(CALLED):
        several = [f"{model} and {other}" for model, other in pairs if files[model] + files[other] > 2]
        if several:
            yield f"No McNemar p of {'; '.join(several)}: it compares the calls of one file with those of one other."


def _of_margin(comparison: "Comparison") -> Iterator[str]:
    options = comparison.options
    if options.margin is not None and len(options.metrics) > 1 and comparison.differences:
        yield (
            f"The margin of {options.margin:g} is taken for {_titles(options.metrics)} alike, though their scales "
            "differ: what is small in the one may be large in the other."
        )


def _few_redraws(comparison: "Comparison") -> Iterator[str]:
    """Say where there are too few redraws for the level of the intervals, or for any q to fall below alpha."""
    options = comparison.options
    alpha, redraws = options.alpha, options.n_resamples
    if redraws < 2 * FEW_REDRAWS / alpha:
        yield (
            f"Of {redraws} redraws, fewer than {FEW_REDRAWS} lie beyond either end of a {confidence(alpha)} "
            f"interval, so its ends are chance: use {math.ceil(2 * FEW_REDRAWS / alpha)} redraws or more."
        )
    sizes = Counter((d.metric, d.finding in AVERAGES) for d in comparison.differences if not math.isnan(d.p))
    size = max(sizes.values(), default=0)
    if not size:
        return
    # The smallest q of a difference that stands alone; max-T and no correction leave the smallest p as it is.
    factor = {"holm": size, "bh": size, "by": size * sum(1 / i for i in range(1, size + 1))}.get(options.correction, 1)
    smallest = 2 / (redraws + 1)
    if factor * smallest >= alpha:
        needed = math.ceil(round(2 * factor / alpha, 9))
        what = "no q" if options.correction != "bh" else "no q of a difference that stands alone"
        yield (
            f"With {redraws} redraws no p is below {smallest:.2g}, so {what} in a family of {size} can be below "
            f"{min(factor * smallest, 1):.2g}: use {needed} redraws or more."
        )


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
