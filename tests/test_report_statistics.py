"""What a report's numbers are: of which files, under which thresholds, and how they are told."""

import csv
import html
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from run_folders import DATASETS, FINDINGS, OPTIONS, STRATEGIES, make_study, result_of, spoil
from scipy.stats import false_discovery_control

from cxrdist.report import write_report
from cxrdist.report.compared import csv_rows, tables
from cxrdist.report.figures import draw, to_bytes
from cxrdist.report.others import metric_blocks, metrics_table, verdict
from cxrdist.report.page import render
from cxrdist.report.tables import interval, number, probability, signed
from cxrdist.stats.compare import compare
from cxrdist.stats.meanings import AVERAGES, MACRO
from cxrdist.stats.metrics import METRICS
from cxrdist.stats.options import StatisticsOptions
from cxrdist.stats.predictions import read_predictions
from cxrdist.study.run import _cores


def test_rates_of_the_findings_are_those_of_the_comparison(tmp_path):
    cells = make_study(tmp_path, strategies=STRATEGIES, datasets=("nih14",), seeds=(0, 1))
    one = result_of(cells).datasets[0]
    for strategy in STRATEGIES:
        for finding in FINDINGS:
            rates = one.rates[strategy, finding]
            assert rates["sensitivity"] == one.comparison.estimate(strategy, finding, "sensitivity").value
            assert rates["threshold"] == one.comparison.estimate(strategy, finding, "sensitivity").threshold
    asked = result_of(cells, metrics=("auroc", "specificity", "ppv", "npv", "f1", "accuracy")).datasets[0]
    for key, rates in one.rates.items():
        assert rates == pytest.approx(asked.rates[key], abs=1e-12)


def one_skilled_other_not(tmp_path, datasets=("nih14",)):
    """Return cells whose `ours` is better by the AUROC and worse by the Brier score, surely."""
    cells = make_study(tmp_path, strategies=STRATEGIES, datasets=datasets, seeds=(0,))
    for cell in cells:
        if cell.strategy == "random":
            spoil(cell, scores=lambda p: np.clip(p.targets.mean() + 0.001 * p.scores, 0, 1))
        else:
            spoil(cell, scores=lambda p: 0.9 + 0.05 * p.targets + 0.01 * p.scores)
    return cells


def test_better_and_worse_are_told_by_the_metric_and_not_by_the_sign(tmp_path):
    study = result_of(one_skilled_other_not(tmp_path), metrics=("auroc", "brier"), n_resamples=99)
    comparison = study.datasets[0].comparison
    auroc, brier = (comparison.difference("ours", metric=metric) for metric in ("auroc", "brier"))
    assert auroc.value > 0 and brier.value > 0 and max(auroc.q, brier.q) < 0.05
    assert (verdict(auroc, comparison), verdict(brier, comparison)) == ("better", "worse")
    rows = [[cell.text for cell in row] for row in metrics_table(study).rows]
    assert [row[2] for row in rows] == ["higher", "higher", "lower", "lower"]
    assert rows[1][6] == f"{auroc.value:+.3f} (better)"
    assert rows[3][6] == f"{brier.value:+.3f} (worse)"
    assert [row[4].bold for row in metrics_table(study).rows] == [False, True, True, False]
    (block,) = metric_blocks(study)
    (row,) = block["rows"]
    assert (row["title"], row["note"]) == ("Brier score", "lower is better")
    assert row["cells"][1]["tone"] == "down strong"
    assert row["cells"][1]["below"][1].endswith("▼ worse")


def test_difference_of_a_metric_with_a_right_value_is_neither_better_nor_worse(tmp_path):
    study = result_of(one_skilled_other_not(tmp_path), metrics=("auroc", "calibration_intercept"), n_resamples=99)
    assert [row[2].text for row in metrics_table(study).rows][2:] == ["near 0", "near 0"]
    comparison = study.datasets[0].comparison
    d = comparison.difference("ours", "effusion", metric="calibration_intercept")
    assert verdict(replace(d, q=0.01), comparison) == "differs"
    assert verdict(replace(d, q=0.2), comparison) == verdict(replace(d, q=math.nan), comparison) == ""


def rows_of_csv(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def cells_of_markdown(path):
    """Return the rows of a Markdown table as column -> text without emphasis."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    head, _, *body = [
        [cell.strip().replace("*", "").replace("\\", "") for cell in line[1:-1].split(" | ")] for line in lines
    ]
    return [dict(zip(head, row, strict=True)) for row in body]


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """Return cells, options and folder of a report with everything asked for."""
    root = tmp_path_factory.mktemp("full")
    cells = make_study(root, STRATEGIES, DATASETS, (0, 1))
    options = OPTIONS.model_copy(
        update={"metrics": ("auroc", "specificity", "brier"), "subgroups": ("sex",), "subgroup_minimum": 2}
        | {"hierarchical": True, "averages": ("macro", "weighted")}
    )
    write_report([*cells], root / "report", title="Full", options=options)
    return cells, options, root / "report"


def compared(cells, dataset, options):
    """Return the comparison of one dataset, straight from its files; q over this dataset alone."""
    ours = [cell for cell in cells if cell.dataset == dataset]

    def files(split):
        return {
            name: [read_predictions(c.folder / f"predictions/{split}.parquet") for c in ours if c.strategy == name]
            for name in STRATEGIES
        }

    seeds = {name: [cell.seed for cell in ours if cell.strategy == name] for name in STRATEGIES}
    return compare(files("test"), reference="random", validation=files("val"), train_seeds=seeds, options=options)


def test_statistics_csv_holds_the_numbers_of_the_files(full):
    cells, options, out = full
    rows = rows_of_csv(out / "statistics.csv")
    for dataset in DATASETS:
        mine = [row for row in rows if row["dataset"] == dataset]
        # Redraws of the training seeds follow from their numbers: without them these intervals would be others.
        expected = compared(cells, dataset, options)
        estimates = [row for row in mine if row["kind"] == "estimate"]
        assert len(estimates) == len(expected.estimates) == 2 * 3 * (len(FINDINGS) + 2)
        for row in estimates:
            one = expected.estimate(row["model"], row["finding"], row["metric"])
            assert [float(row[name]) for name in ("value", "low", "high")] == [one.value, one.low, one.high]
            assert int(row["n_files"]) == 2
        differences = [row for row in mine if row["kind"] == "difference"]
        assert len(differences) == len(expected.differences) > 0
        for row in differences:
            d = expected.difference(row["model"], row["finding"], metric=row["metric"])
            assert [float(row[name]) for name in ("value", "low", "high", "p")] == [d.value, d.low, d.high, d.p]
        groups = [row for row in mine if row["kind"] == "subgroup"]
        assert len(groups) == len(expected.subgroups) == 2 * 2 * (len(FINDINGS) + 1)
        for row, one in zip(groups, expected.subgroups, strict=True):
            assert (row["level"], row["model"], row["finding"]) == (one.level, one.model, one.finding)
            assert float(row["value"]) == one.value


def test_q_of_every_metric_is_over_all_datasets(full):
    _, _, out = full
    differences = [row for row in rows_of_csv(out / "statistics.csv") if row["kind"] == "difference"]
    for metric in ("auroc", "specificity", "brier"):
        for average in (True, False):
            family = [row for row in differences if row["metric"] == metric and (row["finding"] in AVERAGES) == average]
            assert {row["dataset"] for row in family} == set(DATASETS)
            q = false_discovery_control([float(row["p"]) for row in family])
            assert [float(row["q"]) for row in family] == pytest.approx(list(q))


def test_tables_for_readers_round_the_numbers_of_the_csv(full):
    _, _, out = full
    rows = rows_of_csv(out / "statistics.csv")
    titles = {METRICS[name].title: name for name in METRICS}
    table = cells_of_markdown(out / "metrics.md")
    assert len(table) == 2 * 3 * 2 * 2
    for row in table:
        title, _, average = row["Metric"].partition(", ")
        key = (row["Dataset"], row["Strategy"], titles[title], average or MACRO)
        found = {
            one["kind"]: one for one in rows if (one["dataset"], one["model"], one["metric"], one["finding"]) == key
        }
        assert row["Value"] == number(float(found["estimate"]["value"]))
        bounds = (float(found["estimate"][name]) for name in ("low", "high"))
        assert row["95 % CI"] == interval(*bounds)
        if row["Strategy"] == "ours":
            assert row["Difference"].split(" ")[0] == signed(float(found["difference"]["value"]))
            assert row["q"] == probability(float(found["difference"]["q"]))
        else:
            assert row["Difference"] == "reference"
    by_sex = cells_of_markdown(out / "by-sex.md")
    assert len(by_sex) == 2 * 2 * 2
    for row in by_sex:
        key = (row["Dataset"], row["Strategy"], row["sex"], MACRO)
        found = {
            one["kind"]: one for one in rows if (one["dataset"], one["model"], one["level"], one["finding"]) == key
        }
        assert row["AUROC"] == number(float(found["subgroup"]["value"]))
        assert row["Gap to the rest"] == signed(float(found["subgroup_gap"]["value"]))
        assert row["Images"] == found["subgroup"]["n_images"]
        assert row["q"] == probability(float(found["subgroup_gap"]["q"]))
    for name in ("metrics", "by-sex"):
        assert (out / f"{name}.tex").read_text(encoding="utf-8").count(r" \\") == 1 + len(
            cells_of_markdown(out / f"{name}.md")
        )


def test_page_shows_other_metrics_and_subgroups_by_dataset(full):
    _, _, out = full
    page = (out / "index.html").read_text(encoding="utf-8")
    rows = rows_of_csv(out / "statistics.csv")
    shown = page[page.index('<section id="metrics">') : page.index('<section id="training">')]
    for row in rows:
        what = (row["kind"], row["metric"])
        if row["finding"] == MACRO and row["kind"] in ("estimate", "subgroup") and what != ("estimate", "auroc"):
            assert number(float(row["value"])) in shown
    for dataset in DATASETS:
        assert f"<h3>{dataset}</h3>" in shown
        assert f"<h3>{dataset}, by sex</h3>" in shown


def test_hierarchical_intervals_also_hold_the_choice_of_seeds(tmp_path):
    cells = make_study(tmp_path, STRATEGIES, ("nih14",), (0, 1))
    spoil(cells[3], scores=lambda p: 1 - p.scores)  # one seed of ours is as bad as can be
    flat, both = (result_of(cells, metrics=("auroc",), hierarchical=drawn) for drawn in (False, True))
    widths = [e.high - e.low for one in (flat, both) for e in [one.datasets[0].comparison.estimate("ours")]]
    assert widths[1] > 1.5 * widths[0]


def test_reliability_is_of_each_seed_and_of_all_together(tmp_path):
    cells = make_study(tmp_path, STRATEGIES, ("nih14",), (0, 1))
    with_ece, without = (result_of(cells, metrics=("auroc", *more)).datasets[0] for more in (("ece",), ()))
    assert with_ece.reliability.keys() == with_ece.curves.keys()
    for (strategy, finding), found in with_ece.reliability.items():
        tests = [read_predictions(c.folder / "predictions/test.parquet") for c in cells if c.strategy == strategy]
        k = FINDINGS.index(finding)
        assert len(found.files) == 2
        for one, curve in zip(tests, found.files, strict=True):
            assert curve.count.tolist() == [18] * 5
            lowest = np.argsort(one.scores[:, k])[:18]
            assert curve.mean_predicted[0] == pytest.approx(one.scores[lowest, k].mean())
            assert curve.share_positive[0] == pytest.approx(one.targets[lowest, k].mean())
        assert found.pooled.count.tolist() == [36] * 5
        assert found.ece == with_ece.comparison.estimate(strategy, finding, "ece").value
        assert without.reliability[strategy, finding].ece == pytest.approx(found.ece, abs=1e-12)


def test_finding_of_one_class_has_no_panel_and_page_names_the_diagrams(tmp_path):
    cells = make_study(tmp_path, STRATEGIES, ("nih14",), (0,))
    for cell in cells:
        spoil(cell, targets=lambda p: p.targets * (1, 1, 0))
    study = result_of(cells)
    assert {finding for _, finding in study.datasets[0].reliability} == {"effusion", "edema"}
    svg = to_bytes(draw(study)["reliability_0"], "svg")
    page = render(study, title="T", guards=(), notes=(), figures={"reliability_0": svg}, files=())
    assert 'alt="Reliability diagrams per finding on nih14' in page
    assert sum(axes.get_visible() for axes in draw(study)["reliability_0"].axes) == 2


@pytest.mark.parametrize(
    ("hierarchical", "seeds", "said", "unsaid"),
    [
        (False, (0,), ("trained once", "about other patients"), ("other seeds", "standard deviation between")),
        (False, (0, 1), ("not what other seeds would have given", "thresholds fixed"), ("Student", "trained once")),
        (True, (0, 1), ("Student's t", "With 2 seeds the spread between seeds is poorly known"), ("not what other",)),
        (True, (0, 1, 2, 3, 4), ("Student's t", "5 other seeds might"), ("poorly known", "not what other")),
    ],
)
def test_methods_say_what_intervals_are_about(tmp_path, hierarchical, seeds, said, unsaid):
    cells = make_study(tmp_path, ("random",), ("nih14",), seeds)
    study = result_of(cells, metrics=("auroc", "sensitivity"), hierarchical=hierarchical)
    page = render(study, title="T", guards=(), notes=(), figures={}, files=())
    methods = re.sub(
        r"<[^>]*>", "", page[page.index('<section id="methods">') : page.index('<section id="provenance">')]
    )
    methods = " ".join(html.unescape(methods).split())
    assert [text for text in said if text not in methods] == []
    assert [text for text in unsaid if text in methods] == []
    assert "for all strategies alike" in methods.partition("Other metrics may be undefined")[0]


def test_statistics_take_the_cores_that_the_process_may_use(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 3, 5}, raising=False)
    assert _cores() == 3


def test_tables_say_what_numbers_rest_on_and_within_which_margin(tmp_path):
    base = read_predictions(make_study(tmp_path, ("ours",), ("nih14",), (0,))[0].folder / "predictions/test.parquet")
    targets = base.targets.copy()
    sex = np.where(np.arange(len(base)) % 2, "F", "M").astype(object)
    targets[sex == "F", 0] = 0
    targets[:3, 1] = np.nan
    base = replace(base, targets=targets, extra={"sex": sex})
    files = {"a": base, "b": replace(base, scores=base.scores[::-1])}
    chosen = StatisticsOptions.build(
        {"n_resamples": 20, "subgroups": ["sex"], "subgroup_minimum": 2, "margin": 0.02}, where="a test"
    )
    result = compare(files, options=chosen)
    estimates, differences, by_sex = tables(result)
    assert estimates.columns == ("finding", "positive / n", "a", "b")
    for k, (row, finding) in enumerate(zip(estimates.rows, base.findings, strict=False)):
        labelled = ~np.isnan(targets[:, k])
        sizes = [int(labelled.sum()), len(set(base.patient_id[labelled])), int((targets[:, k] == 1).sum())]
        assert row[1].text == f"{sizes[2]} / {sizes[0]}"
        for one in csv_rows(result):
            if (one["kind"], one["finding"]) == ("estimate", finding):
                assert [one[name] for name in ("n_images", "n_patients", "n_positive")] == sizes
    assert estimates.rows[-1][1].text == "–"
    assert {"p non-inferior within 0.02 (not adjusted)", "p equivalent within 0.02 (not adjusted)"} < {
        *differences.columns
    }
    levels = {row[2].text for row in by_sex.rows if row[1].text == "macro average"}
    (macro,) = (row for row in result.subgroups if (row.model, row.finding, row.level) == ("a", MACRO, "F"))
    assert 0 < macro.n_findings < len(base.findings)
    assert f"F ({macro.n_findings} of {len(base.findings)} findings)" in levels
