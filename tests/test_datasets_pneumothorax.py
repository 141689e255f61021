"""SIIM-ACR Pneumothorax and CANDID-PTX: outlines as run lengths, -1 for none, names that are DICOM's."""

import pytest

from cxrdist.datasets import detect, import_dataset, read_facts
from tests.trees.files import by_name, imported, ones, reasons
from tests.trees.pneumothorax import make_candid, make_siim, siim_uid


@pytest.mark.parametrize("form", [{}, {"flat": True}, {"first": True}])
def test_siims_masks_add_up_and_files_without_a_row_are_rejects(tmp_path, form):
    named = make_siim(tmp_path, **form)
    found = imported(tmp_path, "siim_ptx", named)
    assert not read_facts("siim_ptx").has_patient_ids
    assert reasons(found) == {"missing_file": 1, "no_label_row": 2}
    told = {row.patient: row.findings for row in found.rows}
    # A blank before the -1, or before the column's name, changes nothing.
    assert told == {siim_uid(number): {"pneumothorax": int(number < 3)} for number in (1, 2, 3, 4, 5)}
    assert all(row.notes == {"frontal": True} for row in found.rows)
    splits = {row.patient: row.split for row in found.rows}
    if form.get("flat"):
        assert set(splits.values()) <= {"train", "val", "test"}
    else:
        held_out = {siim_uid(2), siim_uid(5)}
        assert {patient for patient, split in splits.items() if split == "test"} == held_out


@pytest.mark.parametrize("folder", ["dataset", "chest_radiographs", "dataset1/dataset"])
def test_candid_files_have_no_suffix_and_patients_come_from_the_reports_names(tmp_path, folder):
    named = make_candid(tmp_path, folder=folder)
    found = imported(tmp_path, "candid_ptx", named)
    assert reasons(found) == {"missing_file": 1, "no_label_row": 1, "excluded_by_source": 1}
    assert [reject.detail for reject in found.rejects if reject.reason == "excluded_by_source"] == [
        "of several patients"
    ]
    rows = by_name(found)
    first, second, third = (rows[siim_uid(number)] for number in (1, 2, 3))
    assert (first.patient, second.patient, third.patient) == ("12", "12", "13")
    assert first.split == second.split and first.study != second.study
    assert ones(first) == {"pneumothorax", "chest_tube", "support_devices"}
    assert ones(second) == {"fracture", "rib_fracture"} and second.findings["pneumothorax"] == 0
    # The tables of tubes and fractures list what is there; nobody says that nothing else is.
    assert second.findings["chest_tube"] is None and third.findings["rib_fracture"] is None
    assert rows[siim_uid(5)].findings["pneumothorax"] is None


def test_candid_without_its_further_tables_knows_pneumothorax_alone(tmp_path):
    make_candid(tmp_path)
    (tmp_path / "chest_tube.csv").unlink()
    (tmp_path / "acute_rib_fracture.csv").unlink()
    row = by_name(import_dataset(detect(tmp_path), tmp_path))[siim_uid(1)]
    assert {name for name, value in row.findings.items() if value is not None} == {"pneumothorax"}
