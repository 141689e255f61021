"""UKA-CXR and TAIX-Ray: grades, sides, codes that are no grade, folds."""

import pytest

from cxrdist.datasets import import_dataset, read_facts
from tests.trees.aachen import TREES, make_taix, make_uka
from tests.trees.files import by_letter, by_name, imported, ones, reasons

TAIX_TREES = {form: maker for form, maker in TREES.items() if form.startswith("taix")}


def test_uka_grades_are_present_from_3_on_and_a_finding_is_where_a_side_is(tmp_path):
    named = make_uka(tmp_path)
    found = imported(tmp_path, "uka_cxr", named)
    assert reasons(found) == {"missing_file": 1, "no_label_row": 1}
    rows = by_name(found)
    assert {name[:3]: ones(row) for name, row in rows.items()} == {
        "100": {"cardiomegaly", "effusion", "effusion_left"},
        "101": {"effusion", "effusion_left", "effusion_right", "pneumonia", "pneumonia_right"},
        "102": set(),
        "103": {"no_finding"},
    }
    assert rows["100.jpg"].findings["atelectasis"] == 0  # questionable
    # What nobody could judge is unknown: a code above 4, a blank, a side beside one that is free.
    assert rows["100.jpg"].findings["congestion"] is None and rows["102.jpg"].findings["congestion"] is None
    third = rows["102.jpg"].findings
    assert [third[name] for name in ("pneumothorax", "pneumothorax_left", "pneumothorax_right")] == [None, None, 0]
    told = [(row.split, row.sex, row.age) for _, row in sorted(rows.items())]
    assert told == [("train", "M", 64), ("train", "M", 64), ("val", "F", 90), ("test", "F", None)]
    assert rows["100.jpg"].patient == rows["101.jpg"].patient == "7"
    assert {(row.projection, row.notes["frontal"]) for row in found.rows} == {("unknown", True)}


def test_the_threshold_of_uka_is_a_setting_and_its_text_is_rejected(tmp_path):
    make_uka(tmp_path)
    facts = read_facts("uka_cxr", changes={"labels.values.2": 1})
    assert by_name(import_dataset(facts, tmp_path))["100.jpg"].findings["atelectasis"] == 1
    assert facts.burned_in_text == "reject" and facts.policy.not_mentioned == "ignore"


@pytest.mark.parametrize("form", TAIX_TREES)
def test_taix_ray_is_read_in_each_form_of_its_export(tmp_path, form):
    named = TREES[form](tmp_path)
    found = imported(tmp_path, "taix_ray", named)
    assert reasons(found) == {"missing_file": 1, "no_label_row": 1}
    rows = by_letter(found)
    assert {letter: ones(row) for letter, row in rows.items()} == {
        "a": {"no_finding"},
        "b": {"effusion", "effusion_left"},
        "c": {"cardiomegaly", "lung_opacity", "lung_opacity_right", "pneumonia"},
        "d": {"congestion"},
    }
    assert rows["d"].findings["cardiomegaly"] is None and rows["d"].findings["no_finding"] == 0
    assert [rows[letter].split for letter in "abcd"] == ["train", "train", "val", "test"]
    assert [rows[letter].age for letter in "abcd"] == [61, 62, 90, 54]  # told in days
    assert (rows["a"].sex, rows["a"].projection, rows["a"].pixels.range) == ("M", "AP", "robust")
    assert rows["a"].patient == rows["b"].patient


def test_any_degree_counts_borderline_hearts_and_questionable_findings(tmp_path):
    make_taix(tmp_path)
    rows = by_name(import_dataset(read_facts("taix_ray", variant="any_degree"), tmp_path))
    assert ones(rows[f"{'b' * 64}.png"]) == {
        "cardiomegaly", "congestion", "effusion", "effusion_left", "atelectasis", "atelectasis_left",
    }  # fmt: skip
    assert ones(rows[f"{'a' * 64}.png"]) == {"no_finding"}
