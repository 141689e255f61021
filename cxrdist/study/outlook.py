"""How long a study still takes, from the jobs of the same kind that have ended and the room there is."""

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from cxrdist.study.jobs import Identity, Job
from cxrdist.study.watching import Outcome, Progress

Kind = tuple[str, str]
"""Whether a job is a stage or a cell, and how it trains: jobs alike take about as long."""


@dataclass
class Running:
    """A job that holds its place."""

    job: Job
    workers: int
    attempt: int
    since: float
    """When its first attempt got its place, by the clock of `Outlook`."""
    progress: Progress | None = None
    first: tuple[int, float] | None = None
    """The step that was heard of first, and when; a run that goes on from a checkpoint does not begin at 0."""

    def left_s(self, now: float) -> float | None:
        """Return the time to its last step at its speed so far; None before it has one."""
        known = self.progress
        if known is None or not known.steps or self.first is None or known.step <= self.first[0]:
            return None
        step, at = self.first
        return max(known.steps - known.step, 0) * (now - at) / (known.step - step)


@dataclass
class Outlook:
    """Counts the jobs of a study by state; a `Watch`."""

    total: int
    """Jobs of the study."""
    done: int = 0
    """Those that have ended well, those of an earlier run among them."""
    waiting: Counter[Kind] = field(default_factory=Counter)
    """Jobs that have not started, as far as they are known."""
    clock: Callable[[], float] = time.monotonic
    failed: int = 0
    stopped: int = 0
    running: dict[Identity, Running] = field(default_factory=dict)
    """In the order of their start."""
    most: int = 1
    """The most that ran at a time."""
    _took: dict[Kind, list[float]] = field(default_factory=lambda: defaultdict(list))

    @property
    def queued(self) -> int:
        """Return how many have not started."""
        return max(self.total - self.done - self.failed - self.stopped - len(self.running), 0)

    def started(self, job: Job, workers: int, attempt: int) -> None:
        """Take note of a running job."""
        now, before = self.clock(), self.running.get(job.identity)
        if before is None:
            self._leaves_queue(job)
        since, known = (before.since, before.progress) if before else (now, None)
        self.running[job.identity] = Running(job, workers, attempt, since, known)
        self.most = max(self.most, len(self.running))

    def progress(self, job: Job, progress: Progress) -> None:
        """Take note of how far it is."""
        running = self.running.get(job.identity)
        if running is not None:
            running.progress = progress
            if running.first is None:
                running.first = progress.step, self.clock()

    def ended(self, job: Job, outcome: Outcome, reason: str) -> None:
        """Take note that it does not run any more."""
        running = self.running.pop(job.identity, None)
        if running is None:
            self._leaves_queue(job)
        elif outcome == "done":
            self._took[kind_of(job)].append(self.clock() - running.since)
        setattr(self, outcome, getattr(self, outcome) + 1)

    def left_s(self) -> float | None:
        """Return the time to the end of the study; None as long as nothing tells of it."""
        if not self.queued and not self.running:
            return 0.0
        now = self.clock()
        whole = self._whole(now)
        lasting = []
        for running in self.running.values():
            left = running.left_s(now)
            if left is None:
                usual = _usual(whole, kind_of(running.job))
                left = None if usual is None else max(usual - (now - running.since), 0.0)
            lasting.append(left)
        # Of jobs that nobody has announced, a sweep's, no kind is known.
        unknown: Kind = ("", "")
        kinds = self.waiting + Counter({unknown: self.queued - self.waiting.total()})
        coming = [(count, _usual(whole, kind)) for kind, count in kinds.items()]
        known = [left for left in lasting if left is not None]
        if len(known) < len(lasting) or any(one is None for _, one in coming):
            return None
        work = sum(known) + sum(count * one for count, one in coming if one is not None)
        return max([work / self.most, *known])

    def _whole(self, now: float) -> Mapping[Kind, float]:
        """Return the mean time of a job by kind: of those that have ended, else by the speed of those that run."""
        whole = {kind: sum(took) / len(took) for kind, took in self._took.items() if took}
        begun = defaultdict(list)
        for running in self.running.values():
            left = running.left_s(now)
            if left is not None:
                begun[kind_of(running.job)].append(now - running.since + left)
        return {kind: sum(took) / len(took) for kind, took in begun.items()} | whole

    def _leaves_queue(self, job: Job) -> None:
        if self.waiting[kind_of(job)]:
            self.waiting[kind_of(job)] -= 1


def kind_of(job: Job) -> Kind:
    """Return what jobs alike have in common."""
    return job.kind, job.method


def kinds_of(jobs: Iterable[Job]) -> Counter[Kind]:
    """Return how many there are of each kind."""
    return Counter(kind_of(job) for job in jobs)


def _usual(whole: Mapping[Kind, float], kind: Kind) -> float | None:
    """Return the time of a job of `kind`, or the mean over kinds where nothing is known of it."""
    return whole.get(kind, sum(whole.values()) / len(whole) if whole else None)
