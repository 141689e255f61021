"""`cxrdist launch render` as a command: what it refuses, what it notes, and that what it says can be typed."""

import shlex
from itertools import pairwise
from pathlib import Path

import pytest

from cxrdist.cli.main import run
from cxrdist.cli.submitting import named_in, named_in_run, relative_of
from cxrdist.config import shipped
from cxrdist.launch.request import read_any

LAUNCH = shipped("launch")
DEBUG, DEMO = LAUNCH / "finetune" / "debug.yaml", LAUNCH / "studies" / "demo.yaml"
RUNS = sorted(
    file for folder in ("finetune", "pretrain", "studies", "sweeps") for file in (LAUNCH / folder).glob("*.yaml")
)
CLUSTERS = {
    "ray-local": ["--host", "a", "--host", "b"],
    "ray-aws": ["--image", "lab/cxrdist:gpu", "--nfs", "server:/"],
    "ray-gcp": ["--image", "lab/cxrdist:gpu", "--nfs", "server:/", "--project", "my-project"],
}


@pytest.fixture
def render(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Return a function that renders in an empty folder: (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)

    def run_render(target: str, file: Path, *options: object, nodes: int = 2, gpus: int = 8) -> tuple[int, str, str]:
        machines = ["--nodes", str(nodes), "--gpus-per-node", str(gpus)]
        with pytest.raises(SystemExit) as ended:
            run(["launch", "render", target, str(file), *machines, *map(str, options)])
        captured = capsys.readouterr()
        return ended.value.code, captured.out, captured.err

    return run_render


@pytest.mark.parametrize("target", CLUSTERS)
def test_the_command_for_a_cluster_has_no_path_of_another_machine(render, target):
    """A command that is submitted is refused where a path is relative; the one in the head must not be."""
    for file in RUNS:
        code, text, err = render(target, file, *CLUSTERS[target])
        if "multiple of the number of ranks" in err:  # a run that is too small for so many
            code, text, err = render(target, file, *CLUSTERS[target], "--set", "train.global_batch_size=16")
        assert code == 0, (file.name, err)
        line = next(row for row in text.splitlines() if row.startswith("#   cxrdist "))
        words = shlex.split(line.removeprefix("#   cxrdist "))
        settings = [value for option, value in pairwise(words) if option == "--set"]
        kind, config = read_any(file, settings)
        tree = config.tree()
        paths = named_in(tree)[0] if kind == "study" else named_in_run(tree["run"] if kind == "sweep" else tree)[0]
        assert relative_of(paths | {"`--out`": words[words.index("--out") + 1]}) == [], file.name


def test_gpus_that_no_trial_asks_for_are_noted(render):
    assert "no trial of it asks for a GPU" in render("slurm", DEMO)[2]
    assert "Note" not in render("slurm", DEMO, "--set", "resources.gpus_per_worker=1")[2]
    assert "Note" not in render("slurm", DEMO, gpus=0)[2]
    assert "Note" not in render("slurm", DEBUG)[2]


@pytest.mark.parametrize(
    ("target", "options", "said"),
    [
        ("slrum", [], "Did you mean 'slurm'?"),
        ("slurm", ["--sbatch", "nodes=3"], "got nodes. Give --nodes."),
        ("slurm", ["--sbatch", "Partition"], "Example: --sbatch partition=gpu"),
        ("slurm", ["--time", "tomorrow"], "`--time`"),
        ("slurm", ["--image", "lab/cxrdist"], "got --image"),
        ("slurm", ["--ranks-per-node", "16"], "NCCL refuses two ranks on one GPU"),
        ("slurm", ["--set", "train.global_batch_size=15"], "--set train.global_batch_size=16"),
        ("slurm", ["--out", "."], "must be a file to write"),
        ("slurm", ["--out", str(DEBUG)], "must not be the file of a run"),
        ("hostfile", [], "`--host`"),
        ("rayjob", ["--image", "lab/cxrdist"], "--claim"),
    ],
)
def test_what_cannot_be_launched_is_a_sentence(render, target, options, said):
    code, out, err = render(target, DEBUG, *options)
    assert (code, out) == (2, "")
    assert said in err and err.startswith("Error: ") and err.count("\n") == 1


def test_a_study_is_no_run_for_torchrun(render):
    code, _, err = render("torchrun", DEMO)
    assert code == 2 and "slurm-ray" in err


def test_a_hostfile_is_not_written_for_a_folder_that_its_launcher_cannot_name(render, tmp_path, monkeypatch):
    folder = tmp_path / "my project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    code, _, err = render("hostfile", DEBUG, "--host", "a", "--host", "b")
    assert code == 2 and "DeepSpeed does not quote it" in err


def test_a_script_is_written_into_a_new_folder_and_may_be_run(render, tmp_path):
    code, out, err = render("torchrun", DEBUG, "--out", "new/train.sh")
    written = tmp_path / "new" / "train.sh"
    assert (code, out) == (0, "") and "Written: new/train.sh" in err
    assert written.stat().st_mode & 0o111
