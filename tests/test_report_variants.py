"""Variants in a report: rows of their own, learning curves, cells that are not in the grid, another convention."""

import csv
import json
import math

import numpy as np
import pytest
from run_folders import FINDINGS, OPTIONS, make_cell, result_of

from cxrdist.config import write_yaml
from cxrdist.report import CellFiles, write_report
from cxrdist.report.cells import read_cell
from cxrdist.report.figures import draw
from cxrdist.report.guards import check
from cxrdist.report.learning import learning_curves, learning_rows
from cxrdist.report.page import render
from cxrdist.report.replication import replication_rows, replication_table
from cxrdist.report.tables import finding_table, headline_rows, headline_table, latex
from cxrdist.stats.meanings import MACRO
from cxrdist.stats.predictions import read_predictions
from cxrdist.stats.tayebi2024 import LABEL, replicate

FEW = {"n_resamples": 29, "metrics": ("auroc",)}
SIZES = {"10-images": 10, "40-images": 40, "all": None}
ALL = 90


def make(root, grid, configs=None):
    """Write run folders of ``(strategy, dataset, variant, seed)`` and return their files.

    `configs` are by variant what its configuration has besides.
    """
    cells = []
    for number, (strategy, dataset, variant, seed) in enumerate(grid):
        one = make_cell(root, strategy, dataset, seed, 0.5 + 0.3 * (number % 5), number)
        config = (configs or {}).get(variant, {})
        write_yaml({"train": {"steps": 40, "global_batch_size": 8}, "seed": seed} | config, one.folder / "config.yaml")
        trained = config.get("train_images") or ALL
        (one.folder / "result.json").write_text(json.dumps({"train_images": trained + seed}))
        cells.append(CellFiles(strategy, dataset, seed, one.folder, variant))
    return cells


def crossed(strategies=("random", "ours"), datasets=("nih14",), variants=("full", "probe"), seeds=(0,)):
    return [(s, d, v, k) for d in datasets for v in variants for s in strategies for k in seeds]


def guard_of(study, words):
    return next(guard for guard in check(study) if words in guard.name)


def page_of(study):
    return render(study, title="T", guards=check(study), notes=[], figures={}, files=[])


def test_strategies_are_compared_within_a_variant_and_q_is_over_all(tmp_path):
    cells = make(tmp_path, crossed(datasets=("nih14", "vindr")))
    study = result_of(cells, **FEW)
    assert [one.name for one in study.datasets] == ["nih14, full", "nih14, probe", "vindr, full", "vindr, probe"]
    for one in study.datasets:
        (alone,) = result_of([c for c in cells if (c.dataset, c.variant) == (one.dataset, one.variant)], **FEW).datasets
        assert alone.comparison.estimates == one.comparison.estimates
        assert [d.p for d in alone.comparison.differences] == [d.p for d in one.comparison.differences]
    found = [one.comparison.difference("ours") for one in study.datasets]
    assert max(d.q for d in found) == pytest.approx(max(d.p for d in found)), "four tests are one family"
    assert guard_of(study, "Every cell").detail == "2 strategies × 2 datasets × 2 variants × 1 seed"


def test_tables_name_dataset_and_variant_in_columns_of_their_own(tmp_path):
    study = result_of(make(tmp_path, crossed()), **FEW)
    table = headline_table(study)
    assert table.columns[:3] == ("Dataset", "Variant", "Strategy")
    assert [tuple(cell.text for cell in row[:3]) for row in table.rows] == [
        ("nih14", v, s) for v in ("full", "probe") for s in ("random", "ours")
    ]
    assert latex(table).count(r"\midrule") == 2, "one below the headings, one between the variants"
    assert finding_table(study).columns[:4] == ("Dataset", "Variant", "Finding", "Strategy")
    assert {row["variant"] for row in headline_rows(study)} == {"full", "probe"}
    plain = result_of(make(tmp_path / "plain", crossed(variants=("",))), **FEW)
    assert headline_table(plain).columns[:2] == ("Dataset", "Strategy")
    assert {row["variant"] for row in headline_rows(plain)} == {""}


def test_what_the_grid_leaves_out_is_absent_and_not_missing(tmp_path):
    grid = [one for one in crossed(datasets=("nih14", "mimic"), variants=("",)) if one[:2] != ("ours", "mimic")]
    cells = make(tmp_path, grid)
    study = result_of(cells, **FEW)
    status = {(row["dataset"], row["strategy"]): row["status"] for row in headline_rows(study)}
    assert [name for name, told in status.items() if told != "done"] == [("mimic", "ours")]
    assert status["mimic", "ours"] == "absent"
    guard = guard_of(study, "Every cell")
    assert guard.passed and guard.detail.endswith("; 3 cells, the others are not in the grid by design")
    assert not any("ours" in sentence for sentence in study.datasets[1].warnings)
    text = page_of(study)
    assert "not in the grid" in text and "missing" not in text.partition("</style>")[2].replace('class="missing"', "")
    assert {row[2].text for row in finding_table(study).rows if row[0].text == "mimic"} == {"random"}
    # A cell that is declared and has not ended is missing still.
    (cells[0].folder / "predictions/test.parquet").unlink()
    failed = guard_of(result_of(cells, **FEW), "Every cell")
    assert (failed.passed, failed.detail) == (False, "random on nih14, seed 0")


def test_differences_are_given_where_the_reference_is_in_the_grid(tmp_path):
    grid = [one for one in crossed(variants=("full", "probe")) if (one[0], one[2]) != ("random", "probe")]
    study = result_of(make(tmp_path, grid), **FEW)
    full, probe = study.datasets
    assert full.comparison.difference("ours") is not None and probe.comparison.differences == ()
    assert "The reference random is not part of the grid here, so no difference is given." in probe.warnings
    rows = {row["variant"]: row for row in headline_rows(study) if row["strategy"] == "random"}
    assert rows["probe"]["status"] == "absent" and math.isnan(rows["probe"]["auroc"])
    assert [cell.text for cell in headline_table(study).rows[2]][3:] == ["not in the grid", *["–"] * 5]


def test_seeds_that_a_cell_was_not_declared_with_are_not_missing(tmp_path):
    grid = [*crossed(variants=("full",), seeds=(0, 1)), *crossed(variants=("probe",))]
    study = result_of(make(tmp_path, grid), **FEW)
    assert guard_of(study, "Every cell").passed
    assert not any("seed" in sentence for one in study.datasets for sentence in one.warnings)
    assert "only 1 of" not in page_of(study)


def sized(root, more=None, **changes):
    configs = {name: {"train_images": size, "protocol": {"name": "full"}} for name, size in SIZES.items()} | (
        more or {}
    )
    return make(root, crossed(variants=tuple(configs), **changes), configs)


def test_learning_curve_has_a_point_for_each_size_and_strategy(tmp_path):
    study = result_of(sized(tmp_path, seeds=(0, 1)), **FEW)
    (curves,) = learning_curves(study)
    assert curves.title == "nih14" and list(curves.lines) == ["random", "ours"]
    for strategy, points in curves.lines.items():
        # Seeds draw whole patients, so their sizes differ; "all" is what was trained on.
        assert [point.images for point in points] == [10.5, 40.5, ALL + 0.5]
        for one, point in zip(study.datasets, points, strict=True):
            assert point.estimate == one.comparison.estimate(strategy, MACRO)
    rows = learning_rows(study)
    headline = {(row["variant"], row["strategy"]): row for row in headline_rows(study)}
    for row in rows:
        same = headline[row["variant"], row["strategy"]]
        names = ("auroc", "auroc_low", "auroc_high", "difference", "q")
        np.testing.assert_equal([row[name] for name in names], [same[name] for name in names])
    assert len(rows) == 6
    assert "learning" in draw(study)
    assert "10 images" in page_of(study)


def test_sizes_of_other_protocols_are_other_curves(tmp_path):
    more = {f"probe-{size}": {"train_images": size, "protocol": {"name": "probe"}} for size in (10, 40)}
    curves = learning_curves(result_of(sized(tmp_path, more), **FEW))
    assert {one.title: [point.variant for point in one.lines["ours"]] for one in curves} == {
        "nih14: 10-images … all": list(SIZES),
        "nih14: probe-10 … probe-40": ["probe-10", "probe-40"],
    }


def test_larger_sets_may_be_trained_on_for_longer(tmp_path):
    longer = {
        "all": {"train_images": None, "protocol": {"name": "full"}, "train": {"steps": 80, "global_batch_size": 8}}
    }
    (curves,) = learning_curves(result_of(sized(tmp_path, longer), **FEW))
    assert len(curves.lines["ours"]) == 3


def test_variants_of_one_size_make_no_curve(tmp_path):
    configs = {"full": {"protocol": {"name": "full"}}, "probe": {"protocol": {"name": "probe"}}}
    study = result_of(make(tmp_path, crossed(), configs), **FEW)
    assert learning_curves(study) == [] and "learning" not in draw(study)
    # Nor do those that differ in nothing.
    assert learning_curves(result_of(make(tmp_path / "same", crossed()), **FEW)) == []


def test_many_rows_turn_the_headline_and_part_the_long_figures(tmp_path):
    datasets = ("a", "b", "c", "d")
    grid = [one for one in crossed(datasets=datasets) if one[:2] != ("ours", "d")]
    study = result_of(make(tmp_path, grid), **FEW)
    text = page_of(study)
    matrix = text[text.index('class="headline matrix"') :].partition("</table>")[0]
    assert matrix.count("<tr") == 1 + 8 and matrix.count("<td") == 16
    assert "ours is above random in" in text and "of 6 comparisons" in text
    names = draw(study).keys()
    assert {"forest", "training_0", "training_7"} <= names and "training" not in names
    few = result_of(make(tmp_path / "few", crossed()), **FEW)
    assert "headline matrix" not in page_of(few) and "training" in draw(few)


@pytest.fixture(scope="module")
def replicated(tmp_path_factory):
    root = tmp_path_factory.mktemp("replicated")
    cells = make(root, crossed(variants=("",), seeds=(3, 5)))
    return cells, result_of(cells, n_resamples=49, metrics=("auroc",), convention="tayebi2024")


def test_numbers_of_the_convention_are_those_of_its_procedure_on_the_first_seed(replicated):
    cells, study = replicated
    first = {c.strategy: read_predictions(c.folder / "predictions/test.parquet") for c in cells if c.seed == 3}
    base = first["random"]
    expected = replicate(
        base.targets,
        {name: one.scores for name, one in first.items()},
        FINDINGS,
        pairs=[("ours", "random")],
        n_resamples=49,
        seed=0,
    )
    assert study.datasets[0].replication == expected
    assert any("its numbers are of seed 3 alone" in sentence for sentence in study.datasets[0].warnings)
    rows = replication_rows(study)
    assert {row["convention"] for row in rows} == {"tayebi2024"}
    assert [row["p"] for row in rows if row["kind"] == "difference"] == [one.p for one in expected.verdicts]


def test_convention_is_named_wherever_its_numbers_stand_and_changes_no_other(replicated):
    cells, study = replicated
    assert replication_table(study).caption.startswith(LABEL)
    text = page_of(study)
    assert LABEL in text and 'id="convention"' in text
    plain = result_of(cells, n_resamples=49, metrics=("auroc",))
    assert plain.datasets[0].replication is None and 'id="convention"' not in page_of(plain)
    assert plain.datasets[0].comparison.estimates == study.datasets[0].comparison.estimates


def test_files_of_curves_and_convention_are_written_and_taken_away(tmp_path):
    cells = sized(tmp_path, strategies=("random",))
    out = tmp_path / "report"
    asked = OPTIONS.model_copy(update={**FEW, "convention": "tayebi2024"})
    write_report(cells, out, title="T", options=asked)
    for name in ("learning", "tayebi2024"):
        for end in ("csv", "md", "tex"):
            assert (out / f"{name}.{end}").is_file()
    assert (out / "figures" / "learning.svg").is_file()
    with (out / "learning.csv").open(newline="", encoding="utf-8") as file:
        assert [float(row["train_images"]) for row in csv.DictReader(file)] == [10, 40, ALL]
    write_report(cells[:1], out, title="T", options=OPTIONS.model_copy(update=FEW))
    assert not [*out.glob("learning.*"), *out.glob("tayebi2024.*"), *out.glob("figures/learning*")]


def test_size_of_a_training_set_is_read_from_the_result_and_a_broken_one_is_none(tmp_path):
    (cell,) = make(tmp_path, [("random", "nih14", "", 0)])
    assert read_cell(cell).train_images == ALL
    for text in ("{", "[]", '{"train_images": "many"}'):
        (cell.folder / "result.json").write_text(text)
        assert read_cell(cell).train_images is None
