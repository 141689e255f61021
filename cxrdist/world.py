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
        # Inside an salloc shell SLURM_NTASKS stands without a task's own rank: that is no launch.
        if rank in env and world_size in env:
            if rank == "SLURM_PROCID" and "SLURM_STEP_ID" not in env:
                continue
            return World(int(env[rank]), int(env[world_size]), int(env.get(local_rank, "0")))
    return World()
