"""Which job may start: those whose needs are done, stages first."""

from collections.abc import Iterable, Mapping
from typing import Protocol

from cxrdist.study.jobs import Identity, Job
from cxrdist.study.ledger import Ledger, State
from cxrdist.study.watching import Outcome, Progress, Watch


class Source(Protocol):
    """Where jobs come from; asked by the driver alone."""

    def next(self) -> Job | None:
        """Return a job that may start now, each once; None if there is none at this moment."""

    def left(self) -> bool:
        """Whether `next` may still return a job, now or when others have ended."""

    def reported(self, job: Job, progress: Progress) -> bool:
        """Take note of how far a running job is; return whether it shall go on."""

    def ended(self, job: Job, outcome: Outcome, reason: str) -> None:
        """Take note of how a job ended; it was tried again where that was allowed."""


class Graph:
    """The jobs of a plan.

    A job whose need failed is marked as failed at once, with the need's reason, so that no other waits for it.
    """

    def __init__(self, jobs: Iterable[Job], states: Mapping[Identity, State], ledger: Ledger, watch: Watch) -> None:
        """Take the `jobs` that are to run.

        Args:
            jobs: Each after those it needs.
            states: Of all jobs of the plan.
            ledger: Where jobs that cannot start are marked as failed.
            watch: Who is told of them.
        """
        # Stages first: others wait for them.  Cells that need none fill what the stages leave free.
        self._waiting = sorted(jobs, key=lambda job: job.kind != "stage")
        self._done = {identity for identity, state in states.items() if state == "done"}
        self._failed: dict[Identity, str] = {}
        self._ledger, self._watch = ledger, watch

    def next(self) -> Job | None:
        """Return the first job whose needs are all done."""
        self._drop_blocked()
        for job in self._waiting:
            if self._done.issuperset(job.needs):
                self._waiting.remove(job)
                return job
        return None

    def left(self) -> bool:
        """Whether a job has not started yet."""
        self._drop_blocked()
        return bool(self._waiting)

    def reported(self, job: Job, progress: Progress) -> bool:
        """Let every job go on."""
        return True

    def ended(self, job: Job, outcome: Outcome, reason: str) -> None:
        """Take note of what other jobs wait for."""
        if outcome == "done":
            self._done.add(job.identity)
        else:
            self._failed[job.identity] = reason

    def _drop_blocked(self) -> None:
        blocked = [job for job in self._waiting if not self._failed.keys().isdisjoint(job.needs)]
        for job in blocked:
            kind, name, _ = need = next(one for one in job.needs if one in self._failed)
            reason = f"{kind.capitalize()} {name} failed: {self._failed[need]}"
            self._waiting.remove(job)
            self._failed[job.identity] = reason
            self._ledger.append("failed", job, error=reason)
            self._watch.ended(job, "failed", reason)
        if blocked:  # what needs these
            self._drop_blocked()
