"""A study's trials as Ray metrics, which Prometheus reads from the driver's node; see `launch/ray`.

Ray exports a gauge once for each time it was set and drops it two report intervals later (Ray 2.60, 20 s by default):
so what is true is set again and again, and a trial that ended, like all of a driver that died, disappears by itself.
They are set in the driver, which knows of all trials, those that wait among them.
"""

import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from cxrdist.study.jobs import Identity, Job
from cxrdist.study.watching import Outcome, Progress, warn_without

REFRESH_S = 2.0
TRIAL = ("study", "trial", "kind")
"""Labels of a trial.  None is ``job`` or ``instance``: Prometheus puts its own of these names on every series."""
GAUGES = {
    "cxrdist_trial_step": ("Optimizer steps that a running trial has made.", TRIAL),
    "cxrdist_trial_steps": ("Optimizer steps that a running trial makes at most.", TRIAL),
    "cxrdist_trial_validation_auroc": ("Last validation AUROC of a running trial, macro over findings.", TRIAL),
    "cxrdist_trial_images_per_second": ("Training images a second of a running trial, all its workers.", TRIAL),
    "cxrdist_trial_workers": ("Workers that a running trial holds.", TRIAL),
    "cxrdist_trials": ("Trials of a study by state.", ("study", "state")),
}
COUNTERS = {
    "cxrdist_trial_failures": ("Trials that failed, their retries used up.", ("study", "kind")),
    "cxrdist_trial_restarts": (
        "Attempts at a trial after its first: a worker or a machine was lost.",
        ("study", "kind"),
    ),
}
"""Names of what is counted; Ray exports each with ``_total`` behind it, and all names with ``ray_`` before them."""


@dataclass
class _Running:
    job: Job
    workers: int
    progress: Progress | None = None


class Gauges:
    """Sets the metrics of one study; a `Watch`.  See `gauges`."""

    def __init__(self, study: str, total: int, done: int) -> None:
        """Begin with nothing running.

        Args:
            study: Its label.
            total: Trials of the study.
            done: Those of an earlier run among them.
        """
        from ray.util import metrics  # noqa: PLC0415 - half a second, and only with a cluster

        self.study, self.total = study, total
        self._ended: Counter[str] = Counter(done=done, failed=0, stopped=0)
        self._running: dict[Identity, _Running] = {}
        self._lock = threading.Lock()
        self._gauges: dict[str, Any] = {name: metrics.Gauge(name, *facts) for name, facts in GAUGES.items()}
        self._counters: dict[str, Any] = {name: metrics.Counter(name, *facts) for name, facts in COUNTERS.items()}

    def started(self, job: Job, workers: int, attempt: int) -> None:
        """Take note of a running trial."""
        with self._lock:
            self._running[job.identity] = _Running(job, workers)
        if attempt > 1:
            self._counters["cxrdist_trial_restarts"].inc(tags={"study": self.study, "kind": job.kind})

    def progress(self, job: Job, progress: Progress) -> None:
        """Take note of how far it is."""
        with self._lock:
            if job.identity in self._running:
                self._running[job.identity].progress = progress

    def ended(self, job: Job, outcome: Outcome, reason: str) -> None:
        """Take note that it does not run any more."""
        with self._lock:
            self._running.pop(job.identity, None)
            self._ended[outcome] += 1
        if outcome == "failed":
            self._counters["cxrdist_trial_failures"].inc(tags={"study": self.study, "kind": job.kind})

    def refresh(self) -> None:
        """Set every gauge to what is true now."""
        with self._lock:
            counts = {**self._ended, "running": len(self._running)}
            running = [(one.job, one.workers, one.progress) for one in self._running.values()]
        counts["queued"] = max(self.total - sum(counts.values()), 0)
        for state, count in counts.items():
            self._gauges["cxrdist_trials"].set(count, {"study": self.study, "state": state})
        for job, workers, progress in running:
            labels = {"study": self.study, "trial": job.name, "kind": job.kind}
            for name, value in values_of(workers, progress).items():
                self._gauges[name].set(value, labels)


def values_of(workers: int, progress: Progress | None) -> Mapping[str, float]:
    """Return a running trial's gauges; what is not known yet has none."""
    known = progress or Progress("")
    values = {
        "cxrdist_trial_workers": workers,
        "cxrdist_trial_step": known.step,
        "cxrdist_trial_steps": known.steps,
        "cxrdist_trial_validation_auroc": known.value,
        "cxrdist_trial_images_per_second": known.images_per_second,
    }
    return {name: float(value) for name, value in values.items() if value is not None}


@contextmanager
def gauges(study: str, *, total: int, done: int = 0, every_s: float = REFRESH_S) -> Iterator[Gauges]:
    """Give a watch whose gauges are kept up to date during the block; needs a connected cluster."""
    watch, ending = Gauges(study, total, done), threading.Event()

    def keep() -> None:
        while True:
            try:
                watch.refresh()
            except Exception as error:  # a look must not cost the study, nor a traceback over its table
                warn_without(watch, error)
                return
            if ending.wait(every_s):
                return

    thread = threading.Thread(target=keep, name="study-gauges", daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        ending.set()
        thread.join()
