"""What cannot become a sample is refused with a reason, and before it can do harm."""

import tracemalloc

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from cxrdist.dicom import read_radiograph
from cxrdist.errors import ImageRejectedError
from tests.helpers import make_dicom

SYNTAXES = [
    ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, RLELossless, JPEG2000Lossless, JPEGLosslessSV1,
    JPEGLSLossless,
]  # fmt: skip


def noise(shape=(64, 64)):
    return np.random.default_rng(1).integers(0, 4096, shape).astype(np.uint16)


def reason(path, **options):
    with pytest.raises(ImageRejectedError) as caught:
        read_radiograph(path, **options)
    assert path.stem not in caught.value.detail and "SECRET" not in caught.value.detail
    return caught.value.reason


@pytest.mark.parametrize("share", [0.99, 0.6, 0.2])
@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda uid: uid.name)
def test_a_truncated_dicom_file_is_unreadable_never_half_grey(tmp_path, syntax, share):
    path = make_dicom(tmp_path / "patient_x.dcm", noise(), syntax=syntax, BitsStored=12)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    assert reason(path) == "unreadable"


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless, JPEG2000Lossless], ids=lambda uid: uid.name)
def test_a_header_that_names_too_many_pixels_is_refused_before_decoding(tmp_path, syntax):
    path = make_dicom(tmp_path / "patient_x.dcm", noise(), syntax=syntax)
    ds = dcmread(path)
    ds.Rows = ds.Columns = 60000
    ds.save_as(path)
    tracemalloc.start()
    assert reason(path) == "too_large"
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


def test_a_codestream_larger_than_its_header_says_is_refused_before_decoding(tmp_path):
    path = make_dicom(tmp_path / "patient_x.dcm", noise((256, 256)), syntax=JPEG2000Lossless)
    ds = dcmread(path)
    ds.Rows = ds.Columns = 16
    ds.save_as(path)
    assert reason(path) == "unreadable"


def test_a_deflated_bomb_is_refused(tmp_path):
    stored = np.zeros((3000, 3000), np.uint16)
    stored[0, 0] = 1
    path = make_dicom(tmp_path / "patient_x.dcm", stored, syntax=DeflatedExplicitVRLittleEndian)
    ds = dcmread(path)
    ds.PixelData = bytes(200_000_000)
    ds.Rows = ds.Columns = 10
    ds.save_as(path)
    assert path.stat().st_size < 1_000_000
    assert reason(path, max_pixels=1_000_000) == "too_large"


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({"NumberOfFrames": 2}, "unsupported"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "unsupported"),
        ({"BitsAllocated": 32}, "unsupported"),
        ({"BitsStored": 17}, "unreadable"),
        ({"Rows": 0}, "unreadable"),
        ({"PixelData": b""}, "unreadable"),
        ({"BurnedInAnnotation": "YES"}, "burned_in_text"),
    ],
)
def test_what_is_no_plain_grey_image_is_refused(tmp_path, tags, expected):
    path = make_dicom(tmp_path / "patient_x.dcm", noise(), **tags)
    assert reason(path) == expected


def test_burned_in_text_can_be_allowed(tmp_path):
    path = make_dicom(tmp_path / "a.dcm", noise(), BurnedInAnnotation="YES")
    assert read_radiograph(path, declared_text="flag").pixels.shape == (64, 64)


def test_a_constant_image_is_refused(tmp_path):
    assert reason(make_dicom(tmp_path / "patient_x.dcm", np.full((9, 9), 7, np.uint16))) == "constant_image"


@pytest.mark.parametrize(
    "content",
    [b"", b"<html>login</html>", b"\x00" * 4096, b"\x08\x00" + b"\xff" * 500, bytes(128) + b"DICM" + b"\x02" * 99],
)
def test_what_is_no_image_is_unreadable(tmp_path, content):
    path = tmp_path / "patient_x.dcm"
    path.write_bytes(content)
    assert reason(path) == "unreadable"


def test_a_missing_file_is_missing(tmp_path):
    assert reason(tmp_path / "patient_x.dcm") == "missing_file"


def test_damaged_bytes_anywhere_give_a_radiograph_or_a_reason(tmp_path):
    seed = 20240607
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    path = tmp_path / "patient_x.dcm"
    for syntax in SYNTAXES:
        whole = make_dicom(path, noise((64, 64)), syntax=syntax, BitsStored=12).read_bytes()
        for _ in range(40):
            damaged = bytearray(whole)
            for place in rng.integers(128, len(whole), 4):
                damaged[place] = rng.integers(256)
            path.write_bytes(damaged)
            try:
                got = read_radiograph(path, max_pixels=100_000)
            except ImageRejectedError:
                continue
            assert np.isfinite(got.pixels).all() and 0 <= got.pixels.min() <= got.pixels.max() <= 1


@pytest.mark.parametrize(("photometric", "word"), [("PALETTE COLOR", "PALETTE COLOR"), ("SECRET_DOE", "unknown")])
def test_a_refusal_repeats_only_words_of_the_standard(tmp_path, photometric, word):
    path = make_dicom(tmp_path / "x.dcm", noise(), PhotometricInterpretation=photometric, SamplesPerPixel=2)
    with pytest.raises(ImageRejectedError) as caught:
        read_radiograph(path)
    assert word in caught.value.detail
    assert "SECRET" not in caught.value.detail and "DOE" not in caught.value.detail
