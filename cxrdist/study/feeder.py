"""Hands Ray Tune the next trial: when a job's needs are done, when the cluster has room, and again when a machine died.

Tune's part is to hold a placement group per trial and to start and end it.  What runs next is decided here, for Tune's
own grid knows no needs, and its restore forgets what it decided.  A trial is one attempt at a job: an attempt that lost
a worker or a machine ends with all that it held, and another takes the job's place at the head of the queue.
"""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ray.tune.search import Searcher

from cxrdist.errors import UserError
from cxrdist.log import get_logger
from cxrdist.study.graph import Source
from cxrdist.study.jobs import Job
from cxrdist.study.ledger import Ledger, writing
from cxrdist.study.resources import Resources
from cxrdist.study.room import Room
from cxrdist.study.trial import ask_to_stop
from cxrdist.study.watching import Outcome, Progress, Watch

log = get_logger(__name__)

PENDING, PENDING_AUTOSCALED = 4, 64
"""Trials that wait for their place at the same time: some, as a place takes a second; many where that makes the cluster
grow."""
HOLD_S = 10.0
"""When a trial has waited so long for its place, no further one is started until it has it: else many small trials
would take in turn what a large one needs."""
TOLD = "progress/"
SAY_S = 30.0
"""When nothing runs because all trials wait for their place, it is said after so long."""
LOST = "Its process on the cluster was lost"


class Broken(Exception):  # noqa: N818 - the feeder's `broken` has the sentence
    """The run must end at once."""


@dataclass
class Attempt:
    """A job that is being run, or is to be run again."""

    job: Job
    number: int = 1
    workers: int = 0
    begun: float = field(default_factory=time.monotonic)
    """When it was handed to Tune, or first found no room."""
    placed: bool = False


class Feeder(Searcher):
    """Tune's source of trials; its calls come from one thread of the driver."""

    def __init__(self, source: Source, ledger: Ledger, resources: Resources, watch: Watch) -> None:
        super().__init__()
        self.source, self.ledger, self.resources, self.watch = source, ledger, resources, watch
        self.broken = ""
        """Why nothing more is started, if the ledger cannot be written."""
        self._room = Room()
        self._said_waiting = False
        self._idle_since = time.monotonic()
        self._live: dict[str, Attempt] = {}
        self._next: deque[Attempt] = deque()

    def __getstate__(self) -> dict[str, Any]:
        """Leave all behind: Tune pickles its parts for a restore of its own, which the ledger replaces."""
        return {}

    @property
    def pending(self) -> int:
        """Return how many trials may wait for their place."""
        return PENDING_AUTOSCALED if self.resources.autoscaling else PENDING

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return the parameters of the next trial, nothing at this moment, or that there will be none any more."""
        if self.ledger.lost:
            self.broken = str(self.ledger.superseded())
            raise Broken  # another run goes on with these jobs: what runs here must not write beside it
        if self.broken:
            return None if self._live else Searcher.FINISHED
        if self._must_wait():
            return None
        with self._writing():
            attempt = self._fitting()
        if self.broken:
            return self.suggest(trial_id)
        if attempt is None:
            return None if self._live or self._next or self.source.left() else Searcher.FINISHED
        attempt.begun, attempt.placed = time.monotonic(), False
        self._live[trial_id] = attempt
        return {"name": attempt.job.name, "attempt": attempt.number, "workers": attempt.workers, "job": attempt.job}

    def started(self, trial_id: str) -> None:
        """Take note that a trial has its place."""
        attempt = self._live[trial_id]
        attempt.placed = True
        self.watch.started(attempt.job, attempt.workers, attempt.number)

    def impossible(self, trial_id: str) -> bool:
        """Whether a trial waits for a place that the cluster no longer has: its machine died before it started."""
        attempt = self._live.get(trial_id)
        if attempt is None or attempt.placed:
            return False
        if self.resources.autoscaling and time.monotonic() - attempt.begun <= self.resources.waits:
            return False
        return self._room.workers(attempt.job.resources) < attempt.workers

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Hand on how far a trial is, and ask it to stop if it shall not go on."""
        attempt = self._live.get(trial_id)
        # Tune hands a nested result on as flat names.
        told = {name.removeprefix(TOLD): value for name, value in result.items() if name.startswith(TOLD)}
        if attempt is None or not told:
            return
        progress = Progress(**told)
        self.watch.progress(attempt.job, progress)
        with self._writing():
            if not self.source.reported(attempt.job, progress):
                ask_to_stop(attempt.job)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Take note of how an attempt ended: the job's end, or another attempt."""
        attempt = self._live.pop(trial_id, None)
        if attempt is None:
            return
        with self._writing():
            if error or result:
                self._settle(attempt, (result or {}).get("outcome", "lost"), (result or {}).get("reason", LOST))
            elif self.resources.autoscaling:  # taken back: the cluster has not grown for it
                self._refuse(attempt)
            else:  # taken back: its place is gone
                attempt.begun = time.monotonic()
                self._next.appendleft(attempt)

    def save(self, checkpoint_path: str) -> None:
        """Keep nothing: the ledger has all that a later run needs."""

    def restore(self, checkpoint_path: str) -> None:
        """See `save`."""

    def _settle(self, attempt: Attempt, outcome: str, reason: str) -> None:
        job = attempt.job
        if outcome == "unwritten":
            self.broken = reason
            outcome = "failed"
        elif outcome == "lost":
            allowed = job.resources.retries + 1
            if attempt.number < allowed:
                log.warning(
                    "%s: %s. It goes on from its last checkpoint, attempt %d of %d.",
                    job.name, reason, attempt.number + 1, allowed,
                )  # fmt: skip
                self._next.appendleft(Attempt(job, attempt.number + 1))
                return
            outcome, reason = "failed", f"{reason}, attempt {attempt.number} of {allowed}."
            self.ledger.append("failed", job, error=reason)
        self._ended(job, outcome, reason)

    def _refuse(self, attempt: Attempt) -> None:
        reason = self._room.refusal(attempt.job.resources)
        self.ledger.append("failed", attempt.job, error=reason)
        self._ended(attempt.job, "failed", reason)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Take note of what a disk refuses: an exception in here would reach the user as one of Tune's."""
        try:
            with writing(self.ledger.path.parent):
                yield
        except UserError as error:
            self.broken = str(error)

    def _ended(self, job: Job, outcome: Any, reason: str) -> None:
        known: Outcome = outcome
        self.source.ended(job, known, reason)
        self.watch.ended(job, known, reason)

    def _say_waiting(self, waiting: Sequence[Attempt]) -> None:
        """Say once that nothing runs yet, as where others have the cluster: it looks like hanging else."""
        now = time.monotonic()
        if not waiting or any(attempt.placed for attempt in self._live.values()):
            self._idle_since = now
        elif not self._said_waiting and now - self._idle_since > SAY_S:
            self._said_waiting = True
            held = waiting[0].job.resources
            log.info(
                "%s waits for its place; workers: %d, each of %g CPUs and %g GPUs.",
                waiting[0].job.name, waiting[0].workers, held.cpus_per_worker, held.gpus_per_worker,
            )  # fmt: skip

    def _must_wait(self) -> bool:
        waiting = [attempt for attempt in self._live.values() if not attempt.placed]
        self._say_waiting(waiting)
        full = self.resources.max_concurrent is not None and len(self._live) >= self.resources.max_concurrent
        # What waits for the cluster to grow waits for no other trial's place.
        here = [one for one in waiting if self._room.workers(one.job.resources) >= one.workers]
        long = any(time.monotonic() - attempt.begun > HOLD_S for attempt in here)
        return full or len(waiting) >= self.pending or long

    def _fitting(self) -> Attempt | None:
        """Return the first job in the queue that fits on the cluster as it is now, with as many workers as fit.

        One that does not fit lets others pass, and fails when it has waited for as long as it may.
        """
        for attempt in list(self._next):
            if self._fits(attempt):
                self._next.remove(attempt)
                return attempt
            if time.monotonic() - attempt.begun > self.resources.waits:
                self._next.remove(attempt)
                self._refuse(attempt)
        while (job := self.source.next()) is not None:
            attempt = Attempt(job)
            if self._fits(attempt):
                return attempt
            self._next.append(attempt)
        return None

    def _fits(self, attempt: Attempt) -> bool:
        held = attempt.job.resources
        attempt.workers = held.workers if self.resources.autoscaling else self._room.workers(held)
        return attempt.workers >= held.fewest
