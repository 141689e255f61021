"""MIMIC-CXR, MIMIC-CXR-JPG, REFLACX and the edema grades: one hospital's images, three projects' labels."""

import pytest

from cxrdist.datasets import detect, import_dataset, read_facts
from cxrdist.errors import UserError
from tests.trees.files import by_letter, imported, ones, reasons
from tests.trees.mimic import (
    DICOM_HOME,
    EDEMA_HOME,
    JPG_HOME,
    REFLACX_HOME,
    make_dicom,
    make_edema,
    make_jpg,
    make_reflacx,
    write_images,
    write_lists,
    write_patients,
    write_reflacx,
    write_tables,
)


def check(found, named):
    """Check what both projects have in common."""
    assert len(found.rows) + len(found.rejects) == named
    assert reasons(found) == {
        "projection_filtered": 3, "no_label_row": 2, "missing_file": 1, "excluded_by_source": 1,
    }  # fmt: skip
    rows = by_letter(found)
    assert sorted(rows) == ["a", "c", "f", "h"]
    names = ("effusion", "edema", "pneumonia", "fracture")
    assert [rows["a"].findings[name] for name in names] == [1, 0, -1, None]
    assert set(rows["c"].findings.values()) == {None}  # a row of blanks is no row and no "No Finding"
    assert ones(rows["f"]) == {"no_finding"}
    assert ones(rows["h"]) == {"lung_opacity", "support_devices"}
    assert [rows[letter].projection for letter in "acfh"] == ["PA", "AP", "PA", "AP"]
    assert [rows[letter].split for letter in "acfh"] == ["train", "train", "val", "test"]
    assert (rows["a"].patient, rows["a"].study) == ("10000032", "50414267")


@pytest.mark.parametrize("gz", [False, True])
def test_mimic_cxr_jpg_joins_split_and_labels_to_its_images(tmp_path, gz):
    named = make_jpg(tmp_path, gz=gz)
    facts = detect(tmp_path)
    assert facts.name == "mimic_cxr_jpg"
    found = import_dataset(facts, tmp_path)
    check(found, named)
    every = import_dataset(facts, tmp_path, projection="all")
    assert [by_letter(every)[letter].projection for letter in "bdi"] == ["lateral", "unknown", "other"]


@pytest.mark.parametrize("suffix", [".dcm", ".dcm.gz"])
@pytest.mark.parametrize("how", ["one root", "two roots", "beside"])
def test_mimic_cxr_takes_its_labels_from_the_jpg_project(tmp_path, suffix, how):
    named = make_dicom(tmp_path, suffix=suffix)
    write_images(tmp_path / JPG_HOME, ".jpg")  # the JPEGs lie there, too, and are none of this dataset
    roots = {
        "one root": [tmp_path],
        "two roots": [tmp_path / DICOM_HOME, tmp_path / JPG_HOME],
        "beside": [tmp_path / DICOM_HOME],
    }[how]
    facts = detect(roots)
    assert facts.name == "mimic_cxr"
    found = import_dataset(facts, roots)
    check(found, named)
    assert all(row.source.endswith(suffix) and row.path.is_file() for row in found.rows)


def test_mimic_cxr_without_the_tables_says_how_to_name_them(tmp_path):
    root = tmp_path / "so" / "deep" / "that no other test lies beside it"
    write_lists(root)
    write_images(root, ".dcm")
    with pytest.raises(UserError, match=r"mimic-cxr-2\.0\.0-metadata\.csv .* further `--root`"):
        import_dataset(detect(root), root)


def test_the_two_projects_give_a_patient_the_same_pseudonym_and_split(tmp_path):
    make_dicom(tmp_path / "a")
    make_jpg(tmp_path / "b")
    facts = [read_facts(name) for name in ("mimic_cxr", "mimic_cxr_jpg", "reflacx", "edema_severity")]
    assert len({each.namespace for each in facts}) == 1
    first, second = (
        [(row.patient, row.study, row.split, row.findings) for row in import_dataset(each, root).rows]
        for each, root in zip(facts, (tmp_path / "a", tmp_path / "b"), strict=False)
    )
    assert first == second


def test_sex_and_age_come_from_mimic_iv_where_it_is_named(tmp_path):
    make_jpg(tmp_path / "jpg")
    write_patients(tmp_path / "mimiciv/3.1")
    facts = read_facts("mimic_cxr_jpg")
    assert {(row.sex, row.age) for row in import_dataset(facts, tmp_path / "jpg").rows} == {("unknown", None)}
    rows = by_letter(import_dataset(facts, [tmp_path / "jpg", tmp_path / "mimiciv"]))
    # The age was told for 2180 and 2132; the films are of 2182.
    assert [(rows[letter].sex, rows[letter].age) for letter in "ac"] == [("F", 54), ("M", None)]
    assert (rows["h"].sex, rows["h"].age) == ("F", 83)


@pytest.mark.parametrize("name", ["mimic_cxr", "mimic_cxr_jpg"])
def test_variants_of_mimic_read_other_labels_and_splits(tmp_path, name):
    (make_dicom if name == "mimic_cxr" else make_jpg)(tmp_path)
    negbio = by_letter(import_dataset(read_facts(name, variant="negbio"), tmp_path))
    assert negbio["a"].findings["edema"] == -1 and negbio["a"].findings["effusion"] == 1
    human = import_dataset(read_facts(name, variant="human_test"), tmp_path)
    assert reasons(human) == {"projection_filtered": 1}
    (row,) = human.rows
    values = [row.findings[finding] for finding in ("lung_opacity", "edema", "pneumonia", "support_devices")]
    assert values == [1, 0, -1, None]
    assert (row.patient, row.split, row.projection) == ("10001176", "test", "AP")
    facts = read_facts(name, variant="tayebi2024")
    again = import_dataset(facts, tmp_path)
    assert not any(reject.reason == "excluded_by_source" for reject in again.rejects)  # j is in no list, and carved
    assert facts.policy.uncertain == "zeros" and facts.splits.test_fraction == 0.2


# ---- REFLACX


@pytest.mark.parametrize("how", ["one root", "two roots", "beside"])
def test_reflacx_combines_readers_of_phases_that_name_findings_otherwise(tmp_path, how):
    named = make_reflacx(tmp_path)
    roots = {
        "one root": [tmp_path],
        "two roots": [tmp_path / REFLACX_HOME, tmp_path / DICOM_HOME],
        "beside": [tmp_path / REFLACX_HOME],
    }[how]
    found = imported(roots, "reflacx", named)  # what nobody read of MIMIC-CXR is none of this dataset
    assert reasons(found) == {"missing_file": 1}
    rows = by_letter(found)
    first = rows["a"].findings
    names = ("effusion", "atelectasis", "nodule", "nodule_or_mass", "pleural_abnormality", "interstitial_lung_disease")
    assert [first[name] for name in names] == [1, 0, 1, 1, 1, None]
    assert (first["support_devices"], rows["a"].notes["readers"]) == (1, 5)
    second = rows["h"].findings
    assert [second[name] for name in ("edema", "pleural_abnormality", "effusion", "fracture")] == [1, -1, None, 0]
    third = rows["f"].findings
    assert [third[name] for name in ("pneumothorax", "nodule_or_mass", "nodule")] == [-1, 1, None]
    assert [rows[letter].split for letter in "ahf"] == ["train", "test", "val"]
    assert (rows["a"].patient, rows["a"].study) == ("10000032", "50414267")
    assert (rows["a"].projection, rows["a"].notes["frontal"]) == ("unknown", True)


def test_reflacx_knows_the_projection_where_the_table_of_mimic_is_there(tmp_path):
    write_reflacx(tmp_path / REFLACX_HOME)
    make_jpg(tmp_path)
    rows = by_letter(import_dataset(read_facts("reflacx"), tmp_path))
    assert [rows[letter].projection for letter in "ahf"] == ["PA", "AP", "PA"]
    assert rows["a"].source.endswith(".jpg")


def test_a_certainty_of_a_half_counts_in_the_variant_possibly(tmp_path):
    make_reflacx(tmp_path)
    rows = by_letter(import_dataset(read_facts("reflacx", variant="possibly"), tmp_path))
    assert rows["f"].findings["pneumothorax"] == 1 and rows["a"].findings["nodule"] == 1


# ---- edema severity


def test_edema_grades_by_study_are_those_of_all_its_images(tmp_path):
    named = make_edema(tmp_path)
    found = imported(tmp_path, "edema_severity", named)
    # b and i are no frontals; g is not on disk; the rules speak of h, too, which the consensus has.
    assert reasons(found) == {"projection_filtered": 2, "missing_file": 1, "duplicate_row": 1}
    rows = by_letter(found)
    grades = {
        letter: [row.findings[name] for name in ("congestion", "edema", "alveolar_edema")]
        for letter, row in rows.items()
    }
    assert grades == {"a": [1, 1, 1], "c": [0, 0, 0], "d": [1, 0, 0], "e": [1, 0, 0], "h": [1, 1, 0]}
    assert [rows[letter].split == "test" for letter in "acdeh"] == [False, True, False, False, True]
    assert rows["d"].notes == {"projection_from_header": True}


def test_no_patient_of_the_edema_consensus_trains(tmp_path):
    make_edema(tmp_path)
    found = import_dataset(read_facts("edema_severity"), tmp_path, projection="all")
    held_out = {row.patient for row in found.rows if row.split == "test"}
    assert held_out == {"10001176", "10000764"}
    assert reasons(found)["excluded_by_source"] == 1
    assert not held_out & {row.patient for row in found.rows if row.split != "test"}


def test_edema_grades_need_no_table_of_mimic_where_they_name_their_images(tmp_path):
    make_edema(tmp_path)
    (tmp_path / EDEMA_HOME / "regex_report_edema_severity.csv").unlink()
    for path in (tmp_path / JPG_HOME).glob("mimic*"):
        path.unlink()
    found = import_dataset(read_facts("edema_severity"), tmp_path)
    assert {(row.split, row.notes.get("projection_from_header")) for row in found.rows} == {("test", True)}
    make_edema(tmp_path)
    for path in (tmp_path / JPG_HOME).glob("mimic*"):
        path.unlink()
    with pytest.raises(UserError, match=r"must have a table mimic-cxr-2\.0\.0-metadata\.csv or cxr-record-list\.csv"):
        import_dataset(read_facts("edema_severity"), tmp_path)


def test_the_experts_grades_are_a_variant(tmp_path):
    make_edema(tmp_path)
    found = import_dataset(read_facts("edema_severity", variant="expert"), tmp_path)
    assert sorted(by_letter(found)) == ["a", "c", "h"]


def test_tables_of_mimic_may_be_anywhere_below_the_roots(tmp_path):
    write_lists(tmp_path / "images")
    write_images(tmp_path / "images", ".dcm")
    write_tables(tmp_path / "elsewhere/tables")
    found = import_dataset(read_facts("mimic_cxr"), [tmp_path / "images", tmp_path / "elsewhere"])
    assert len(found.rows) == 4
