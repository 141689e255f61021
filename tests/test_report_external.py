"""Tests on other datasets in a report: their numbers, their own family of tests, and what is not there."""

import csv
from dataclasses import replace

import numpy as np
import pytest
from run_folders import make_predictions, make_study, result_of
from sklearn.metrics import roc_auc_score

from cxrdist.report import ExternalFiles
from cxrdist.report.external import analyse_external, check_external_results
from cxrdist.report.external_tables import NOTHING, differences_table, external_page, external_rows, matrix_table
from cxrdist.report.heatmap import draw_external, values
from cxrdist.report.page import render
from cxrdist.report.write import _write_tables
from cxrdist.stats.predictions import read_predictions, write_predictions

STRATEGIES, DATASETS, SEEDS = ("random", "ours"), ("nih14", "vindr"), (0, 1)
FEW = {"metrics": ("auroc",)}


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    return make_study(tmp_path_factory.mktemp("cells"), STRATEGIES, DATASETS, SEEDS)


def make(root, *, findings=("effusion", "mass"), others=("vindr", "nih14", "brax")):
    """Write predictions of each cell on each other dataset, and return them."""
    found = []
    for number, (strategy, trained, seed) in enumerate((s, d, k) for d in DATASETS for s in STRATEGIES for k in SEEDS):
        for tested in others:
            if tested != trained:
                path = root / f"{number}-{tested}.parquet"
                skill = 0.3 + 1.5 * STRATEGIES.index(strategy)
                write_predictions(path, make_predictions(f"{tested}-test", skill, 7 * number).only(findings))
                found.append(ExternalFiles(strategy, trained, tested, seed, path))
    return found


def test_numbers_are_those_of_the_files_and_q_is_over_the_pairs_alone(tmp_path, cells):
    files, study = make(tmp_path), result_of(cells, **FEW)
    across = analyse_external(files, study)
    assert [(one.trained, one.tested) for one in across.pairs] == [
        ("nih14", "vindr"), ("nih14", "brax"), ("vindr", "nih14"), ("vindr", "brax"),
    ]  # fmt: skip
    for row in external_rows(across, study):
        ours = [one for one in files if (one.strategy, one.trained, one.tested) == tuple(row[n] for n in ("strategy", "trained", "tested"))]  # fmt: skip  # noqa: E501
        if row["status"] == "own":
            assert not ours and row["trained"] == row["tested"]
            continue
        areas = [
            np.mean([roc_auc_score(one.targets[:, k], one.scores[:, k]) for k in range(2)])
            for one in (read_predictions(file.path) for file in ours)
        ]
        assert row["auroc"] == pytest.approx(np.mean(areas), abs=1e-12) and row["seeds"] == 2
        home = next(one for one in study.datasets if one.dataset == row["trained"]).comparison
        own = [home.estimate(row["strategy"], finding).value for finding in ("effusion", "mass")]
        assert row["own_auroc"] == pytest.approx(np.mean(own))
    differences = [one.comparison.difference("ours") for one in across.pairs]
    assert max(d.q for d in differences) == pytest.approx(max(d.p for d in differences)), "four tests are one family"
    before = [one.comparison.difference("ours").q for one in study.datasets]
    assert before == [one.comparison.difference("ours").q for one in result_of(cells, **FEW).datasets]
    grid = values(across, study, "", "ours")
    assert across.tested == ("nih14", "vindr", "brax")
    assert grid[0, 0] == study.datasets[0].comparison.estimate("ours").value
    assert grid[1, 0] == across.pair("vindr", "nih14", "").comparison.estimate("ours").value
    assert list(draw_external(across, study)) == ["external"]


def test_what_is_not_there_is_said(tmp_path, cells):
    files = make(tmp_path)
    next(one for one in files if (one.strategy, one.trained, one.seed) == ("random", "nih14", 0)).path.unlink()
    next(one for one in files if (one.strategy, one.trained, one.seed) == ("random", "nih14", 1)).path.unlink()
    changed = [
        replace(one, path=tmp_path / "-", why="no finding shared")
        if one.tested == "brax"
        else replace(one, mark="met <b>before</b>" * (one.trained == "vindr" and one.strategy == "ours"))
        for one in files
    ]
    study = result_of(cells, **FEW)
    across = analyse_external(changed, study)
    guard = check_external_results(across)
    assert not guard.passed and guard.detail == "random of nih14 → vindr"
    table = {(row[0].text, row[1].text): [cell.text for cell in row[2:]] for row in matrix_table(across, study).rows}
    assert table["random", "nih14"][1:] == ["missing", NOTHING] and table["ours", "vindr"][0].startswith("0.")
    assert "†" in table["ours", "vindr"][0] and "†" not in table["ours", "vindr"][1]
    assert all(cell.text for table in (matrix_table(across, study), differences_table(across, study)) for row in table.rows for cell in row)  # fmt: skip  # noqa: E501
    # Without the reference there is a number and no difference.
    row = next(r for r in external_rows(across, study) if (r["strategy"], r["tested"], r["trained"]) == ("ours", "vindr", "nih14"))  # fmt: skip  # noqa: E501
    assert row["auroc"] > 0.5 and np.isnan(row["difference"])
    shown = external_page(across, study, [])
    assert "nih14 → brax: no finding shared." in shown["shared"]
    assert shown["marks"] == ["vindr → nih14 (ours): met <b>before</b>"]
    assert shown["remarks"] == [f"random of nih14 → vindr, seed {seed}: missing." for seed in SEEDS]


def test_page_and_files_of_a_report(tmp_path, cells):
    study = result_of(cells, **FEW)
    across = analyse_external(make(tmp_path / "files", others=("nih14", "vindr")), study)
    names = _write_tables(study, [], across, tmp_path)
    wanted = {"external.csv", "external.md", "external.tex", "external-differences.md", "external-findings.csv"}
    assert wanted <= set(names)
    with (tmp_path / "external.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8 and {row["findings"] for row in rows if row["status"] == "done"} == {"effusion mass"}
    text = render(study, title="T", guards=[], notes=[], figures={"external": b"<svg/>"}, files=names, across=across)
    assert 'href="#across"' in text and "Across datasets" in text and "nih14 → vindr" in text and "Heat map" in text
    # A report without them takes them away.
    assert not any("external" in name for name in _write_tables(study, [], None, tmp_path))
    assert not list(tmp_path.glob("external*"))
    assert "Across datasets" not in render(study, title="T", guards=[], notes=[], figures={}, files=[])
