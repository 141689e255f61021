"""What runs on the cluster: a trial holds one placement group, and its workers train together inside it.

Workers are Ray tasks, not actors: Ray keeps their processes between trials, and with them the seconds that importing
torch takes (measured on two CPU cores with Ray 2.60: 6 s for a fresh worker, 0.02 s for one used before).
"""

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
from cxrdist.study.ledger import Ledger, is_complete
from cxrdist.study.plan import Job
from cxrdist.world import World


@dataclass(frozen=True)
class Shared:
    """What all trials of a wave know."""

    jobs: dict[str, Job]
    """By name; a trial's parameter is only the name, which Tune shows."""
    resources: Resources
    ledger: Path


def run_trial(params: dict[str, Any], shared: Shared) -> dict[str, Any]:
    """Run the job ``params["name"]`` to its end and write the ledger.

    A failure is a result and no exception, so that the other trials go on.
    """
    job, resources, ledger = shared.jobs[params["name"]], shared.resources, Ledger(shared.ledger)
    ledger.append("started", job)
    for attempt in range(resources.retries + 1):
        try:
            problem = _train_together(job, resources)
            break
        except RayTaskError as error:
            problem = f"{type(error.cause).__name__}: {str(error.cause).splitlines()[0] if str(error.cause) else ''}"
            break
        except RayError as error:
            # A worker or its machine died.  The next attempt goes on from the last checkpoint.
            problem = f"a worker died ({type(error).__name__}), attempt {attempt + 1} of {resources.retries + 1}"
    if problem is None and not is_complete(job):
        problem = "it left an incomplete run folder"
    if problem is not None:
        ledger.append("failed", job, error=problem)
        return {"failed": problem}
    ledger.append("done", job)
    return {"failed": ""}


def _train_together(job: Job, resources: Resources) -> str | None:
    """Start one task per worker, each in its bundle, and wait; return what went wrong that the user can mend."""
    group = ray.util.get_current_placement_group()
    tasks = [
        ray.remote(run_worker).options(
            num_cpus=resources.cpus_per_worker,
            num_gpus=resources.gpus_per_worker,
            max_retries=0,
            name=f"{job.name}:{rank}",
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank),
        )
        for rank in range(resources.workers)
    ]
    address = ""
    if resources.workers > 1:
        find = ray.remote(find_address).options(
            num_cpus=resources.cpus_per_worker,
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0),
        )
        address = ray.get(find.remote())
    waiting = [task.remote(job, rank, resources, address) for rank, task in enumerate(tasks)]
    problem: str | None = None
    try:
        while waiting:
            # In the order they end: when one rank has failed, the others wait for it in a collective for ever.
            ended, waiting = ray.wait(waiting)
            problem = problem or ray.get(ended[0])
            if problem:
                break
    finally:
        for task in waiting:
            ray.cancel(task, force=True)
    return problem


def find_address() -> str:
    """Return ``host:port`` of rank 0's machine, the port free at this moment."""
    host = ray.util.get_node_ip_address()
    with socket.socket() as probe:
        probe.bind((host, 0))
        return f"{host}:{probe.getsockname()[1]}"


def run_worker(job: Job, rank: int, resources: Resources, address: str) -> str | None:
    """Train as one rank of a job; return a sentence if the user has to mend something."""
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
    world = World(rank=rank, world_size=resources.workers, local_rank=0)
    try:
        if job.method == "pretrain":
            pretrain(PretrainConfig.build(job.tree, where=job.name), job.folder, world=world, resume="auto")
            return None
        finetune(FinetuneConfig.build(job.tree, where=job.name), job.folder, world=world, resume="auto")
        if job.kind == "cell" and world.is_main:
            open_test(job.folder)
    except UserError as error:
        return str(error)
    except Interrupted as stop:
        return str(stop)
    return None
