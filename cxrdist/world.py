"""Which process this is among those that train together, and where they meet: the one place that reads launchers.

====================  ==============================================================================================
launcher              what it says
====================  ==============================================================================================
``torchrun``          RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT, TORCHELASTIC_*
``deepspeed``         the same with LOCAL_SIZE in place of LOCAL_WORLD_SIZE, and CROSS_RANK, CROSS_SIZE
``srun``              SLURM_PROCID, SLURM_NTASKS, SLURM_LOCALID, SLURM_STEP_NODELIST, SLURM_JOB_ID
``mpirun`` (OpenMPI)  OMPI_COMM_WORLD_RANK, _SIZE, _LOCAL_RANK, _LOCAL_SIZE
``mpiexec`` (MPICH,   PMI_RANK, PMI_SIZE; MPI_LOCALRANKID, MPI_LOCALNRANKS
Intel, MVAPICH)
a PMIx launcher       PMIX_RANK, and no size: it must be exported as WORLD_SIZE
====================  ==============================================================================================

The innermost launcher is believed: torchrun inside srun is torchrun, and so is an mpiexec that srun helps to start.
"""

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from cxrdist.errors import UsageError, UserError

Launcher = Literal["python", "torchrun", "deepspeed", "srun", "openmpi", "mpich", "pmix", "environment", "ray"]
"""Who started this process; ``environment``: someone who exports RANK and WORLD_SIZE as torchrun does; ``ray`` says so
itself."""

CHOOSE_NETWORK = "`export GLOO_SOCKET_IFNAME=eth0 NCCL_SOCKET_IFNAME=eth0`"
"""The way out where ranks do not reach each other; eth0 stands for the network's name."""

FAMILIES: tuple[tuple[Launcher, str, str, str, tuple[str, ...]], ...] = (
    ("environment", "RANK", "WORLD_SIZE", "LOCAL_RANK", ("LOCAL_WORLD_SIZE", "LOCAL_SIZE")),
    ("srun", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", ()),
    (
        "openmpi",
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        ("OMPI_COMM_WORLD_LOCAL_SIZE",),
    ),
    ("mpich", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", ("MPI_LOCALNRANKS",)),
    ("pmix", "PMIX_RANK", "WORLD_SIZE", "PMIX_LOCAL_RANK", ("LOCAL_WORLD_SIZE", "PMIX_LOCAL_SIZE")),
)
"""Names of rank, world size, local rank and local world size; the first family that is complete is taken."""

FIRST_PORT, PORTS = 16384, 16384
"""Ports for jobs whose launcher names none; those from 32768 on Linux gives to outgoing connections."""


@dataclass(frozen=True)
class World:
    """This process's place: `rank` in ``[0, world_size)``, `local_rank` on its own machine."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = field(default=1, compare=False)
    """Ranks on this machine; at least so many, where the launcher does not say."""
    launcher: Launcher = field(default="python", compare=False)

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise UsageError(f"`rank` must be in [0, world_size={self.world_size}), got {self.rank}.")

    @property
    def is_main(self) -> bool:
        """Whether this process writes what is written once."""
        return self.rank == 0


def read_world(environment: Mapping[str, str] | None = None) -> World:
    """Return the world that the launcher described, or a world of one.

    Raises:
        UsageError: If what it said cannot be.
    """
    env = os.environ if environment is None else environment
    for family, rank, world_size, local_rank, local_sizes in FAMILIES:
        if rank not in env or world_size not in env:
            continue
        # Inside an salloc shell or a batch script SLURM_NTASKS stands too: that is no launch.
        if family == "srun" and (not _in_srun_step(env) or _helps_mpi(env)):
            continue
        place = _number(env, local_rank, "0")
        told = next((_number(env, name) for name in local_sizes if name in env), None)
        local = told or (_tasks_on_this_node(env) if family == "srun" else 0)
        launcher = _exporter(env) if family == "environment" else family
        return World(_number(env, rank), _number(env, world_size), place, max(local, place + 1), launcher)
    if _number(env, "PMIX_RANK", "0") > 0:
        raise UsageError(
            f"The launcher must say how many ranks there are, got PMIX_RANK={env['PMIX_RANK']} and no size. "
            "Start with `torchrun` or `srun`, or export WORLD_SIZE."
        )
    return World()


def rendezvous(world: World, environment: Mapping[str, str] | None = None) -> tuple[str, int]:
    """Return host and port at which rank 0 of a `world` of several ranks is to be met; the same on every rank.

    MASTER_ADDR and MASTER_PORT are believed where set.  Under srun the host is else the first of the step's nodes,
    where SLURM puts rank 0 unless it is told to distribute arbitrarily, and the port a function of the job and the
    step, so that two that share a machine do not meet each other.

    Raises:
        UserError: If the launcher did not say where rank 0 is.
    """
    env = os.environ if environment is None else environment
    host, port = env.get("MASTER_ADDR"), env.get("MASTER_PORT")
    if world.launcher == "srun":
        host = host or first_host(env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST") or "")
        # Neighbouring jobs get neighbouring ports; the steps of one job, which may run at once, lie far apart.
        job = _number(env, "SLURM_JOB_ID", "0") + 997 * _number(env, "SLURM_STEP_ID", "0")
        port = port or str(FIRST_PORT + job % PORTS)
    if not host or not port:
        raise UserError(
            f"MASTER_ADDR and MASTER_PORT must say where rank 0 is, got none for {world.world_size} ranks. "
            "Start with `torchrun`, `deepspeed` or `srun`, or export both in the batch script."
        )
    return host, _number({"MASTER_PORT": port}, "MASTER_PORT")


def first_host(nodes: str) -> str:
    """Return the first host of a SLURM node list: ``rack[1-2]n[01-04,7],login`` begins with ``rack1n01``.

    This is what ``scontrol show hostnames`` does, which a container with our code in it does not have.
    """
    first = re.match(r"(?:[^\[,]|\[[^\]]*\])*", nodes.strip())
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", first.group() if first else "")


def addresses(host: str) -> set[str]:
    """Return the addresses that `host`, a name or an address, leads to from here; none: it leads nowhere."""
    try:
        rows = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return set()
    return {str(row[4][0]).partition("%")[0] for row in rows}


def is_own(address: str) -> bool:
    """Return whether this machine has `address`: only then something can be bound to it."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind((address, 0))
    except OSError:
        return False
    return True


def _exporter(env: Mapping[str, str]) -> Launcher:
    if "TORCHELASTIC_RUN_ID" in env:
        return "torchrun"
    return "deepspeed" if "CROSS_SIZE" in env and "LOCAL_SIZE" in env else "environment"


def _in_srun_step(env: Mapping[str, str]) -> bool:
    # Batch scripts and the shell of `salloc` are steps too, with numbers from 0xfffffff0 on (slurm.h).
    step = env.get("SLURM_STEP_ID", "")
    return step.isdecimal() and int(step) < 0xFFFFFFF0


def _helps_mpi(env: Mapping[str, str]) -> bool:
    """Whether srun has only started the helpers of an mpiexec, one on each node: its ranks are not the ranks then."""
    said = {(env.get(rank), env.get(size)) for family, rank, size, *_ in FAMILIES if family in ("openmpi", "mpich")}
    return bool(said - {(None, None), (env["SLURM_PROCID"], env["SLURM_NTASKS"])})


def _tasks_on_this_node(env: Mapping[str, str]) -> int:
    """Return how many tasks of the step run here: SLURM writes ``2(x3),1`` for 2, 2, 2 and 1; 0 if it does not say."""
    text = env.get("SLURM_STEP_TASKS_PER_NODE") or env.get("SLURM_TASKS_PER_NODE") or ""
    node = _number(env, "SLURM_NODEID", "0")
    for tasks, nodes in re.findall(r"(\d+)(?:\(x(\d+)\))?", text):
        node -= int(nodes or 1)
        if node < 0:
            return int(tasks)
    return 0


def _number(env: Mapping[str, str], name: str, default: str | None = None) -> int:
    text = env.get(name, default) or ""
    if not text.isdecimal():
        raise UsageError(f"The launcher's {name} must be a whole number, got {text!r}. Unset it or use `torchrun`.")
    return int(text)
