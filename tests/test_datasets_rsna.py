"""RSNA Pneumonia: a row per box, classes in a second table, the NIH's patients in a third, views in the headers."""

from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cxrdist.datasets import detect, import_dataset, read_facts
from cxrdist.pack import PackOptions
from cxrdist.pack.dataset import pack_dataset
from tests.helpers import make_dicom
from tests.trees.files import by_name, imported, reasons
from tests.trees.rsna import IDS, make_rsna


def values(found, *findings):
    rows = by_name(found)
    return [tuple(rows[f"{image}.dcm"].findings[name] for name in findings) for image in IDS if f"{image}.dcm" in rows]


def test_rows_of_boxes_become_one_image_and_the_unlabelled_test_images_are_rejects(tmp_path):
    named = make_rsna(tmp_path)
    found = imported(tmp_path, "rsna_pneumonia", named)
    assert reasons(found) == {"missing_file": 1, "no_label_row": 1}
    # What is not an opacity need not be normal.
    assert values(found, "pneumonia", "lung_opacity", "no_finding") == [(1, 1, 0), (1, 1, 0), (0, 0, 1), (0, 0, 0)]
    row = found.rows[0]
    # The ids are of images: nobody knows the patient, and the views are in the headers.
    assert (row.patient, row.notes, row.projection) == (IDS[0], {"frontal": True}, "unknown")


def test_without_the_classes_nobody_knows_who_is_normal(tmp_path):
    make_rsna(tmp_path, classes=False)
    found = import_dataset(detect(tmp_path), tmp_path)
    assert values(found, "pneumonia", "lung_opacity") == [(1, 1), (1, 1), (0, 0), (0, 0)]
    assert values(found, "no_finding")[2:] == [(None,), (None,)]


def test_normal_against_pneumonia_leaves_the_middle_class_out(tmp_path):
    named = make_rsna(tmp_path)
    found = import_dataset(read_facts("rsna_pneumonia", variant="normal_vs_pneumonia"), tmp_path)
    assert len(found.rows) + len(found.rejects) == named
    assert reasons(found) == {"missing_file": 1, "no_label_row": 1, "excluded_by_source": 1}
    assert values(found, "pneumonia", "no_finding") == [(1, 0), (1, 0), (0, 1)]


def test_the_rsnas_own_mapping_keeps_a_patients_images_together_under_the_nihs_number(tmp_path):
    named = make_rsna(tmp_path, mapping=True)
    found = import_dataset(detect(tmp_path), tmp_path)
    assert len(found.rows) + len(found.rejects) == named
    assert Counter(row.patient for row in found.rows) == {"7": 2, "12": 2}
    assert read_facts("rsna_pneumonia").namespace == read_facts("nih14").namespace


@pytest.mark.filterwarnings("ignore:Invalid value for VR AS")
def test_the_headers_tell_view_sex_and_age(tmp_path):
    told = iter([("PA", "F", "61"), ("AP", "M", "148"), ("PA", "M", "035Y"), ("AP", "F", "")])

    def image(path: Path) -> None:
        view, sex, age = next(told)
        pixels = np.random.default_rng(len(view + age)).integers(0, 256, (24, 24), np.uint8)
        make_dicom(path, pixels, ViewPosition=view, PatientSex=sex, PatientAge=age, ConversionType="WSD")

    make_rsna(tmp_path / "raw", image=image)
    options = PackOptions(size=16, id_key=tmp_path / "key/id.key", max_reject=1.0)
    pack_dataset(read_facts("rsna_pneumonia"), tmp_path / "raw", tmp_path / "shards", options, shown=False)
    index = pd.read_parquet(tmp_path / "shards/index.parquet")
    assert Counter(zip(index["projection"], index["sex"], strict=True)) == {
        ("PA", "F"): 1, ("AP", "M"): 1, ("PA", "M"): 1, ("AP", "F"): 1,
    }  # fmt: skip
    assert sorted(index["age"].dropna()) == [35, 61]  # nobody is 148
    assert index["frontal"].all()
