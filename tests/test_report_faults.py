"""What a fault in one part of a study leaves whole, and which guard tells of it."""

import math
from dataclasses import replace

import numpy as np
import pytest
from run_folders import DATASETS, FINDINGS, OPTIONS, STRATEGIES, make_study, result_of, spoil

from cxrdist.report import write_report
from cxrdist.report.guards import check
from cxrdist.report.others import metric_blocks, metrics_table
from cxrdist.stats.meanings import MACRO


def passed(study):
    """Return whether each guard passed, by the first words of its name."""
    return {guard.name: guard.passed for guard in check(study)}


def names_of(words, guards):
    return next(name for name in guards if words in name)


def keep_findings(kept):
    """Return changes that leave predictions with the `kept` first findings."""
    return {
        "findings": lambda p: p.findings[:kept],
        "targets": lambda p: p.targets[:, :kept],
        "scores": lambda p: p.scores[:, :kept],
    }


VALIDATION_FAULTS = {
    "a shared patient": (
        lambda cell: spoil(
            cell, "val", patient_id=lambda p: np.r_[["nih14-testp001"], p.patient_id[1:]].astype(object)
        ),
        "of other patients than the test predictions",
    ),
    "other findings": (lambda cell: spoil(cell, "val", findings=lambda p: ("a", "b", "c")), "got none of effusion"),
    "no file": (
        lambda cell: (cell.folder / "predictions/val.parquet").unlink(),
        "No validation predictions for ours on nih14, seed 0.",
    ),
}


@pytest.mark.parametrize("fault", VALIDATION_FAULTS)
def test_fault_of_validation_costs_the_rates_of_its_dataset_and_nothing_else(tmp_path, fault):
    cells = make_study(tmp_path, strategies=STRATEGIES, datasets=DATASETS, seeds=(0,))
    before = result_of(cells)
    break_it, sentence = VALIDATION_FAULTS[fault]
    break_it(cells[1])
    after = result_of(cells)
    first, second = after.datasets
    assert first.fault == first.misaligned == ""
    assert [one.metric for one in first.comparison.estimates[:: len(FINDINGS) + 1]] == ["auroc", "brier"] * 2
    for one in first.comparison.estimates:
        assert one == before.datasets[0].comparison.estimate(one.model, one.finding, one.metric)
    assert not first.rates
    assert any(sentence in warning for warning in first.warnings)
    assert second.rates == before.datasets[1].rates
    assert second.comparison.estimates == before.datasets[1].comparison.estimates
    guards = passed(after)
    assert guards[names_of("same test images", guards)]
    assert not guards[names_of("Thresholds", guards)]
    assert guards[names_of("disjoint", guards)] == (fault != "a shared patient")


def test_finding_that_validation_lacks_costs_the_rates_of_that_finding(tmp_path):
    cells = make_study(tmp_path, strategies=STRATEGIES, datasets=("nih14",), seeds=(0,))
    before = result_of(cells).datasets[0]
    spoil(cells[1], "val", **keep_findings(2))
    after = result_of(cells).datasets[0]
    assert all(math.isnan(value) for value in after.rates["ours", "mass"].values())
    for key in before.rates.keys() - {("ours", "mass")}:
        assert after.rates[key] == before.rates[key]
    assert after.comparison.estimate("ours", "mass") == before.comparison.estimate("ours", "mass")
    assert any("mass" in warning and "ensitivity" in warning for warning in after.warnings)


@pytest.mark.parametrize(
    ("column", "sentence"),
    [
        (None, "No subgroups by sex: the prediction files have no such column."),
        (lambda p: np.arange(len(p)).astype(str).astype(object), "must have at most 20 different values"),
    ],
)
def test_column_that_one_dataset_lacks_costs_its_subgroups_alone(tmp_path, column, sentence):
    cells = make_study(tmp_path, strategies=STRATEGIES, datasets=DATASETS, seeds=(0,))
    plain = result_of(cells)
    for cell in cells[:2]:
        spoil(cell, extra=lambda p: {"sex": column(p)} if column else {})
    first, second = result_of(cells, subgroups=("sex",), subgroup_minimum=2).datasets
    assert any(sentence in warning for warning in first.warnings)
    assert first.comparison.estimates == plain.datasets[0].comparison.estimates
    assert not first.comparison.subgroups
    assert {row.level for row in second.comparison.subgroups} == {"female", "male"}
    assert not any("subgroups" in warning for warning in second.warnings)


def test_files_that_are_no_pairs_are_told_by_the_guard_of_the_same_images(tmp_path):
    cells = make_study(tmp_path, strategies=STRATEGIES, datasets=DATASETS, seeds=(0,))
    spoil(cells[1], image_id=lambda p: p.image_id + "x")
    study = result_of(cells)
    assert study.datasets[0].comparison is None
    assert study.datasets[0].misaligned == study.datasets[0].fault != ""
    guards = passed(study)
    assert not guards[names_of("same test images", guards)]
    assert guards[names_of("Thresholds", guards)]


def test_missing_reference_leaves_the_estimates_and_no_difference(tmp_path):
    cells = make_study(tmp_path, strategies=("random", "a", "b"), datasets=("nih14",), seeds=(0,))
    whole = result_of(cells).datasets[0].comparison
    (cells[0].folder / "predictions/test.parquet").unlink()
    one = result_of(cells, permutations=9).datasets[0]
    assert one.comparison.reference is None
    assert one.comparison.differences == ()
    assert one.comparison.options.permutations == 9
    assert one.comparison.estimates == tuple(e for e in whole.estimates if e.model != "random")


@pytest.mark.parametrize("drop", [False, True])
def test_average_that_does_not_exist_is_a_dash(tmp_path, drop):
    study = result_of(make_study(tmp_path, STRATEGIES, ("nih14",), (0,)), metrics=("auroc", "brier"))
    one = study.datasets[0]
    gone = [replace(e, value=math.nan, low=math.nan, high=math.nan) for e in one.comparison.estimates]
    kept = [e for e in gone if (e.metric, e.finding) != ("brier", MACRO)] if drop else gone
    comparison = replace(one.comparison, estimates=tuple(kept), differences=())
    study = replace(study, datasets=(replace(one, comparison=comparison),))
    assert {cell["value"] for block in metric_blocks(study) for row in block["rows"] for cell in row["cells"]} == {"–"}
    assert {row[4].text for row in metrics_table(study).rows} == {"–"}


def test_delong_is_held_against_redraws_of_patients_alone(tmp_path):
    cells = make_study(tmp_path, STRATEGIES, ("nih14",), (0, 1))
    spoil(cells[3], scores=lambda p: 1 - p.scores)
    details = []
    for drawn in (False, True):
        study = result_of(cells, metrics=("auroc",), hierarchical=drawn, n_resamples=99)
        guard = next(guard for guard in check(study) if "DeLong" in guard.name)
        assert guard.passed
        details.append(guard.detail)
    assert details[0] == details[1]


def test_delong_is_not_asked_of_findings_with_few_patients(tmp_path):
    cells = make_study(tmp_path, STRATEGIES, ("nih14",), (0,))
    for cell in cells:  # as many images as before, of nine patients
        spoil(cell, patient_id=lambda p: np.array([f"p{i % 9}" for i in range(len(p))], dtype=object))
    for cluster, found in (("patient_id", "nothing to check"), ("none", "standard errors of")):
        guard = next(g for g in check(result_of(cells, metrics=("auroc",), cluster=cluster)) if "DeLong" in g.name)
        assert found in guard.detail


def test_column_named_as_no_file_can_be_is_written_all_the_same(tmp_path):
    cells = make_study(tmp_path, STRATEGIES, ("nih14",), (0,))
    for cell in cells:
        spoil(cell, extra=lambda p: {"../view / position": p.extra["sex"]})
    options = OPTIONS.model_copy(update={"subgroups": ("../view / position",), "subgroup_minimum": 2})
    write_report(cells, tmp_path / "report", title="T", options=options)
    assert (tmp_path / "report/by-view-position.md").is_file()
