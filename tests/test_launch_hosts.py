"""One run on two hosts, started as people start it: all ways end with the same weights."""

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import lab
import psutil
import pytest
import ssh_lab
import torch
from helpers import finetune_tree, make_shards
from safetensors.torch import load_file

from cxrdist.config import shipped, write_yaml
from cxrdist.launch.hostfile import render_hostfile
from cxrdist.launch.request import Request
from cxrdist.launch.torchrun import render_torchrun

STEPS = 60
SECONDS = 200
"""What a shared machine may need for what takes it seconds alone."""
BIN = Path(sys.executable).parent
TORCHRUN = shipped("launch") / "torchrun/train.sh"
HOSTFILE = shipped("launch") / "hostfile/train.sh"
GPUS_HIDDEN = {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
Weights = dict[str, torch.Tensor]


def on_hosts(test):
    """Mark a test that needs several of them."""
    for mark in (
        pytest.mark.slow,
        pytest.mark.timeout(600),
        pytest.mark.skipif(bool(lab.why_not()), reason=lab.why_not()),
        pytest.mark.xdist_group("hosts"),
    ):
        test = mark(test)
    return test


def stubs(folder: Path, **lines: str) -> dict[str, str]:
    """Return an environment with programs in `folder`, each of one line of a shell, first in PATH."""
    for name, line in lines.items():
        (folder / name).write_text(f"#!/bin/bash\n{line}\n", encoding="ascii")
        (folder / name).chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


@pytest.mark.parametrize(
    "words", [("it's.yaml",), ("x'; touch owned; echo '",), ("run.yaml", "--set", "name=$(touch owned)")]
)
def test_words_that_a_shell_would_change_are_refused_before_a_host_hears_of_them(tmp_path, words):
    environment = stubs(tmp_path, ssh='touch asked; exec sh -c "${!#}"', pdsh="", deepspeed="")
    (tmp_path / "hosts").write_text("host1 slots=1\n", encoding="ascii")
    told = subprocess.run(
        [HOSTFILE, "hosts", "train", *words], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert told.returncode == 2
    assert told.stderr.startswith("Error: Words must be one line without '")
    assert len(told.stderr.splitlines()) == 1
    assert not (tmp_path / "asked").exists()
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(("given", "limit"), [({}, 600), ({"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "20"}, 20)])
def test_torchrun_gives_its_processes_time_for_a_checkpoint(tmp_path, given, limit):
    environment = stubs(tmp_path, torchrun="env") | {"GPUS_PER_NODE": "1", **given}
    told = subprocess.run([TORCHRUN, "train", "run.yaml"], env=environment, capture_output=True, text=True, check=True)
    assert f"TORCH_ELASTIC_SHUTDOWN_TIMEOUT={limit}\n" in told.stdout


@pytest.fixture(scope="module")
def run_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "run.yaml"
    write_yaml(finetune_tree(make_shards(file.parent), steps=STEPS, evaluate_every=30, checkpoint_every=5), file)
    return file


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[lab.Lab]:
    with lab.lab(tmp_path_factory.mktemp("lab"), 2) as two:
        yield two


@pytest.fixture(scope="module")
def ssh(hosts: lab.Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an `ssh` that opens both hosts."""
    if ssh_lab.why_not():
        pytest.skip(ssh_lab.why_not())
    return ssh_lab.start_sshd(tmp_path_factory.mktemp("keys") / "ssh", hosts[1], hosts[2])


@pytest.fixture(scope="module")
def reference(run_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Weights:
    """Return the weights of two processes on one machine."""
    out = tmp_path_factory.mktemp("reference") / "run"
    command = ["torchrun", "--standalone", "--nproc-per-node", "2", "-m", "cxrdist", "train", run_file, "--out", out]
    quiet = os.environ | settings() | {"GLOO_SOCKET_IFNAME": "lo"}
    subprocess.run(list(map(str, command)), env=quiet, check=True, timeout=SECONDS, capture_output=True)
    return weights(out, launcher="torchrun")


def settings(**extra: object) -> dict[str, str]:
    """Return the variables of a run on CPUs with the programs of this environment."""
    mine = {**GPUS_HIDDEN, "OMP_NUM_THREADS": 1, "PATH": f"{BIN}:{os.environ['PATH']}", **extra}
    return {name: str(value) for name, value in mine.items()}


def start(host: lab.Host, *command: str | Path, **extra: object) -> "subprocess.Popen[str]":
    return host.start(*command, env=settings(**extra), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def end(*processes: "subprocess.Popen[str]") -> list[str]:
    """Wait until all have ended, well; return what each has printed."""
    said = [process.communicate(timeout=SECONDS)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(said)
    return said


def weights(out: Path, *, launcher: str) -> Weights:
    """Return the weights of a run that two ranks began, and `launcher` started."""
    facts = json.loads((out / "environment.json").read_text())
    assert (facts["world_size"], facts["launcher"]) == (2, launcher)
    return load_file(out / "model/model.safetensors")


def assert_same(one: Weights, other: Weights) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def wait_for_step(out: Path, step: int, *processes: "subprocess.Popen[str]") -> None:
    """Wait until a run has logged `step`."""
    metrics = out / "metrics.jsonl"
    while True:
        for process in processes:
            assert process.poll() is None, process.communicate()
        whole = metrics.read_text().splitlines()[:-1] if metrics.is_file() else []
        if whole and json.loads(whole[-1])["step"] >= step:
            return
        time.sleep(0.02)


def rank(number: int, out: Path) -> psutil.Process:
    """Return the process that is a rank of the run in `out`, on whichever host."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("RANK") == str(number) and str(out) in process.cmdline():
                return process
    raise AssertionError(f"no rank {number} of {out}")


def starts(out: Path) -> list[tuple[int, int]]:
    """Return (step, world size) at each start of a run."""
    lines = [json.loads(line) for line in (out / "starts.jsonl").read_text().splitlines()]
    return [(line["step"], line["world_size"]) for line in lines]


def assert_close(one: Weights, other: Weights) -> None:
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=1e-3, atol=1e-3)


def request(run_file: Path, out: Path, *hosts: str) -> Request:
    """Return one rank on each of two hosts, without GPUs, with words that shells and pdsh would change."""
    options = ("--set", "optim.betas=[0.9,0.999]", "--set", "optim.betas=[0.9, 0.999]")
    return Request(
        kind="train", file=run_file, text=run_file.read_text(), out=out, here=run_file.parent, bin=BIN,
        nodes=2, gpus_per_node=0, ranks_per_node=1, cpus_per_node=1, options=options, hosts=hosts,
    )  # fmt: skip


@on_hosts
def test_torchrun_on_two_hosts_trains_as_on_one(hosts, run_file, reference, tmp_path):
    out = tmp_path / "run"
    line = (TORCHRUN, "train", run_file, "--out", out)
    end(*(start(hosts[number], *line, NODES=2, GPUS_PER_NODE=1, HEAD="host1") for number in (1, 2)))
    assert_same(weights(out, launcher="torchrun"), reference)


@on_hosts
def test_deepspeed_over_ssh_is_stopped_by_ctrl_c_goes_on_and_trains_as_on_one_host(
    hosts, ssh, run_file, reference, tmp_path
):
    out, file = tmp_path / "run", tmp_path / "train.sh"
    file.write_text(render_hostfile(request(run_file, out, "host1", "host2")), encoding="utf-8")
    job = start(hosts[1], "setsid", "bash", file, PATH=f"{ssh}:{os.environ['PATH']}")
    wait_for_step(out, 8, job)
    script = next(one for one in psutil.Process(job.pid).children(recursive=True) if one.cmdline()[:1] == ["bash"])
    other = rank(1, out)
    other.suspend()  # or a fast machine would be through before the signal has come by ssh
    os.killpg(script.pid, signal.SIGINT)
    time.sleep(3)
    other.resume()
    said, _ = job.communicate(timeout=SECONDS)
    assert job.returncode == 128 + signal.SIGINT, said
    assert "with a checkpoint. Continue with --resume auto." in said
    end(start(hosts[1], "bash", file, PATH=f"{ssh}:{os.environ['PATH']}"))
    assert starts(out)[1][0] >= 8, "it began anew"
    assert_same(weights(out, launcher="deepspeed"), reference)


@on_hosts
def test_ray_on_two_hosts_trains_as_torchrun_on_one(run_file, reference, tmp_path):
    out, token = tmp_path / "run", tmp_path / "token"
    token.write_text(secrets.token_hex(32), encoding="ascii")
    token.chmod(0o600)
    mode = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": token,
        "RAY_USAGE_STATS_ENABLED": 0,
        "RAY_worker_niceness": 0,
    }
    machine = ("--num-cpus=1", "--object-store-memory=80000000", "--disable-usage-stats")
    with lab.lab(tmp_path, 2) as hosts:
        head, other = hosts[1], hosts[2]
        address = f"{head.address}:6379"
        at = f"--node-ip-address={head.address}"
        end(start(head, "ray", "start", "--head", at, "--port=6379", "--include-dashboard=false", *machine, **mode))
        at = f"--node-ip-address={other.address}"
        end(start(other, "ray", "start", f"--address={address}", at, *machine, **mode))
        place = ("--address", address, "--workers", "2", "--placement", "spread")  # each has room for one
        end(start(head, "cxrdist", "train", run_file, "--out", out, *place, **mode))
    assert_same(weights(out, launcher="ray"), reference)


@on_hosts
@pytest.mark.long
def test_an_elastic_run_goes_on_without_the_host_that_lost_power(run_file, reference, tmp_path):
    out, file = tmp_path / "run", tmp_path / "train.sh"
    file.write_text(render_torchrun(request(run_file, out)), encoding="utf-8")
    elastic = {"NODES": "1:2", "HEAD": "host1", "PET_RDZV_CONF": "last_call_timeout=10"}
    with lab.lab(tmp_path, 2) as hosts:
        one, two = (start(hosts[number], "bash", file, **elastic) for number in (1, 2))
        wait_for_step(out, 8, one)
        hosts[2].kill()
        end(one)
        two.wait()
    assert [world for _, world in starts(out)] == [2, 1]
    assert starts(out)[1][0] >= 5, "it began anew"
    assert_close(weights(out, launcher="torchrun"), reference)


@on_hosts
def test_a_host_that_ssh_cannot_reach_or_that_shares_no_files_is_named(hosts, ssh, run_file, tmp_path):
    hostfile = tmp_path / "hosts"
    for lines, run, problem in [
        ("host1 slots=1\nhost3 slots=1\n", run_file, "ssh must reach every host without a password, got 'ssh: "),
        ("host1 slots=1\nhost2\n", run_file, "must be a host and its slots, got 'host2 '"),
        ("host2 slots=1\n", "nowhere.yaml", "Every host must have the run's file nowhere.yaml in"),
    ]:
        hostfile.write_text(lines, encoding="ascii")
        refused = start(hosts[1], HOSTFILE, hostfile, "train", run, PATH=f"{ssh}:{BIN}:{os.environ['PATH']}")
        said, _ = refused.communicate(timeout=SECONDS)
        assert refused.returncode == 2
        assert said.startswith("Error: ")
        assert problem in said
        assert len(said.splitlines()) == 1
