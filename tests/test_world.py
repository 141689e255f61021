"""Which process this is, as each launcher says it; and what `--help` must not load."""

import subprocess
import sys
import time

import pytest

from cxrdist.errors import UsageError
from cxrdist.world import World, read_world

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
SRUN = {"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "2", "SLURM_STEP_ID": "0"}
MPIRUN = {"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "2"}
HEAVY = ("torch", "torchvision", "timm", "deepspeed", "ray", "pandas", "matplotlib", "sklearn")


@pytest.mark.parametrize(
    ("environment", "world"),
    [
        ({}, World(0, 1, 0)),
        (TORCHRUN, World(3, 8, 1)),
        (SRUN, World(5, 8, 2)),
        (MPIRUN, World(2, 4, 2)),
        (SRUN | TORCHRUN, World(3, 8, 1)),  # torchrun inside srun
        ({"RANK": "1"}, World(0, 1, 0)),
        ({"RANK": "1", "WORLD_SIZE": "2"}, World(1, 2, 0)),
        ({"SLURM_NTASKS": "8"}, World(0, 1, 0)),  # a shell of salloc
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, World(0, 1, 0)),  # a batch script
        (SRUN | {"SLURM_STEP_ID": str(0xFFFFFFFB)}, World(0, 1, 0)),  # a batch script that is told its step
        (SRUN | {"SLURM_STEP_ID": str(0xFFFFFFFA)}, World(0, 1, 0)),  # an interactive step
    ],
)
def test_the_world_is_what_the_launcher_says(environment, world):
    assert read_world(environment) == world


@pytest.mark.parametrize(
    "environment", [{"RANK": "4", "WORLD_SIZE": "4"}, {"RANK": "x", "WORLD_SIZE": "4"}, {"RANK": "", "WORLD_SIZE": "4"}]
)
def test_an_impossible_rank_is_refused(environment):
    with pytest.raises(UsageError, match=r"(rank|RANK)"):
        read_world(environment)


def test_only_rank_0_is_main():
    assert [World(rank, 3).is_main for rank in range(3)] == [True, False, False]


@pytest.mark.parametrize("arguments", [["-c", "import cxrdist"], ["-m", "cxrdist", "--help"]])
def test_help_answers_at_once_and_loads_nothing_heavy(arguments):
    # `-X importtime` prints a line per module to standard error.
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-X", "importtime", *arguments], capture_output=True, text=True, check=True)
    assert time.monotonic() - started < 2
    loaded = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "cxrdist" in loaded
    assert not loaded & set(HEAVY)
