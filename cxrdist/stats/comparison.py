"""The result of a comparison: estimates, differences, what they rest on, and what weakens them."""

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np

from cxrdist.errors import unknown
from cxrdist.stats.delong import DeLong
from cxrdist.stats.meanings import AVERAGES, MACRO
from cxrdist.stats.metrics import METRICS
from cxrdist.stats.options import StatisticsOptions
from cxrdist.stats.subgroups import SubgroupRow

FEW_POSITIVES = 10
"""Below so many positive (or negative) images an interval is named as shaky."""


@dataclass(frozen=True)
class Estimate:
    """One metric of one model on one finding, or an average over findings."""

    model: str
    metric: str
    finding: str
    value: float
    low: float
    high: float
    by_member: tuple[float, ...]
    """The value of each prediction file (training seed) of the model."""
    threshold: float
    """Mean over the files of what validation gave; NaN for a metric without threshold, and for averages."""
    redraws_undefined: int
    """Redraws in which the metric was undefined (most often a class was absent); the interval leaves them out."""

    @property
    def spread(self) -> float:
        """Standard deviation between the files (seeds); NaN with fewer than two."""
        return float(np.std(self.by_member, ddof=1)) if len(self.by_member) > 1 else float("nan")


@dataclass(frozen=True)
class Difference:
    """A metric of `model` minus that of `reference` on one finding, or an average over findings."""

    model: str
    reference: str
    metric: str
    finding: str
    value: float
    low: float
    high: float
    p: float
    """Two-sided, from the paired bootstrap."""
    q: float
    """`p` adjusted over its family: all averages are one, all findings another."""
    standard_error: float
    """Standard deviation of the redraws."""
    delong: DeLong | None
    """Clustered like the bootstrap; None for averages and metrics other than the AUROC."""
    p_permutation: float
    """Two-sided, from the paired permutation test; NaN where not made."""
    p_mcnemar: float
    """Two-sided, of McNemar's test of the calls, clustered like the bootstrap; NaN where it does not apply."""
    p_non_inferior: float
    """One-sided, that the model is worse by the margin or more; NaN without a margin."""
    p_equivalent: float
    """That the two differ by the margin or more; NaN without a margin."""
    redraws: np.ndarray = field(repr=False, compare=False)
    """(R,) the difference in each redraw, for tests over a family."""


@dataclass(frozen=True)
class FindingCount:
    """How much there is to judge a finding by."""

    finding: str
    positive: int
    negative: int
    masked: int

    @property
    def one_class(self) -> bool:
        """Whether no AUROC exists; such a finding is left out of the averages."""
        return not (self.positive and self.negative)


@dataclass(frozen=True)
class Comparison:
    """The result of `compare`."""

    models: tuple[str, ...]
    reference: str | None
    counts: tuple[FindingCount, ...]
    estimates: tuple[Estimate, ...]
    differences: tuple[Difference, ...]
    subgroups: tuple[SubgroupRow, ...]
    dropped: dict[str, tuple[str, ...]]
    """File -> findings left out because not all files have them."""
    n_images: int
    n_patients: int
    options: StatisticsOptions

    @property
    def metric(self) -> str:
        """The metric that was asked for first."""
        return self.options.metrics[0]

    def estimate(self, model: str, finding: str = MACRO, metric: str | None = None) -> Estimate:
        """Return one estimate (`metric` default: the first); `KeyError` if there is none."""
        for one in self.estimates:
            if (one.model, one.finding, one.metric) == (model, finding, metric or self.metric):
                return one
        raise KeyError(f"{model}, {finding}, {metric or self.metric}")

    def difference(
        self, model: str, finding: str = MACRO, reference: str | None = None, metric: str | None = None
    ) -> Difference | None:
        """Return the difference of `model` to `reference` (default: the comparison's), or None if not compared."""
        to = reference or self.reference
        wanted = (model, to, finding, metric or self.metric)
        return next((d for d in self.differences if (d.model, d.reference, d.finding, d.metric) == wanted), None)

    def rows(self) -> list[dict[str, Any]]:
        """Return one flat row per model, metric and finding: for tables."""
        return [{**asdict(e), "by_member": list(e.by_member), "spread": e.spread} for e in self.estimates]

    def difference_rows(self) -> list[dict[str, Any]]:
        """Return one flat row per difference: for tables."""
        names = [one.name for one in fields(Difference) if one.name not in ("delong", "redraws")]
        return [
            {**{name: getattr(d, name) for name in names}, "p_delong": d.delong.p if d.delong else math.nan}
            for d in self.differences
        ]

    def warnings(self) -> list[str]:
        """Return a sentence for everything that weakens the numbers."""
        sentences = []
        for count in self.counts:
            if count.one_class:
                what = "positive" if count.negative else "negative"
                what = "labelled" if not count.positive and not count.negative else what
                sentences.append(f"{count.finding}: no {what} image, so no AUROC; left out of the averages.")
                continue
            fewer = min(count.positive, count.negative)
            if fewer < FEW_POSITIVES:
                what = "positive" if count.positive <= count.negative else "negative"
                sentences.append(
                    f"{count.finding}: only {fewer} {what} image{'s' * (fewer != 1)}; read its interval with care."
                )
        sentences += self._undefined()
        sentences += [f"{name}: {', '.join(k)} left out; not in every file." for name, k in self.dropped.items()]
        return sentences

    def _undefined(self) -> Iterable[str]:
        of = f"of {self.options.n_resamples} redraws"
        one_class = {count.finding for count in self.counts if count.one_class}
        most: dict[tuple[str, str], int] = {}
        for one in self.estimates:
            if one.redraws_undefined and one.finding not in one_class:
                key = one.metric, one.finding
                most[key] = max(most.get(key, 0), one.redraws_undefined)
        for (metric, finding), count in most.items():
            title = METRICS[metric].title
            if count == self.options.n_resamples:
                yield f"{finding}: {title} is undefined."
            elif finding in AVERAGES:
                yield (
                    f"{finding.capitalize()} {title}: {count} {of} lacked a class of one finding and are left out of "
                    "its interval."
                )
            else:
                yield f"{finding}: {title} was undefined in {count} {of}, which are left out of its interval."

    def to_json(self) -> str:
        """Return everything as JSON; undefined numbers are null."""
        facts = {
            "models": self.models,
            "reference": self.reference,
            "n_images": self.n_images,
            "n_patients": self.n_patients,
            "options": self.options.tree(),
            "counts": [asdict(one) for one in self.counts],
            "estimates": self.rows(),
            "differences": self.difference_rows(),
            "subgroups": [asdict(one) for one in self.subgroups],
            "meanings": {name: METRICS[name].meaning for name in self.options.metrics},
            "dropped": self.dropped,
            "warnings": self.warnings(),
        }
        return json.dumps(_json_ready(facts), indent=2, allow_nan=False)


def check_reference(reference: str | None, models: Iterable[str]) -> str:
    """Return a sentence if `reference` is none of `models`, else nothing."""
    return "" if reference is None or reference in models else unknown("`reference`", reference, models)


def _json_ready(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _json_ready(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_ready(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
