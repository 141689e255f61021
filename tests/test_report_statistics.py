"""What a report's numbers are: of which files, under which thresholds, and what a fault in one part leaves whole."""

import numpy as np
import pytest
from run_folders import FINDINGS, make_study, spoil

from cxrdist.report import ReportOptions
from cxrdist.report.analysis import analyse
from cxrdist.report.cells import read_cell
from cxrdist.report.guards import check

OPTIONS = ReportOptions(reference="random", n_resamples=29, metrics=("auroc", "sensitivity", "brier"))
STRATEGIES = ("random", "ours")
DATASETS = ("nih14", "vindr")


def result_of(cells, **changes):
    return analyse([read_cell(cell) for cell in cells], OPTIONS.model_copy(update=changes))


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
    "a lacking finding": (lambda cell: spoil(cell, "val", **keep_findings(2)), "got none of mass"),
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


def test_missing_reference_leaves_the_estimates_and_no_difference(tmp_path):
    cells = make_study(tmp_path, strategies=("random", "a", "b"), datasets=("nih14",), seeds=(0,))
    whole = result_of(cells).datasets[0].comparison
    (cells[0].folder / "predictions/test.parquet").unlink()
    one = result_of(cells, permutations=9).datasets[0]
    assert one.comparison.reference is None
    assert one.comparison.differences == ()
    assert one.comparison.options.permutations == 9
    assert one.comparison.estimates == tuple(e for e in whole.estimates if e.model != "random")
