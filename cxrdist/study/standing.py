"""Where each job of a study stands, from its ledger and run folders; needs no cluster."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from cxrdist.study.jobs import Identity, Job
from cxrdist.study.ledger import State
from cxrdist.study.progress import ended_progress, progress_of_job
from cxrdist.study.watching import Progress


@dataclass(frozen=True)
class Standing:
    """One job: its state, how far it got, and why it failed."""

    job: Job
    state: State
    progress: Progress | None
    """None of a job that has not begun, and of one that makes no steps of its own."""
    reason: str = ""

    def tree(self) -> dict[str, Any]:
        """Return it for machines.

        ``validation_auroc`` is the one that a finished run was chosen by, and the last one of a run that is not
        finished, whose best is ``best_validation_auroc``.
        """
        known = self.progress or Progress(self.job.name)
        return {
            "kind": self.job.kind,
            "name": self.job.name,
            "state": self.state,
            "key": self.job.key,
            "step": known.step if self.progress else None,
            "steps": known.steps,
            "validation_auroc": known.value,
            "best_validation_auroc": known.best,
            "loss": known.loss,
            "images_per_second": known.images_per_second,
            "reason": self.reason or None,
        }


def standings(
    jobs: Iterable[Job], states: Mapping[Identity, State], failures: Mapping[Identity, str]
) -> list[Standing]:
    """Return where each job stands, in their order.

    Args:
        jobs: Of a study.
        states: By identity.
        failures: The reason of each job's last failure, by identity.
    """
    return [
        Standing(
            job,
            state := states[job.identity],
            _progress(job, state),
            failures.get(job.identity, "") if state == "failed" else "",
        )
        for job in jobs
    ]


def _progress(job: Job, state: State) -> Progress | None:
    if state == "left" or job.kind == "external" or not job.folder.is_dir():
        return None
    # A run that has ended has its result; one that has not, only what it wrote so far.
    return ended_progress(job) if state == "done" else progress_of_job(job).read()
