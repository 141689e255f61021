"""Datasets that are tables: CheXpert, ChestX-ray14, VinDr-CXR and covid-chestxray, each with its layout's traps."""

from collections import Counter

import pytest

from cxrdist.datasets import detect, import_dataset, read_facts
from cxrdist.datasets.importer import UnknownLabelsError
from cxrdist.errors import UserError
from tests.trees.chexpert import CHEXPERT, chex, make_chexpert
from tests.trees.covid import make_covid
from tests.trees.files import by_name, imported, picture, reasons, table
from tests.trees.nih14 import make_nih
from tests.trees.vindr import make_vindr

# ---- CheXpert


@pytest.mark.parametrize("batches", [False, True])
def test_chexpert_is_imported_from_one_folder_and_from_batches(tmp_path, batches):
    named = make_chexpert(tmp_path, batches=batches)
    found = imported(tmp_path, "chexpert", named)
    assert reasons(found) == {"projection_filtered": 2, "missing_file": 1, "no_label_row": 1}
    rows = {row.patient + "/" + row.study: row for row in found.rows}
    first = rows["patient00001/patient00001/study1"]
    # All four values: present, absent, uncertain, not mentioned.
    values = [first.findings[name] for name in ("effusion", "edema", "lung_lesion", "fracture")]
    assert values == [1, 0, -1, None]
    assert (first.projection, first.sex, first.age) == ("AP", "M", 60)
    assert first.path.is_file() and tmp_path / first.source == first.path
    second = rows["patient00002/patient00002/study2"]
    assert (second.projection, second.sex, second.age) == ("PA", "unknown", None)
    test = [row for row in found.rows if row.split == "test"]
    assert {row.patient for row in test} == {"patient64541", "patient64542"}
    assert set(test[0].findings.values()) == {0, 1}


def test_chexpert_laterals_include_the_ll_rows_marked_frontal(tmp_path):
    make_chexpert(tmp_path)
    found = import_dataset(read_facts("chexpert"), tmp_path, projection="all")
    assert Counter(row.projection for row in found.rows) == {"AP": 3, "lateral": 2, "PA": 1}
    assert reasons(found) == {"missing_file": 1, "no_label_row": 1}


def test_chexpert_valid_becomes_validation_where_the_test_patients_are_there(tmp_path):
    named = make_chexpert(tmp_path, test=True)
    found = import_dataset(read_facts("chexpert"), tmp_path)
    assert len(found.rows) + len(found.rejects) == named
    splits = {row.patient: row.split for row in found.rows}
    assert splits["patient64741"] == "test" and splits["patient64541"] == splits["patient64542"] == "val"
    assert splits["patient00001"] == splits["patient00002"] == "train"  # nothing is carved when there is a split
    row = next(row for row in found.rows if row.split == "test")
    # Its table has no projection columns: the file's name says frontal, nobody says PA or AP.
    assert (row.projection, row.notes) == ("unknown", {"frontal": True})


def test_an_unknown_label_code_stops_the_import_and_is_kept_out_of_the_message(tmp_path):
    path = "CheXpert-v1.0/train/patient00001/study1/view1_frontal.jpg"
    table(tmp_path / "train.csv", CHEXPERT, [chex(path, edema="7")])
    picture(tmp_path / path)
    with pytest.raises(UnknownLabelsError, match="1 unknown ones") as caught:
        import_dataset(read_facts("chexpert"), tmp_path)
    assert dict(caught.value.words) == {"7": 1}


# ---- ChestX-ray14


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("kaggle", [False, True])
def test_nih14_is_imported_from_both_releases_and_both_folder_forms(tmp_path, kaggle, old):
    named = make_nih(tmp_path / "CXR8", kaggle=kaggle, old=old)
    found = imported(tmp_path, "nih14", named)
    assert reasons(found) == {
        "missing_file": 1, "excluded_by_source": 1, "duplicate_row": 1, "no_label_row": 1,
    }  # fmt: skip
    rows = by_name(found)
    listed = {name for name, value in rows["00000001_001.png"].findings.items() if value == 1}
    assert listed == {"pleural_thickening", "mass", "nodule_or_mass", "lung_opacity", "lung_lesion"}
    # Closed world: what is not listed is absent, and nothing is unknown.
    assert {value for row in found.rows for value in row.findings.values()} == {0, 1}
    assert rows["00000002_000.png"].findings["no_finding"] == 1
    assert rows["00000001_000.png"].patient == rows["00000001_001.png"].patient == "1"
    assert rows["00000001_000.png"].study != rows["00000001_001.png"].study
    assert (rows["00000001_000.png"].age, rows["00000003_000.png"].age, rows["00000004_000.png"].age) == (58, None, 90)
    assert {rows["00000003_000.png"].split, rows["00000004_000.png"].split} == {"test"}
    assert rows["00000002_000.png"].split in ("train", "val")


def test_nih14_without_its_lists_is_refused(tmp_path):
    make_nih(tmp_path)
    (tmp_path / "test_list.txt").unlink()
    with pytest.raises(UserError, match=r"must have the list test_list\.txt or test_list_NIH\.txt"):
        import_dataset(read_facts("nih14"), tmp_path)


def test_labels_are_never_read_by_substring(tmp_path):
    make_nih(tmp_path)
    path = tmp_path / "Data_Entry_2017_v2020.csv"
    path.write_text(path.read_text(encoding="utf-8").replace("Hernia", "Pseudonodule"), encoding="utf-8")
    with pytest.raises(UnknownLabelsError) as caught:
        import_dataset(read_facts("nih14"), tmp_path)
    assert set(caught.value.words) == {"pseudonodule"} and "pseudonodule" not in str(caught.value)


# ---- VinDr-CXR


@pytest.mark.parametrize("gz", [False, True])
def test_vindr_readers_become_one_row_by_majority(tmp_path, gz):
    root = tmp_path / "physionet.org/files/vindr-cxr/1.0.0"
    named = make_vindr(root, gz=gz)
    found = imported(root, "vindr_cxr", named)
    assert not read_facts("vindr_cxr").has_patient_ids
    assert reasons(found) == {"missing_file": 1, "no_label_row": 1}
    rows = {row.patient[0]: row for row in found.rows}
    assert {name for name, value in rows["a"].findings.items() if value} == {"cardiomegaly"}
    assert rows["a"].findings["edema"] == 0
    assert {name for name, value in rows["b"].findings.items() if value} == {"no_finding"}
    assert not any(rows["c"].findings.values()) and rows["c"].notes["no_majority"] is True
    assert "no_majority" not in rows["a"].notes
    ones = {name for name, value in rows["e"].findings.items() if value}
    assert ones == {"other_disease", "rib_fracture", "fracture"}
    assert (rows["e"].split, rows["e"].projection, rows["e"].source[-6:]) == ("test", "PA", ".dicom")
    assert len({row.patient for row in found.rows}) == 4


@pytest.mark.parametrize(("how", "effusion"), [("any", 1), ("all", 0), ("majority", 0)])
def test_vindr_readers_can_be_combined_otherwise_by_another_fact_file(tmp_path, how, effusion):
    make_vindr(tmp_path)
    facts = read_facts("vindr_cxr")
    changed = facts.model_copy(update={"layout": facts.layout.model_copy(update={"readers": how})})
    row = next(row for row in import_dataset(changed, tmp_path).rows if row.patient.startswith("a"))
    assert row.findings["effusion"] == effusion and row.findings["cardiomegaly"] == 1


def test_the_split_of_a_patient_does_not_depend_on_where_the_root_is(tmp_path):
    make_vindr(tmp_path / "deep/er")
    facts = read_facts("vindr_cxr")
    places = [import_dataset(facts, root) for root in (tmp_path, tmp_path / "deep/er")]
    patients, others = ([(row.patient, row.study, row.split) for row in found.rows] for found in places)
    assert patients == others


# ---- covid-chestxray


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1"])
def test_covid_chestxray_is_open_world_and_drops_the_unlabelled(tmp_path, encoding):
    named = make_covid(tmp_path / "repo", encoding=encoding)
    found = imported(tmp_path, "covid_chestxray", named)
    assert reasons(found) == {
        "excluded_by_source": 3, "projection_filtered": 1, "missing_file": 1, "no_label_row": 1,
    }  # fmt: skip
    rows = by_name(found)
    order = ("covid19", "pneumonia", "viral_pneumonia", "bacterial_pneumonia", "tuberculosis", "no_finding")
    values = {name: [row.findings[finding] for finding in order] for name, row in rows.items()}
    assert values["a.jpg"] == [1, 1, 1, None, None, 0]
    assert values["b.jpg"] == [1, 1, 1, None, None, 0]
    assert values["c.png"] == [0, 0, 0, 0, 0, 1]
    assert values["d.jpeg"] == [None, 1, None, 1, None, 0]
    assert values["e.jpg"] == [None, None, None, None, 1, 0]
    assert values["k.JPG"] == [None, None, None, None, None, 0]
    assert (rows["b.jpg"].projection, rows["b.jpg"].age, rows["b.jpg"].patient) == ("AP", 90, "2")
    assert (rows["c.png"].sex, rows["c.png"].age) == ("unknown", 61)


def test_covid_chestxray_of_an_early_commit_is_read(tmp_path):
    named = make_covid(tmp_path, early=True)
    found = import_dataset(detect(tmp_path), tmp_path)
    assert len(found.rows) + len(found.rejects) == named
    assert by_name(found)["a.jpg"].patient == "2"
