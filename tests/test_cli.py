"""The command line: one clear sentence and the right exit code for whatever a user can do wrong."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import typer
from helpers import finetune_tree, make_shards, study_tree

from cxrdist.cli.ending import KEPT, end_with_sentence
from cxrdist.cli.main import app, run
from cxrdist.config import read_yaml, write_yaml
from cxrdist.datasets.shard_format import read_index
from cxrdist.errors import UsageError
from cxrdist.phantom import LAYOUTS
from cxrdist.stats.meanings import MEANINGS, STATEMENTS
from cxrdist.stats.predictions import Predictions, write_predictions

Cli = Callable[..., tuple[int, str, str]]
COMMANDS = {
    ("demo",), ("phantom",), ("datasets",), ("pack",), ("pretrain",), ("train",), ("compare",), ("export",),
    ("shards", "info"), ("shards", "verify"), ("shards", "repair"),
    ("study", "run"), ("study", "status"), ("study", "report"), ("sweep",), ("plan",), ("power",), ("doctor",),
    ("launch", "render"),
    ("bench", "step"), ("bench", "bootstrap"),
}  # fmt: skip
"""What is built of DESIGN section 4."""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keys and tokens that a command writes stay in the test's folder."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("XDG_DATA_HOME", str(folder))
    return folder


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Return a function that runs a command line in this process: arguments to (exit code, stdout, stderr)."""

    def run_cli(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            run([str(one) for one in arguments])
        captured = capsys.readouterr()
        return ended.value.code, captured.out, captured.err

    return run_cli


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("cli"), patients=30)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Prediction files: two that fit, one with other rows, one with other labels, one with text in it."""
    rng = np.random.default_rng(0)
    images = np.array([f"i{n}" for n in range(40)], dtype=object)
    patients = np.array([f"p{n // 2}" for n in range(40)], dtype=object)
    targets = np.tile([0.0, 1.0], 20)[:, None]
    base = Predictions(images, patients, ("effusion",), targets, rng.random((40, 1)))
    flipped = targets.copy()
    flipped[7] = 1 - flipped[7]
    made = {
        "a": base,
        "b": Predictions(images, patients, ("effusion",), targets, rng.random((40, 1))),
        "rows": base.rows(np.arange(30)),
        "labels": Predictions(images, patients, ("effusion",), flipped, base.scores),
    }
    paths = {name: tmp_path / f"{name}.parquet" for name in made}
    for name, path in paths.items():
        write_predictions(path, made[name])
    paths["text"] = tmp_path / "text.csv"
    paths["text"].write_text("image_id,patient_id\ni0,p0\n")
    return paths


def one_sentence(err: str) -> str:
    """Return standard error, which must be one line and no traceback."""
    assert err.count("\n") == 1 and err.endswith("\n"), err
    assert err.startswith("Error: "), err
    return err


WRONG = [
    (["bogus"], 2, "No such command 'bogus'. See `cxrdist --help`."),
    (["pck"], 2, "Did you mean 'pack'? See `cxrdist --help`."),
    (["pack"], 2, "Missing argument 'NAME'. See `cxrdist pack --help`."),
    (["pack", "nih14"], 2, "Missing option '--root'"),
    (["pack", "nih14", "--root", "x", "--out", "y", "--qualty", "3"], 2, "--quality"),
    (["pack", "nih14", "--root", ".", "--out", "y", "--workers", "many"], 2, "Invalid value for '--workers'"),
    (["pack", "nih14", "--root", ".", "--out", "y", "--format", "tiff"], 2, "got 'tiff'"),
    (["pack", "nih14", "--root", "gone", "--out", "y"], 2, "must be an existing folder, got 'gone'"),
    (["pack", "nih1", "--root", ".", "--out", "y"], 2, "Did you mean 'nih14'?"),
    (["pack", "gone.yaml", "--root", ".", "--out", "y"], 2, "got 'gone.yaml'"),
    (["phantom", "chexprt", "p", "--patients", "3"], 2, "Did you mean 'chexpert'?"),
    (["phantom", "chexpert", "p", "--patients", "-3"], 2, "got -3"),
    (["shards", "info", "gone"], 2, "must exist, got 'gone'"),
    (["shards", "verify", "gone"], 2, "must exist, got 'gone'"),
    (["shards", "info", "."], 1, "is not a shard folder"),
    (["shards", "repair", ".", "--root", "gone"], 2, "`--root` must be an existing folder"),
    (["train", "gone.yaml"], 2, "must exist, got 'gone.yaml'"),
    (["train", "."], 2, "must exist, got '.'"),
    (["pretrain", "gone.yaml"], 2, "must exist, got 'gone.yaml'"),
    (["study", "run", "gone.yaml"], 2, "must exist, got 'gone.yaml'"),
    (["study", "status", "gone.yaml"], 2, "must exist, got 'gone.yaml'"),
    (["study", "report", "gone.yaml"], 2, "must exist, got 'gone.yaml'"),
    (["study", "run", "gone.yaml", "--adress", "x"], 2, "--address"),
    (["compare"], 2, "Missing argument"),
    (["compare", "a.parquet"], 2, "must be given as NAME=FILE, got 'a.parquet'"),
    (["compare", "=a.parquet", "b=b.parquet"], 2, "must be given as NAME=FILE"),
    (["compare", "a=a.parquet", "b=b.parquet", "--metrics", "aurok"], 2, "Did you mean 'auroc'?"),
    (["compare", "a=a.parquet", "b=b.parquet", "--metrics", "f1"], 2, "must have validation predictions"),
    (["compare", "a=a.parquet", "b=b.parquet", "--subgroups", "sex"], 2, "'sex'"),
    (["compare", "a=a.parquet", "b=b.parquet", "--interval", "bcaa"], 2, "Did you mean 'bca'?"),
    (["compare", "a=a.parquet", "b=b.parquet", "--correction", "fdr"], 2, "`--correction` must be one of bh, by"),
    (["compare", "a=a.parquet", "b=b.parquet", "--margin", "-1"], 2, "`--margin` must be"),
    (["compare", "a=a.parquet", "b=b.parquet", "--convention", "iyer"], 2, "`--convention` must be one of"),
    (["compare", "a=a.parquet", "b=gone.parquet"], 2, "must exist, got 'gone.parquet'"),
    (["compare", "a=a.parquet", "b=b.parquet", "--redraws", "-3"], 2, "`--redraws` must be at least 1, got -3."),
    (["compare", "a=a.parquet", "b=b.parquet", "--alpha", "2"], 2, "`--alpha` must be in (0, 1), got 2.0"),
    (["compare", "a=a.parquet", "b=b.parquet", "--alpha", "nan"], 2, "`--alpha` must be in (0, 1), got nan"),
    (["compare", "a=a.parquet", "b=b.parquet", "--cluster", "patient"], 2, "Did you mean 'patient_id'?"),
    (["compare", "a=a.parquet", "b=b.parquet", "--reference", "c"], 2, "got 'c'"),
    (["compare", "a=a.parquet", "b=b.parquet", "--json", "gone/x.json"], 2, "in a folder that exists"),
    (["compare", "a=a.parquet", "b=text.csv"], 2, "text.csv"),
    (["compare", "a=a.parquet", "b=rows.parquet"], 2, "b"),
    (["compare", "a=a.parquet", "b=labels.parquet"], 2, "i7"),
]


@pytest.mark.parametrize(
    ("arguments", "code", "part"), WRONG, ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else ""
)
def test_wrong_use_is_one_sentence(cli, files, tmp_path, monkeypatch, arguments, code, part):
    monkeypatch.chdir(tmp_path)
    found, out, err = cli(*arguments)
    assert part in one_sentence(err)
    assert (found, out) == (code, "")


def test_no_command_shows_the_help(cli):
    code, out, err = cli()
    assert code == 2
    assert "Commands" in out and "Traceback" not in err


def test_several_wrong_names_are_told_at_once_with_the_nearest(cli, shards, tmp_path):
    write_yaml(finetune_tree(shards) | {"optimm": {}}, tmp_path / "run.yaml")
    code, _, err = cli("train", tmp_path / "run.yaml", "--set", "train.stpes=3", "--set", "optim.lr=-1")
    assert code == 2
    assert len(err.splitlines()) == 3
    for part in ("Did you mean 'optim'?", "Did you mean 'steps'?", "`optim.lr`", "[in run.yaml]"):
        assert part in err


@pytest.mark.parametrize("content", ["a: [", "- 1\n", "", "\x00"])
def test_file_that_holds_no_configuration_is_told(cli, tmp_path, content):
    (tmp_path / "run.yaml").write_text(content)
    code, _, err = cli("train", tmp_path / "run.yaml")
    assert code == 2
    assert "[in run.yaml]" in one_sentence(err)


def test_setting_without_a_value_is_told(cli, shards, tmp_path):
    write_yaml(finetune_tree(shards), tmp_path / "run.yaml")
    code, _, err = cli("train", tmp_path / "run.yaml", "--set", "train.steps")
    assert code == 2
    assert "must be NAME=VALUE, got 'train.steps'" in one_sentence(err)


@pytest.mark.parametrize("name", ["auto", "nih14"])
def test_empty_folder_is_told(cli, tmp_path, name):
    (tmp_path / "raw").mkdir()
    code, _, err = cli("pack", name, "--root", tmp_path / "raw", "--out", tmp_path / "out")
    assert code in (1, 2)
    one_sentence(err)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_truncated_image_is_a_reject_and_too_many_stop_the_job(cli, tmp_path):
    raw, out = tmp_path / "raw", tmp_path / "out"
    code, _, _ = cli("phantom", "nih14", raw, "--patients", 4, "--size", 64, "--no-traps", "--json")
    assert code == 0
    victim = sorted(raw.rglob("*.png"))[0]
    victim.write_bytes(victim.read_bytes()[:200])
    pack = ("pack", "nih14", "--root", raw, "--out", out, "--size", 48, "--json")
    code, stdout, err = cli(*pack, "--max-reject", 0)
    assert (code, stdout) == (1, "")
    assert victim.name not in err and "Traceback" not in err
    code, stdout, err = cli(*pack, "--max-reject", 0.9)
    assert code == 0, err
    manifest = json.loads(stdout)
    assert manifest["rejects"] == {"unreadable": 1}
    assert manifest["rows"] == sum(manifest["splits"].values()) + 1


@pytest.fixture
def broken(tmp_path: Path) -> tuple[Path, str, str]:
    """Return a shard folder with one image overwritten, and the names of its shard and key."""
    folder = make_shards(tmp_path, patients=30)
    row = read_index(folder).query("split == 'train'").iloc[0]
    with (folder / row["shard"]).open("r+b") as file:
        file.seek(row["image_offset"])
        file.write(b"\x00" * row["image_bytes"])
    return folder, row["shard"], row["key"]


def test_verify_names_the_broken_shard_and_key(cli, broken):
    folder, shard, key = broken
    code, out, err = cli("shards", "verify", folder)
    assert code == 1
    assert shard in out and key in out
    assert "cxrdist shards repair" in err.splitlines()[-1] and "Traceback" not in err
    code, out, _ = cli("shards", "verify", folder, "--json")
    assert code == 1
    assert any(key in problem for problem in json.loads(out))


def test_training_on_a_broken_shard_is_one_sentence(cli, broken, tmp_path):
    folder, shard, key = broken
    write_yaml(finetune_tree(folder), tmp_path / "run.yaml")
    code, out, err = cli("train", tmp_path / "run.yaml", "--out", tmp_path / "run")
    assert (code, out) == (1, "")
    told = [line for line in err.splitlines() if line.startswith("Error: ")]
    assert len(told) == 1 and shard in told[0] and key in told[0] and "shards verify" in told[0]
    assert "Traceback" not in err


def test_whole_folder_verifies_and_informs_in_json(cli, shards):
    assert cli("shards", "verify", shards)[:2] == (0, f"{shards} is whole.\n")
    code, out, err = cli("shards", "info", shards, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["patients"] == 30
    code, out, _ = cli("shards", "info", shards)
    assert code == 0 and "cardiomegaly" in out


def test_datasets_lists_every_fact_file(cli):
    code, out, _ = cli("datasets", "--json")
    assert code == 0
    names = {entry["name"] for entry in json.loads(out)}
    assert {"chexpert", "nih14", "vindr_cxr", "kermany", "covid_chestxray"} <= names
    code, out, _ = cli("datasets")
    assert code == 0 and all(name in out for name in names)


def test_compare_writes_json_and_shows_tables(cli, files, tmp_path):
    target = tmp_path / "numbers.json"
    code, out, err = cli("compare", f"a={files['a']}", f"b={files['b']}", "--redraws", 20, "--json", target)
    assert (code, err) == (0, "")
    assert "40 images of 20 patients" in out
    assert json.loads(target.read_text())


@pytest.mark.parametrize(("target", "expected"), [("/proc/numbers.json", 2), ("/dev/full", 1), ("/dev", 2)])
def test_compare_that_cannot_write_its_json_says_so(cli, files, target, expected):
    code, out, err = cli("compare", f"a={files['a']}", f"b={files['b']}", "--redraws", 2, "--json", target)
    assert code == expected
    assert ("40 images of 20 patients" in out) == (code == 1)
    assert err.startswith("Error: `--json` must be writable, got ") and err.count("\n") == 1 and target in err


@pytest.mark.parametrize("command", [("train",), ("pretrain",), ("study", "run")])
def test_help_names_the_default_folder(cli, command):
    _, out, _ = cli(*command, "--help")
    assert "runs/NAME" in out


def commands() -> dict[tuple[str, ...], typer.models.TyperInfo]:
    found: dict[tuple[str, ...], object] = {}

    def visit(group: object, path: tuple[str, ...]) -> None:
        for name, command in group.commands.items():  # type: ignore[attr-defined]
            found[(*path, name)] = command
            if hasattr(command, "commands"):
                visit(command, (*path, name))

    visit(typer.main.get_command(app), ())
    return {path: command for path, command in found.items() if not hasattr(command, "commands")}  # type: ignore[misc]


def test_help_of_compare_says_what_each_number_is(cli):
    code, out, _ = cli("compare", "--help")
    words = " ".join(out.split())
    assert code == 0
    assert [meaning for _, meaning in MEANINGS.values() if meaning not in words] == []
    assert [meaning for meaning in STATEMENTS.values() if meaning not in words] == []


def test_help_names_the_built_commands_only():
    assert set(commands()) == COMMANDS


@pytest.mark.parametrize("path", sorted(COMMANDS), ids=" ".join)
def test_help_shows_an_example(cli, monkeypatch, path):
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = cli(*path, "--help")
    assert code == 0
    assert "Example: " in out and f"cxrdist {' '.join(path)} " in out + " "


def test_help_of_phantom_lists_every_layout(cli, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    assert ", ".join(LAYOUTS) in cli("phantom", "--help")[1]


def test_help_answers_without_torch_and_ray():
    check = "import sys, cxrdist.cli.main; print(*{'torch', 'ray', 'pandas', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_bug_keeps_its_traceback():
    with pytest.raises(KeyError):
        end_with_sentence(lambda: {}["gone"], [])


def test_refusing_file_system_is_a_sentence_that_names_the_argument(capsys):
    def write() -> None:
        raise PermissionError(13, "Permission denied", "/data/out/secret-patient/x.png")

    assert end_with_sentence(write, ["pack", "--out", "/data/out"]) == 1
    err = one_sentence(capsys.readouterr().err)
    assert "Permission denied" in err and "'/data/out'" in err and "secret" not in err


def test_file_where_a_folder_should_be_is_told(cli, shards, tmp_path):
    (tmp_path / "taken").write_text("")
    write_yaml(finetune_tree(shards), tmp_path / "run.yaml")
    write_yaml(study_tree({"a": shards}), tmp_path / "study.yaml")
    for command in (("train", tmp_path / "run.yaml"), ("study", "run", tmp_path / "study.yaml")):
        for out in (tmp_path / "taken", tmp_path / "taken" / "below"):
            code, _, err = cli(*command, "--out", out)
            assert code == 1
            assert str(out) in one_sentence(err)


def test_usage_error_of_ours_has_its_own_code(capsys):
    def refuse() -> None:
        raise UsageError("A thing must be so, got 3.")

    assert end_with_sentence(refuse, []) == 2
    assert one_sentence(capsys.readouterr().err) == "Error: A thing must be so, got 3.\n"


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signal_ends_with_a_sentence(tmp_path, signum, code):
    command = "phantom", "chexpert", tmp_path / "raw", "--patients", 1500, "--size", 48
    process = subprocess.Popen(
        [sys.executable, "-m", "cxrdist", *map(str, command)], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    end = time.monotonic() + 60
    while not any((tmp_path / "raw").rglob("*.jpg")) and time.monotonic() < end and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signum)
    _, err = process.communicate(timeout=30)
    assert process.returncode == code, err
    assert err.splitlines()[-1] == KEPT
    assert "Traceback" not in err


def cxrdist(*arguments: object) -> subprocess.Popen[str]:
    """Start a command in a process of its own."""
    typed = [sys.executable, "-m", "cxrdist", *map(str, arguments)]
    return subprocess.Popen(typed, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def no_constant(word: str) -> None:
    raise AssertionError(f"{word} is no JSON")


def test_json_of_packing_and_of_shards_is_alone_on_standard_output(cli, tmp_path):
    raw, out, other = tmp_path / "raw", tmp_path / "out", tmp_path / "other"
    cli("phantom", "nih14", raw, "--patients", 6, "--size", 64)
    pack = cxrdist("pack", "auto", "--root", raw, "--max-reject", 1, "--size", 48, "--out", out, "--json")
    stdout, err = pack.communicate(timeout=60)
    assert pack.returncode == 0, err
    assert json.loads(stdout, parse_constant=no_constant)["dataset"] == "nih14"
    assert [line for line in err.splitlines() if "`--root` holds nih14." in line], "auto says what it found"
    code, stdout, _ = cli("pack", "nih14", "--root", raw, "--max-reject", 1, "--out", other, "--size", 32, "--json")
    assert (code, json.loads(stdout)["dataset"]) == (0, "nih14")
    commands = [
        ("shards", "info", out),
        ("shards", "info", out, other),
        ("shards", "verify", out),
        ("shards", "repair", out, "--root", raw),
    ]
    for command in commands:
        code, stdout, err = cli(*command, "--json")
        assert code == 0, err
        json.loads(stdout, parse_constant=no_constant)
    next(out.glob("*.tar")).unlink()
    code, stdout, err = cli("shards", "verify", out, "--json")
    assert code == 1 and json.loads(stdout)
    assert f"cxrdist shards repair {out} --root RAW\n" in err


def test_second_pack_into_one_folder_is_refused_while_the_first_runs(cli, tmp_path):
    raw, out = tmp_path / "raw", tmp_path / "out"
    cli("phantom", "nih14", raw, "--patients", 150, "--size", 96, "--no-traps")
    command = ("pack", "nih14", "--root", raw, "--out", out, "--size", 96)
    first = cxrdist(*command)
    end = time.monotonic() + 60
    while not (out / ".pack" / "recipe.json").exists() and time.monotonic() < end and first.poll() is None:
        time.sleep(0.005)
    first.send_signal(signal.SIGSTOP)
    try:
        assert not (out / "manifest.json").exists(), "the first was too fast to be met"
        code, stdout, err = cli(*command)
        assert (code, stdout) == (1, "")
        told = [line for line in err.splitlines() if line.startswith("Error: ")]
        assert told == [f"Error: Only one process may pack into {str(out)!r}, got a second. Wait for it."]
    finally:
        first.send_signal(signal.SIGCONT)
    _, err = first.communicate(timeout=120)
    assert first.returncode == 0, err
    assert cli("shards", "verify", out)[0] == 0


def test_reader_who_leaves_is_no_error():
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "cxrdist", "datasets"], stdout=write, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(write)
    assert done.stderr == ""
    assert done.returncode != 0


def test_train_prints_json_only_and_refuses_a_used_folder(cli, shards, tmp_path):
    write_yaml(finetune_tree(shards, steps=2, evaluate_every=2), tmp_path / "run.yaml")
    train = ("train", tmp_path / "run.yaml", "--out", tmp_path / "run", "--json")
    code, out, _ = cli(*train)
    assert code == 0
    assert json.loads(out)["steps"] == 2
    code, out, err = cli(*train)
    assert (code, out) == (2, "")
    assert "--resume auto" in one_sentence(err)
    code, out, _ = cli(*train, "--resume", "auto")
    assert code == 0 and json.loads(out)["finished_before"]
    code, _, err = cli(*train, "--resume", "always")
    assert code == 2 and "`--resume` must be one of auto, got 'always'" in one_sentence(err)
    assert read_yaml(tmp_path / "run" / "config.yaml")["train"]["steps"] == 2


@pytest.mark.parametrize(
    ("command", "file", "way_out"),
    [
        ("train", "studies/demo.yaml", "For it: cxrdist study run "),
        ("pretrain", "finetune/debug.yaml", "For it: cxrdist train "),
        ("study run", "pretrain/mae.yaml", "For it: cxrdist pretrain "),
        ("sweep", "studies/demo.yaml", "For it: cxrdist study run "),
        ("study status", "sweeps/demo.yaml", "For it: cxrdist sweep "),
    ],
)
def test_a_file_for_another_command_is_told_with_that_command(cli: Cli, command: str, file: str, way_out: str) -> None:
    code, _, err = cli(*command.split(), Path(__file__).parents[1] / "launch" / file)
    assert code == 2
    assert way_out in err and err.count("\n") == 1, err
