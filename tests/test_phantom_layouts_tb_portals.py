"""Drawn TB Portals: tables that hang together by study and case, paths without their bucket, films, laterals, gaps."""

import pandas as pd
import pydicom
import pytest

from cxrdist.dicom import read_radiograph
from cxrdist.errors import ImageRejectedError
from cxrdist.phantom import write_phantoms
from cxrdist.phantom.layouts import tb_portals
from cxrdist.phantom.layouts.base import exam_of
from cxrdist.phantom.shapes import affected_sides
from tests.phantoms import plan_of

BUCKET = "TB_Portals_Published_CXRs_August_2023/GlobalBucket"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("tb_portals")
    write_phantoms("tb_portals", root, patients=20, size=64, shown=False)
    return root


@pytest.fixture(scope="module")
def tables(root):
    def one(pattern: str) -> pd.DataFrame:
        (path,) = root.rglob(pattern)
        return pd.read_csv(path)

    return one("TB_Portals_CXRs_*.csv"), one("TB_Portals_CXR_Manual_*.csv"), one("TB_Portals_Patient_Cases_*.csv")


def test_paths_in_the_table_lie_below_the_bucket_by_patient_study_and_series(root, tables):
    images, _, _ = tables
    items, _ = plan_of(root)
    listed = images.dropna(subset=["series_instance_content_url"])
    assert len(images) == len(listed) + 1, "one study has no image"
    assert [f"{BUCKET}/{url}" for url in listed["series_instance_content_url"]] == [item.path for item in items]
    for row in listed.itertuples():
        parts = [row.patient_id, row.uid, row.series_uid, f"{row.series_instance_uid}.dcm"]
        assert row.series_instance_content_url == "/".join(parts)
    assert listed["imagingstudy_id"].is_unique
    assert len([item for item in items if not (root / item.path).is_file()]) == 1


def test_remarks_and_cases_are_keyed_by_study_and_case_and_say_what_is_drawn(root, tables):
    images, remarks, cases = tables
    items, _ = plan_of(root)
    assert all("tuberculosis" in item.labels for item in items)
    assert set(remarks["imagingstudy_id"]) < set(images["imagingstudy_id"])
    assert set(cases["patient_id"]) == set(images["patient_id"]) and cases["patient_id"].is_unique
    counts = images.dropna().groupby("patient_id").size()
    assert dict(zip(cases["patient_id"], cases["x_ray_count"], strict=True)) == counts.to_dict()
    by_study = {item.facts["study"]: item for item in items}
    assert len(by_study) - 1 == remarks["imagingstudy_id"].nunique(), "one image has no remarks"
    for study, rows in remarks.groupby("imagingstudy_id"):
        item = by_study[study]
        sides = affected_sides(exam_of(item, age_mean=tb_portals.AGE_MEAN), "tuberculosis", both=0.35)
        named = {"Upper Right": -1, "Upper Left": 1}
        assert {named[text] for text in rows["sextant"].dropna()} == set(sides)
        whole = rows[rows["sextant"].isna()].iloc[0]
        assert (whole["pleural_effusion_percent_of_hemithorax_involved"] > 0) == ("effusion" in item.labels)
        assert whole["mediumcavities"] == len(sides) + ("lung_cavity" in item.findings)
        assert whole["timika_score"] == whole["overallpercentofabnormalvolume"] + 40


def test_files_decode_and_films_and_laterals_are_told(root, tables):
    images = tables[0].dropna().set_index("series_instance_uid")
    seen, unreadable = set(), 0
    for item in plan_of(root)[0]:
        row = images.loc[item.facts["uids"][2]]
        assert (row["cxr_outlier"] == "outlier") == (item.projection == "lateral")
        try:
            shown = read_radiograph(root / item.path).pixels
        except ImageRejectedError as error:
            assert error.reason in ("missing_file", "unreadable") or item.facts["film"]
            unreadable += error.reason != "burned_in_text"
            continue
        assert shown.max() - shown.min() > 0.5
        header = pydicom.dcmread(root / item.path, stop_before_pixels=True)
        assert header.PatientID == row.name or header.PatientID == row["patient_id"]
        assert header.get("ConversionType") == ("DF" if item.facts["film"] else None)
        assert str(header.PatientName) == "PHANTOM^CASE"
        seen.add((row["series_modality_cd"], header.Modality))
    assert unreadable == 2
    assert seen == {("CR", "CR"), ("DX", "DX"), ("XC", "OT")}
