"""What the driver tells those who watch a study: jobs that start, get on and end.

A `Watch` is called in the driver, many times a second at most, and must return at once.  It looks on: one that fails is
left out, and the study goes on without it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from cxrdist.log import get_logger

if TYPE_CHECKING:
    from cxrdist.study.jobs import Job

log = get_logger(__name__)

Outcome = Literal["done", "failed", "stopped"]
"""How a job's time on the cluster ended; ``stopped`` is by choice, and neither done nor failed."""


@dataclass(frozen=True)
class Progress:
    """How far a running job is, as its run folder tells."""

    name: str
    step: int = 0
    """Last optimizer step that was written down."""
    steps: int | None = None
    """Steps it will take at most; None where its configuration counts otherwise and nothing is written yet."""
    value: float | None = None
    """Last validation AUROC, macro over findings; of a pretraining that of its probe.  None before the first look."""
    best: float | None = None
    """Best of them so far."""
    at: float = 0.0
    """When `step` was written, seconds since the epoch."""
    images_per_second: float | None = None
    loss: float | None = None
    """Last training loss."""
    value_step: int | None = None
    """Step that `value` was measured after."""


class Watch(Protocol):
    """Somebody who looks on."""

    def started(self, job: "Job", workers: int, attempt: int) -> None:
        """`job` got its place, on so many workers; `attempt` counts from 1, later ones go on from a checkpoint."""

    def progress(self, job: "Job", progress: Progress) -> None:
        """A running job wrote something."""

    def ended(self, job: "Job", outcome: Outcome, reason: str) -> None:
        """`job` ended, or will not start; `reason` is a sentence, empty for ``done``."""


class Watchers:
    """Several that look on, as one."""

    def __init__(self, watches: Iterable[Watch] = ()) -> None:
        self.watches = list(watches)

    def __getstate__(self) -> dict[str, list[Watch]]:
        """Leave all behind: Tune keeps a copy of what hands it trials, and a terminal or a thread cannot be copied."""
        return {"watches": []}

    def started(self, job: "Job", workers: int, attempt: int) -> None:
        """Tell all."""
        self._tell("started", job, workers, attempt)

    def progress(self, job: "Job", progress: Progress) -> None:
        """Tell all."""
        self._tell("progress", job, progress)

    def ended(self, job: "Job", outcome: Outcome, reason: str) -> None:
        """Tell all."""
        self._tell("ended", job, outcome, reason)

    def _tell(self, event: str, *facts: object) -> None:
        for watch in list(self.watches):
            try:
                getattr(watch, event)(*facts)
            except Exception as error:  # a look must not cost the study
                self.watches.remove(watch)
                warn_without(watch, error)


def warn_without(watch: object, error: Exception) -> None:
    """Say in a line that the study goes on without one that looked on and failed."""
    reason = (str(error).splitlines() or [""])[0]
    log.warning("The study goes on without %s: %s: %s", type(watch).__name__, type(error).__name__, reason)
