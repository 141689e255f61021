"""The batch scripts of ``launch/slurm``, alone and under a real SLURM: two nodes with GPUs that are none."""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import slurm_lab
import torch
from helpers import finetune_tree, make_shards, study_tree
from safetensors.torch import load_file

from cxrdist.config import write_yaml

SCRIPTS = Path(__file__).parents[1] / "launch/slurm"
NAMES = ("train.sbatch", "train-torchrun.sbatch", "study-ray.sbatch")
TWO_RANKS = ("--nodes=2", "--gpus-per-node=1", "--cpus-per-gpu=1", "--mem=1900")
"""There is room for two such jobs at once."""
STEPS = 150
SECONDS = 600
"""What a shared machine may need for what takes it ten alone."""


def under_slurm(test):
    """Mark a test that needs the real thing."""
    for mark in (
        pytest.mark.slow,
        pytest.mark.xdist_group("slurm"),
        pytest.mark.timeout(1500),
        pytest.mark.skipif(bool(slurm_lab.why_not()), reason=slurm_lab.why_not()),
        pytest.mark.skipif(torch.cuda.is_available(), reason="compares runs on a CPU"),
    ):
        test = mark(test)
    return test


def lines_of(script: str, first: str, last: str) -> list[str]:
    """Return a script's lines from the one that begins with `first` to the next that begins with `last`."""
    every = [line.strip() for line in (SCRIPTS / script).read_text().splitlines()]
    start = next(number for number, line in enumerate(every) if line.startswith(first))
    end = next(number for number, line in enumerate(every) if number >= start and line.startswith(last))
    return every[start : end + 1]


@pytest.mark.parametrize(
    ("first", "last", "scripts"),
    [
        ("#SBATCH", "# >>>", NAMES),
        ("fail() {", "}", NAMES),
        ('told=""', "trap 'told=TERM", NAMES),
        ('[ "$gpus" = 0 ]', "unset SLURM_", NAMES),
        ('[ "$told" != USR1 ]', "code=", NAMES),
        ("set -u", "case", NAMES[:2]),
        ('[ -n "${SLURM_JOB_ID', "command", NAMES[:2]),
        ('case " $* "', "esac", NAMES[:2]),
        ("gpus=", "ranks=", NAMES[:2]),
        ("unset SLURM_", "export OMP_NUM_THREADS", NAMES[:2]),
    ],
)
def test_what_the_scripts_share_is_the_same_in_each(first, last, scripts):
    ones = [[line.replace("torchrun", "cxrdist") for line in lines_of(script, first, last)] for script in scripts]
    assert all(one == ones[0] for one in ones), ones


STUBS = {
    "scontrol": 'echo "scontrol $*"',
    "torchrun": "",
    "ray": "",
    "sleep": "command -p sleep 0.1",
    # Of a Ray cluster it plays the nodes, of a training the training itself.
    "srun": 'env >"${0%/*}/seen"; case "$*" in *"bash -c"*) echo "up here"; exec cat ;; esac; exec cxrdist',
}


def run_alone(script: str, folder: Path, step: str, **variables: object) -> "subprocess.CompletedProcess[str]":
    """Run a script without SLURM, on one node with a CPU core; `step` is a shell's line for the command it starts."""
    for name, line in {**STUBS, "cxrdist": step}.items():
        (folder / name).write_text(f"#!/bin/bash\n{line}\n", encoding="ascii")
        (folder / name).chmod(0o755)
    numbers = {"SLURM_JOB_ID": 77, "SLURM_NNODES": 1, "SLURM_CPUS_ON_NODE": 1}
    names = {
        "SLURM_JOB_NODELIST": "localhost",
        "SLURMD_NODENAME": "localhost",
        "PATH": f"{folder}:{os.environ['PATH']}",
    }
    environment = {name: str(value) for name, value in {**numbers, **names, **variables}.items()}
    command = ["bash", str(SCRIPTS / script), "train", "run.yaml"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("script", NAMES)
def test_a_job_that_ends_just_when_it_is_to_go_back_into_the_queue_stays_ended(script, tmp_path):
    # Both are there when the script wakes up: the signal, and the end of what it waits for.
    step = "sleep 0.1; kill -STOP $PPID; kill -USR1 $PPID; { sleep 0.1; kill -CONT $PPID; } >/dev/null 2>&1 &"
    told = run_alone(script, tmp_path, step)
    assert told.returncode == 0, told.stderr
    assert "requeue" not in told.stdout


@pytest.mark.parametrize("script", NAMES)
def test_what_sbatch_was_told_of_tasks_does_not_reach_srun(script, tmp_path):
    names = ("SLURM_CPUS_PER_GPU", "SLURM_GPUS_PER_TASK", "SLURM_NTASKS_PER_GPU", "SLURM_TRES_PER_TASK")
    told = run_alone(script, tmp_path, "true", **dict.fromkeys(names, 1))
    assert told.returncode == 0, told.stderr
    seen = (tmp_path / "seen").read_text()
    assert "SLURM_NNODES=1" in seen
    assert not [name for name in names if name in seen]


@pytest.mark.parametrize(("given", "limit"), [({}, 110), ({"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": 590}, 590)])
def test_torchrun_gives_the_ranks_the_time_that_slurm_gives_the_job(tmp_path, given, limit):
    run_alone("train-torchrun.sbatch", tmp_path, "true", **given)
    assert f"TORCH_ELASTIC_SHUTDOWN_TIMEOUT={limit}\n" in (tmp_path / "seen").read_text()


def test_more_ranks_than_cpu_cores_are_refused(tmp_path):
    told = run_alone("train.sbatch", tmp_path, "true", SLURM_NTASKS_PER_NODE=2)
    assert told.returncode == 2
    assert told.stderr.startswith("Error: Each rank must have a CPU core, got 1 for 2 ranks on ")
    assert len(told.stderr.splitlines()) == 1


@dataclass(frozen=True)
class Site:
    root: Path
    slurm: slurm_lab.Slurm

    def submit(self, script: str, *words: str | Path) -> str:
        return self.slurm.submit(*TWO_RANKS, SCRIPTS / script, *words)

    def go_by_way_of_the_queue(self, job: str) -> None:
        self.slurm.run("scancel", "--batch", "--signal=USR1", job)
        self.slurm.wait_until_queued(job)
        self.wait_until_nothing_is_left(job)
        self.slurm.start_now(job)

    def processes(self) -> list[str]:
        """Return the command lines of the nodes' processes, but for those that are always there."""
        lines = [line for node in (2, 3) for line in self.slurm.hosts[node].run("ps", "-eo", "args=").splitlines()]
        always = ("bash -c hostname", "sleep 3600", "slurmd", "ps -eo")
        return [line for line in lines if not line.startswith(always)]

    def wait_until_nothing_is_left(self, job: str) -> None:
        self.slurm.wait(lambda: not self.processes(), job, SECONDS)
        assert not list(Path("/tmp").glob(f"cxrdist-ray-{job}*"))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    root = tmp_path_factory.mktemp("s")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        shards = make_shards(root / "data")
        every = {"evaluate_every": 50, "checkpoint_every": 10}
        write_yaml(finetune_tree(shards, steps=STEPS, **every), root / "run.yaml")
        write_yaml(study_tree({"a": shards}, seeds=[0]), root / "study.yaml")
        (root / "slurm").mkdir()
        with slurm_lab.slurm(root / "slurm", 2) as slurm:
            yield Site(root, slurm)


@pytest.fixture(scope="module")
def undisturbed(site: Site) -> dict[str, torch.Tensor]:
    """Return the weights of a training that a rendered script ran to its end at one go."""
    out, script = site.root / "undisturbed", site.root / "job.sbatch"
    resources = ("--nodes", "2", "--gpus-per-node", "1", "--cpus-per-node", "1", "--sbatch", "comment=tiny")
    render = ("launch", "render", "slurm", site.root / "run.yaml", *resources, "--run-out", out, "--out", script)
    subprocess.run([sys.executable, "-m", "cxrdist", *map(str, render)], check=True, capture_output=True)
    for _ in range(2):  # the second time there is nothing to do
        job = site.slurm.submit(script)
        assert site.slurm.wait_for_end(job) == ("COMPLETED", "0:0"), site.slurm.said(job)
    assert site.slurm.job(job)["JobName"] == "cxrdist-run"
    assert "This run has ended before" in site.slurm.said(job)
    assert [start["world_size"] for start in lines(out / "starts.jsonl")] == [2]
    return weights(out)


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model/model.safetensors")


def steps_made(out: Path) -> int:
    return len([line for line in lines(out / "metrics.jsonl") if line["kind"] == "train"])


def lines(file: Path) -> list[dict[str, object]]:
    whole = file.read_text().split("\n")[:-1] if file.is_file() else []
    return [json.loads(line) for line in whole]


@under_slurm
@pytest.mark.parametrize("script", ["train.sbatch", "train-torchrun.sbatch"])
def test_a_training_goes_by_way_of_the_queue_to_the_same_weights(site, undisturbed, script):
    out = site.root / script
    job = site.submit(script, "train", site.root / "run.yaml", "--out", out)
    site.slurm.wait(lambda: steps_made(out) >= 5, job, SECONDS)
    site.go_by_way_of_the_queue(job)
    assert site.slurm.wait_for_end(job) == ("COMPLETED", "0:0"), site.slurm.said(job)
    assert site.slurm.job(job)["Restarts"] == "1"
    steps = [start["step"] for start in lines(out / "starts.jsonl")]
    assert len(steps) == 2
    assert steps[1] >= 5
    assert site.slurm.said(job).count("with a checkpoint. Continue with --resume auto.") == 1
    for name, value in undisturbed.items():
        assert torch.equal(value, weights(out)[name]), name
    site.wait_until_nothing_is_left(job)


@under_slurm
@pytest.mark.parametrize(
    ("script", "how", "state"),
    [
        ("train.sbatch", (), "CANCELLED"),
        pytest.param("train.sbatch", ("--signal=TERM",), "FAILED", marks=pytest.mark.long),
        pytest.param("train-torchrun.sbatch", ("--signal=TERM",), "FAILED", marks=pytest.mark.long),
    ],
)
def test_a_cancelled_training_leaves_a_checkpoint_and_is_not_queued_again(site, script, how, state):
    out = site.root / f"cancelled-{script}{''.join(how)}"
    job = site.submit(script, "train", site.root / "run.yaml", "--out", out)
    site.slurm.wait(lambda: steps_made(out) >= 5, job, SECONDS)
    site.slurm.run("scancel", *how, job)
    site.wait_until_nothing_is_left(job)
    assert site.slurm.wait_for_end(job)[0] == state, site.slurm.said(job)
    step = steps_made(out)
    assert (out / f"checkpoints/step-{step:08}").is_dir(), site.slurm.said(job)
    assert "Back into the queue" not in site.slurm.said(job)


@under_slurm
def test_a_training_that_fails_ends_its_job_with_its_code(site):
    job = site.submit("train.sbatch", "train", site.root / "none.yaml", "--out", site.root / "none")
    assert site.slurm.wait_for_end(job) == ("FAILED", "2:0"), site.slurm.said(job)
    assert "none.yaml" in site.slurm.said(job)


@under_slurm
@pytest.mark.parametrize("script", NAMES)
def test_what_is_missing_is_said_in_a_sentence(site, script):
    words = site.submit(script)
    bare = site.slurm.submit(*TWO_RANKS, "--export=PATH=/usr/bin:/bin", SCRIPTS / script, "train", "a.yaml")
    for job, sentence in ((words, "Error: The "), (bare, "must be in PATH, got none on host2.")):
        assert site.slurm.wait_for_end(job) == ("FAILED", "2:0"), site.slurm.said(job)
        assert sentence in site.slurm.said(job)
        assert len(site.slurm.said(job).splitlines()) == 1


@under_slurm
def test_a_study_goes_by_way_of_the_queue_beside_another_does_everything_once_and_leaves_nothing(site):
    out = site.root / "study"
    job = site.submit("study-ray.sbatch", "study", "run", site.root / "study.yaml", "--out", out)
    site.slurm.wait(lambda: events(out)["done"], job, SECONDS)
    folders = sorted(Path("/tmp").glob(f"cxrdist-ray-{job}.*"))
    assert len(folders) == 2
    assert {folder.stat().st_mode & 0o777 for folder in folders} == {0o700}
    token, running = (folders[0] / "token").read_text().strip(), site.processes()
    assert len(token) == 64
    assert not [line for line in running if token in line]
    raylets = [line for line in running if "--static_resource_list" in line]
    assert len(raylets) == 2
    assert all("CPU,1," in line and "GPU,1," in line for line in raylets), raylets
    site.go_by_way_of_the_queue(job)
    assert 0 < events(out)["done"] < 3
    beside = site.submit("study-ray.sbatch", "study", "run", site.root / "none.yaml", "--out", site.root / "none")
    assert site.slurm.wait_for_end(beside) == ("FAILED", "2:0"), site.slurm.said(beside)
    assert "Dashboard: " in site.slurm.said(beside), "its Ray was not there on both nodes"
    began = site.slurm.job(beside)["StartTime"]
    assert site.slurm.wait_for_end(job) == ("COMPLETED", "0:0"), site.slurm.said(job)
    assert began < site.slurm.job(job)["EndTime"], "they were not there at once"
    done = Counter(line["name"] for line in lines(out / "ledger.jsonl") if line["event"] == "done")
    assert len(done) == 3
    assert set(done.values()) == {1}
    assert (out / "report/index.html").is_file()
    site.wait_until_nothing_is_left(job)
    site.wait_until_nothing_is_left(beside)


@under_slurm
@pytest.mark.long
def test_a_cancelled_study_leaves_nothing(site):
    out = site.root / "ended"
    job = site.submit("study-ray.sbatch", "study", "run", site.root / "study.yaml", "--out", out)
    site.slurm.wait(lambda: events(out)["started"], job, SECONDS)
    site.slurm.run("scancel", job)
    assert site.slurm.wait_for_end(job)[0] == "CANCELLED", site.slurm.said(job)
    site.wait_until_nothing_is_left(job)


def events(out: Path) -> Counter[object]:
    return Counter(line["event"] for line in lines(out / "ledger.jsonl"))
