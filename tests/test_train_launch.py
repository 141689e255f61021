"""Runs as people start them, under real launchers; each process costs the seconds that importing torch takes."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import torch
from helpers import finetune_tree, make_shards
from safetensors.torch import load_file

from cxrdist.config import write_yaml
from cxrdist.finetune.config import FinetuneConfig
from cxrdist.finetune.run import finetune
from cxrdist.world import World

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(torch.cuda.is_available(), reason="compares runs on a CPU"),
    pytest.mark.xdist_group("launch"),
]
STEPS = 200
TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node", 2)
FOREIGN = ("SLURM_", "PMI", "OMPI_", "RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "TORCHELASTIC_")


@pytest.fixture(scope="module")
def run_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    every = {"evaluate_every": 50, "checkpoint_every": 10}
    write_yaml(finetune_tree(make_shards(folder), steps=STEPS, **every), folder / "run.yaml")
    return folder / "run.yaml"


@pytest.fixture(scope="module")
def alone(run_file, tmp_path_factory):
    """Return the weights of a run in this process that nothing disturbed."""
    out = tmp_path_factory.mktemp("alone") / "run"
    finetune(FinetuneConfig.read(run_file), out, world=World())
    return weights(out)


@pytest.fixture(scope="module")
def together(run_file, tmp_path_factory):
    """Return the weights of an undisturbed run of two processes under torchrun, and what it printed."""
    out = tmp_path_factory.mktemp("together") / "run"
    done = start(*TORCHRUN, "-m", "cxrdist", "train", run_file, "--out", out, "--json")
    said, errors = done.communicate(timeout=200)
    assert done.returncode == 0, errors
    assert json.loads(said)["out"] == str(out)
    return weights(out)


@pytest.fixture
def started() -> Iterator[list[psutil.Process]]:
    """Hold processes that are ended with all below them, whatever happens."""
    processes: list[psutil.Process] = []
    yield processes
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            for one in [process, *process.children(recursive=True)]:
                with suppress(psutil.NoSuchProcess):
                    one.kill()


def start(*command: object, **extra: str) -> subprocess.Popen[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    environment = inherited | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"} | extra
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-m", *map(str, command)], text=True, env=environment, **pipes)


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model/model.safetensors")


def assert_close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=1e-3, atol=1e-3)


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def wait_for_step(out: Path, step: int, *processes: subprocess.Popen[str]) -> None:
    """Wait until a run has logged `step`."""
    metrics = out / "metrics.jsonl"
    while True:
        for process in processes:
            assert process.poll() is None, process.communicate()
        whole = metrics.read_text().splitlines()[:-1] if metrics.is_file() else []
        if whole and json.loads(whole[-1])["step"] >= step:
            return
        time.sleep(0.02)


def ranks_of(launcher: subprocess.Popen[str]) -> dict[int, psutil.Process]:
    """Return the training processes below a launcher by rank, without their reading processes."""
    below = psutil.Process(launcher.pid).children(recursive=True)
    training = [one for one in below if "cxrdist" in one.cmdline() and "RANK" in one.environ()]
    return {int(one.environ()["RANK"]): one for one in reversed(training)}


def port() -> int:
    """Return a free port that Linux does not give to outgoing connections meanwhile."""
    while True:
        number = random.randrange(20000, 32000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", number))
            return number


def test_torchrun_with_two_processes_trains_like_one(together, alone):
    assert_close(together, alone)


def test_a_terminated_command_says_how_to_go_on_and_goes_on(run_file, alone, tmp_path):
    command = ("cxrdist", "train", run_file, "--out", tmp_path / "run", "--json")
    first = start(*command)
    wait_for_step(tmp_path / "run", 5, first)
    first.send_signal(signal.SIGTERM)
    _, errors = first.communicate(timeout=60)
    assert first.returncode == 128 + signal.SIGTERM, errors
    assert "with a checkpoint. Continue with --resume auto." in errors
    assert "Traceback" not in errors
    again = start(*command)
    assert "must be a new folder, got one with a run in it" in again.communicate(timeout=60)[1]
    assert again.returncode == 2
    last = start(*command, "--resume", "auto")
    said, errors = last.communicate(timeout=120)
    assert last.returncode == 0, errors
    assert json.loads(said)["steps"] == STEPS
    assert_equal(weights(tmp_path / "run"), alone)


def test_a_rank_that_is_killed_under_elastic_torchrun_costs_only_time(run_file, together, started, tmp_path):
    out = tmp_path / "run"
    elastic = (*TORCHRUN, "--nnodes", "1:1", "--max-restarts", 2)
    job = start(*elastic, "-m", "cxrdist", "train", run_file, "--out", out, "--resume", "auto", "--json")
    started.append(psutil.Process(job.pid))
    wait_for_step(out, 15, job)
    ranks_of(job)[1].kill()
    said, errors = job.communicate(timeout=200)
    assert job.returncode == 0, errors
    assert f"Error: Rank 1 (host {socket.gethostname()}) ended; its last step was " in errors
    assert json.loads(said)["steps"] == STEPS
    starts = [json.loads(line)["step"] for line in (out / "starts.jsonl").read_text().splitlines()]
    assert len(starts) == 2
    assert starts[1] >= 10
    assert_equal(weights(out), together)


def test_a_terminated_torchrun_leaves_a_checkpoint_from_which_one_process_goes_on(run_file, alone, started, tmp_path):
    out = tmp_path / "run"
    job = start(*TORCHRUN, "-m", "cxrdist", "train", run_file, "--out", out, "--set", "input.workers=1")
    started.append(psutil.Process(job.pid))
    wait_for_step(out, 5, job)
    job.send_signal(signal.SIGTERM)
    _, errors = job.communicate(timeout=60)
    assert job.returncode == 1
    assert errors.count("with a checkpoint. Continue with --resume auto.") == 1
    finetune(FinetuneConfig.read(run_file), out, world=World(), resume="auto")
    assert_close(weights(out), alone)


def test_the_deepspeed_launcher_trains_like_one_process(run_file, alone, started, tmp_path):
    # No signal is sent to this one.  With a hostfile it ends by a broad name what it started: see its runner.
    launch = ("deepspeed.launcher.runner", "--num_gpus", 2, "--master_port", port(), "--no_local_rank", "--module")
    command = ("cxrdist", "train", run_file, "--out", tmp_path / "run", "--json")
    nowhere = ("--hostfile", tmp_path / "no-hostfile")
    job = start(*launch, *nowhere, *command, DS_ACCELERATOR="cpu")
    started.append(psutil.Process(job.pid))
    said, errors = job.communicate(timeout=200)
    assert job.returncode == 0, errors
    assert json.loads(next(line for line in said.splitlines() if line.startswith("{")))["steps"] == STEPS
    assert_close(weights(tmp_path / "run"), alone)


def test_ranks_under_srun_meet_by_themselves_and_stop_at_once_for_requeue(run_file, alone, started, tmp_path):
    out = tmp_path / "run"
    slurm = {
        "SLURM_JOB_ID": str(random.randrange(10**6)),
        "SLURM_STEP_ID": "0",
        "SLURM_NTASKS": "2",
        "SLURM_STEP_NODELIST": "localhost,gpu[07-09]",
        "SLURM_STEP_TASKS_PER_NODE": "2",
    }

    def job() -> list[subprocess.Popen[str]]:
        tasks = [{"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)} for rank in range(2)]
        command = ("cxrdist", "train", run_file, "--out", out, "--resume", "auto")
        ranks = [start(*command, **slurm, **task) for task in tasks]
        started.extend(psutil.Process(rank.pid) for rank in ranks)
        return ranks

    first = job()
    wait_for_step(out, 5, *first)
    first[1].send_signal(signal.SIGUSR1)  # it is enough that one of them is told
    said = [rank.communicate(timeout=60)[1] for rank in first]
    assert [rank.returncode for rank in first] == [128 + signal.SIGUSR1] * 2, said
    assert "with a checkpoint. Continue with --resume auto." in said[0]
    again = job()
    said = [rank.communicate(timeout=120)[1] for rank in again]
    assert [rank.returncode for rank in again] == [0, 0], said
    assert_close(weights(out), alone)
