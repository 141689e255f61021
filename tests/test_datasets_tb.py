"""Sets of tuberculosis: labels in file names, texts beside images, folders with boxes, tables by study."""

import pytest

from cxrdist.datasets import detect, import_dataset, read_facts
from cxrdist.errors import UserError
from tests.trees.files import by_name, imported, ones, reasons
from tests.trees.tuberculosis import SHENZHEN, make_montgomery, make_shenzhen, make_tb_portals, make_tbx11k


@pytest.mark.parametrize("below", ["", "ChinaSet_AllFiles"])
def test_shenzhens_labels_are_in_the_names_and_sex_and_age_in_texts_of_any_spelling(tmp_path, below):
    named = make_shenzhen(tmp_path)
    facts = detect(tmp_path / below)
    assert facts.name == "shenzhen"
    found = import_dataset(facts, tmp_path / below)
    assert (len(found.rows), found.rejects) == (named, [])
    rows = by_name(found)
    told = {name: (rows[f"{name}.png"].sex, rows[f"{name}.png"].age) for name in SHENZHEN}
    assert told == {
        "CHNCXR_0001_0": ("M", 45),
        "CHNCXR_0002_0": ("F", 1),
        "CHNCXR_0003_0": ("F", 24),
        "CHNCXR_0327_1": ("M", 45),
        "CHNCXR_0328_1": ("F", 30),
        "CHNCXR_0329_1": ("M", 0),
        "CHNCXR_0330_1": ("F", 90),
        "CHNCXR_0331_1": ("unknown", None),
    }
    assert all(ones(row) == {"tuberculosis" if "_1." in name else "no_finding"} for name, row in rows.items())
    assert {row.projection for row in found.rows} == {"PA"} and len({row.patient for row in found.rows}) == named


def test_shenzhen_is_known_without_its_texts_and_with_masks_beside(tmp_path):
    named = make_shenzhen(tmp_path, flat=True)
    facts = detect(tmp_path)
    assert facts.name == "shenzhen"
    found = import_dataset(facts, tmp_path)
    assert len(found.rows) == named and {row.sex for row in found.rows} == {"unknown"}


def test_montgomerys_masks_are_no_images_and_a_patient_with_two_images_is_one(tmp_path):
    named = make_montgomery(tmp_path)
    facts = detect(tmp_path)
    assert facts.name == "montgomery"
    found = import_dataset(facts, tmp_path)
    assert (len(found.rows), found.rejects) == (named, [])
    rows = by_name(found)
    assert all("CXR_png/" in row.source for row in found.rows)
    first, second = rows["MCUCXR_0162_1.png"], rows["MCUCXR_0170_1.png"]
    # Only the text says so: by the files' names the two could train and test.
    assert first.patient == second.patient == "0162" and first.split == second.split and first.study != second.study
    assert [(row.sex, row.age) for row in (rows["MCUCXR_0001_0.png"], rows["MCUCXR_0002_0.png"], first)] == [
        ("F", 27), ("unknown", 5), ("M", 49),
    ]  # fmt: skip
    assert ones(first) == {"tuberculosis"} and ones(rows["MCUCXR_0001_0.png"]) == {"no_finding"}


def test_both_sets_in_one_folder_are_two_datasets(tmp_path):
    make_shenzhen(tmp_path)
    make_montgomery(tmp_path)
    with pytest.raises(UserError, match="one that fits montgomery, shenzhen"):
        detect(tmp_path)


@pytest.mark.parametrize("indent", [None, 2])
def test_tbx11ks_folders_and_boxes_are_labels_and_its_validation_list_tests(tmp_path, indent):
    named = make_tbx11k(tmp_path, indent=indent)
    found = imported(tmp_path, "tbx11k", named)
    assert not read_facts("tbx11k").has_patient_ids
    # Another dataset's images, an image in no list, and the hidden labels of the test.
    assert reasons(found) == {"excluded_by_source": 3, "no_label_row": 1}
    rows = by_name(found)
    order = ("tuberculosis", "active_tuberculosis", "latent_tuberculosis", "no_finding")
    assert {name: [row.findings[finding] for finding in order] for name, row in rows.items()} == {
        "tb0001.png": [1, 1, 0, 0],
        "tb0002.png": [1, 0, 1, 0],
        "tb0003.png": [1, 1, 1, 0],
        "tb0004.png": [1, None, None, 0],
        "tb0101.png": [1, 1, 0, 0],
        "h0001.png": [0, 0, 0, 1],
        "h0101.png": [0, 0, 0, 1],
        "s0001.png": [0, 0, 0, 0],
        "s0101.png": [0, 0, 0, 0],
    }
    assert {name for name, row in rows.items() if row.split == "test"} == {"tb0101.png", "h0101.png", "s0101.png"}


def test_tb_portals_tables_are_joined_by_study_and_by_case(tmp_path):
    named = make_tb_portals(tmp_path)
    found = imported(tmp_path, "tb_portals", named)
    assert not read_facts("tb_portals").verified
    assert reasons(found) == {"missing_file": 1, "excluded_by_source": 2}
    rows = {row.study: row for row in found.rows}
    order = ("tuberculosis", "effusion", "lung_cavity", "nodule")
    assert {study: [row.findings[finding] for finding in order] for study, row in rows.items()} == {
        "s1": [1, 1, 1, 0],
        "s2": [1, 0, 0, 1],
        "s3": [1, 0, 0, 0],
        "s6": [1, None, None, None],  # nobody described it
    }
    assert rows["s1"].patient == rows["s2"].patient == "p1" and rows["s1"].split == rows["s2"].split
    assert (rows["s3"].sex, rows["s3"].age) == ("M", 32) and rows["s1"].sex == "F"
    assert all(row.notes == {"projection_from_header": True} for row in found.rows)
