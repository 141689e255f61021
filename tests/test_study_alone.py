"""One training on a Ray cluster is the run that torchrun makes, whatever dies under it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import pytest
import torch
from helpers import finetune_tree, make_shards
from machines import Machines, machines

from cxrdist.cli.main import run
from cxrdist.cli.submitting import named_in_run
from cxrdist.config import Config, write_yaml
from cxrdist.finetune.config import FinetuneConfig
from cxrdist.pretrain.config import PretrainConfig
from cxrdist.study.alone import how_on, note, relative_paths
from cxrdist.study.config import StudyConfig
from cxrdist.study.resources import TrialResources
from cxrdist.study.room import no_room
from cxrdist.study.sweep.config import SweepConfig
from cxrdist.study.watching import Progress
from cxrdist.train.checkpoints import checkpoint_name
from cxrdist.train.places import RUN_PATHS, WEIGHTS, is_path_of_study, path_of_run

slow = [
    pytest.mark.slow,
    pytest.mark.skipif(torch.cuda.is_available(), reason="compares runs on a CPU"),
    pytest.mark.xdist_group("alone"),
]
STEPS = 200
SECONDS = 240
"""What a shared machine may need for what takes it ten seconds alone."""
FOREIGN = ("SLURM_", "PMI", "OMPI_", "RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "TORCHELASTIC_")


# What is said before anything begins.


@pytest.fixture
def refusal(tmp_path, capsys, monkeypatch):
    """Return a function that gives `cxrdist train` options in this process, and returns how they are refused."""
    write_yaml(finetune_tree(Path("shards")), tmp_path / "run.yaml")
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith(FOREIGN)]:
        monkeypatch.delenv(name)

    def refused(*options: object) -> str:
        with pytest.raises(SystemExit) as ended:
            run(["train", "run.yaml", *map(str, options)])
        said = capsys.readouterr()
        assert (ended.value.code, said.out, said.err.count("\n")) == (2, "", 1), said
        return str(said.err)

    return refused


@pytest.mark.parametrize(
    "option", [("--workers", 2), ("--gpus-per-worker", 1), ("--cpus-per-worker", 2), ("--placement", "spread"),
               ("--retries", 0), ("--wait", 9), ("--ship-code",)],
)  # fmt: skip
def test_what_is_of_a_cluster_needs_an_address_and_torchrun_is_the_other_way(refusal, option):
    said = refusal(*option)
    assert said.startswith(f"Error: `{option[0]}` must come with `--address`, got none.")
    assert "torchrun --nproc-per-node N -m cxrdist" in said


def test_an_address_needs_the_number_of_workers(refusal):
    assert "must come with `--workers`" in refusal("--address", "auto")


def test_a_placement_that_there_is_not_is_refused_with_those_there_are(refusal):
    said = refusal("--address", "auto", "--workers", 2, "--placement", "sprad")
    assert "`--placement` must be one of pack, spread, got 'sprad'. Did you mean 'spread'?" in said


def test_a_replay_is_of_this_machine(refusal):
    assert "`--replay` must not come with `--address`" in refusal("--address", "auto", "--workers", 2, "--replay")


def test_ranks_of_a_launcher_start_no_ranks_of_ray(refusal, monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "none"}.items():
        monkeypatch.setenv(name, value)
    said = refusal("--address", "auto", "--workers", 2)
    assert "`--address` must be given to one process, got 2 ranks of torchrun." in said


def test_a_folder_with_a_run_is_refused_before_the_cluster_is_looked_for(refusal, tmp_path):
    (tmp_path / "out" / "checkpoints" / "step-000002").mkdir(parents=True)
    (tmp_path / "out" / "config.yaml").touch()
    said = refusal("--address", "127.0.0.1:1", "--workers", 2, "--out", "out")
    assert "`--out` must be a new folder" in said and "--resume auto" in said


def test_a_command_for_another_machine_names_its_paths_whole(refusal):
    said = refusal("--address", "http://127.0.0.1:1", "--workers", 2, "--set", "model.weights=w.pt")
    assert "got `--out` 'runs/run', `shards` 'shards', `model.weights` 'w.pt'." in said


def test_deepspeeds_file_goes_along_with_a_submitted_run_and_weights_that_timm_knows_have_no_path():
    tree = finetune_tree(Path("/data/shards"), deepspeed="ds/own.json")
    tree["model"]["weights"] = "timm:vit_base_patch14_dinov2.lvd142m"
    tree = FinetuneConfig.build(tree, where="run").tree()
    assert named_in_run(tree) == ({"`shards`": ["/data/shards"]}, [Path("ds/own.json")])
    assert relative_paths(tree) == ["`train.deepspeed` 'ds/own.json'"]


def paths_in(config: type[Config], prefix: str = "") -> Iterator[str]:
    """Yield the dotted names of what a configuration declares to be a path."""
    for name, value in config.model_fields.items():
        todo = [value.annotation]
        while todo:
            one = todo.pop()
            todo += get_args(one)
            if one is Path:
                yield f"{prefix}{name}"
            elif isinstance(one, type) and issubclass(one, Config):
                yield from paths_in(one, f"{prefix}{name}.")


def test_every_path_of_a_run_or_a_study_is_in_the_one_list_of_them():
    declared = {*paths_in(FinetuneConfig), *paths_in(PretrainConfig)}
    assert declared == {*RUN_PATHS} - {WEIGHTS} and declared
    for config in (StudyConfig, SweepConfig):
        for name in paths_in(config):
            assert path_of_run(name) or is_path_of_study(name), name
    assert path_of_run("stages.a.pretrain.watch.shards") == "watch.shards"
    assert path_of_run("run.shards") == "shards" and path_of_run("strategies.a.set.seed") is None


def test_who_stops_a_run_that_waits_is_told_how_it_goes_on(tmp_path):
    assert how_on(tmp_path, None) == "The same command begins again."
    again = "The same command with `--resume auto` goes on."
    assert how_on(tmp_path, "auto") == again
    (tmp_path / "checkpoints" / "step-000002").mkdir(parents=True)
    (tmp_path / "config.yaml").touch()
    assert how_on(tmp_path, None) == again


def test_a_run_without_room_is_told_what_to_change_on_its_command_line():
    said = no_room(TrialResources(workers=4), [{"CPU": 2.0}], subject="The run", way_out="Lower --workers.")
    assert said == (
        "The run must fit on the cluster, got 4 workers of 1 CPUs and 0 GPUs for 1 machine (2 CPUs and 0 GPUs). "
        "Lower --workers."
    )


def test_progress_names_what_is_known_and_no_more():
    assert note(Progress("run")) == ""
    assert note(Progress("run", loss=0.5, images_per_second=1234.5, value=0.8)) == (
        "loss 0.5000, 1,234 img/s, val AUROC 0.800"
    )


# On a cluster of one machine with two CPUs.


@dataclass(frozen=True)
class Site:
    root: Path
    cluster: Machines
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, module: str, *words: object) -> subprocess.Popen[str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
        process = subprocess.Popen(
            [sys.executable, "-m", module, *map(str, words)],
            cwd=self.root,  # paths are relative to it, for the ranks as well
            env=inherited | self.cluster.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return process

    def train(self, out: str, *words: object, workers: int = 2) -> subprocess.Popen[str]:
        address = ("--address", self.cluster.address, "--workers", workers)
        return self.start("cxrdist", "train", "run.yaml", "--out", out, *address, *words)

    def result(self, out: str) -> tuple[bytes, ...]:
        """Return what is learnt, and what of the folder does not tell of times and places."""
        files = ("model/model.safetensors", "config.yaml", "predictions/val.parquet")
        return tuple((self.root / out / file).read_bytes() for file in files)

    def has_checkpoint(self, out: str) -> bool:
        return any((self.root / out / "checkpoints").glob("step-*"))

    def has_nothing_held(self) -> bool:
        """Return whether, in a while, nobody holds anything of the cluster any more."""
        end = time.monotonic() + SECONDS
        while held := any(self.cluster.held().values()):
            if time.monotonic() > end:
                break
            time.sleep(0.1)
        return not held


def ended(process: subprocess.Popen[str], code: int = 0) -> tuple[str, str]:
    out, err = process.communicate(timeout=SECONDS)
    assert process.returncode == code, err
    assert "Traceback" not in err
    return out, err


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    root = tmp_path_factory.mktemp("alone")
    shards = make_shards(root / "data").relative_to(root)
    write_yaml(finetune_tree(shards, steps=STEPS, evaluate_every=50, checkpoint_every=10), root / "run.yaml")
    with machines(1) as cluster:
        yield Site(root, cluster)
    assert cluster.processes() == []


@pytest.fixture(scope="module")
def torchrun(site: Site) -> tuple[bytes, ...]:
    """Return the result of the same run under torchrun."""
    words = ("--standalone", "--nproc-per-node", 2, "-m", "cxrdist", "train", "run.yaml", "--out", "torchrun")
    ended(site.start("torch.distributed.run", *words))
    return site.result("torchrun")


@pytest.fixture
def leftovers(site: Site) -> Iterator[None]:
    """End what a test that failed has left behind."""
    yield
    for process in site.started:
        if process.poll() is None:
            process.kill()
            process.communicate()
    site.started.clear()


@pytest.mark.timeout(900)
@pytest.mark.usefixtures("leftovers")
class TestOnACluster:
    pytestmark = slow

    def test_a_worker_killed_midway_costs_no_more_than_time(self, site, torchrun):
        process = site.train("killed", "--json")
        wait_for(lambda: site.has_checkpoint("killed") and site.cluster.workers(), process)
        with suppress(ProcessLookupError):
            os.kill(max(site.cluster.workers()), signal.SIGKILL)
        out, err = ended(process)
        told = json.loads(out)
        assert (told["out"], told["finished_before"], told["steps"]) == ("killed", False, STEPS)
        assert "The run goes on from its last checkpoint, attempt 2 of 3." in err
        assert "val AUROC" in err and f"{STEPS}/{STEPS} steps" in err
        assert site.result("killed") == torchrun
        environment = json.loads((site.root / "killed" / "environment.json").read_text())
        assert environment["world_size"] == 2
        assert site.has_nothing_held()

    def test_a_signal_leaves_a_checkpoint_from_which_the_run_goes_on(self, site, torchrun):
        process = site.train("stopped")
        wait_for(lambda: site.has_checkpoint("stopped"), process)
        process.send_signal(signal.SIGTERM)
        _, err = ended(process, 128 + signal.SIGTERM)
        last = err.splitlines()[-1]
        step = int(last.removeprefix("Stopped at step ").split()[0])
        assert last == f"Stopped at step {step} with a checkpoint. Continue with --resume auto."
        assert (site.root / "stopped" / "checkpoints" / checkpoint_name(step)).is_dir() and 0 < step < STEPS
        assert site.has_nothing_held()
        ended(site.train("stopped", "--resume", "auto"))
        assert site.result("stopped") == torchrun

    def test_what_does_not_fit_is_refused_after_the_time_it_may_wait(self, site):
        _, err = ended(site.train("large", "--wait", 8, workers=3), 1)
        assert "The run waits for machines, at most 8 s: there is no room yet for 3 workers of 1 CPUs" in err
        assert err.splitlines()[-1].startswith("Error: The run must fit on the cluster, got 3 workers of 1 CPUs")
        assert not (site.root / "large").exists()
        assert site.has_nothing_held()
