"""Drawn Shenzhen and Montgomery sets: numbers by label, PNG in three modes, irregular texts, masks of the lungs."""

import re

import cv2
import numpy as np
import pytest
from PIL import Image

from cxrdist.dicom import read_radiograph
from cxrdist.errors import ImageRejectedError
from cxrdist.phantom import write_phantoms
from cxrdist.phantom.layouts import nlm_tb
from tests.phantoms import plan_of, spine_and_lungs


@pytest.fixture(scope="module")
def shenzhen(tmp_path_factory):
    root = tmp_path_factory.mktemp("shenzhen")
    write_phantoms("shenzhen", root, patients=30, size=64, difficulty=0.1, shown=False)
    return root


@pytest.fixture(scope="module")
def montgomery(tmp_path_factory):
    root = tmp_path_factory.mktemp("montgomery")
    write_phantoms("montgomery", root, patients=16, size=96, shown=False)
    return root


def test_shenzhen_numbers_run_on_from_normal_to_ill(shenzhen):
    items, _ = plan_of(shenzhen)
    names = [item.path.rsplit("/", 1)[1] for item in items]
    assert all(item.path.startswith("ChinaSet_AllFiles/CXR_png/") for item in items)
    assert [name[:11] for name in names] == [f"CHNCXR_{number:04d}" for number in range(1, 31)]
    suffixes = [name[12] for name in names]
    assert suffixes == sorted(suffixes) and set(suffixes) == {"0", "1"}
    assert [suffix == "1" for suffix in suffixes] == ["tuberculosis" in item.labels for item in items]


def test_shenzhen_pngs_are_grey_colour_or_palette_and_all_show_a_chest(shenzhen):
    modes, unreadable = set(), 0
    for path in sorted((shenzhen / "ChinaSet_AllFiles" / "CXR_png").glob("*.png")):
        try:
            shown = read_radiograph(path).pixels
        except ImageRejectedError:
            unreadable += 1
            continue
        with Image.open(path) as picture:
            modes.add(picture.mode)
        spine, lungs = spine_and_lungs(shown)
        assert spine > max(min(lungs), 0.5), path.name
    assert modes == {"L", "RGB", "P"}
    assert unreadable == 1
    assert (shenzhen / "ChinaSet_AllFiles" / "CXR_png" / "Thumbs.db").is_file()


def test_shenzhen_texts_are_irregular_and_true(shenzhen):
    folder = shenzhen / "ChinaSet_AllFiles" / "ClinicalReadings"
    items, _ = plan_of(shenzhen)
    forms = set()
    for item in items:
        text = folder / f"{item.path.rsplit('/', 1)[1][:-4]}.txt"
        if item.facts["number"] == 6:
            assert not text.exists()
            continue
        who, *reading = text.read_bytes().decode().split("\r\n")
        found = re.fullmatch(r"(?i)(male|female?)\s*,?\s*(\d+)\s*(yrs|month|days)?\s*", who)
        assert found, who
        exam = nlm_tb.shenzhen_exam(item)
        assert found[1][0].upper() == exam.patient.sex
        if found[3] in (None, "yrs"):
            assert int(found[2]) == exam.patient.age
        else:
            assert exam.patient.age <= 1
        forms.add(re.sub(r"\d+", "9", who))
        assert any("PTB" in line for line in reading) == ("tuberculosis" in item.findings)
        assert ("normal" in reading) == (not item.findings)
    assert any(form.startswith("femal 9") or form.startswith("Male 9") for form in forms)
    assert {"9month", "9days"} & {form.split()[-1] for form in forms}
    assert any(re.match("(fe)?male9", form) for form in forms) and any("," in form for form in forms)


def test_montgomery_masks_are_of_the_lungs_of_their_side(montgomery):
    root = montgomery / "MontgomerySet"
    items, _ = plan_of(montgomery)
    torn = 0
    for item in items:
        name = item.path.rsplit("/", 1)[1]
        masks = [cv2.imread(str(root / "ManualMask" / side / name), -1) for side in ("leftMask", "rightMask")]
        assert all(set(np.unique(mask)) == {0, 255} for mask in masks)
        try:
            shown = read_radiograph(root / "CXR_png" / name).pixels
        except ImageRejectedError:
            torn += 1
            continue
        left, right = (mask > 0 for mask in masks)
        assert left.shape == right.shape == shown.shape
        assert not (left & right).any()
        assert np.nonzero(left)[1].mean() > np.nonzero(right)[1].mean() + 20
        body = np.zeros_like(left)
        body[:, np.nonzero(right)[1].min() : np.nonzero(left)[1].max()] = True
        assert shown[left | right].mean() < shown[body & ~(left | right)].mean() - 0.1
    assert torn == 2, "one is cut short, one is gone"


def test_montgomery_texts_name_sex_and_age_and_a_patient_with_two_images(montgomery):
    folder = montgomery / "MontgomerySet" / "ClinicalReadings"
    items, _ = plan_of(montgomery)
    texts = {path.stem: path.read_text().splitlines() for path in folder.glob("*.txt")}
    assert set(texts) == {item.path.rsplit("/", 1)[1][:-4] for item in items}
    for sex, age, *_ in texts.values():
        assert re.fullmatch(r"Patient's Sex: [FMO] ", sex) and re.fullmatch(r"Patient's Age: \d{3}Y", age)
    assert [sex for sex, *_ in texts.values()].count("Patient's Sex: O ") == 1
    again = [item for item in items if item.facts["same_as"]]
    assert len(again) == 1
    same = next(item for item in items if again[0].facts["same_as"] in item.path)
    assert same.key.patient == again[0].key.patient and "tuberculosis" in same.labels
    assert any(f"same pt as {again[0].facts['same_as']}" in " ".join(lines) for lines in texts.values())
    numbers = [int(item.facts["number"]) for item in items]
    assert numbers == sorted(set(numbers)) and numbers[-1] > len(numbers), "the numbers have gaps"
