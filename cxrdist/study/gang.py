"""The workers of a training: one Ray task each, in the bundles of one placement group, all or none.

Workers are Ray tasks, not actors: Ray keeps their processes between trials, and with them the seconds that importing
torch takes (measured on two CPU cores with Ray 2.60: 6 s for a fresh worker, 0.02 s for one used before).
"""

import contextlib
import os
import re
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group_table
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cxrdist.errors import UsageError, UserError
from cxrdist.study.jobs import Job
from cxrdist.study.ledger import REFUSED, is_complete
from cxrdist.study.resources import Resources, TrialResources
from cxrdist.study.room import places
from cxrdist.train.run_folder import Resume
from cxrdist.world import World

LOOK_EVERY_S = 1.0
"""How often a trial looks at its workers' progress."""
MACHINES_EVERY_S = 5.0
"""How often it looks whether their machines live: a task on a machine that went silent is waited for in vain."""
EXPLAIN_S = 25.0
"""How long the other workers may take to end, with their reasons, once one has: as long as a rank's watchdog does."""
CANCEL_TIMEOUT_S = 30.0
PORT_TAKEN = re.compile(r"EADDRINUSE|address already in use", re.IGNORECASE)
"""Between finding a free port and taking it another process may have taken it."""
TRACEBACK = "traceback.txt"


class Lost(Exception):  # noqa: N818 - no error of the trial's
    """A worker or its machine died, in Ray's word for how; what it has learnt until its last checkpoint is there."""


class Stop(Exception):  # noqa: N818 - like KeyboardInterrupt, no error
    """The trial shall not go on."""


@dataclass(frozen=True)
class End:
    """How one worker's part ended; false where it ended well."""

    problem: str = ""
    """A sentence, if it did not end well."""
    again: bool = False
    """Whether another attempt can go on: the worker was asked to stop, or lost another rank."""
    stopped: bool = False
    """Whether it has left a checkpoint because it was asked to stop."""
    usage: bool = False
    """Whether the problem was found before any work began."""

    def __bool__(self) -> bool:
        return bool(self.problem)


Work = Callable[[Job, int, int, Resources, str], End]
"""What each worker runs: the job, its rank, the number of workers, the study's resources, and rank 0's address if there
are others."""


class Gang:
    """The workers of one attempt; leaving the block ends those that still work."""

    def __init__(
        self, job: Job, workers: int, resources: Resources, work: Work, group: PlacementGroup | None = None
    ) -> None:
        """Take a `group` of one bundle for each worker; None is that of the trial that this process is."""
        self.problem = End()
        """How the first worker ended that did not end well."""
        self._job, self._workers, self._resources, self._work = job, workers, resources, work
        self._group = group or ray.util.get_current_placement_group()
        self._waiting: list[Any] = []
        self._machines: set[str] = set()
        self._looked = time.monotonic()

    def __enter__(self) -> Self:
        """Start the workers.

        Raises:
            Lost: If a machine died meanwhile.
        """
        # As they are now: Ray gives a place whose machine died another one, and never says that a task there is lost.
        self._machines = set(placement_group_table(self._group)["bundles_to_node_id"].values())
        address = ""
        if self._workers > 1:
            self._waiting = [self._start(find_address, 0, "address", gpus=0)]
            address = self._first_result()
        self._waiting = [
            self._start(
                self._work, rank, str(rank), self._job, rank, self._workers, self._resources, address,
                gpus=self._job.resources.gpus_per_worker,
            )
            for rank in range(self._workers)
        ]  # fmt: skip
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """End all workers: they must be gone before another attempt writes into the same run folder."""
        for task in self._waiting:
            ray.cancel(task, force=True)
        if self._waiting:
            ray.wait(self._waiting, num_returns=len(self._waiting), timeout=CANCEL_TIMEOUT_S)

    def working(self) -> bool:
        """Wait a moment; return whether there is more to wait for.

        Raises:
            Lost: If a worker or a machine died.
            RayTaskError: If a worker had a bug.
        """
        # In the order they end: when one rank has failed, the others wait for it in a collective for ever.
        ended, self._waiting = ray.wait(self._waiting, timeout=LOOK_EVERY_S)
        if not ended:
            self._look_at_machines()
            return True
        ends = [self._get(task) for task in ended]
        if any(ends):
            # Which of the ranks that end now was the first cannot be told from their order: one that only lost another
            # says so, and one that has a reason of its own is the reason.
            if self._waiting:
                ended, self._waiting = ray.wait(self._waiting, num_returns=len(self._waiting), timeout=EXPLAIN_S)
                ends += [self._get(task) for task in ended]
            self._judge([end for end in ends if end])
            return False
        return bool(self._waiting)

    def stop(self, within_s: float) -> Sequence["End | RayError"]:
        """Ask all workers to stop, as Ctrl-C would, wait until they have, and return how they ended.

        A worker that trains leaves a checkpoint; one that has not begun to, or has done so, just ends.  Whoever works
        on after `within_s` seconds is ended when the block is left.
        """
        until = time.monotonic() + within_s
        for task in self._waiting:
            ray.cancel(task)
        ends = []
        while self._waiting and time.monotonic() < until:
            ended, self._waiting = ray.wait(self._waiting, timeout=LOOK_EVERY_S)
            ends += [self._get(task) for task in ended]
        return ends

    def _judge(self, ends: list["End | RayError"]) -> None:
        """Find the reason for which the gang ended.

        Raises:
            RayTaskError: If it is a bug.
            Lost: If a worker died or lost another.
        """
        bugs = [end for end in ends if isinstance(end, RayTaskError)]
        dead = [end for end in ends if isinstance(end, RayError) and end not in bugs]
        own = [end for end in ends if isinstance(end, End) and not end.again]
        if dead:  # whatever the others say: most of it is that they miss this one
            raise Lost(type(dead[0]).__name__)
        if own:
            self.problem = own[0]
        elif not bugs:
            raise Lost("RankLost")
        elif PORT_TAKEN.search(str(bugs[0])):
            raise Lost("PortTaken")
        else:
            raise bugs[0]

    def _start(self, function: Any, bundle: int, name: str, *args: Any, gpus: float) -> Any:
        where = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=bundle)
        options = {
            "num_cpus": self._job.resources.cpus_per_worker,
            "num_gpus": gpus,
            "name": f"{self._job.name}:{name}",
            "scheduling_strategy": where,
            "max_retries": 0,
        }
        return ray.remote(function).options(**options).remote(*args)

    def _first_result(self) -> str:
        while True:
            ended, self._waiting = ray.wait(self._waiting, timeout=LOOK_EVERY_S)
            if ended:
                found = self._get(ended[0])
                if isinstance(found, RayError):
                    raise Lost(type(found).__name__)
                return str(found)
            self._look_at_machines()

    def _get(self, task: Any) -> Any:
        """Return what a task returned, or how it failed."""
        try:
            return ray.get(task)
        except RayError as error:
            return error

    def _look_at_machines(self) -> None:
        if time.monotonic() - self._looked < MACHINES_EVERY_S:
            return
        self._looked = time.monotonic()
        living = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        if not living.issuperset(self._machines):
            raise Lost("NodeDied")


def find_address() -> str:
    """Return ``host:port`` of rank 0's machine, the port free at this moment."""
    host = ray.util.get_node_ip_address()
    with socket.socket() as probe:
        probe.bind((host, 0))
        return f"{host}:{probe.getsockname()[1]}"


def workers_here(held: TrialResources, max_concurrent: int | None = None) -> int:
    """Return how many workers that hold so much can be on this machine at once, also those of other trials; 1 at least.

    They share its memory, and start at about the same time, before any has taken its part: so a worker that chooses its
    micro-batch by what is free there must leave as much to each of the others.  Of another study nothing is known.
    """
    here = ray.get_runtime_context().get_node_id()
    count = next((places(node["Resources"], held) for node in ray.nodes() if node["NodeID"] == here), 1)
    if max_concurrent is not None:
        count = min(count, max_concurrent * held.workers)
    return max(count, 1)


def unwritable(folder: Path, error: OSError) -> str:
    """Return a sentence for what the disk of a run folder refuses."""
    return f"Its run folder must be writable, got {(error.strerror or type(error).__name__)!r} [{folder}]."


def unexpected(folder: Path, error: RayTaskError) -> str:
    """Return a sentence for a bug, and leave its traceback in the run folder; what a disk refuses is none."""
    if isinstance(error.cause, OSError) and error.cause.errno in REFUSED:
        return unwritable(folder, error.cause)
    with contextlib.suppress(OSError):
        (folder / TRACEBACK).write_text(str(error), encoding="utf-8")
    first = (str(error.cause).splitlines() or [""])[0]
    return f"{type(error.cause).__name__}: {first} [its traceback is in {TRACEBACK} of the run folder]"


def run_worker(
    job: Job, rank: int, workers: int, resources: Resources, address: str, *, resume: Resume | None = "auto"
) -> End:
    """Train as one rank of a job; what the user has to mend is a sentence."""
    import torch  # noqa: PLC0415 - only workers need it

    from cxrdist.finetune.config import FinetuneConfig  # noqa: PLC0415
    from cxrdist.finetune.run import finetune, open_test  # noqa: PLC0415
    from cxrdist.pretrain.config import PretrainConfig  # noqa: PLC0415
    from cxrdist.pretrain.run import pretrain  # noqa: PLC0415
    from cxrdist.study.external import evaluate_external  # noqa: PLC0415
    from cxrdist.train.interrupt import Interrupted  # noqa: PLC0415
    from cxrdist.train.watchdog import RankLostError  # noqa: PLC0415

    if address:
        os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = address.rsplit(":", 1)
    torch.set_num_threads(max(1, int(job.resources.cpus_per_worker)))
    # Ray shows each worker its own GPUs only, so every rank's device is number 0.
    here = workers_here(job.resources, resources.max_concurrent)
    world = World(rank, workers, local_rank=0, local_world_size=here, launcher="ray")
    try:
        if job.method == "pretrain":
            pretrain(PretrainConfig.build(job.tree, where=job.name), job.folder, world=world, resume=resume)
            return End()
        if job.method == "external":
            evaluate_external(job)
            return End()
        finetune(FinetuneConfig.build(job.tree, where=job.name), job.folder, world=world, resume=resume)
        if job.kind == "cell" and world.is_main and not is_complete(job):
            open_test(job.folder)
    except (Interrupted, RankLostError) as stop:
        return End(str(stop), again=True, stopped=isinstance(stop, Interrupted))
    except UserError as error:
        return End(str(error), usage=isinstance(error, UsageError))
    return End()
