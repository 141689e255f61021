"""Which process this is among those that train together."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from cxrdist.errors import UsageError

# Launchers name the same three facts differently; the first family that is complete is taken.
# torchrun and deepspeed set the first; srun the second; OpenMPI's mpirun the third.
LAUNCHERS = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
)


@dataclass(frozen=True)
class World:
    """This process's place: `rank` in ``[0, world_size)``, `local_rank` on its own machine."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise UsageError(f"`rank` must be in [0, world_size={self.world_size}), got {self.rank}.")

    @property
    def is_main(self) -> bool:
        """Whether this process writes what is written once."""
        return self.rank == 0


def read_world(environment: Mapping[str, str] | None = None) -> World:
    """Return the world that the launcher described, or a world of one."""
    env = os.environ if environment is None else environment
    for rank, world_size, local_rank in LAUNCHERS:
        # Inside an salloc shell or a batch script SLURM_NTASKS stands too: that is no launch.
        if rank in env and world_size in env:
            if rank == "SLURM_PROCID" and not _in_srun_step(env):
                continue
            return World(_number(env, rank), _number(env, world_size), _number(env, local_rank, "0"))
    return World()


def _in_srun_step(env: Mapping[str, str]) -> bool:
    # Batch scripts and the shell of `salloc` are steps too, with numbers from 0xfffffff0 on (slurm.h).
    step = env.get("SLURM_STEP_ID", "")
    return step.isdecimal() and int(step) < 0xFFFFFFF0


def _number(env: Mapping[str, str], name: str, default: str | None = None) -> int:
    text = env.get(name, default) or ""
    if not text.isdecimal():
        raise UsageError(f"The launcher's {name} must be a whole number, got {text!r}. Unset it or use `torchrun`.")
    return int(text)
