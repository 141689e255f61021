"""What runs on the cluster: one attempt at a job, which holds one placement group while its workers train together."""

import contextlib
import time
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ray import tune
from ray.exceptions import RayTaskError

from cxrdist.errors import UserError
from cxrdist.study.gang import Gang, Lost, Stop, Work, unexpected, unwritable
from cxrdist.study.jobs import Job
from cxrdist.study.ledger import Ledger, claim, is_complete
from cxrdist.study.progress import progress_of_job
from cxrdist.study.resources import Resources

TELL_EVERY_S = 5.0
"""How often a trial says how far it is, besides each validation: what it says is a task of its own in Ray's lists."""
STOP = ".stop"
"""File in a run folder by which the driver asks a trial to stop: it reaches every machine, and outlives the driver."""


@dataclass(frozen=True)
class Shared:
    """What all trials know."""

    ledger: Ledger
    resources: Resources
    work: Work


def ask_to_stop(job: Job) -> None:
    """Ask the trial of a job to end its workers; where the file cannot be written, its next report asks again."""
    with contextlib.suppress(OSError):
        (job.folder / STOP).touch()


def run_trial(params: dict[str, Any], shared: Shared) -> dict[str, Any]:
    """Run an attempt at ``params["job"]`` on ``params["workers"]`` workers and write its start and end into the ledger.

    Returns:
        ``outcome`` and ``reason``.  A failure is a result and no exception, so that the other trials go on; one that
        the ledger cannot take is ``unwritten``, so that the whole run ends with it; ``lost`` is one whose worker or
        machine died, for the driver to decide whether there is another attempt.
    """
    job: Job = params["job"]
    try:
        shared.ledger.append("started", job)
        outcome, reason = _attempt(job, params["workers"], shared)
        if outcome != "stopped":
            shared.ledger.append(outcome, job, **({"error": reason} if reason else {}))
    except UserError as error:
        return {"outcome": "unwritten", "reason": str(error)}
    return {"outcome": outcome, "reason": reason}


def _attempt(job: Job, workers: int, shared: Shared) -> tuple[Literal["done", "failed", "stopped", "lost"], str]:
    """Train, and return how it ended and a sentence for what is not done."""
    try:
        claim(job)
        (job.folder / STOP).unlink(missing_ok=True)
        problem = _train(job, workers, shared)
    except Stop:
        return "stopped", "It was stopped by choice."
    except Lost as how:
        return "lost", f"A worker or its machine was lost ({how})"
    except RayTaskError as error:
        problem = unexpected(job.folder, error)
    except OSError as error:
        problem = unwritable(job.folder, error)
    except UserError as error:
        problem = str(error)
    if not problem and not is_complete(job):
        problem = "It left an incomplete run folder."
    return ("failed", problem) if problem else ("done", "")


def _train(job: Job, workers: int, shared: Shared) -> str:
    """Start the workers and wait until all have ended or one has a problem, which is returned.

    Raises:
        Lost: If a worker or a machine died.
        Stop: If the driver asks for it.
    """
    reader, told, told_at = progress_of_job(job), None, -TELL_EVERY_S
    with Gang(job, workers, shared.resources, shared.work) as gang:
        while gang.working():
            progress = reader.read()
            looked = told is None or progress.value_step != told.value_step
            if progress != told and (looked or time.monotonic() - told_at >= TELL_EVERY_S):
                tune.report({"progress": asdict(progress)})
                told, told_at = progress, time.monotonic()
            if _is_asked_to_stop(job):
                raise Stop
    return gang.problem.problem


def _is_asked_to_stop(job: Job) -> bool:
    with contextlib.suppress(OSError):  # what the file system does not say at this moment it says a second later
        return (job.folder / STOP).exists()
    return False
