"""Runs as people start them: one process, or two under torchrun; each costs the seconds that importing torch takes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import finetune_tree, make_shards
from safetensors.torch import load_file

from cxrdist.config import write_yaml
from cxrdist.finetune.config import FinetuneConfig
from cxrdist.finetune.run import finetune
from cxrdist.world import World

pytestmark = [pytest.mark.slow, pytest.mark.skipif(torch.cuda.is_available(), reason="compares runs on a CPU")]


@pytest.fixture(scope="module")
def run_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_yaml(finetune_tree(make_shards(folder), steps=12), folder / "run.yaml")
    return folder / "run.yaml"


def start(*command: object) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-m", *map(str, command)], text=True, env=environment, **pipes)


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model/model.safetensors")


def test_torchrun_with_two_processes_trains_like_one_and_prints_only_the_result(run_file, tmp_path):
    launch = ("torch.distributed.run", "--standalone", "--nproc-per-node", 2, "-m", "cxrdist")
    done = start(*launch, "train", run_file, "--out", tmp_path / "two", "--json")
    said, errors = done.communicate(timeout=120)
    assert done.returncode == 0, errors
    assert json.loads(said)["out"] == str(tmp_path / "two")
    finetune(FinetuneConfig.read(run_file), tmp_path / "one", world=World())
    one = weights(tmp_path / "one")
    for name, value in weights(tmp_path / "two").items():
        torch.testing.assert_close(value, one[name], rtol=2e-4, atol=2e-4)


def test_a_terminated_command_says_how_to_go_on_and_goes_on(run_file, tmp_path):
    command = ("cxrdist", "train", run_file, "--out", tmp_path / "run", "--set", "train.steps=400", "--json")
    first = start(*command)
    metrics = tmp_path / "run/metrics.jsonl"
    while not (metrics.is_file() and metrics.stat().st_size):
        assert first.poll() is None, first.communicate()
        time.sleep(0.05)
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
    assert json.loads(said)["steps"] == 400
    tree = finetune_tree(Path(FinetuneConfig.read(run_file).shards), steps=400)
    finetune(FinetuneConfig.build(tree, where="t"), tmp_path / "whole", world=World())
    undisturbed = weights(tmp_path / "whole")
    for name, value in weights(tmp_path / "run").items():
        assert torch.equal(value, undisturbed[name]), name
