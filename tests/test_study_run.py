"""Studies on a Ray cluster of their own, through the command line, as users start them."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
from helpers import make_shards, study_tree

from cxrdist.config import override, read_yaml, write_yaml
from cxrdist.finetune.config import FinetuneConfig
from cxrdist.finetune.run import finetune, open_test
from cxrdist.pretrain.config import PretrainConfig
from cxrdist.pretrain.run import pretrain
from cxrdist.study.config import StudyConfig
from cxrdist.study.plan import plan_study
from cxrdist.study.run import study_status
from cxrdist.world import World

pytestmark = pytest.mark.xdist_group("studies")
GOOD = ("random--a--seed0", "ssl--a--seed0")
LONG = {"recipe__train__steps": 100, "recipe__train__checkpoint_every": 5, "recipe__train__evaluate_every": 50}


@dataclass(frozen=True)
class Site:
    """A folder with shards, and an environment in which Ray's token and our keys stay in it."""

    root: Path
    shards: dict[str, Path]

    def write(self, name: str, only: tuple[str, ...] = (), **changes: object) -> Path:
        file = self.root / f"{name}.yaml"
        tree = study_tree(self.shards, targets=["a"], **changes)
        if name == "failing":
            tree = override(tree, {"stages.broken": {"datasets": ["b"], "train": {"model.backbone": "vit_tinny"}}})
            spoiled = self.root / "spoiled.safetensors"
            spoiled.write_bytes(b"no weights")
            tree["strategies"] |= {"blocked": {"stage": "broken"}, "lost": {"set": {"model.weights": str(spoiled)}}}
        tree["strategies"] = {key: value for key, value in tree["strategies"].items() if key in only or not only}
        write_yaml(tree, file)
        return file

    def start(self, *arguments: object) -> subprocess.Popen:
        environment = os.environ | {
            "HOME": str(self.root / "home"),
            "XDG_DATA_HOME": str(self.root / "home"),
            "OMP_NUM_THREADS": "1",
        }
        return subprocess.Popen(
            [sys.executable, "-m", "cxrdist", "study", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,
        )

    def run(self, *arguments: object) -> "Ended":
        process = self.start(*arguments)
        out, err = process.communicate(timeout=280)
        return Ended(process.returncode, out, err)


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    root = tmp_path_factory.mktemp("study")
    (root / "home").mkdir()
    return Site(root, {name: make_shards(root / name, patients=30, seed=i, name=name) for i, name in enumerate("ab")})


@pytest.fixture(scope="module")
def failing(site: Site) -> Ended:
    """The one run on Ray that the fast tests share: two good cells, a spoiled weight file, a stage that cannot be."""
    return site.run("run", site.write("failing"), "--out", site.root / "out")


def ledger(out: Path) -> list[tuple[str, str]]:
    lines = [json.loads(line) for line in (out / "ledger.jsonl").read_text().splitlines()]
    return [(line["event"], line["name"]) for line in lines]


def predictions(out: Path, cell: str, split: str = "test") -> pd.DataFrame:
    return pd.read_parquet(out / "cells" / cell / "predictions" / f"{split}.parquet")


def run_here(study: Path, out: Path) -> None:
    """Run a study's jobs in this process, one after the other: what a cluster must come to as well."""
    for job in plan_study(StudyConfig.read(study), out).jobs:
        if job.method == "pretrain":
            pretrain(PretrainConfig.build(job.tree, where=job.name), job.folder, world=World())
        else:
            finetune(FinetuneConfig.build(job.tree, where=job.name), job.folder, world=World())
            open_test(job.folder)


def files(out: Path) -> dict[Path, int]:
    kept = [path for name in ("cells", "stages") for path in (out / name).rglob("*") if path.is_file()]
    return {path: path.stat().st_mtime_ns for path in [*kept, out / "ledger.jsonl"]}


def wait_for(condition: Callable[[], bool], process: subprocess.Popen, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def test_each_failure_is_one_sentence_and_the_rest_is_done(failing):
    lines = failing.err.splitlines()
    errors = lines[next(i for i, line in enumerate(lines) if line.startswith("Error: ")) :]
    assert failing.code == 1
    assert "Traceback" not in failing.err
    assert len(errors) == 4
    assert errors[0].startswith("Error: broken failed: `model.backbone` must be a timm model, got 'vit_tinny'.")
    assert errors[1].startswith("blocked--a--seed0 failed: Stage broken failed: `model.backbone` must be")
    assert errors[2].startswith("lost--a--seed0 failed: `model.weights`: A weight file must hold tensors only")
    assert errors[3].startswith("The report names what is missing")


def test_a_cell_starts_after_the_stage_it_needs_and_stages_start_first(site, failing):
    events = ledger(site.root / "out")
    assert events.index(("done", "ssl")) < events.index(("started", "ssl--a--seed0"))
    started = [name for event, name in events if event == "started"]
    assert set(started[:2]) == {"ssl", "broken"}
    assert {name for event, name in events if event == "done"} == {"ssl", *GOOD}
    assert ("started", "blocked--a--seed0") not in events


def test_report_names_the_missing_cells(site, failing):
    headline = pd.read_csv(site.root / "out" / "report" / "headline.csv").set_index("strategy")
    assert headline["status"].to_dict() == {"random": "done", "ssl": "done", "blocked": "missing", "lost": "missing"}
    guards = pd.read_csv(site.root / "out" / "report" / "guards.csv").set_index("name")
    assert not guards.loc["Every cell of the grid has results", "passed"]
    assert guards.loc["Test splits are opened after the step is chosen", "passed"]


def test_dashboard_is_told_and_needs_a_token_and_ray_says_no_more(site, failing):
    assert failing.err.count("Ray dashboard: http://") == 1
    assert (site.root / "home" / ".ray" / "auth_token").is_file()
    assert failing.out == ""
    known = ("jobs are done", "Ray dashboard", "study: ", "failed: ", "The report names")
    assert [line for line in failing.err.splitlines() if not any(part in line for part in known)] == []


def test_no_process_of_the_cluster_is_left(site, failing):
    until = time.monotonic() + 30  # what has been told to end needs a moment on a busy machine
    while (left := processes_of(site)) and time.monotonic() < until:
        time.sleep(0.2)
    assert left == []


def processes_of(site) -> list[psutil.Process]:
    """Return the processes whose home is that of the site."""
    homes = [str(site.root / "home"), str(site.root)]
    everything = psutil.process_iter(["pid", "environ"])
    return [one for one in everything if (one.info["environ"] or {}).get("HOME") in homes]


def test_second_run_repeats_nothing(site, failing):
    out = site.root / "out"
    before = files(out)
    started = time.monotonic()
    again = site.run("run", site.write("good"), "--out", out)
    assert again.code == 0, again.err
    assert files(out) == before
    assert "Ray dashboard" not in again.err, f"no cluster is needed ({time.monotonic() - started:.1f} s)"
    table = again.out.splitlines()
    assert any(line.split()[:2] == ["a", "ssl"] and "[" in line for line in table), again.out
    assert "headline" not in again.out and "\\_" not in again.out
    assert table[-1].startswith("Report: ")


def test_report_again_with_other_redraws_reads_predictions_only(site, failing):
    out = site.root / "out"
    before = files(out)
    again = site.run("report", site.write("good"), "--out", out, "--set", "statistics.n_resamples=40", "--json")
    assert again.code == 0, again.err
    result = json.loads(again.out)
    assert [row["strategy"] for row in result["headline"]] == ["random", "ssl"]
    assert Path(result["report"]).is_file()
    assert files(out) == before


def test_report_of_a_changed_study_takes_no_old_predictions(site, failing):
    changed = site.write("changed", recipe__optim__lr=2e-3)
    again = site.run("report", changed, "--out", site.root / "out")
    assert again.code == 1
    assert again.err.startswith("Error: A report must have finished cells, got none")


def test_status_needs_no_cluster(site, failing):
    status = site.run("status", site.write("failing"), "--out", site.root / "out", "--json")
    states = {row["name"]: row["state"] for row in json.loads(status.out)}
    assert states == {
        "ssl": "done",
        "broken": "failed",
        "random--a--seed0": "done",
        "ssl--a--seed0": "done",
        "blocked--a--seed0": "failed",
        "lost--a--seed0": "failed",
    }


def test_address_without_a_cluster_is_told_at_once(site):
    ended = site.run("run", site.write("good"), "--out", site.root / "nowhere", "--address", "127.0.0.1:9")
    assert ended.code == 1
    assert ended.err.splitlines()[-1].startswith(
        "Error: `--address` must name a running Ray cluster, got '127.0.0.1:9'"
    )


@pytest.mark.parametrize("address", ["localhost", "10.0.0.1:x"])
def test_malformed_address_is_told(site, address):
    ended = site.run("run", site.write("good"), "--out", site.root / "nowhere", "--address", address)
    assert ended.code == 2
    assert "Error: `--address` must be HOST:PORT or `auto`, got" in ended.err


@pytest.mark.slow
@pytest.mark.parametrize(("resource", "amount"), [("workers", 1000), ("gpus_per_worker", 99)])
def test_trial_that_cannot_fit_is_refused(site, resource, amount):
    study = site.write("wide", **{f"resources__{resource}": amount})
    ended = site.run("run", study, "--out", site.root / "wide")
    assert ended.code == 1
    assert ended.err.splitlines()[-1].startswith("Error: A trial must fit on the cluster, got ")


@pytest.mark.slow
def test_jobs_of_equal_content_all_finish_and_one_is_done_again_alone(site):
    study = site.write("equal", stages__same={"datasets": ["a"], "train": {}}, strategies__twin={})
    tree = override(read_yaml(study), {"strategies.staged": {"stage": "same"}})
    del tree["strategies"]["ssl"]
    write_yaml(tree, study)
    out = site.root / "equal"
    assert site.run("run", study, "--out", out).code == 0
    names = {"same", "random--a--seed0", "twin--a--seed0", "staged--a--seed0"}
    assert sorted(ledger(out)) == sorted((event, name) for event in ("started", "done") for name in names)
    (out / "cells" / "twin--a--seed0" / "predictions" / "test.parquet").unlink()
    assert site.run("run", study, "--out", out).code == 0
    assert ledger(out)[8:] == [("started", "twin--a--seed0"), ("done", "twin--a--seed0")]


@pytest.mark.slow
def test_full_disk_ends_the_run_with_one_sentence(site):
    out = site.root / "full"
    out.mkdir()
    (out / "ledger.jsonl").symlink_to("/dev/full")
    ended = site.run("run", site.write("good"), "--out", out)
    assert ended.code == 1
    assert "Traceback" not in ended.err
    assert ended.err.splitlines()[-1].startswith(
        f"Error: The folder must be writable, got 'No space left on device' [{out}]."
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGKILL, -9), pytest.param(signal.SIGINT, 130, marks=pytest.mark.long)]
)
def test_stopped_half_way_runs_only_what_is_missing_and_ends_the_same(site, signum, code):
    study = site.write("long", **LONG, only=("ssl",), statistics__reference="ssl")
    whole, halved = site.root / "whole", site.root / f"halved{code}"
    if not whole.is_dir():
        run_here(study, whole)
    process = site.start("run", study, "--out", halved)
    wait_for(lambda: any(halved.glob("cells/ssl--*/checkpoints/latest")), process)
    if signum == signal.SIGINT:
        os.killpg(process.pid, signum)  # as a terminal does: the cluster's processes hear Ctrl-C too
    else:
        process.send_signal(signum)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert signum == signal.SIGKILL or err.splitlines()[-1].startswith("Interrupted. What is finished stays")
    status = study_status(StudyConfig.read(study), halved)
    assert "ssl" in [job.name for job in status.jobs("done")] and status.jobs("stopped")
    again = site.run("run", study, "--out", halved)
    assert again.code == 0, again.err
    assert ledger(halved).count(("started", "ssl")) == 1
    for split in ("val", "test"):
        pd.testing.assert_frame_equal(predictions(whole, GOOD[1], split), predictions(halved, GOOD[1], split))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_workers_one_of_them_killed_agree_with_one(site):
    changes = LONG | {"only": ("random",)}
    alone, together = site.root / "alone", site.root / "together"
    run_here(site.write("one", **changes), alone)
    process = site.start("run", site.write("two", **changes, resources__workers=2), "--out", together)
    wait_for(lambda: any(together.glob("cells/*/checkpoints/latest")), process)
    (victim,) = (
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if ":1" in " ".join(child.cmdline()) and "random--a--seed0" in " ".join(child.cmdline())
    )
    victim.kill()
    _, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert ledger(together) == [(event, GOOD[0]) for event in ("started", "lost", "started", "done")]
    assert "It goes on from its last checkpoint, attempt 2 of 3." in err
    columns = [name for name in predictions(alone, GOOD[0]) if name.startswith("p_")]
    one, two = (predictions(out, GOOD[0])[columns].to_numpy() for out in (alone, together))
    # Two ranks add in another order and training lets rounding grow: thousandths here, tenths for another seed.
    np.testing.assert_allclose(two, one, rtol=0, atol=2e-2)
