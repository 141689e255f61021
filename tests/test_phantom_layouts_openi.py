"""A drawn OpenI set: reports with MeSH headings, odd image ids, PNG and DICOM of the same picture, patchy headers."""

import re
from xml.etree import ElementTree

import numpy as np
import pydicom
import pytest

from cxrdist.dicom import read_radiograph
from cxrdist.errors import ImageRejectedError
from cxrdist.phantom import write_phantoms
from cxrdist.phantom.disease import DRAWN
from cxrdist.phantom.layouts import openi
from tests.phantoms import plan_of


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("openi")
    write_phantoms("openi", root, patients=30, size=64, shown=False)
    return root


@pytest.fixture(scope="module")
def reports(root):
    paths = sorted((root / "NLMCXR_reports" / "ecgen-radiology").glob("*.xml"))
    return {int(path.stem): ElementTree.parse(path).getroot() for path in paths}


def test_every_image_is_named_by_one_report_and_some_reports_have_none(root, reports):
    named = {image.get("id"): number for number, tree in reports.items() for image in tree.findall("parentImage")}
    items, _ = plan_of(root)
    assert set(named) == {item.facts["also"].split("/")[1].removesuffix(".png") for item in items}
    assert all(tree.find("uId").get("id") == f"CXR{number}" for number, tree in reports.items())
    assert sum(not tree.findall("parentImage") for tree in reports.values()) == 2
    assert sorted(reports) != list(range(1, len(reports) + 1)), "the numbers have gaps"
    counts = {len(tree.findall("parentImage")) for tree in reports.values()}
    assert {0, 1, 2} < counts <= {0, 1, 2, 3, 4, 5}
    labels = {text.get("Label") for tree in reports.values() for text in tree.iter("AbstractText")}
    assert labels == {"COMPARISON", "INDICATION", "FINDINGS", "IMPRESSION"}


def test_image_ids_come_in_three_forms(root):
    names = [item.facts["also"].split("/")[1] for item in plan_of(root)[0]]
    forms = {re.sub(r"\d+", "9", name) for name in names}
    assert forms == {"CXR9_IM-9-9.png", "CXR9_IM-9-9-9.png", "CXR9_9_IM-9-9.png"}
    assert {re.match(r"CXR(\d+)_\d+_", name)[1] for name in names if re.match(r"CXR\d+_\d+_", name)} == {"1"}


def test_headings_say_what_is_drawn_or_that_nobody_said(root, reports):
    seen = set()
    for item in plan_of(root)[0]:
        tree = reports[item.facts["number"]]
        major = [element.text for element in tree.findall("MeSH/major")]
        if item.facts["kind"] == "unindexed":
            assert major == ["No Indexing"]
        elif item.facts["kind"] == "poor":
            assert [heading.strip() for heading in major] == ["Technical Quality of Image Unsatisfactory"]
        else:
            heads = {heading.split("/")[0] for heading in major}
            told = {(openi.HEADINGS | openi.BROADER).get(name, "").split("/")[0] for name in item.labels} - {""}
            assert heads == (told or {"normal"})
            assert {element.text for element in tree.findall("MeSH/automatic")} == {name.lower() for name in told}
        seen.add(item.facts["kind"])
        assert all("{" not in heading for heading in major)
    assert seen == {"indexed", "unindexed", "poor"}
    assert set(openi.HEADINGS) == set(DRAWN)


def test_png_and_dicom_show_the_same_whatever_the_coding(root):
    seen, torn = set(), 0
    for item in plan_of(root)[0]:
        assert re.fullmatch(r"NLMCXR_dcm/(\d+)/\1_IM-\d{4}-\d{4}(-\d{4})?\.dcm", item.path)
        other = read_radiograph(root / item.facts["also"]).pixels
        try:
            shown = read_radiograph(root / item.path).pixels
        except ImageRejectedError:
            torn += 1
            continue
        header = pydicom.dcmread(root / item.path, stop_before_pixels=True)
        seen.add((header.PhotometricInterpretation, header.get("PresentationLUTShape")))
        assert np.corrcoef(shown.ravel(), other.ravel())[0, 1] > 0.97
    assert torn == 2
    assert seen >= {("MONOCHROME1", "INVERSE"), ("MONOCHROME2", "IDENTITY"), ("MONOCHROME1", None)}


def test_headers_hold_views_now_and_then_and_things_that_must_not_leak(root):
    headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in sorted(root.rglob("*.dcm"))]
    views = {header.get("ViewPosition") for header in headers}
    assert {None, "PA", "LL", "AP"} <= views and views & {"LATERAL", "RL", "LARGE LATERAL"}
    for header in headers:
        assert str(header.PatientName).startswith("PHANTOM^") and header.PatientBirthDate and header.AccessionNumber
        assert header.SOPInstanceUID.startswith("2.25.") and header.StudyInstanceUID.startswith("2.25.")
    assert len({header.BitsStored for header in headers}) >= 3
    assert {header.RescaleType for header in headers} == {"LOG_E REL", "US", "P-VALUES"}
    frontal = {item.path for item in plan_of(root)[0] if item.projection != "lateral"}
    for path in root.rglob("*.dcm"):
        view = pydicom.dcmread(path, stop_before_pixels=True).get("ViewPosition")
        assert view is None or (view in ("PA", "AP")) == (str(path.relative_to(root)) in frontal)


def test_an_image_of_poor_quality_is_noisy(root):
    noise: dict[str, list[float]] = {}
    for item in plan_of(root)[0]:
        if item.projection == "lateral":
            continue
        shown = read_radiograph(root / item.facts["also"]).pixels
        step = np.diff(shown[10:60:2, 20:44], axis=1)
        noise.setdefault(item.facts["kind"], []).append(float(np.median(np.abs(step))))
    assert min(noise["poor"]) > 1.2 * max(noise["indexed"])
