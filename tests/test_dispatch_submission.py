"""A command given on a laptop runs on the head of a cluster, and ends here as it would there."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import study_tree

import cxrdist
from cxrdist.cli.main import run
from cxrdist.cli.submitting import named_in, placed
from cxrdist.config import write_yaml
from cxrdist.dispatch import adaptive, code, submission
from cxrdist.errors import UsageError, UserError
from cxrdist.models.locate import TIMM

WORDS = ["datasets", "nih14", "--json"]

HEAD = """
import socket, sys
from ray.cluster_utils import Cluster

def free():
    with socket.socket() as there:
        there.bind(("127.0.0.1", 0))
        return there.getsockname()[1]

ports = {"dashboard_port": free(), "dashboard_agent_listen_port": free()}  # two clusters of a machine share none
args = {"num_cpus": 2, "object_store_memory": 10**8, "include_dashboard": True}
cluster = Cluster(True, head_node_args=args | ports)
print(cluster.head_node.webui_url, cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""

SPREAD = """
import os, sys, time
import numpy as np
from cxrdist.dispatch.adaptive import adaptive_map
from cxrdist.dispatch.cluster import cluster
from cxrdist.stats.compare import compare
from cxrdist.stats.options import StatisticsOptions
from cxrdist.stats.predictions import Predictions

rng = np.random.default_rng(0)
images = np.array([f"i{n}" for n in range(200)])
patients = np.array([f"p{n}" for n in rng.integers(0, 120, 200)])
truth = (rng.random((200, 2)) < 0.3).astype(float)
files = {
    name: Predictions(images, patients, ("one", "two"), truth, (rng.random((200, 2)) + truth) / 2) for name in "ab"
}
options = StatisticsOptions(n_resamples=600)
alone = compare(files, options=options).to_json()
with cluster(sys.argv[1]):
    import ray

    here, *there = adaptive_map(1, worth_s=0.0)(lambda item: os.getpid(), range(4))
    assert here == os.getpid() and os.getpid() not in there
    assert compare(files, options=options, map=adaptive_map(1, worth_s=0.0)).to_json() == alone
    held = [ray.remote(num_cpus=1)(lambda: time.sleep(60)).remote() for _ in range(2)]
    while ray.available_resources().get("CPU", 0) >= 1:
        time.sleep(0.1)
    assert compare(files, options=options, map=adaptive_map(1, worth_s=0.0, patience_s=0.5)).to_json() == alone
"""


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """A cluster of two cores that asks for a token: its dashboard, its address, and the environment of its owner."""
    folder = tmp_path_factory.mktemp("head")
    python = Path(sys.executable).parent
    own = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "0123456789abcdef" * 4,
        "HOME": str(folder),
        "PATH": f"{python}{os.pathsep}{os.environ['PATH']}",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    command = [sys.executable, "-c", HEAD]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in own.items():
            patch.setenv(name, value)
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with (folder / "errors").open("w") as errors:
            process = subprocess.Popen(command, **pipes, stderr=errors, text=True, cwd=folder)
        line = process.stdout.readline()
        assert line, (folder / "errors").read_text()
        dashboard, address = line.split()
        yield SimpleNamespace(url=f"http://{dashboard}", address=address, folder=folder)
        process.communicate(timeout=60)


@pytest.fixture(scope="module")
def other_code(tmp_path_factory):
    """This machine's code with one more file, for the time of a test."""
    changed = tmp_path_factory.mktemp("changed") / "cxrdist"
    shutil.copytree(code._package(), changed, ignore=shutil.ignore_patterns(*code.NOT_CODE))
    (changed / "findings" / "more.yaml").write_text("{}")
    return changed


@pytest.fixture(scope="module")
def jobs(head, other_code, tmp_path_factory):
    """Commands that run side by side."""
    (head.folder / "facts.yaml").write_text("{}")
    files, keep = {"of/facts.yaml": head.folder / "facts.yaml"}, str(head.folder / "kept here")
    found = {"same": submission.submit(head.url, WORDS, name="datasets", files=files, keep=keep)}
    with pytest.MonkeyPatch.context() as patch:
        with_code(other_code, patch)
        found["other"] = submission.submit(head.url, WORDS, name="datasets")
    return found


@pytest.fixture
def cli(capsys):
    def run_cli(*arguments):
        with pytest.raises(SystemExit) as ended:
            run([str(one) for one in arguments])
        captured = capsys.readouterr()
        return ended.value.code, captured.out, captured.err

    return run_cli


@pytest.fixture
def study(tmp_path):
    """A study whose shards are nowhere."""
    tree = study_tree({"toy": Path("/nowhere/toy")})
    write_yaml(tree, tmp_path / "toy.yaml")
    return tmp_path / "toy.yaml"


def with_code(package, patch):
    patch.setattr(code, "_package", lambda: package)
    patch.setattr(submission, "code_version", code.code_version.__wrapped__)


def followed(job):
    lines = []
    return submission.follow(job, lines.append), "".join(lines)


def test_a_study_that_fails_on_the_head_gives_its_sentence_and_its_code(head, jobs, cli, study):
    ended, out, err = cli("study", "run", study, "--out", "/nowhere/out", "--set", "seeds=[3]", "--address", head.url)
    assert (ended, out) == (2, ""), err
    note, *sentence = err.splitlines()
    assert sentence == ["Error: A shard folder must exist, got '/nowhere/toy'. Check the path, or make it: `cxrdist "
                        "pack`. [dataset toy]"]  # fmt: skip
    name = note.split()[1]
    assert name.startswith("cxrdist-study-toy-")
    info = submission._connect(head.url).get_job_info(name)
    assert info.metadata["job_name"] == "cxrdist study toy"
    words = "study run --out /nowhere/out --set 'seeds=[3]' --address auto toy.yaml"
    assert info.entrypoint == f"python -m cxrdist {words}"


def test_a_command_that_ends_well_gives_its_output_alone_and_keeps_its_files_where_asked(head, jobs):
    ended, out = followed(jobs["same"])
    assert ended == 0, out
    assert json.loads(out)["name"] == "nih14"
    assert (head.folder / "kept here" / "of" / "facts.yaml").read_text() == "{}"


def test_other_code_on_the_head_is_told_and_nothing_is_done(jobs):
    ended, out = followed(jobs["other"])
    assert ended == 1
    assert out.startswith("Error: The cluster must have the code that the command was submitted with, got cxrdist ")
    assert f"{code.code_version()} on its head" in out
    assert out.count("\n") == 1


@pytest.mark.slow
def test_code_that_is_brought_along_is_what_runs(head, other_code, monkeypatch):
    with_code(other_code, monkeypatch)
    ended, out = followed(submission.submit(head.url, WORDS, name="datasets", ship_code=True))
    assert ended == 0, out
    assert json.loads(out)["name"] == "nih14"


@pytest.mark.slow
def test_statistics_are_the_same_on_a_cluster_and_where_all_its_cores_are_held(head):
    command = [sys.executable, "-c", SPREAD, head.address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("token", "got"), [("f" * 64, "another"), (None, "none")])
def test_a_token_that_is_wrong_or_missing_is_told(head, monkeypatch, cli, study, token, got):
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    if token:
        (study.parent / "token").write_text(f"{token}\n")
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(study.parent / "token"))
    ended, _, err = cli("study", "run", study, "--out", "/nowhere/out", "--address", head.url)
    assert ended == 1
    assert err.startswith(f"Error: The cluster at {head.url!r} must be given its token, got {got}. ")
    assert err.count("\n") == 1


@pytest.mark.slow
def test_a_cluster_is_examined_from_elsewhere(head, cli):
    ended, out, err = cli("doctor", "--json", "--address", head.url, "--path", head.folder)
    report = json.loads(out)
    assert ended == (1 if report["problems"] else 0), err
    assert len(report["nodes"]) == 1
    assert str(head.folder) in out


def test_a_head_that_was_started_anew_is_told_and_not_waited_for(head):
    with pytest.raises(UserError, match="must know job nobody until it ends, got one that was started anew"):
        followed(submission.Job(head.url, "nobody"))


def test_a_head_that_answers_no_more_is_told_and_in_the_end_given_up(monkeypatch):
    class Lost:
        """A client of a head whose machine is off."""

        def __getattr__(self, name):
            raise ConnectionError("nobody is there")

    said = []
    monkeypatch.setattr(submission, "_connect", lambda address: Lost())
    monkeypatch.setattr(submission.log, "warning", lambda text, *values: said.append(text % values))
    for name, seconds in {"AGAIN_AFTER_S": 0.01, "SAY_AFTER_S": 0.02, "LOST_AFTER_S": 0.2}.items():
        monkeypatch.setattr(submission, name, seconds)
    with pytest.raises(UserError, match=r"The job may go on\. Follow it: "):
        followed(submission.Job("http://127.0.0.1:1", "one"))
    assert len(said) == 1


def test_an_address_without_a_dashboard_is_told(head, cli, study):
    for address in ("http://127.0.0.1:1", f"http://{head.address}"):
        ended, _, err = cli("study", "run", study, "--out", "/nowhere/out", "--address", address)
        assert ended == 1
        assert err.startswith(f"Error: `--address` must be the dashboard of a running Ray head, got {address!r}: ")
        assert err.count("\n") == 1


@pytest.mark.parametrize("address", ["http://", "http://host:port", "https://:8265"])
def test_what_is_no_address_is_told(address):
    with pytest.raises(UsageError, match="must be http://HOST:PORT of a dashboard"):
        submission.submit(address, ["datasets"], name="none")


def test_relative_paths_are_told_all_at_once(cli, tmp_path):
    tree = study_tree({"toy": Path("toy")}, shards_root="shards")
    tree["strategies"]["own"] = {"set": {"model.weights": "weights.pth"}}
    tree["strategies"]["of_timm"] = {"set": {"model.weights": f"{TIMM}vit_base_patch14_dinov2.lvd142m"}}
    write_yaml(tree, tmp_path / "toy.yaml")
    ended, _, err = cli("study", "run", tmp_path / "toy.yaml", "--address", "http://127.0.0.1:1")
    assert ended == 2
    told = "got `--out` 'runs/toy', `shards_root` 'shards', `strategies.own.set.model.weights` 'weights.pth'."
    assert told in err
    ended, _, err = cli("pack", "nih14", "--root", "raw", "--out", "/shards", "--address", "http://127.0.0.1:1")
    assert ended == 2
    assert "got `--root` 'raw'. Set it" in err


def test_deepspeed_files_are_brought_along_where_the_study_names_them():
    tree = {"datasets": {"a": {"shards": ["/a"]}}, "recipe": {"train": {"deepspeed": "launch/ds.json"}}}
    tree |= {"stages": {"s": {"pretrain": {"train.deepspeed": "../ds.json", "watch.shards": "a"}}}}
    paths, files = named_in(tree)
    assert [str(file) for file in files] == ["launch/ds.json"]
    assert {name: path for name, path in paths.items() if path} == {"`stages.s.pretrain.train.deepspeed`": "../ds.json"}
    assert placed(Path("launch/ds.json")) == "launch/ds.json"
    assert placed(Path("../studies/a.yaml")) == placed(Path("/studies/a.yaml")) == "a.yaml"


def test_a_log_that_is_asked_for_again_is_shown_once_and_without_lines_of_ray():
    lines = []
    shown = submission._Shown(lines.append)
    log = "2026-11-22 16:00:00,123\tINFO job_manager.py:568 -- Runtime env is setting up.\n"
    log += "Running entrypoint for job a: b\none\ntwo\nthree"
    for cut in (0, 7, 95, 120, len(log), 3):
        shown.restart()
        shown.feed(log[: cut // 2])
        shown.feed(log[cut // 2 : cut])
    shown.end()
    assert lines == ["one\n", "two\n", "three"]


def test_ctrl_c_leaves_the_job_and_says_how_to_follow_and_stop_it(monkeypatch, cli, study):
    def interrupted(job, write):
        raise KeyboardInterrupt

    monkeypatch.setattr("cxrdist.cli.submitting.submit", lambda address, *words, **more: submission.Job(address, "one"))
    monkeypatch.setattr("cxrdist.cli.submitting.follow", interrupted)
    ended, _, err = cli("study", "report", study, "--out", "/out", "--address", "http://127.0.0.1:1")
    assert ended == 130
    last = err.splitlines()[-1]
    assert last.startswith(
        "Left; that does not end job one. Follow it: `ray job logs --address http://127.0.0.1:1 --follow one`"
    )
    assert "`ray job stop --address http://127.0.0.1:1 one`" in last


def test_what_reads_files_of_this_machine_is_not_submitted(cli, tmp_path):
    ended, _, err = cli("compare", f"a={tmp_path / 'a.csv'}", "--address", "http://127.0.0.1:1")
    assert ended == 2
    assert "must be HOST:PORT or `auto` here" in err


def test_code_is_brought_only_to_another_machine(cli, study):
    ended, _, err = cli("study", "run", study, "--ship-code")
    assert ended == 2
    assert "`--ship-code` must come with `--address http://HOST:PORT`" in err


def test_a_checkout_and_its_wheel_have_one_code_version(tmp_path, monkeypatch):
    staged = code.stage_code(tmp_path)
    assert (staged / "shipped" / "launch" / "studies" / "demo.yaml").is_file()
    monkeypatch.setattr(code, "_package", lambda: staged)
    assert code.code_version.__wrapped__() == code.code_version()
    assert code.code_version().startswith(cxrdist.__version__)


def test_without_a_cluster_long_work_stays_here():
    assert list(adaptive.adaptive_map(2, worth_s=0.0)(abs, range(-3, 0))) == [3, 2, 1]


def test_an_unknown_outcome_of_a_job_is_a_sentence():
    stopped = SimpleNamespace(status="STOPPED", driver_exit_code=None, message="")
    broken = SimpleNamespace(status="FAILED", driver_exit_code=None, message="Failed to set up\nmore")
    absent = SimpleNamespace(status="FAILED", driver_exit_code=1, message="")
    for info, last, sentence in (
        (stopped, "", "got it stopped on the cluster"),
        (broken, "", "got: Failed to set up$"),
        (absent, "python: No module named cxrdist\n", "must have cxrdist in the `python`"),
    ):
        with pytest.raises(UserError, match=sentence):
            submission._exit_code(info, last)
