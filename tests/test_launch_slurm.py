"""The batch scripts of ``launch/slurm`` under a real SLURM: two nodes with GPUs that are none."""

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

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("slurm"),
    pytest.mark.timeout(1500),
    pytest.mark.skipif(bool(slurm_lab.why_not()), reason=slurm_lab.why_not()),
    pytest.mark.skipif(torch.cuda.is_available(), reason="compares runs on a CPU"),
]
SCRIPTS = Path(__file__).parents[1] / "launch/slurm"
TWO_RANKS = ("--nodes=2", "--gpus-per-node=1", "--cpus-per-gpu=1")
STEPS = 150
SECONDS = 600
"""What a shared machine may need for what takes it ten alone."""


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
        self.slurm.wait(lambda: not self.processes(), job)
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


def test_a_cancelled_training_leaves_a_checkpoint_and_is_not_queued_again(site):
    out = site.root / "cancelled"
    job = site.submit("train.sbatch", "train", site.root / "run.yaml", "--out", out)
    site.slurm.wait(lambda: steps_made(out) >= 5, job, SECONDS)
    site.slurm.run("scancel", job)
    site.wait_until_nothing_is_left(job)
    assert site.slurm.wait_for_end(job)[0] == "CANCELLED", site.slurm.said(job)
    step = steps_made(out)
    assert (out / f"checkpoints/step-{step:08}").is_dir(), site.slurm.said(job)
    assert "Back into the queue" not in site.slurm.said(job)


def test_a_training_that_fails_ends_its_job_with_its_code(site):
    job = site.submit("train.sbatch", "train", site.root / "none.yaml", "--out", site.root / "none")
    assert site.slurm.wait_for_end(job) == ("FAILED", "2:0"), site.slurm.said(job)
    assert "none.yaml" in site.slurm.said(job)


@pytest.mark.parametrize("script", ["train.sbatch", "train-torchrun.sbatch", "study-ray.sbatch"])
def test_what_is_missing_is_said_in_a_sentence(site, script):
    words = site.submit(script)
    bare = site.slurm.submit(*TWO_RANKS, "--export=PATH=/usr/bin:/bin", SCRIPTS / script, "train", "a.yaml")
    for job, sentence in ((words, "Error: The "), (bare, "must be in PATH, got none on host2.")):
        assert site.slurm.wait_for_end(job) == ("FAILED", "2:0"), site.slurm.said(job)
        assert sentence in site.slurm.said(job)
        assert len(site.slurm.said(job).splitlines()) == 1


def test_a_study_goes_by_way_of_the_queue_does_everything_once_and_leaves_nothing(site):
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
    assert site.slurm.wait_for_end(job) == ("COMPLETED", "0:0"), site.slurm.said(job)
    done = Counter(line["name"] for line in lines(out / "ledger.jsonl") if line["event"] == "done")
    assert len(done) == 3
    assert set(done.values()) == {1}
    assert (out / "report/index.html").is_file()
    site.wait_until_nothing_is_left(job)


@pytest.mark.parametrize("cancelled", [False, True])
def test_a_study_that_fails_or_is_cancelled_leaves_nothing(site, cancelled):
    out, study = site.root / f"ended-{cancelled}", "study.yaml" if cancelled else "none.yaml"
    job = site.submit("study-ray.sbatch", "study", "run", site.root / study, "--out", out)
    if cancelled:
        site.slurm.wait(lambda: events(out)["started"], job, SECONDS)
        site.slurm.run("scancel", job)
    ended = site.slurm.wait_for_end(job)
    assert ended[0] == "CANCELLED" if cancelled else ended == ("FAILED", "2:0"), site.slurm.said(job)
    site.wait_until_nothing_is_left(job)


def events(out: Path) -> Counter[object]:
    return Counter(line["event"] for line in lines(out / "ledger.jsonl"))
