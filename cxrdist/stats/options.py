"""What a comparison works out, and how: one set of choices for `compare`, the report and a study's `statistics`."""

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from cxrdist.config import Config
from cxrdist.errors import UsageError, unknown
from cxrdist.stats.bootstrap import Average
from cxrdist.stats.families import Correction
from cxrdist.stats.intervals import IntervalMethod
from cxrdist.stats.metrics import METRICS
from cxrdist.stats.threshold import parse_rule

Cluster = Literal["patient_id", "none"]


class StatisticsOptions(Config):
    """How the statistics are made."""

    n_resamples: int = Field(1000, ge=1)
    """Redraws of the paired bootstrap."""
    alpha: float = Field(0.05, gt=0, lt=1)
    """Intervals have confidence level 1 - alpha; an adjusted p below alpha is called a difference."""
    seed: int = Field(0, ge=0)
    """Seed of the redraws."""
    cluster: Cluster = "patient_id"
    """What a redraw draws: patients with all their images, or single images."""
    stratified: bool = False
    """Draw patients with a rare finding among themselves, so that no redraw loses it."""
    metrics: tuple[str, ...] = ("auroc",)
    """What is worked out; the first is the one that matters most."""
    averages: tuple[Average, ...] = ("macro",)
    """Averages over findings, each worked out inside every redraw."""
    threshold: str = "youden"
    """How thresholds are chosen on validation predictions: youden, f1, sensitivity=X or specificity=X."""
    interval: IntervalMethod = "percentile"
    """How an interval is made from the redraws."""
    correction: Correction = "bh"
    """How p-values are adjusted over a family of tests."""
    margin: float | None = Field(None, gt=0)
    """Margin of non-inferiority and equivalence, in units of the metric; none: not tested."""
    hierarchical: bool = False
    """Widen intervals by what other training seeds might have given, so that they hold for those too."""
    permutations: int = Field(0, ge=0)
    """Draws of the paired permutation test of the AUROC; 0: not made."""
    subgroups: tuple[str, ...] = ()
    """Columns of the prediction files (sex, age, projection ...) by whose values results are given."""
    subgroup_minimum: int = Field(10, ge=1)
    """Fewest positive and negative images, and patients of either, that a subgroup's number may rest on."""

    @field_validator("metrics")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if not names:
            raise ValueError("must name a metric, got none")
        for name in names:
            if name not in METRICS:
                raise ValueError(unknown("", name, METRICS).strip())
        return names

    @field_validator("metrics", "averages", "subgroups")
    @classmethod
    def _once(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(names)) < len(names):
            raise ValueError(f"must differ from each other, got {', '.join(names)}")
        return names

    @field_validator("threshold")
    @classmethod
    def _rule(cls, text: str) -> str:
        try:
            parse_rule(text)
        except UsageError as error:
            raise ValueError(str(error)) from None
        return text

    @model_validator(mode="after")
    def _agree(self) -> Self:
        # The acceleration of BCa leaves out one patient after the other; a redrawn seed is left out by none.
        if self.interval == "bca" and self.hierarchical:
            raise ValueError(
                "`interval` must be percentile or basic where `hierarchical` is true, got bca, which corrects for "
                "patients alone."
            )
        return self
