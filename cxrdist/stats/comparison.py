"""The result of a comparison: estimates, differences, what they rest on, and what weakens them."""

import json
import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np

from cxrdist.stats.delong import DeLong
from cxrdist.stats.meanings import MACRO
from cxrdist.stats.metrics import METRICS
from cxrdist.stats.notes import notes
from cxrdist.stats.options import StatisticsOptions
from cxrdist.stats.predictions import Predictions
from cxrdist.stats.subgroups import SubgroupRow


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
    """Redraws in which the metric was undefined; the interval leaves them out."""
    redraws_one_class: int
    """Of these, redraws that lost a class of the finding which the metric needs: the same for all models."""

    @property
    def spread(self) -> float:
        """Standard deviation between the S files (seeds), of S - 1 degrees of freedom; NaN with fewer than two."""
        # By size, so that the order of files changes no bit.
        return float(np.std(np.sort(self.by_member), ddof=1)) if len(self.by_member) > 1 else float("nan")


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
    standard_error_patients: float
    """That of redraws of patients alone; where seeds vary too, `standard_error` is another, wild with few files."""
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
    redraws_undefined: int
    """Redraws in which it was undefined; the interval leaves them out, and of very many there is no p."""
    redraws: np.ndarray = field(repr=False, compare=False)
    """(R,) the difference in each redraw where the family's test is over them (max-T), else (0,)."""


@dataclass(frozen=True)
class FindingCount:
    """How much there is to judge a finding by."""

    finding: str
    positive: int
    """Images."""
    negative: int
    masked: int
    patients: int
    """Patients with a labelled image."""
    positive_patients: int
    """Patients with a positive image."""
    negative_patients: int
    """Patients with a negative image, among them those who have a positive one as well."""

    @classmethod
    def of(cls, predictions: Predictions, k: int) -> "FindingCount":
        """Return the counts of finding `k`."""
        target = predictions.targets[:, k]
        positive, negative = int((target == 1).sum()), int((target == 0).sum())
        patients = (len(set(predictions.patient_id[target == label])) for label in (1, 0))
        labelled = len(set(predictions.patient_id[~np.isnan(target)]))
        return cls(predictions.findings[k], positive, negative, len(target) - positive - negative, labelled, *patients)

    def units(self, cluster: str) -> tuple[int, int]:
        """Return how many patients, or images where those are redrawn, are without the finding and with it."""
        by_patient = self.negative_patients, self.positive_patients
        return by_patient if cluster == "patient_id" else (self.negative, self.positive)

    @property
    def one_class(self) -> bool:
        """Whether all labelled images are alike, so that no AUROC exists."""
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
    train_seeds: dict[str, tuple[int, ...]]
    """Model -> the training seeds of its files, ascending as these are; those that are known."""
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
        nothing = DeLong(math.nan, math.nan, math.nan)
        rows = []
        for d in self.differences:
            delong = d.delong or nothing
            row = {name: getattr(d, name) for name in names}
            rows.append({**row, "p_delong": delong.p, "delong_standard_error": delong.standard_error})
        return rows

    def warnings(self) -> list[str]:
        """Return a sentence for everything that weakens the numbers."""
        return notes(self)

    def to_json(self) -> str:
        """Return everything as JSON; undefined numbers are null."""
        facts = {
            "models": self.models,
            "reference": self.reference,
            "n_images": self.n_images,
            "n_patients": self.n_patients,
            "train_seeds": self.train_seeds,
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


def _json_ready(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _json_ready(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_ready(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
