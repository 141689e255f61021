"""What becomes of images with text in their pixels."""

import numpy as np
import pytest

from cxrdist.dicom import read_radiograph
from cxrdist.dicom.text import blacken, judge_text
from cxrdist.errors import ImageRejectedError
from tests.helpers import make_dicom

BOX = (2, 3, 8, 20)


@pytest.mark.parametrize(
    ("boxes", "declared", "seen_as", "declared_as", "expected"),
    [
        ([], False, "reject", "reject", ([], None)),
        ([BOX], False, "reject", "flag", "seen"),
        ([BOX], False, "flag", "reject", ([], "seen")),
        ([BOX], False, "mask", "reject", ([BOX], "masked")),
        ([], True, "flag", "reject", "(0028,0301)"),
        ([], True, "reject", "flag", ([], "declared")),
        ([], True, "reject", "mask", "no text is found"),
        ([BOX], True, "reject", "mask", ([BOX], "masked")),
        ([BOX], True, "reject", "flag", "seen"),
        ([BOX], True, "flag", "flag", ([], "seen")),
        ([BOX], True, "mask", "flag", ([BOX], "masked")),
    ],
)
def test_text_is_judged_by_what_is_seen_and_what_the_header_says(boxes, declared, seen_as, declared_as, expected):
    if isinstance(expected, str):
        with pytest.raises(
            ImageRejectedError, match=f"burned_in_text: .*{expected.replace('(', '.').replace(')', '.')}"
        ):
            judge_text(boxes, declared=declared, seen_as=seen_as, declared_as=declared_as)
    else:
        assert judge_text(boxes, declared=declared, seen_as=seen_as, declared_as=declared_as) == expected


def test_boxes_are_black_inside_and_nothing_else_changes():
    pixels = np.full((12, 30), 0.5, np.float32)
    blacken(pixels, [BOX, (9, 25, 99, 99)], 0)
    assert (pixels[2:8, 3:20] == 0).all() and (pixels[9:, 25:] == 0).all()
    assert np.count_nonzero(pixels) == 12 * 30 - 6 * 17 - 3 * 5


def test_an_image_whose_header_declares_text_is_kept_only_under_a_policy(tmp_path):
    stored = np.random.default_rng(0).integers(0, 4096, (40, 50)).astype(np.uint16)
    path = make_dicom(tmp_path / "a", stored, BurnedInAnnotation="YES")
    with pytest.raises(ImageRejectedError, match="burned_in_text"):
        read_radiograph(path)
    assert read_radiograph(path, declared_text="flag").notes["burned_in_text"] == "declared"
    with pytest.raises(ImageRejectedError, match="no text is found"):
        read_radiograph(path, declared_text="mask")
    assert "burned_in_text" not in read_radiograph(make_dicom(tmp_path / "b", stored, BurnedInAnnotation="NO")).notes


@pytest.mark.parametrize(
    ("tags", "secondary"),
    [
        ({}, False),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, True),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7.2"}, True),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.77.1.4"}, True),
        ({"ConversionType": "DF"}, True),
        ({"ConversionType": "WSD"}, True),
        ({"ConversionType": "DI"}, True),
        ({"ConversionType": "SYN"}, False),
        ({"DetectorType": "FILM"}, True),
        ({"DetectorType": "DIRECT"}, False),
        ({"Modality": "RG"}, True),
        ({"Modality": "CR"}, False),
    ],
)
def test_pictures_of_pictures_are_told_from_detector_images(tmp_path, tags, secondary):
    stored = np.arange(600, dtype=np.uint16).reshape(20, 30)
    got = read_radiograph(make_dicom(tmp_path / "a", stored, **tags))
    assert got.secondary is secondary and ("secondary" in got.notes) is secondary
    assert not any(str(value) in repr(got) for value in tags.values() if len(str(value)) > 4)
