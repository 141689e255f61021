"""Compare models on the same images: AUROC with interval, differences with interval, p, q and DeLong's p.

Shapes: N images, K findings, R redraws.  A model may be several prediction files (its seeds): its AUROC is then the
mean of theirs, taken inside each redraw.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any, Literal

import numpy as np

from cxrdist.errors import UsageError, unknown
from cxrdist.stats.bootstrap import MapFunction, Redraws, average, bootstrap_auroc
from cxrdist.stats.delong import DeLong, delong_test
from cxrdist.stats.families import benjamini_hochberg
from cxrdist.stats.inference import paired_test
from cxrdist.stats.intervals import percentile_interval
from cxrdist.stats.predictions import Predictions, align

MACRO = "macro"
"""Name of the mean over findings, where a finding's name would stand."""

FEW_POSITIVES = 10
"""Below so many positive (or negative) images an interval is named as shaky."""


@dataclass(frozen=True)
class Estimate:
    """One model's AUROC on one finding, or the macro mean."""

    model: str
    finding: str
    value: float
    low: float
    high: float
    by_member: tuple[float, ...]
    """The AUROC of each prediction file (seed) of the model."""

    @property
    def spread(self) -> float:
        """Standard deviation between the files (seeds); NaN with fewer than two."""
        return float(np.std(self.by_member, ddof=1)) if len(self.by_member) > 1 else float("nan")


@dataclass(frozen=True)
class Difference:
    """AUROC of `model` minus that of `reference` on one finding, or the macro mean."""

    model: str
    reference: str
    finding: str
    value: float
    low: float
    high: float
    p: float
    q: float
    """Benjamini-Hochberg within the family: all macro differences are one, all per-finding differences another."""
    standard_error: float
    """Standard deviation of the redraws."""
    delong: DeLong | None
    """Clustered like the bootstrap; None for the macro mean."""


@dataclass(frozen=True)
class FindingCount:
    """How much there is to judge a finding by."""

    finding: str
    positive: int
    negative: int
    masked: int
    redraws_undefined: int
    """Redraws in which one class was absent; they are left out of this finding's interval."""

    @property
    def one_class(self) -> bool:
        """Whether no AUROC exists; such a finding is left out of the macro mean."""
        return not (self.positive and self.negative)


@dataclass(frozen=True)
class Comparison:
    """The result of `compare`."""

    models: tuple[str, ...]
    reference: str | None
    counts: tuple[FindingCount, ...]
    estimates: tuple[Estimate, ...]
    differences: tuple[Difference, ...]
    dropped: dict[str, tuple[str, ...]]
    """File -> findings left out because not all files have them."""
    n_images: int
    n_patients: int
    n_resamples: int
    cluster: str
    alpha: float
    seed: int
    macro_redraws_undefined: int
    """Redraws in which a finding of the macro mean had one class only; they are left out of its interval."""

    def estimate(self, model: str, finding: str = MACRO) -> Estimate:
        """Return one estimate; `KeyError` if there is none."""
        for estimate in self.estimates:
            if (estimate.model, estimate.finding) == (model, finding):
                return estimate
        raise KeyError(f"{model}, {finding}")

    def difference(self, model: str, finding: str = MACRO, reference: str | None = None) -> Difference | None:
        """Return the difference of `model` to `reference` (default: the comparison's), or None if not compared."""
        to = reference or self.reference
        found = (d for d in self.differences if (d.model, d.reference, d.finding) == (model, to, finding))
        return next(found, None)

    def rows(self) -> list[dict[str, Any]]:
        """Return one flat row per model and finding: for tables."""
        return [{**asdict(e), "by_member": list(e.by_member), "spread": e.spread} for e in self.estimates]

    def difference_rows(self) -> list[dict[str, Any]]:
        """Return one flat row per difference: for tables."""
        flat = [{**asdict(d), "delong_p": d.delong.p if d.delong else math.nan} for d in self.differences]
        return [{name: value for name, value in row.items() if name != "delong"} for row in flat]

    def warnings(self) -> list[str]:
        """Return a sentence for everything that weakens the numbers."""
        sentences = []
        for count in self.counts:
            if count.one_class:
                what = "positive" if count.negative else "negative"
                what = "labelled" if not count.positive and not count.negative else what
                sentences.append(f"{count.finding}: no {what} image, so no AUROC; left out of the macro mean.")
                continue
            fewer = min(count.positive, count.negative)
            if fewer < FEW_POSITIVES:
                what = "positive" if count.positive <= count.negative else "negative"
                sentences.append(
                    f"{count.finding}: only {fewer} {what} image{'s' * (fewer != 1)}; read its interval with care."
                )
            if count.redraws_undefined:
                sentences.append(
                    f"{count.finding}: {count.redraws_undefined} of {self.n_resamples} redraws held one class only and "
                    "are left out of its interval."
                )
        if self.macro_redraws_undefined:
            lost = f"{self.macro_redraws_undefined} of {self.n_resamples} redraws"
            sentences.append(
                f"Mean over findings: {lost} lacked a class of one finding and are left out of its interval."
            )
        sentences += [f"{name}: {', '.join(k)} left out; not in every file." for name, k in self.dropped.items()]
        return sentences

    def to_json(self) -> str:
        """Return everything as JSON; undefined numbers are null."""
        return json.dumps(_json_ready({**asdict(self), "warnings": self.warnings()}), indent=2, allow_nan=False)


def compare(
    predictions: Mapping[str, Predictions | Sequence[Predictions]],
    *,
    reference: str | None = None,
    n_resamples: int = 1000,
    cluster: Literal["patient_id", "none"] = "patient_id",
    alpha: float = 0.05,
    seed: int = 0,
    map: MapFunction = map,
) -> Comparison:
    """Return AUROC and differences of models that predicted the same images.

    Args:
        predictions: Model -> its prediction file, or its files (one per seed).
        reference: Model that all others are compared with; None compares every pair.
        n_resamples: Redraws of the bootstrap.
        cluster: What is drawn: patients with all their images, or single images.
        alpha: Intervals have confidence level 1 - `alpha`.
        seed: Of the redraws.
        map: Where to work out the redraws.

    Raises:
        UsageError: If a setting is wrong.
        UserError: If the files' images, patients or labels differ.
    """
    _check_settings(predictions, reference, n_resamples, cluster, alpha)
    members = {name: [one] if isinstance(one, Predictions) else list(one) for name, one in predictions.items()}
    groups = {name: [_label(name, i, files) for i in range(len(files))] for name, files in members.items()}
    aligned = align({label: one for name in members for label, one in zip(groups[name], members[name], strict=True)})
    base = next(iter(aligned.predictions.values()))
    if MACRO in base.findings:
        raise UsageError(
            f"A finding must not be named {MACRO!r}, the word for the mean over findings. Rename its columns."
        )
    clusters = base.patient_id if cluster == "patient_id" else base.image_id
    scores = {label: one.scores for label, one in aligned.predictions.items()}
    single = bootstrap_auroc(base.targets, scores, clusters, n_resamples=n_resamples, seed=seed, map=map)
    redraws = average(single, groups)
    names = (*base.findings, MACRO)
    pairs = [(name, reference) for name in members if name != reference] if reference else _pairs(list(members))
    comparison = Comparison(
        models=tuple(members),
        reference=reference,
        counts=tuple(_count(base, k, single) for k in range(len(base.findings))),
        estimates=tuple(
            _estimate(name, k, finding, groups, single, redraws, alpha)
            for name in members
            for k, finding in enumerate(names)
        ),
        differences=tuple(
            _difference(pair, k, finding, redraws, alpha, _delong(pair, k, groups, aligned.predictions, clusters))
            for pair in pairs
            for k, finding in enumerate(names)
        ),
        dropped=aligned.dropped,
        n_images=len(base),
        n_patients=len(np.unique(base.patient_id)),
        n_resamples=n_resamples,
        cluster=cluster,
        alpha=alpha,
        seed=seed,
        macro_redraws_undefined=int(single.undefined[-1]),
    )
    return adjust([comparison])[0]


def adjust(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Return `comparisons` with q set over all of them: macro differences are one family, per-finding another.

    A report over several datasets declares its families over all of them, so it calls this once more with all.
    """
    everything = [(i, j, d) for i, one in enumerate(comparisons) for j, d in enumerate(one.differences)]
    changed = [list(one.differences) for one in comparisons]
    for is_macro in (True, False):
        family = [entry for entry in everything if (entry[2].finding == MACRO) == is_macro]
        q = benjamini_hochberg(np.array([d.p for _, _, d in family]))
        for (i, j, d), adjusted in zip(family, q, strict=True):
            changed[i][j] = replace(d, q=float(adjusted))
    return [replace(one, differences=tuple(new)) for one, new in zip(comparisons, changed, strict=True)]


def _estimate(
    name: str, k: int, finding: str, groups: Mapping[str, list[str]], single: Redraws, redraws: Redraws, alpha: float
) -> Estimate:
    bounds = percentile_interval(redraws.theta[name][:, k], confidence_level=1 - alpha)
    by_member = tuple(float(single.point[label][k]) for label in groups[name])
    return Estimate(name, finding, float(redraws.point[name][k]), bounds.low, bounds.high, by_member)


def _difference(
    pair: tuple[str, str], k: int, finding: str, redraws: Redraws, alpha: float, delong: DeLong | None
) -> Difference:
    model, reference = pair
    delta = redraws.theta[model][:, k] - redraws.theta[reference][:, k]
    bounds = percentile_interval(delta, confidence_level=1 - alpha)
    defined = delta[~np.isnan(delta)]
    return Difference(
        model=model,
        reference=reference,
        finding=finding,
        value=float(redraws.point[model][k] - redraws.point[reference][k]),
        low=bounds.low,
        high=bounds.high,
        p=paired_test(delta),
        q=math.nan,
        standard_error=float(np.std(defined, ddof=1)) if len(defined) > 1 else math.nan,
        delong=delong,
    )


def _delong(
    pair: tuple[str, str],
    k: int,
    groups: Mapping[str, list[str]],
    files: Mapping[str, Predictions],
    clusters: np.ndarray,
) -> DeLong | None:
    first, second = (np.stack([files[label].scores for label in groups[name]]) for name in pair)
    if k == first.shape[-1]:
        return None
    targets = files[groups[pair[0]][0]].targets[:, k]
    return delong_test(targets, first[..., k], second[..., k], clusters)


def _count(base: Predictions, k: int, redraws: Redraws) -> FindingCount:
    target = base.targets[:, k]
    positive, negative = int((target == 1).sum()), int((target == 0).sum())
    undefined = int(redraws.undefined[k]) if positive and negative else 0
    return FindingCount(base.findings[k], positive, negative, len(target) - positive - negative, undefined)


def _pairs(names: list[str]) -> list[tuple[str, str]]:
    """Return every pair, later against earlier, so that the first named is the reference where it takes part."""
    return [(second, first) for first, second in combinations(names, 2)]


def _label(name: str, index: int, files: Sequence[Predictions]) -> str:
    return name if len(files) == 1 else f"{name} (file {index + 1})"


def _check_settings(
    predictions: Mapping[str, Any], reference: str | None, n_resamples: int, cluster: str, alpha: float
) -> None:
    if not predictions:
        raise UsageError("A comparison must have at least one model, got none.")
    if reference is not None and reference not in predictions:
        raise UsageError(unknown("`reference`", reference, predictions))
    if n_resamples < 1:
        raise UsageError(f"`n_resamples` must be 1 or more, got {n_resamples}.")
    if cluster not in ("patient_id", "none"):
        raise UsageError(unknown("`cluster`", cluster, ("patient_id", "none")))
    if not 0 < alpha < 1:
        raise UsageError(f"`alpha` must be in (0, 1), got {alpha}.")


def _json_ready(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _json_ready(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_ready(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
