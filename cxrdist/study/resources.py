"""What trials hold while they run, and how many run at a time."""

from typing import Literal, Self

from pydantic import Field, model_validator

from cxrdist.config import Config


class TrialResources(Config):
    """What one trial holds while it runs; its workers are placed together, all or none."""

    workers: int = Field(default=1, ge=1)
    """Processes that train together."""

    min_workers: int | None = Field(default=None, ge=1)
    """As few may go on where the cluster has lost machines and has no room for all; null is never fewer.

    The global batch stays the same, so what is learnt does too, but for the order in which numbers are summed."""

    cpus_per_worker: float = Field(default=1, gt=0)
    gpus_per_worker: float = Field(default=0, ge=0)

    placement: Literal["pack", "spread"] = "pack"
    """On as few machines as have room, or on as many."""

    retries: int = Field(default=2, ge=0)
    """How often a trial goes on from its last checkpoint after a worker or its machine died."""

    @model_validator(mode="after")
    def _fewer(self) -> Self:
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(f"`min_workers` must be at most `workers`, got {self.min_workers} of {self.workers}")
        return self

    @property
    def fewest(self) -> int:
        """Return the number of workers that it runs on at least."""
        return self.workers if self.min_workers is None else self.min_workers


class Resources(TrialResources):
    """What a trial holds unless its stage, strategy, variant or dataset says otherwise, and what holds for all."""

    max_concurrent: int | None = Field(default=None, ge=1)
    """Trials at a time; null is as many as fit."""

    patience: float | None = Field(default=None, ge=0)
    """Seconds that a trial waits for a machine to come, or to come back, while the cluster is too small for it; null is
    60, and 1,800 where the cluster grows on demand."""

    autoscaling: bool = False
    """The cluster grows on demand: a trial that does not fit yet waits for it, where it would be refused."""

    @property
    def waits(self) -> float:
        """Return how long a trial waits for a machine, in seconds."""
        if self.patience is not None:
            return self.patience
        return 1800 if self.autoscaling else 60

    def of_trial(self) -> TrialResources:
        """Return what a trial holds."""
        return TrialResources(**{name: getattr(self, name) for name in TrialResources.model_fields})
