"""What runs on the cluster: a trial holds one placement group, and its workers train together inside it.

Workers are Ray tasks, not actors: Ray keeps their processes between trials, and with them the seconds that importing
torch takes (measured on two CPU cores with Ray 2.60: 6 s for a fresh worker, 0.02 s for one used before).
"""

import contextlib
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cxrdist.errors import UserError
from cxrdist.study.config import Resources
from cxrdist.study.ledger import REFUSED, Ledger, claim, is_complete
from cxrdist.study.plan import Job
from cxrdist.study.room import places
from cxrdist.world import World

CANCEL_TIMEOUT_S = 30
TRACEBACK = "traceback.txt"


@dataclass(frozen=True)
class Shared:
    """What all trials of a wave know."""

    jobs: dict[str, Job]
    """By name; a trial's parameter is only the name, which Tune shows."""
    resources: Resources
    ledger: Path


@dataclass(frozen=True)
class End:
    """How one worker's part ended."""

    problem: str = ""
    """A sentence, if it did not end well."""
    again: bool = False
    """Whether the worker was only asked to stop, so that another attempt can go on."""


def run_trial(params: dict[str, Any], shared: Shared) -> dict[str, Any]:
    """Run the job ``params["name"]`` to its end and write the ledger.

    A failure is a result and no exception, so that the other trials go on.  One that the ledger cannot take is
    ``unwritten``, so that the run ends with it.
    """
    try:
        return {"failed": _run(shared.jobs[params["name"]], shared.resources, Ledger(shared.ledger))}
    except UserError as error:
        return {"failed": str(error), "unwritten": True}


def _run(job: Job, resources: Resources, ledger: Ledger) -> str:
    """Run `job` and return its problem, or nothing.

    Raises:
        UserError: If the ledger cannot be written.
    """
    ledger.append("started", job)
    end = End()
    for attempt in range(resources.retries + 1):
        tried = f"attempt {attempt + 1} of {resources.retries + 1}"
        try:
            claim(job)
            end = _train_together(job, resources)
        except RayTaskError as error:
            end = End(_unexpected(job, error))
        except RayError as error:
            # A worker or its machine died.  The next attempt goes on from the last checkpoint.
            end = End(f"A worker died ({type(error).__name__}), {tried}.", again=True)
        except (OSError, UserError) as error:
            end = End(str(error))
        if not end.again:
            break
    if not end.problem and not is_complete(job):
        end = End("It left an incomplete run folder.")
    if end.problem:
        ledger.append("failed", job, error=end.problem)
        return end.problem
    ledger.append("done", job)
    return ""


def _unexpected(job: Job, error: RayTaskError) -> str:
    """Return a sentence for a bug, and leave its traceback in the run folder; what a disk refuses is none."""
    if isinstance(error.cause, OSError) and error.cause.errno in REFUSED:
        return f"Its run folder must be writable, got {error.cause.strerror!r} [{job.folder}]."
    with contextlib.suppress(OSError):
        (job.folder / TRACEBACK).write_text(str(error), encoding="utf-8")
    first = (str(error.cause).splitlines() or [""])[0]
    return f"{type(error.cause).__name__}: {first} [its traceback is in {TRACEBACK} of the run folder]"


def _train_together(job: Job, resources: Resources) -> End:
    """Start one task per worker, each in its bundle, and wait until all have ended or one has a problem."""
    group = ray.util.get_current_placement_group()
    common = {"num_cpus": resources.cpus_per_worker, "max_retries": 0}
    address = ""
    if resources.workers > 1:
        first = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0)
        address = ray.get(ray.remote(find_address).options(scheduling_strategy=first, **common).remote())
    waiting = [
        ray.remote(run_worker)
        .options(
            num_gpus=resources.gpus_per_worker,
            name=f"{job.name}:{rank}",
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank),
            **common,
        )
        .remote(job, rank, resources, address)
        for rank in range(resources.workers)
    ]
    end = End()
    try:
        while waiting and not end.problem:
            # In the order they end: when one rank has failed, the others wait for it in a collective for ever.
            ended, waiting = ray.wait(waiting)
            end = ray.get(ended[0])
    finally:
        for task in waiting:
            ray.cancel(task, force=True)
        if waiting:
            # They must be gone before another attempt writes into the same run folder.
            ray.wait(waiting, num_returns=len(waiting), timeout=CANCEL_TIMEOUT_S)
    return end


def find_address() -> str:
    """Return ``host:port`` of rank 0's machine, the port free at this moment."""
    host = ray.util.get_node_ip_address()
    with socket.socket() as probe:
        probe.bind((host, 0))
        return f"{host}:{probe.getsockname()[1]}"


def workers_here(resources: Resources) -> int:
    """Return how many workers of a study can be on this machine at once, those of other trials among them; 1 at least.

    They share its memory, and start at about the same time, before any has taken its part: so a worker that chooses its
    micro-batch by what is free there must leave as much to each of the others.  Of another study nothing is known.
    """
    here = ray.get_runtime_context().get_node_id()
    count = next((places(node["Resources"], resources) for node in ray.nodes() if node["NodeID"] == here), 1)
    if resources.max_concurrent is not None:
        count = min(count, resources.max_concurrent * resources.workers)
    return max(count, 1)


def run_worker(job: Job, rank: int, resources: Resources, address: str) -> End:
    """Train as one rank of a job; what the user has to mend is a sentence."""
    import torch  # noqa: PLC0415 - only workers need it

    from cxrdist.finetune.config import FinetuneConfig  # noqa: PLC0415
    from cxrdist.finetune.run import finetune, open_test  # noqa: PLC0415
    from cxrdist.pretrain.config import PretrainConfig  # noqa: PLC0415
    from cxrdist.pretrain.run import pretrain  # noqa: PLC0415
    from cxrdist.train.interrupt import Interrupted  # noqa: PLC0415

    if address:
        os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = address.rsplit(":", 1)
    torch.set_num_threads(max(1, int(resources.cpus_per_worker)))
    # Ray shows each worker its own GPUs only, so every rank's device is number 0.
    world = World(rank, resources.workers, local_rank=0, local_world_size=workers_here(resources))
    try:
        if job.method == "pretrain":
            pretrain(PretrainConfig.build(job.tree, where=job.name), job.folder, world=world, resume="auto")
            return End()
        finetune(FinetuneConfig.build(job.tree, where=job.name), job.folder, world=world, resume="auto")
        if job.kind == "cell" and world.is_main and not is_complete(job):
            open_test(job.folder)
    except UserError as error:
        return End(str(error))
    except Interrupted as stop:
        return End(str(stop), again=True)
    return End()
