"""Runs jobs that train nothing on a cluster, to see when they are run.

As a program: ``small_jobs.py ADDRESS FOLDER JOBS``, where JOBS is JSON, a list of ``[name, workers, seconds]``, and
further facts of the job: ``{"fails": true}``.  After them may come JSON of `Resources`, with ``hold`` for how long a
trial is overtaken.  Prints what was told of them, ``[time, event, name]`` a line.
"""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray import cloudpickle

from cxrdist.dispatch.cluster import cluster
from cxrdist.study import feeder
from cxrdist.study.gang import End
from cxrdist.study.graph import Graph
from cxrdist.study.jobs import Job
from cxrdist.study.ledger import Ledger
from cxrdist.study.resources import Resources, TrialResources
from cxrdist.study.tuning import run_jobs
from cxrdist.study.watching import Outcome, Progress


def small_job(name: str, workers: int, seconds: float, out: Path, **facts: Any) -> Job:
    held = {key: facts.pop(key) for key in list(facts) if key in TrialResources.model_fields}
    resources = TrialResources(workers=workers, **held)
    tree = {"seconds": seconds, "train": {}, **facts}
    return Job("stage", "train", name, name, out.resolve() / "stages" / name, tree, resources=resources)


def wait_and_write(job: Job, rank: int, workers: int, resources: Resources, address: str) -> End:
    """Do what a run leaves, and nothing else."""
    time.sleep(job.tree["seconds"])
    if job.tree.get("fails"):
        return End("It always fails.")
    if rank == 0:
        (job.folder / "model").mkdir(exist_ok=True)
        (job.folder / "model" / "model.safetensors").touch()
        (job.folder / "result.json").write_text(json.dumps({"workers": workers}), encoding="ascii")
    return End()


class Told:
    """Prints what happens, and when."""

    def __init__(self) -> None:
        self.begun = time.monotonic()

    def _tell(self, event: str, job: Job) -> None:
        print(json.dumps([round(time.monotonic() - self.begun, 3), event, job.name]), file=sys.__stdout__, flush=True)

    def started(self, job: Job, workers: int, attempt: int) -> None:
        self._tell("started", job)

    def progress(self, job: Job, progress: Progress) -> None:
        pass

    def ended(self, job: Job, outcome: Outcome, reason: str) -> None:
        self._tell(outcome, job)


def run_small_jobs(address: str | None, out: Path, jobs: Sequence[Job], **resources: Any) -> None:
    if __name__ != "__main__":
        cloudpickle.register_pickle_by_value(sys.modules[__name__])
    ledger, told = Ledger(out.resolve() / "ledger.jsonl"), Told()
    with cluster(address), ledger.hold():
        told.begun = time.monotonic()
        states = ledger.states(jobs)
        run_jobs(Graph(jobs, states, ledger, told), ledger, Resources(**resources), told, work=wait_and_write)


if __name__ == "__main__":
    where = Path(sys.argv[2])
    wanted = json.loads(sys.argv[3])
    chosen = [small_job(name, count, wait, where, **(more[0] if more else {})) for name, count, wait, *more in wanted]
    told = json.loads(sys.argv[4]) if len(sys.argv) > 4 else {}
    feeder.HOLD_S = told.pop("hold", feeder.HOLD_S)
    run_small_jobs(sys.argv[1] or None, where, chosen, **told)
