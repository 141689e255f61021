"""VinDr-CXR's readers, VinBigData's boxes, VinDr-PCXR and RANZCR CLiP."""

import pytest

from cxrdist.datasets import detect, import_dataset, read_facts
from tests.trees.files import by_letter, imported, ones, reasons
from tests.trees.vindr import TREES, make_clip, make_pcxr, make_vinbigdata, make_vindr


@pytest.mark.parametrize("name", ["vindr_cxr", "vinbigdata"])
@pytest.mark.parametrize(
    ("variant", "a", "c"),
    [
        (None, {"cardiomegaly"}, set()),
        ("all", {"cardiomegaly"}, set()),
        ("mean", {"cardiomegaly"}, set()),
        ("any", {"cardiomegaly", "effusion"}, {"consolidation", "infiltration"}),
    ],
)
def test_readers_are_combined_as_the_variant_says(tmp_path, name, variant, a, c):
    (make_vindr if name == "vindr_cxr" else make_vinbigdata)(tmp_path)
    facts = read_facts(name, variant=variant)
    rows = by_letter(import_dataset(facts, tmp_path))
    assert ones(rows["a"]) & {"cardiomegaly", "effusion"} == a
    assert ones(rows["b"]) == {"no_finding"}
    assert ones(rows["c"]) & {"consolidation", "infiltration", "no_finding"} == c
    assert facts.policy.soft == (variant == "mean")
    if variant == "mean":
        assert rows["a"].soft["cardiomegaly"] == 1 and rows["a"].soft["effusion"] == pytest.approx(1 / 3)
        assert rows["b"].soft["no_finding"] == 1 and rows["c"].soft["no_finding"] == 0
    else:
        assert not rows["a"].soft


def test_vinbigdata_has_a_row_per_box_and_a_vote_per_reader(tmp_path):
    named = make_vinbigdata(tmp_path / "kaggle")
    found = imported(tmp_path, "vinbigdata", named)
    assert read_facts("vinbigdata").namespace == read_facts("vindr_cxr").namespace
    assert reasons(found) == {"missing_file": 1, "no_label_row": 1}
    rows = by_letter(found)
    assert ones(rows["a"]) == {"cardiomegaly"} and rows["a"].notes == {"readers": 3}
    assert rows["c"].notes == {"readers": 3, "no_majority": True} and not any(rows["c"].findings.values())
    assert {row.projection for row in found.rows} == {"PA"}
    assert {value for row in found.rows for value in row.findings.values()} == {0, 1}


def test_vindr_cxr_can_be_its_test_part_alone(tmp_path):
    make_vindr(tmp_path)
    (tmp_path / "annotations/image_labels_train.csv").unlink()
    found = import_dataset(detect(tmp_path), tmp_path)
    assert {row.split for row in found.rows} == {"test"}


@pytest.mark.parametrize("form", ["vindr_pcxr", "vindr_pcxr/folder"])
def test_vindr_pcxr_is_told_from_vindr_cxr_by_its_columns(tmp_path, form):
    named = TREES[form](tmp_path)
    found = imported(tmp_path, "vindr_pcxr", named)
    assert reasons(found) == {"missing_file": 1, "no_label_row": 1}
    rows = by_letter(found)
    assert {letter: ones(row) for letter, row in rows.items()} == {
        "a": {"bronchopneumonia", "pneumonia"},
        "b": {"no_finding"},
        "d": {"pneumonia", "hernia"},
        "e": {"other_disease"},
    }
    assert rows["e"].findings["cpam"] == 0  # blank
    assert [rows[letter].split == "test" for letter in "abde"] == [False, False, True, True]
    assert {row.projection for row in found.rows} == {"PA"} and not read_facts("vindr_pcxr").has_patient_ids


def test_ranzcr_clip_reads_lines_by_study_uid_and_keeps_patients_together(tmp_path):
    named = make_clip(tmp_path)
    found = imported(tmp_path, "ranzcr_clip", named)
    assert not read_facts("ranzcr_clip").verified
    assert reasons(found) == {"missing_file": 1, "no_label_row": 1}
    rows = {row.source.removesuffix(".jpg")[-1]: row for row in found.rows}
    assert {letter: ones(row) for letter, row in rows.items()} == {
        "1": {"ngt_normal", "cvc_borderline", "cvc_normal", "support_devices"},
        "2": set(),
        "3": {"swan_ganz_catheter", "ett_abnormal", "support_devices"},
    }
    assert rows["1"].patient == rows["2"].patient and rows["1"].split == rows["2"].split
    assert rows["1"].study != rows["2"].study
    assert {row.notes["frontal"] for row in found.rows} == {True}


def test_the_two_vindr_datasets_and_two_of_kaggle_are_not_taken_for_each_other(tmp_path):
    makers = {"vindr_cxr": make_vindr, "vindr_pcxr": make_pcxr, "vinbigdata": make_vinbigdata, "ranzcr_clip": make_clip}
    for name, make in makers.items():
        make(tmp_path / name)
        assert detect(tmp_path / name).name == name
