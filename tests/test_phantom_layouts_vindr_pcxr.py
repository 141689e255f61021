"""A drawn VinDr-PCXR: the source's spelling, one reader per image, children of any unit of age, a mirrored chest."""

import re

import numpy as np
import pandas as pd
import pydicom
import pytest

from cxrdist.dicom import read_radiograph
from cxrdist.errors import ImageRejectedError
from cxrdist.phantom import write_phantoms
from cxrdist.phantom.layouts import vindr_pcxr
from tests.phantoms import plan_of, spine_and_lungs

HEADER = (
    "image_id,rad_ID,No finding,Bronchitis,Brocho-pneumonia,Other disease,Bronchiolitis,Situs inversus,Pneumonia,"
    "Pleuro-pneumonia,Diagphramatic hernia,Tuberculosis,Congenital emphysema,CPAM,Hyaline membrane disease,"
    "Mediastinal tumor,Lung tumor"
)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("vindr_pcxr")
    write_phantoms("vindr_pcxr", root, patients=50, size=64, shown=False)
    return root


@pytest.fixture(scope="module")
def labels(root):
    tables = [pd.read_csv(root / f"image_labels_{part}.csv") for part in ("train", "test")]
    return pd.concat(tables).set_index("image_id")


def test_the_label_tables_have_the_columns_of_the_real_ones_and_a_row_per_image(root, labels):
    for part in ("train", "test"):
        path = root / f"image_labels_{part}.csv"
        assert path.read_text().splitlines()[0] == HEADER
        names = {item.facts["name"] for item in plan_of(root)[0] if item.facts["part"] == part}
        assert set(pd.read_csv(path)["image_id"]) == names
    assert labels.index.is_unique
    assert labels["rad_ID"].str.fullmatch(r"R\d").all()


def test_labels_say_what_is_drawn(root, labels):
    for item in plan_of(root)[0]:
        row = labels.loc[item.facts["name"]]
        told = {name for name in vindr_pcxr.LABELS if row[name] == 1}
        assert ("No finding" in told) == (not item.findings and not item.facts["mirrored"])
        assert len(told) == 1 or "No finding" not in told
        assert ("Situs inversus" in told) == item.facts["mirrored"]
        infected = bool({"Pneumonia", "Brocho-pneumonia", "Pleuro-pneumonia"} & told)
        assert infected == ("pneumonia" in item.labels)
        assert ("Tuberculosis" in told) == ("tuberculosis" in item.labels)
    assert labels["Situs inversus"].sum() >= 1 and labels["Hyaline membrane disease"].sum() == 0
    assert (labels[["Bronchitis", "Pneumonia", "Brocho-pneumonia"]].sum() > 0).all()


def test_boxes_lie_in_the_picture_and_images_without_findings_have_none(root, labels):
    for part in ("train", "test"):
        table = pd.read_csv(root / f"annotations_{part}.csv")
        assert {"image_id", "rad_ID", "class_name", "x_min", "y_max"} <= set(table.columns)
        none = table["class_name"] == "No finding"
        assert table.loc[none, ["x_min", "y_min", "x_max", "y_max"]].isna().all(axis=None)
        assert set(table.loc[none, "image_id"]) == set(table["image_id"]) & set(labels.index[labels["No finding"] == 1])
        boxes = table.dropna()
        assert len(boxes) and (boxes["x_min"] < boxes["x_max"]).all() and (boxes["y_min"] < boxes["y_max"]).all()
        assert (boxes["x_min"] >= 0).all() and (boxes["x_max"] <= 64).all() and (boxes["y_max"] <= 77).all()


def test_files_hold_no_ids_and_ages_of_children_in_several_units(root):
    ages, kinds, unreadable = set(), set(), 0
    for path in sorted(root.rglob("*.dicom")):
        assert re.fullmatch(r"[0-9a-f]{32}\.dicom", path.name)
        try:
            shown = read_radiograph(path).pixels
        except ImageRejectedError:
            unreadable += 1
            continue
        header = pydicom.dcmread(path, stop_before_pixels=True)
        assert not {"PatientID", "PatientName", "StudyInstanceUID", "SOPInstanceUID"} & set(header.dir())
        ages.add(header.PatientAge)
        kinds.add((header.PhotometricInterpretation, header.file_meta.TransferSyntaxUID.name))
        assert spine_and_lungs(shown)[0] > 0.5
    assert unreadable == 1
    assert {age[-1] for age in ages} >= {"M", "Y"} and "000Y" in ages
    assert all(int(age[:3]) < (10 if age[-1] == "Y" else 24) for age in ages)
    assert {kind for kind, _ in kinds} == {"MONOCHROME1", "MONOCHROME2"} and len({syntax for _, syntax in kinds}) == 2


def test_a_mirrored_chest_has_its_heart_on_the_other_side(root):
    def lean(item) -> float:
        rows = read_radiograph(root / item.path).pixels
        band = rows[int(0.5 * len(rows)) : int(0.6 * len(rows))]
        half = band.shape[1] // 2
        return float(band[:, half + 4 : half + 16].mean() - band[:, half - 16 : half - 4].mean())

    items = [item for item in plan_of(root)[0] if (root / item.path).is_file()]
    mirrored = [lean(item) for item in items if item.facts["mirrored"]]
    healthy = [item for item in items if not item.findings and not item.facts["mirrored"]][:6]
    assert mirrored and np.mean(mirrored) < 0 < np.mean([lean(item) for item in healthy])
