"""ChestX-ray14 and what others made of it: resized copies, Google's expert labels, ChestX-Det."""

import pytest

from cxrdist.datasets import detect, import_dataset, read_facts
from cxrdist.dicom import read_radiograph
from tests.trees.files import by_name, imported, ones, reasons
from tests.trees.nih14 import google_images, google_readers, make_chestx_det, make_google, make_nih


def test_nih14_is_read_from_a_resized_copy_with_colour_among_its_files(tmp_path):
    named = make_nih(tmp_path, old=True, resized=True)
    found = import_dataset(detect(tmp_path), tmp_path)
    assert len(found.rows) + len(found.rejects) == named
    rows = by_name(found)
    assert rows["00000003_000.png"].split == "test" and rows["00000003_000.png"].age is None  # 414 years
    assert ones(rows["00000004_000.png"]) == {"infiltration", "lung_opacity"}
    assert read_radiograph(rows["00000001_000.png"].path).pixels.ndim == 2


def test_infiltrate_is_infiltration(tmp_path):
    make_nih(tmp_path)
    path = tmp_path / "Data_Entry_2017_v2020.csv"  # the table of boxes, and copies merged with it, spell it so
    path.write_text(path.read_text(encoding="utf-8").replace("Infiltration", "Infiltrate"), encoding="utf-8")
    row = by_name(import_dataset(read_facts("nih14"), tmp_path))["00000004_000.png"]
    assert row.findings["infiltration"] == 1


def test_findings_that_nih14_does_not_name_are_made_of_those_it_names(tmp_path):
    make_nih(tmp_path)
    rows = by_name(import_dataset(read_facts("nih14"), tmp_path))
    mass, none = rows["00000001_001.png"].findings, rows["00000002_000.png"].findings
    assert (mass["lung_opacity"], mass["lung_lesion"], mass["nodule_or_mass"]) == (1, 1, 1)
    assert (none["lung_opacity"], none["lung_lesion"], none["nodule_or_mass"], none["no_finding"]) == (0, 0, 0, 1)
    relations = {name: source.relation for name, source in read_facts("nih14").findings.items()}
    assert {name for name, relation in relations.items() if relation != "="} == {
        "lung_opacity", "lung_lesion", "no_finding",
    }  # fmt: skip


@pytest.mark.parametrize("one", [False, True])
def test_googles_labels_are_read_from_both_tables_or_the_one_made_of_them(tmp_path, one):
    named = make_google(tmp_path, one=one)
    facts = detect(tmp_path)
    assert facts.name == "nih14_google"
    found = import_dataset(facts, tmp_path)
    # The NIH's other images are not counted, those of the tables are: one is not there, one is listed twice.
    assert len(found.rows) + len(found.rejects) == named
    assert reasons(found) == {"missing_file": 1, "duplicate_row": 1}
    rows = by_name(found)
    assert ones(rows["00000012_000.png"]) == {"fracture", "nodule_or_mass"}
    assert ones(rows["00000007_000.png"]) == {"lung_opacity"} and not ones(rows["00000007_001.png"])
    assert {value for row in found.rows for value in row.findings.values()} == {0, 1}
    assert {name[:8]: row.split for name, row in rows.items()} == {
        "00000007": "val", "00000008": "val", "00000012": "test", "00000013": "test",
    }  # fmt: skip
    first = rows["00000007_001.png"]
    assert (first.projection, first.sex, first.age) == (("unknown", "unknown", None) if one else ("AP", "F", 61))
    assert not one or first.notes == {"frontal": True}


def test_googles_images_may_lie_in_the_nihs_folder_and_keep_its_patients(tmp_path):
    named = make_google(tmp_path / "google", one=True)
    make_nih(tmp_path / "nih")
    google_images(tmp_path / "nih")
    lines = "00000007_001.png,Mass,1,7,40,M,AP,2682,2749,0.143,0.143\n"
    path = tmp_path / "nih/Data_Entry_2017_v2020.csv"
    path.write_text(path.read_text(encoding="utf-8") + lines, encoding="utf-8")
    lists = tmp_path / "nih/train_val_list.txt"
    lists.write_text(lists.read_text() + "\n00000007_001.png")
    roots = [tmp_path / "google", tmp_path / "nih"]
    # A folder with Google's table is somebody's who wants its labels.
    assert detect(roots).name == "nih14_google" and detect(tmp_path / "nih").name == "nih14"
    found = import_dataset(detect(roots), roots)
    assert len(found.rows) + len(found.rejects) == named
    row = by_name(found)["00000007_001.png"]
    nih = by_name(import_dataset(read_facts("nih14"), tmp_path / "nih"))["00000007_001.png"]
    # What Google's table does not say, the NIH's own does; labels are Google's alone.
    assert (row.projection, row.sex, row.age, row.patient) == ("AP", "M", 40, "7")
    assert (nih.patient, read_facts("nih14").namespace) == (row.patient, read_facts("nih14_google").namespace)
    assert "mass" not in row.findings and row.findings["nodule_or_mass"] == 0


def test_googles_single_readers_give_shares(tmp_path):
    make_google(tmp_path)
    google_readers(tmp_path)
    facts = read_facts("nih14_google", variant="readers")
    rows = by_name(import_dataset(facts, tmp_path))
    assert set(rows) == {"00000012_000.png", "00000013_000.png"}
    first, second = rows["00000012_000.png"], rows["00000013_000.png"]
    assert ones(first) == {"fracture"} and ones(second) == {"lung_opacity", "pneumothorax"}
    assert first.soft == pytest.approx({"fracture": 2 / 3, "pneumothorax": 0, "lung_opacity": 0, "nodule_or_mass": 0})
    assert second.soft["pneumothorax"] == pytest.approx(2 / 3) and first.split == "test"


@pytest.mark.parametrize("indent", [None, 2])
def test_chestx_det_has_an_entry_per_box_and_no_link_to_the_nih(tmp_path, indent):
    named = make_chestx_det(tmp_path, indent=indent)
    found = imported(tmp_path, "chestx_det", named)
    assert not read_facts("chestx_det").has_patient_ids
    assert reasons(found) == {"missing_file": 1, "no_label_row": 1}
    rows = by_name(found)
    assert ones(rows["36200.png"]) == {"effusion", "nodule", "nodule_or_mass"}
    assert ones(rows["36202.png"]) == {"mass", "nodule_or_mass", "fracture"}
    assert ones(rows["40100.png"]) == {"pleural_thickening", "cardiomegaly"}
    # An empty list says that none of the 13 is there.
    assert ones(rows["36201.png"]) == {"no_finding"} and set(rows["36201.png"].findings.values()) == {0, 1}
    assert {name for name, row in rows.items() if row.split == "test"} == {"40100.png", "40101.png"}
    assert {row.projection for row in found.rows} == {"unknown"} and all(row.notes["frontal"] for row in found.rows)
