"""Which process this is, as each launcher says it; and what `--help` must not load."""

import subprocess
import sys
import time

import pytest

from cxrdist.errors import UsageError, UserError
from cxrdist.world import World, first_host, read_world, rendezvous

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
SRUN = {"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "2", "SLURM_STEP_ID": "0"}
MPIRUN = {"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "2"}
HYDRA = {"PMI_RANK": "3", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}  # MPICH, Intel MPI
ELASTIC = TORCHRUN | {"LOCAL_WORLD_SIZE": "4", "TORCHELASTIC_RUN_ID": "x", "TORCHELASTIC_RESTART_COUNT": "1"}
DEEPSPEED = TORCHRUN | {"LOCAL_SIZE": "4", "CROSS_RANK": "0", "CROSS_SIZE": "2"}
JOB = SRUN | {"SLURM_JOB_ID": "4711", "SLURM_JOB_NODELIST": "gpu[07-09,12],big1", "SLURM_STEP_NODELIST": "gpu[08-09]"}
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
        (HYDRA, World(3, 4, 1)),
        (SRUN | HYDRA, World(3, 4, 1)),  # mpiexec, whose helpers srun starts, one a node
        (SRUN | {"PMI_RANK": "5", "PMI_SIZE": "8"}, World(5, 8, 2)),  # srun --mpi=pmi2
        (SRUN | {"PMIX_RANK": "5"}, World(5, 8, 2)),  # srun --mpi=pmix
        ({"PMIX_RANK": "1", "WORLD_SIZE": "2"}, World(1, 2, 0)),
        ({"PMIX_RANK": "0"}, World(0, 1, 0)),
    ],
)
def test_the_world_is_what_the_launcher_says(environment, world):
    assert read_world(environment) == world


@pytest.mark.parametrize(
    "environment",
    [
        {"RANK": "4", "WORLD_SIZE": "4"},
        {"RANK": "x", "WORLD_SIZE": "4"},
        {"RANK": "", "WORLD_SIZE": "4"},
        {"PMIX_RANK": "1"},  # and nobody says of how many
    ],
)
def test_an_impossible_rank_is_refused(environment):
    with pytest.raises(UsageError, match=r"(rank|RANK)"):
        read_world(environment)


@pytest.mark.parametrize(
    ("environment", "launcher", "local_world_size"),
    [
        ({}, "python", 1),
        (ELASTIC, "torchrun", 4),
        (DEEPSPEED, "deepspeed", 4),
        (TORCHRUN, "environment", 2),  # at least: this one is the second
        (SRUN | {"SLURM_STEP_TASKS_PER_NODE": "2(x2),4", "SLURM_NODEID": "1"}, "srun", 3),  # never below its own place
        (SRUN | {"SLURM_STEP_TASKS_PER_NODE": "2(x2),4", "SLURM_NODEID": "2"}, "srun", 4),
        (SRUN, "srun", 3),
        (MPIRUN | {"OMPI_COMM_WORLD_LOCAL_SIZE": "4"}, "openmpi", 4),
        (HYDRA, "mpich", 2),
        (SRUN | HYDRA, "mpich", 2),
        (SRUN | ELASTIC, "torchrun", 4),
    ],
)
def test_the_launcher_is_told_and_how_many_ranks_it_put_on_this_machine(environment, launcher, local_world_size):
    world = read_world(environment)
    assert (world.launcher, world.local_world_size) == (launcher, local_world_size)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node[01-03]", "node01"),
        ("rack[1-2]n[01-04,7],login", "rack1n01"),
        ("gpu-a,gpu-b", "gpu-a"),
        ("gpu-a", "gpu-a"),
        ("n[3,1]-ib,x", "n3-ib"),
        ("", ""),
    ],
)
def test_the_first_host_of_a_node_list_is_found_without_scontrol(nodes, first):
    assert first_host(nodes) == first


def test_ranks_under_srun_meet_at_the_first_node_of_their_step():
    where = {rendezvous(read_world(env), env) for env in (JOB | {"SLURM_PROCID": str(rank)} for rank in range(8))}
    assert len(where) == 1
    ((host, port),) = where
    assert host == "gpu08"
    assert 1024 < port < 32768
    alone = JOB | {"SLURM_STEP_NODELIST": ""}
    assert rendezvous(read_world(alone), alone)[0] == "gpu07"


def test_jobs_and_steps_that_run_at_once_meet_at_other_ports():
    jobs = [JOB | {"SLURM_JOB_ID": str(job), "SLURM_STEP_ID": str(step)} for job in range(900, 960) for step in (0, 1)]
    assert len({rendezvous(read_world(env), env)[1] for env in jobs}) == len(jobs)


def test_what_the_user_or_the_launcher_says_of_rank_0_is_believed():
    said = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29501"}
    for env in (JOB | said, ELASTIC | said, DEEPSPEED | said, MPIRUN | said):
        assert rendezvous(read_world(env), env) == ("10.0.0.1", 29501)
    assert rendezvous(read_world(JOB), JOB | {"MASTER_ADDR": "10.0.0.1"})[0] == "10.0.0.1"


@pytest.mark.parametrize("environment", [MPIRUN, HYDRA, TORCHRUN, TORCHRUN | {"MASTER_ADDR": "10.0.0.1"}])
def test_ranks_that_nobody_told_where_rank_0_is_say_how_to_mend_that(environment):
    with pytest.raises(UserError, match="MASTER_ADDR and MASTER_PORT must say where rank 0 is"):
        rendezvous(read_world(environment), environment)


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
