"""Launchers hold what shells and readers of YAML ask for: those that are shipped, and each one that can be rendered."""

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from cxrdist.cli.main import run
from cxrdist.config import shipped
from cxrdist.errors import UsageError
from cxrdist.launch.request import Request, seconds_of
from cxrdist.launch.shell import BEGIN, END, fill, this_run
from cxrdist.launch.targets import TARGETS

ROOT = Path(__file__).parents[1]
LAUNCH = shipped("launch")
RUNS = {
    "train": "finetune/debug.yaml",
    "pretrain": "pretrain/mae.yaml",
    "study": "studies/demo.yaml",
    "sweep": "sweeps/demo.yaml",
}
SPECIAL = {
    "time": "01:00:00", "sbatch": (("partition", "gpu"),), "hosts": ("host1", "host2"), "image": "example/cxrdist:1",
    "claim": "data", "mount": "/shared", "queue": "lab", "project": "some-project", "nfs": "server:/export",
    "ssh_user": "someone", "ssh_key": "~/.ssh/key", "setup": ("module load cuda",),
}  # fmt: skip
"""Something for each option; machines and their places are left to the launchers."""
CASES = [(target, kind) for target, one in TARGETS.items() for kind in one.kinds]
SHELL_NAMES = {"slurm", "slurm-torchrun", "slurm-ray", "torchrun", "hostfile"}
SHELL_CASES = [case for case in CASES if case[0] in SHELL_NAMES]
HOSTILE = ("a b", "it's", '"', "$(touch owned)", "`touch owned`", "$HOME", "*", "a;b", "#c", "\\", "é", "-n", "a=b", "")


def request_of(target, kind, **changes):
    special = {name: value for name, value in SPECIAL.items() if name in TARGETS[target].options}
    file = RUNS[kind]
    values = {
        "kind": kind, "file": Path("launch") / file, "text": (LAUNCH / file).read_text(), "out": Path("runs/try"),
        "here": Path("/shared/project"), "bin": Path("/shared/venv/bin"), "nodes": 2, "gpus_per_node": 1,
        "ranks_per_node": 1, "cpus_per_node": 8, "options": ("--debug", "--set", "seed=3"),
    }  # fmt: skip
    return Request(**(values | special | changes))


def rendered(target, kind, **changes):
    return TARGETS[target].render(request_of(target, kind, **changes))


def shell_files():
    found = [path for folder in (LAUNCH, ROOT / "docker") if folder.is_dir() for path in sorted(folder.rglob("*"))]
    return [path for path in found if path.is_file() and path.read_bytes().startswith(b"#!")]


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    """Return all shell files: shipped ones, and each that is rendered."""
    folder = tmp_path_factory.mktemp("rendered")
    made = []
    for target, kind in SHELL_CASES:
        made.append(folder / f"{target}-{kind}")
        made[-1].write_text(rendered(target, kind))
    return [*shell_files(), *made]


def test_shell_files_are_found():
    assert {path.name for path in shell_files()} >= {"train.sh", "train.sbatch", "train-torchrun.sbatch"}
    assert len(shell_files()) >= 5


def test_every_shell_file_is_good_shell(scripts):
    for script in scripts:
        shell = script.read_text().splitlines()[0].split()[-1].rpartition("/")[2]
        assert shell in ("bash", "sh"), script
        told = subprocess.run([shell, "-n", script], capture_output=True, text=True, check=False)
        assert told.returncode == 0, told.stderr


def test_shellcheck_has_nothing_to_say(scripts):
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed (Debian: `apt-get install shellcheck`)")
    told = subprocess.run(["shellcheck", "-S", "style", *scripts], capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stdout


def test_shell_files_that_are_typed_by_name_may_be_run():
    for path in shell_files():
        assert path.suffix == ".sbatch" or os.access(path, os.X_OK), path


def arguments_of(text, tmp_path):
    """Return the folder, the first entry of PATH, and the arguments that the part for one run leaves for the rest."""
    lines = text.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith(BEGIN))
    part = lines[first : lines.index(END, first) + 1]
    own = tmp_path / "own"
    own.mkdir()
    code = "\n".join(["set -u", f"own={str(own)!r}", *part, r"""printf '%s\0' "$PWD" "${PATH%%:*}" "$@" """])
    environment = {"PATH": os.environ["PATH"], "HOME": "/nowhere", "LC_ALL": "C.UTF-8"}
    told = subprocess.run(
        ["bash", "-c", code], cwd=tmp_path, env=environment, capture_output=True, check=True
    ).stdout.decode()
    folder, program, *words = told.split("\0")[:-1]
    # The hostfile is an argument of its script, before the command.
    return folder, program, [word for word in words if word != str(own / "hostfile")]


@pytest.mark.parametrize(("target", "kind"), SHELL_CASES)
def test_a_rendered_launcher_hands_on_each_word_whole(target, kind, tmp_path):
    # A folder of such a name is refused for a hostfile: DeepSpeed would not quote it.
    here = tmp_path / ("here" if target == "hostfile" else "it's $(touch owned) here")
    here.mkdir()
    settings = [word for value in HOSTILE for word in ("--set", f"name={value}")]
    places = {"file": Path("a 'run' $(touch owned).yaml"), "out": Path('runs "of" `touch owned`')}
    request = request_of(target, kind, here=here, bin=here, options=tuple(settings), setup=(), **places)
    folder, program, words = arguments_of(TARGETS[target].render(request), tmp_path)
    assert folder == str(here) and program == str(here)
    expected = request.words
    if target == "slurm-ray":  # the file itself starts the cluster, and adds its address
        at = request.ray_words.index("--address")
        expected = request.ray_words[:at] + request.ray_words[at + 2 :]
    assert words == expected
    assert not [*tmp_path.rglob("owned")]


def test_words_of_one_run_survive_the_shell(tmp_path):
    """What all rendered shell files share."""
    request = Request(
        kind="train", file=Path("x y.yaml"), text="", out=Path("it's"), here=tmp_path, bin=Path("/a b/$x/bin"), nodes=1,
        gpus_per_node=1, ranks_per_node=1, cpus_per_node=1, setup=("export FROM_SETUP='a b'",),
    )  # fmt: skip
    words = [*HOSTILE, "two\nlines"]
    text = fill(f"#!/bin/bash\n{BEGIN}\n{END}\n", this_run(request, words))
    folder, program, told = arguments_of(text, tmp_path)
    assert (folder, program) == (str(tmp_path), "/a b/$x/bin") and told == words
    assert not [*tmp_path.rglob("owned")]


@pytest.mark.parametrize(("target", "kind"), [(target, one.kinds[0]) for target, one in TARGETS.items()])
@pytest.mark.parametrize("place", ["file", "out"])
def test_a_name_of_two_lines_cannot_add_lines_to_a_launcher(target, kind, place):
    try:
        text = rendered(target, kind, **{place: Path("runs/a\n#SBATCH --owned\n rm.yaml")})
    except UsageError:
        return
    if target in SHELL_NAMES:
        raise AssertionError("it was not refused")
    for tree in yaml.safe_load_all(text):
        assert isinstance(tree, dict)


@pytest.mark.parametrize(
    ("target", "name"),
    [(target, name) for target, one in TARGETS.items() for name in one.options if name != "setup"],
)
@pytest.mark.parametrize("value", ["a\n#SBATCH --owned\n- b: c", "$(touch owned)", "a\"'`b; c"])
def test_what_an_option_says_stays_one_value(target, name, value, tmp_path):
    values = {"sbatch": (("partition", value),), "hosts": (value, "host2")}
    try:
        text = rendered(target, TARGETS[target].kinds[0], **{name: values.get(name, value)})
    except UsageError as error:
        assert "\n" not in str(error)
        return
    assert not [line for line in text.splitlines() if line.startswith(("#SBATCH --owned", "- b: c"))]
    if target in SHELL_NAMES:
        [line] = [line for line in text.splitlines() if value in line]
        assert line.startswith("#SBATCH --")  # sbatch reads it, and no shell
    else:
        assert value in str([*yaml.safe_load_all(text)]) or repr(value)[1:-1] in str([*yaml.safe_load_all(text)])


@pytest.mark.parametrize(("target", "kind"), CASES)
def test_rendering_is_the_same_each_time_and_everywhere(target, kind, tmp_path, monkeypatch):
    first = rendered(target, kind)
    monkeypatch.setenv("HOME", "/home/zz-somebody")
    for name in ("LOGNAME", "USER", "HOSTNAME"):
        monkeypatch.setenv(name, "zz-somebody")
    monkeypatch.chdir(tmp_path)
    assert rendered(target, kind) == first
    assert str(ROOT) not in first and "zz-somebody" not in first
    if target in SHELL_NAMES:
        assert first.startswith("#!/usr/bin/env bash\n# ")
    else:
        assert first.startswith("# ") and [*yaml.safe_load_all(first)]


@pytest.mark.parametrize(("target", "kind"), CASES)
def test_the_head_says_how_to_start_watch_and_stop(target, kind):
    lines = rendered(target, kind).splitlines()
    head = lines[: next(number for number, line in enumerate(lines) if not line.startswith("#"))]
    assert len(head) >= 4 and all(len(line) < 400 for line in head)
    said = " ".join(head).lower()
    assert "watch" in said or "dashboard" in said
    assert "stop" in said or " down " in said or "delete" in said or "scancel" in said


@pytest.fixture
def cli(tmp_path, monkeypatch, capsys):
    """Return a function that renders a launcher in an empty folder; returns the file, or the sentence of its error."""
    monkeypatch.chdir(tmp_path)

    def render(target, file, *options, error=False):
        words = ["launch", "render", target, file, "--nodes", 2, "--gpus-per-node", 0, *options]
        try:
            run([str(word) for word in words])
        except SystemExit as ended:
            assert ended.code in (0, None) or error, capsys.readouterr().err
        said = capsys.readouterr()
        if error:
            assert not said.out and said.err.startswith("Error: ") and said.err.count("\n") == 1
        return said.err if error else said.out

    return render


@pytest.mark.parametrize(("target", "kind"), [(target, one.kinds[0]) for target, one in TARGETS.items()])
def test_the_head_names_the_file_that_was_asked_for(target, kind):
    text = rendered(target, kind, target_file=Path("jobs/my job"), nodes=2)
    starts = (
        "sbatch 'jobs/my job'\n",
        "bash 'jobs/my job'\n",
        "ray up -y 'jobs/my job'  # ",
        "apply -f 'jobs/my job' ",
    )
    assert [start for start in starts if start in text]
    assert "FILE is" not in text and "THIS.yaml" not in text
    with pytest.raises(UsageError, match="one line"):
        rendered(target, kind, target_file=Path("a\nb"))


def test_a_file_that_is_asked_for_is_named_in_its_own_head(cli, tmp_path):
    cli("slurm", LAUNCH / "finetune/debug.yaml", "--out", "job.sbatch")
    assert "# Start: sbatch job.sbatch\n" in (tmp_path / "job.sbatch").read_text()


def test_whether_a_study_waits_for_machines_is_what_its_settings_say_after_all_changes(cli):
    cloud = ("--instance", "m6i.16xlarge", "--image", "r.example/c:1", "--nfs", "s:/x", "--run-out", "/shared/runs/a")
    none, all_ = "min_workers: 0\n", "min_workers: 2\n"
    study, change = LAUNCH / "studies/demo.yaml", "resources={autoscaling: true, workers: 1}"
    for words, told in (((), all_), (("--set", change), none), (("--set", "resources.autoscaling=yes"), none)):
        assert told in cli("ray-aws", study, *cloud, *words)


@pytest.mark.parametrize(
    ("target", "options", "told"),
    [
        ("slurm", ("--time", "2 days"), "`--time` must be MM, MM:SS, HH:MM:SS, D-HH,"),
        ("slurm-torchrun", ("--ranks-per-node", 2, "--cpus-per-node", 1), "`--cpus-per-node` must be at least one for"),
        ("ray-local", ("--image", "a"), "must be given options that it uses, got --image."),
    ],
)
def test_what_a_launcher_cannot_hold_is_told_in_one_sentence(cli, target, options, told):
    assert told in cli(target, LAUNCH / "finetune/debug.yaml", *options, error=True)


def test_a_run_that_is_no_text_is_told(cli, tmp_path):
    (tmp_path / "run.yaml").write_bytes(b"title: \xff\xfe\n")
    assert "must be YAML" in cli("slurm", "run.yaml", error=True)


@pytest.mark.parametrize(
    ("time", "seconds"),
    [("90", 5400), ("90:30", 5430), ("48:00:00", 172800), ("1-2", 93600), ("1-02:03", 93780), ("1-02:03:04", 93784)],
)
def test_a_time_means_what_it_means_to_slurm(time, seconds):
    assert seconds_of(time) == seconds


def test_hosts_are_asked_for_in_the_same_words_by_all_that_need_them():
    for target in ("torchrun", "hostfile", "ray-local"):
        for hosts in (("a", "a"), ("a", "b", "c"), ("a b", "c")):
            with pytest.raises(UsageError, match=r"^`--host` must (name .*each of 2 hosts once|be a name or an add)"):
                rendered(target, "train", hosts=hosts)
    assert "HEAD=host1 bash" in rendered("torchrun", "train", hosts=())


def test_every_yaml_file_parses():
    files = sorted([*LAUNCH.rglob("*.yaml"), *LAUNCH.rglob("*.yml")])
    assert len(files) > 20
    for path in files:
        assert all(isinstance(tree, dict) for tree in yaml.safe_load_all(path.read_text())), path


def test_the_readme_names_every_launcher_and_its_links_lead_somewhere():
    text = (ROOT / "launch" / "README.md").read_text()
    runs = {"finetune", "pretrain", "studies", "sweeps"}
    launchers = [path.relative_to(LAUNCH) for path in LAUNCH.rglob("*") if path.is_file()]
    launchers = [path for path in launchers if path.parent.name not in {*runs, ""} and path.suffix != ".json"]
    assert not [str(path) for path in launchers if str(path) not in text]
    assert not [name for name in runs if f"({name})" not in text]
    assert not [target for target in TARGETS if f"`{target}`" not in text and f"render {target} " not in text]
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = link.partition("#")
        assert "://" in link or (ROOT / "launch" / path).exists(), link
        assert path or anchor in anchors, link


def test_the_wheel_carries_the_launchers_and_their_modes():
    tree = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert tree["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]["launch"] == "cxrdist/shipped/launch"
    assert "docker" not in tree["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
