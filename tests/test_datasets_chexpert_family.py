"""CheXpert's test patients and other labelers, CheXpert Plus and BRAX: the 14 columns of one report labeler."""

import pytest

from cxrdist.datasets import detect, import_dataset, read_facts
from tests.trees.chexpert import make_brax, make_chexpert, make_plus, make_test_alone, write_other_labelers
from tests.trees.files import imported, ones, reasons

VALUES = ("effusion", "edema", "lung_lesion", "fracture")


def test_the_test_patients_of_chexlocalize_can_stand_alone(tmp_path):
    named = make_test_alone(tmp_path)
    facts = detect(tmp_path)
    assert facts.name == "chexpert"
    found = import_dataset(facts, tmp_path)
    assert len(found.rows) + len(found.rejects) == named and reasons(found) == {"projection_filtered": 1}
    assert {row.patient: row.split for row in found.rows} == {"patient64741": "test", "patient64541": "val"}
    row = next(row for row in found.rows if row.split == "test")
    assert ones(row) == {"edema"} and set(row.findings.values()) == {0, 1} and row.notes["frontal"] is True


def test_chexperts_tables_may_lie_in_the_folders_of_their_images(tmp_path):
    named = make_chexpert(tmp_path)
    home = tmp_path / "data/CheXpert-v1.0-small"
    for part in ("train", "valid"):
        (home / f"{part}.csv").rename(home / part / f"{part}.csv")
    found = import_dataset(detect(tmp_path), tmp_path)
    assert len(found.rows) + len(found.rejects) == named
    assert {row.split for row in found.rows} == {"train", "test"}


def test_the_test_patients_join_the_others_as_a_second_root(tmp_path):
    make_chexpert(tmp_path / "a", batches=True)
    make_test_alone(tmp_path / "b")
    found = import_dataset(read_facts("chexpert"), [tmp_path / "a", tmp_path / "b"])
    splits = {row.patient: row.split for row in found.rows}
    assert splits == {
        "patient00001": "train", "patient00002": "train", "patient64541": "val", "patient64542": "val",
        "patient64741": "test",
    }  # fmt: skip
    assert reasons(found)["duplicate_row"] == 1  # CheXlocalize brings the validation images, too


@pytest.mark.parametrize(
    ("variant", "first", "second"),
    [("chexbert", [-1, None, 1, None], {"no_finding"}), ("visual_chexbert", [0, 1, 0, 0], {"edema"})],
)
def test_other_labelers_of_chexpert_are_variants(tmp_path, variant, first, second):
    make_chexpert(tmp_path, batches=True)
    write_other_labelers(tmp_path)
    found = import_dataset(read_facts("chexpert", variant=variant), tmp_path)
    rows = {row.study: row for row in found.rows}
    assert [rows["patient00001/study1"].findings[name] for name in VALUES] == first
    assert ones(rows["patient00002/study2"]) == second
    assert (rows["patient00002/study2"].projection, rows["patient00002/study2"].split) == ("PA", "train")
    assert rows["patient64541/study1"].split == "test" and ones(rows["patient64541/study1"]) == {"edema"}


def test_chexpert_of_tayebi_arasteh_carves_all_patients_and_takes_blank_for_absent(tmp_path):
    make_chexpert(tmp_path)
    facts = read_facts("chexpert", variant="tayebi2024")
    assert facts.policy.uncertain == facts.policy.not_mentioned == "zeros"
    assert (facts.splits.official, facts.splits.test_fraction, facts.splits.val_fraction) == (False, 0.2, 0.1)
    official = {row.source: row for row in import_dataset(read_facts("chexpert"), tmp_path).rows}
    for row in import_dataset(facts, tmp_path).rows:
        assert (
            row.findings == official[row.source].findings
        )  # a policy is for training: shards keep what the source says


# ---- CheXpert Plus


@pytest.mark.parametrize(("dicom", "png"), [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("top", [False, True])
def test_chexpert_plus_reads_labels_from_lines_of_json(tmp_path, dicom, png, top):
    named = make_plus(tmp_path / "chexpertplus", dicom=dicom, png=png, top=top)
    found = imported(tmp_path, "chexpert_plus", named)
    assert read_facts("chexpert_plus").namespace == read_facts("chexpert").namespace
    # A row without labels, and an image in no row; where DICOM and PNG are there, each PNG is a second copy.
    copies = {"duplicate_row": 5, "no_label_row": 3} if dicom and png else {"no_label_row": 2}
    assert reasons(found) == copies | {"projection_filtered": 1}
    rows = {row.patient: row for row in found.rows}
    assert [rows["patient00001"].findings[name] for name in VALUES] == [1, 0, -1, None]
    assert {row.source.rsplit(".")[-1] for row in found.rows} == {"dcm" if dicom else "png"}
    assert (rows["patient00001"].projection, rows["patient00001"].sex, rows["patient00001"].age) == ("AP", "F", 61)
    assert (rows["patient00002"].projection, rows["patient00002"].sex, rows["patient00002"].age) == (
        "PA", "unknown", None,
    )  # fmt: skip
    assert rows["patient64541"].split == "test" and rows["patient64541"].study == "patient64541/study1"


@pytest.mark.parametrize(("variant", "fracture"), [(None, None), ("findings", 1), ("report", -1)])
def test_the_section_that_chexpert_plus_is_labelled_by_is_a_variant(tmp_path, variant, fracture):
    make_plus(tmp_path)
    found = import_dataset(read_facts("chexpert_plus", variant=variant), tmp_path)
    assert {row.findings["fracture"] for row in found.rows} == {fracture}


def test_the_png_of_chexpert_plus_can_be_taken_where_dicom_is_there_too(tmp_path):
    named = make_plus(tmp_path, png=True)
    found = import_dataset(read_facts("chexpert_plus", variant="png"), tmp_path)
    assert len(found.rows) + len(found.rejects) == named / 2
    assert {row.path.suffix for row in found.rows} == {".png"}


def test_a_patient_of_chexpert_is_the_same_in_chexpert_plus(tmp_path):
    make_plus(tmp_path / "plus")
    make_chexpert(tmp_path / "jpg")
    plus, jpg = (
        {row.patient for row in import_dataset(read_facts(name), tmp_path / folder).rows}
        for name, folder in (("chexpert_plus", "plus"), ("chexpert", "jpg"))
    )
    assert plus & jpg == {"patient00001", "patient00002", "patient64541"}


# ---- BRAX


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize(("dicom", "png"), [(True, True), (True, False), (False, True)])
def test_brax_takes_dicom_before_png_in_both_releases(tmp_path, dicom, png, first):
    named = make_brax(tmp_path / "brax/1.0.0", dicom=dicom, png=png, first=first)
    found = imported(tmp_path, "brax", named)
    assert reasons(found) == {"projection_filtered": 3, "missing_file": 1, "no_label_row": 1}
    rows = {row.patient[:11]: row for row in found.rows}
    assert sorted(rows) == ["id_00000000", "id_00000001"]
    row = rows["id_00000000"]
    assert row.source.startswith("brax/1.0.0/" + ("Anonymized_DICOMs" if dicom else "images"))
    assert [row.findings[name] for name in ("effusion", "edema", "pneumonia", "fracture")] == [1, 0, -1, None]
    assert (row.projection, row.sex, row.age, row.study) == ("PA", "F", 85, "Study_1.2.0")
    assert ones(rows["id_00000001"]) == {"no_finding"}
