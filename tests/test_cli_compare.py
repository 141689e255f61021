"""`cxrdist compare`: what its options do, as a user sees it."""

import csv
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cxrdist.cli.main import run
from cxrdist.dispatch.cluster import cluster
from cxrdist.report import compared
from cxrdist.stats.compare import compare
from cxrdist.stats.meanings import STATEMENTS, confidence
from cxrdist.stats.options import StatisticsOptions
from cxrdist.stats.predictions import Predictions, read_predictions, write_predictions
from cxrdist.stats.tayebi2024 import replicate

Cli = Callable[..., tuple[int, str, str]]
SMALL = ("--redraws", 30)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Return a function that runs `compare` in this process: arguments to (exit code, stdout, stderr)."""

    def run_cli(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            run(["compare", *(str(one) for one in arguments)])
        captured = capsys.readouterr()
        return ended.value.code, captured.out, captured.err

    return run_cli


@pytest.fixture
def paths(tmp_path: Path) -> dict[str, Path]:
    """Prediction files of models a, b (each also of a second seed: a2, b2), and of their validation: va, vb."""
    made = {}
    for split in ("", "v"):
        rng = np.random.default_rng(5)
        patient = rng.integers(0, 40, 120)
        targets = (rng.random((120, 2)) < 0.4).astype(float)
        for i, name in enumerate(("a", "b", "a2", "b2")):
            scores = 1 / (1 + np.exp(-(0.8 * targets + np.random.default_rng(i).normal(size=targets.shape))))
            path = tmp_path / f"{split}{name}.parquet"
            ids = np.array([f"{split}i{n:03d}" for n in range(120)], dtype=object)
            patients = np.array([f"{split}p{n}" for n in patient], dtype=object)
            sex = {"sex": np.where(patient % 2, "F", "M").astype(object)}
            write_predictions(path, Predictions(ids, patients, ("effusion", "mass"), targets, scores, sex))
            made[split + name] = path
    return made


@pytest.fixture
def two(paths: dict[str, Path]) -> list[str]:
    return [f"a={paths['a']}", f"b={paths['b']}"]


def options(**settings: object) -> StatisticsOptions:
    return StatisticsOptions.build(settings, where="a test")


def test_every_way_out_tells_the_same_numbers(cli, two, paths, tmp_path):
    out = {name: tmp_path / f"numbers.{name}" for name in ("json", "csv", "tex")}
    validation = ("--validation", f"a={paths['va']}", "--validation", f"b={paths['vb']}")
    code, shown, err = cli(
        *two, *SMALL, *validation, "--metrics", "auroc,f1,brier", "--subgroups", "sex", "--margin", 0.05,
        "--json", out["json"], "--csv", out["csv"], "--latex", out["tex"], "--explain",
    )  # fmt: skip
    assert (code, err) == (0, "")
    told = json.loads(out["json"].read_text())
    with out["csv"].open() as file:
        rows = list(csv.DictReader(file))
    assert {row["kind"] for row in rows} == {"estimate", "difference", "subgroup", "subgroup_gap"}
    for kind, name in (("estimate", "estimates"), ("difference", "differences")):
        ours = [row for row in rows if row["kind"] == kind]
        assert len(ours) == len(told[name])
        for row, number in zip(ours, told[name], strict=True):
            assert (row["metric"], row["finding"]) == (number["metric"], number["finding"])
            assert [float(row[field]) for field in ("value", "low", "high")] == [
                number[field] for field in ("value", "low", "high")
            ]
    gap = next(row for row in rows if row["kind"] == "difference" and row["finding"] == "mass")
    assert float(gap["delong_standard_error"]) > 0 and float(gap["standard_error_patients"]) > 0
    assert 0 < float(gap["p_non_inferior_not_adjusted"]) <= 1
    one = next(row for row in told["estimates"] if row["finding"] == "macro" and row["metric"] == "f1")
    latex = out["tex"].read_text()
    assert latex.count("\\begin{tabular}") == latex.count("\\end{tabular}") == 5
    for text in (shown, latex):
        assert f"{one['value']:.4f}" in text
    words = " ".join(shown.split())
    assert "AUROC (higher is better)" in words and "Brier score (lower is better)" in words
    assert "[low, high]: 95 % percentile interval of 30 redraws of" in words
    assert re.search(r"p non-inferior[\w. ]* \(not adjusted\): The share of redraws", words)
    assert re.search(r"p non-inferior[\w. ]* \(not adjusted\)", latex)


def test_csv_holds_every_number_of_a_comparison_once(paths):
    models = {name: read_predictions(paths[name]) for name in "ab"}
    result = compare(models, options=options(n_resamples=9, metrics=["auroc", "calibration_slope"], subgroups=["sex"]))
    rows = compared.csv_rows(result)
    assert all(tuple(row) == compared.CSV_COLUMNS for row in rows)
    keys = [tuple(row[name] for name in ("kind", "model", "reference", "metric", "finding", "level")) for row in rows]
    assert len(set(keys)) == len(keys)
    assert len(rows) == len(result.estimates) + len(result.differences) + 2 * len(result.subgroups)
    row = next(
        row for row in rows if row["kind"] == "subgroup_gap" and row["level"] == "F" and row["finding"] == "mass"
    )
    (of_subgroup,) = (one for one in result.subgroups if (one.model, one.level, one.finding) == ("a", "F", "mass"))
    told = tuple(row[name] for name in ("model", "value", "low", "p", "q"))
    assert told == ("a", of_subgroup.gap, of_subgroup.gap_low, of_subgroup.p, of_subgroup.q)
    (by_sex,) = (table for table in compared.tables(result) if table.name == "by-sex")
    assert by_sex.columns[-2:] == ("p", "q")
    slope = next(table for table in compared.tables(result) if table.name == "calibration_slope")
    assert "(1 is right)" in slope.caption
    average, *cells = (cell.text for cell in slope.rows[-1])
    assert (average, set(cells)) == ("macro average", {"–"})


def test_files_of_one_name_are_seeds_that_pair_with_those_of_another(cli, paths, tmp_path):
    files = [f"{name}={paths[f'{name}{more}']}" for name in "ab" for more in ("", "2")]
    json_file = tmp_path / "numbers.json"
    code, shown, err = cli(*files, *SMALL, "--hierarchical", "--json", json_file)
    assert (code, err) == (0, "")
    told = json.loads(json_file.read_text())
    assert told["train_seeds"] == {"a": [0, 1], "b": [0, 1]}
    assert "not paired by seed" not in shown and "± standard deviation between files" in " ".join(shown.split())
    expected = compare(
        {name: [read_predictions(paths[name]), read_predictions(paths[f"{name}2"])] for name in "ab"},
        train_seeds={"a": (0, 1), "b": (0, 1)},
        options=options(n_resamples=30, hierarchical=True),
    )
    assert told == json.loads(expected.to_json())
    assert "not paired by seed" in cli(*files[:3], *SMALL, "--hierarchical")[1]


def test_threads_change_no_bit(cli, two, tmp_path):
    texts = []
    for workers in (1, 2):
        path = tmp_path / f"{workers}.json"
        assert cli(*two, "--redraws", 200, "--workers", workers, "--json", path)[0] == 0
        texts.append(path.read_bytes())
    assert texts[0] == texts[1]


@pytest.mark.slow
def test_ray_changes_no_bit(cli, two, tmp_path):
    import ray  # noqa: PLC0415 - half a second, for this test alone

    here, there = tmp_path / "here.json", tmp_path / "there.json"
    assert cli(*two, "--redraws", 200, "--json", here)[0] == 0
    with cluster(None):
        address = ray.get_runtime_context().gcs_address
        command = [sys.executable, "-m", "cxrdist", "compare", *two, "--redraws", "200", "--address", address]
        done = subprocess.run([*command, "--json", str(there)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert here.read_bytes() == there.read_bytes()


def test_another_study_s_convention_tells_its_own_numbers(cli, two, paths, tmp_path):
    out = {name: tmp_path / f"numbers.{name}" for name in ("json", "csv")}
    code, shown, err = cli(
        *two, "--convention", "tayebi2024", "--redraws", 40, "--seed", 3, "--reference", "a", "--workers", 2,
        "--json", out["json"], "--csv", out["csv"], "--alpha", 0.05,
    )  # fmt: skip
    assert code == 0 and "Error" not in err  # but progress, where the machine has other work
    files = {name: read_predictions(paths[name]) for name in "ab"}
    scores = {name: one.scores for name, one in files.items()}
    base = files["a"]
    result = replicate(base.targets, scores, base.findings, pairs=[("b", "a")], n_resamples=40, seed=3)
    assert shown == result.text() + "\n"
    assert out["json"].read_text() == result.to_json()
    with out["csv"].open() as file:
        rows = list(csv.DictReader(file))
    assert {row["convention"] for row in rows} == {"tayebi2024"}
    values = [float(row["mean"]) for row in rows if row["kind"] == "value"]
    assert values == [one.mean for one in result.values]
    assert [float(row["p"]) for row in rows if row["kind"] == "difference"] == [one.p for one in result.verdicts]


def test_a_convention_s_redraws_are_spread_as_asked_for(cli, two, monkeypatch):
    asked = []

    def counting(workers):
        def spread(function, items):
            asked.append(workers)
            return map(function, items)

        return spread

    monkeypatch.setattr("cxrdist.dispatch.fork_map", counting)
    assert cli(*two, "--convention", "tayebi2024", "--redraws", 5, "--workers", 2)[0] == 0
    assert asked == [2]


@pytest.mark.parametrize(
    ("more", "got"),
    [
        (("--metrics", "f1"), "`--metrics f1`"),
        (("--averages", "micro"), "`--averages micro`"),
        (("--validation", "a=va.parquet"), "`--validation a=va.parquet`"),
        (("--threshold", "f1"), "`--threshold f1`"),
        (("--cluster", "none"), "`--cluster none`"),
        (("--stratified",), "`--stratified`"),
        (("--interval", "bca"), "`--interval bca`"),
        (("--correction", "holm"), "`--correction holm`"),
        (("--margin", 0.1), "`--margin 0.1`"),
        (("--hierarchical",), "`--hierarchical`"),
        (("--permutations", 9), "`--permutations 9`"),
        (("--subgroups", "sex"), "`--subgroups sex`"),
        (("--alpha", 0.1), "`--alpha 0.1`"),
        (("--latex", "x.tex"), "`--latex x.tex`"),
        (("--explain",), "`--explain`"),
        (("--explain", "--margin", 0.1), "`--margin 0.1`"),
    ],
)
def test_a_convention_refuses_what_it_has_no_use_for(cli, two, monkeypatch, tmp_path, more, got):
    monkeypatch.chdir(tmp_path)
    code, out, err = cli(*two, "--convention", "tayebi2024", *more)
    assert (code, out) == (2, "")
    assert err == (
        f"Error: `--convention tayebi2024` must have no option that it does not use, got {got}. That procedure is "
        "fixed; leave the option out.\n"
    )


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (("--margin", -1), "`--margin` must be greater than 0, got -1.0."),
        (("--threshold", "sensitivity=2"), "`--threshold`: .*"),
        (("--averages", "macro,macro"), "`--averages` must differ from each other, got macro, macro\\."),
        (("--averages", "mean"), "`--averages` must be .*, got 'mean'."),
        (("--metrics", "aurok"), "`--metrics` must be one of .* Did you mean 'auroc'\\?"),
        (("--subgroups", "sex,sex"), "`--subgroups` must differ from each other, got sex, sex\\."),
        (
            ("--interval", "bca", "--hierarchical"),
            "`--interval` must be percentile or basic where `--hierarchical` is true, got bca, which corrects for "
            "patients alone.",
        ),
        (("--reference", "c"), "`--reference` must be one of a, b, got 'c'.*"),
        (("--redraws", 0), "`--redraws` must be at least 1, got 0\\."),
        (("--seed", -1), "`--seed` must be at least 0, got -1\\."),
        (("--workers", 0), "`--workers` must be at least 1, got 0\\."),
        (("--permutations", -1), "`--permutations` must be at least 0, got -1\\."),
        (("--metrics", ","), "`--metrics` must name a metric, got none\\."),
        (("--averages", "macro,mean"), "`--averages` must be 'macro', 'micro' or 'weighted', got 'mean'\\."),
        (("--alpha", 1e-20), "`--alpha` must be in \\(0, 1\\), got 1e-20\\. .*"),
        (("--validation", "z=v.parquet"), "The model of `--validation` must be one of a, b, got 'z'\\."),
        (
            ("--redraws", 10**8),
            "`--redraws` must be at most 89478485 here, .* 6 numbers .*, got 100000000\\.",
        ),
    ],
)
def test_a_wrong_choice_names_its_option(cli, two, more, sentence):
    code, out, err = cli(*two, *more)
    assert (code, out) == (2, "")
    assert re.fullmatch(f"Error: {sentence}\n", err), err


def test_convention_refuses_more_redraws_than_fit(cli, two):
    code, out, err = cli(*two, "--convention", "tayebi2024", "--redraws", 10**8)
    assert (code, out) == (2, "")
    assert "`--redraws` must be at most 26843545 here" in err


@pytest.mark.parametrize("convention", [(), ("--convention", "tayebi2024")])
@pytest.mark.parametrize("how", ["same", "relative", "link"])
def test_output_that_is_an_input_is_refused_before_work(cli, two, paths, tmp_path, monkeypatch, how, convention):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(paths["a"])
    target = {"same": paths["a"], "relative": "./a.parquet", "link": "link"}[how]
    before = paths["a"].read_bytes()
    code, out, err = cli(*two, *SMALL, *convention, "--csv", target)
    assert (code, out) == (2, "")
    assert err.startswith("Error: `--csv` must not replace a file that is read, got ") and err.count("\n") == 1
    assert paths["a"].read_bytes() == before


def test_output_that_is_a_validation_file_is_refused(cli, two, paths):
    before = paths["vb"].read_bytes()
    validation = ("--validation", f"a={paths['va']}", "--validation", f"b={paths['vb']}")
    code, _, err = cli(*two, *SMALL, "--metrics", "f1", *validation, "--json", paths["vb"])
    assert code == 2 and "`--json` must not replace" in err
    assert paths["vb"].read_bytes() == before


def test_two_outputs_of_one_name_are_refused(cli, two, tmp_path):
    code, _, err = cli(*two, *SMALL, "--json", tmp_path / "x", "--csv", tmp_path / "x")
    assert code == 2
    assert err.startswith("Error: `--csv` must be another file than that of `--json`, got ")
    assert not (tmp_path / "x").exists()


def test_file_named_twice_is_no_second_seed_but_may_be_another_model(cli, paths, tmp_path):
    a = f"a={paths['a']}"
    code, out, err = cli(a, f"a={tmp_path / 'gone' / '..' / 'a.parquet'}", *SMALL)
    assert (code, out) == (2, "") and "a must have a file once" in err
    code, out, _ = cli(a, f"b={paths['a']}", *SMALL)
    assert code == 0 and "+0.0000 [+0.0000, +0.0000]" in " ".join(out.split())


def test_folder_as_output_is_refused_before_work_and_nothing_is_left(cli, two, tmp_path):
    before = sorted(tmp_path.iterdir())
    code, out, err = cli(*two, *SMALL, "--csv", tmp_path / "new.csv", "--json", tmp_path)
    assert (code, out) == (2, "")
    assert err == f"Error: `--json` must be writable, got a folder [{tmp_path}].\n"
    assert sorted(tmp_path.iterdir()) == before


def test_late_fault_of_one_output_loses_neither_tables_nor_the_others(cli, two, tmp_path):
    code, out, err = cli(*two, *SMALL, "--json", "/dev/full", "--csv", tmp_path / "new.csv")
    assert code == 1 and "[/dev/full]" in err
    assert "AUROC (higher is better)" in out
    assert (tmp_path / "new.csv").read_text().startswith("kind,")
    assert not list(tmp_path.glob(".*partial"))


def test_output_through_a_link_changes_its_file_and_keeps_the_link(cli, two, tmp_path):
    (tmp_path / "real.json").write_text("old")
    link = tmp_path / "link.json"
    link.symlink_to("real.json")
    assert cli(*two, *SMALL, "--json", link)[0] == 0
    assert link.is_symlink() and json.loads((tmp_path / "real.json").read_text())["differences"]


def test_standard_output_as_output_follows_the_tables(two, tmp_path):
    command = [sys.executable, "-m", "cxrdist", "compare", *two, "--redraws", "5", "--json", "/dev/stdout"]
    with (tmp_path / "all.txt").open("w") as file:
        done = subprocess.run(command, stdout=file, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 0, done.stderr
    tables, brace, text = (tmp_path / "all.txt").read_text().partition("\n{")
    assert "AUROC (higher is better)" in tables
    assert json.loads(brace + text)["differences"]


def test_no_number_of_three_models_is_broken_at_80_columns(cli, two, paths, monkeypatch):
    arguments = (*two, f"self-supervised={paths['a2']}", *SMALL, "--metrics", "auroc,brier", "--subgroups", "sex")
    monkeypatch.delenv("COLUMNS", raising=False)
    wide = cli(*arguments)[1].split("Note:")[0]
    monkeypatch.setenv("COLUMNS", "80")
    narrow = cli(*arguments)[1].split("Note:")[0]
    lines = narrow.splitlines()
    assert max(len(line) for line in lines[1:]) <= 80
    intervals = re.compile(r"[+−]?[\d.]+(?: [^ ]+)? \[[^]]*\]|\[[−+][^]]*\]|[+−]?\d\.\d{4}")
    assert sorted(intervals.findall(narrow)) == sorted(intervals.findall(wide)) != []


def test_explain_tells_of_the_deviation_between_seeds(cli, two, paths):
    assert f"±: {STATEMENTS['±']}" in cli(*two, f"b={paths['b2']}", *SMALL, "--explain")[1]
    assert "±" not in cli(*two, *SMALL, "--explain")[1]


@pytest.mark.parametrize(
    ("alpha", "level"),
    [
        (0.05, "95 %"),
        (0.0033333, "99.66667 %"),
        (1e-9, "99.9999999 %"),
        (0.05 / 3, "98.33333 %"),
        (0.9999999, "0.00001 %"),
    ],
)
def test_level_of_confidence_is_never_rounded_to_100_or_0(alpha, level):
    assert confidence(alpha) == level
