"""Reading DICOM files: every step, every transfer syntax, and nothing of the patient."""

import logging
import warnings

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from cxrdist.dicom import read_radiograph
from cxrdist.dicom.header import ALLOWED
from tests.helpers import make_dicom

LOSSLESS = [
    ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian, RLELossless,
    JPEG2000Lossless, JPEGLSLossless, JPEGLosslessSV1,
]  # fmt: skip
WINDOW = {"WindowCenter": 2048, "WindowWidth": 4096, "VOILUTFunction": "LINEAR_EXACT"}


def ramp(top=4095, shape=(40, 50)):
    return np.linspace(0, top, shape[0] * shape[1]).round().astype(np.uint16).reshape(shape)


def sequence(first, bits, entries, *, vr="US"):
    item = Dataset()
    item.add_new("LUTDescriptor", vr, [len(entries), first, bits])
    data = np.asarray(entries, np.uint16)
    item.add_new("LUTData", "OW", data.tobytes())
    return [item]


@pytest.mark.parametrize("syntax", LOSSLESS, ids=lambda uid: uid.name)
def test_every_lossless_transfer_syntax_gives_the_same_pixels(tmp_path, syntax):
    rng = np.random.default_rng(5)
    stored = np.clip(ramp() + rng.integers(-40, 40, (40, 50)), 0, 4095).astype(np.uint16)
    got = read_radiograph(make_dicom(tmp_path / "a", stored, syntax=syntax, BitsStored=12, **WINDOW))
    np.testing.assert_allclose(got.pixels, stored / 4096, atol=1e-6)
    assert got.notes["transfer_syntax"] == syntax.name
    assert (got.bits, got.notes["voi"], got.pixels.dtype) == (12, "window", np.float32)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless, JPEG2000Lossless], ids=lambda uid: uid.name)
def test_signed_values_are_signed_in_every_syntax(tmp_path, syntax):
    stored = (ramp().astype(np.int32) - 2048).astype(np.int16)
    tags = {"BitsStored": 12, "WindowCenter": 0, "WindowWidth": 4096, "VOILUTFunction": "LINEAR_EXACT"}
    got = read_radiograph(make_dicom(tmp_path / "a", stored, syntax=syntax, **tags))
    np.testing.assert_allclose(got.pixels, (stored + 2048.0) / 4096, atol=1e-6)


def test_dirt_above_bits_stored_is_masked(tmp_path):
    stored = ramp()
    clean = read_radiograph(make_dicom(tmp_path / "a", stored, BitsStored=12, **WINDOW))
    dirty = read_radiograph(make_dicom(tmp_path / "b", stored | 0xF000, BitsStored=12, **WINDOW))
    np.testing.assert_array_equal(clean.pixels, dirty.pixels)


def test_values_kept_at_the_high_end_of_their_container_are_shifted_down(tmp_path):
    stored = ramp()
    low = read_radiograph(make_dicom(tmp_path / "a", stored, BitsStored=12, **WINDOW))
    high = read_radiograph(make_dicom(tmp_path / "b", stored << 4, BitsStored=12, HighBit=15, **WINDOW))
    np.testing.assert_array_equal(low.pixels, high.pixels)


@pytest.mark.parametrize(
    ("photometric", "shape", "inverted"),
    [
        ("MONOCHROME2", None, False),
        ("MONOCHROME1", None, True),
        ("MONOCHROME1", "INVERSE", True),
        ("MONOCHROME2", "IDENTITY", False),
        ("MONOCHROME1", "IDENTITY", False),
        ("MONOCHROME2", "INVERSE", True),
    ],
)
def test_polarity_is_applied_once(tmp_path, photometric, shape, inverted):
    stored = ramp()
    tags = {"PhotometricInterpretation": photometric, "PresentationLUTShape": shape, "BitsStored": 12, **WINDOW}
    got = read_radiograph(make_dicom(tmp_path / "a", stored, **tags))
    expected = 1 - stored / 4096 if inverted else stored / 4096
    np.testing.assert_allclose(got.pixels, expected, atol=1e-6)
    assert ("polarity_conflict" in got.notes) == (shape is not None and (shape == "INVERSE") != ("1" in photometric))


def test_the_voi_table_wins_over_the_window(tmp_path):
    entries = np.arange(4096)[::-1]
    got = read_radiograph(
        make_dicom(tmp_path / "a", ramp(), BitsStored=12, VOILUTSequence=sequence(0, 12, entries), **WINDOW)
    )
    np.testing.assert_allclose(got.pixels, 1 - ramp() / 4095, atol=1e-6)
    assert got.notes["voi"] == "lut"


def test_an_8_bit_voi_table_packed_in_bytes_is_read_whole(tmp_path):
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [4096, 0, 8])
    item.add_new("LUTData", "OW", (np.arange(4096) // 16).astype(np.uint8).tobytes())
    got = read_radiograph(make_dicom(tmp_path / "a", ramp(), BitsStored=12, VOILUTSequence=[item]))
    np.testing.assert_allclose(got.pixels, (ramp() // 16) / 255, atol=1e-6)


def test_the_modality_table_comes_before_the_window(tmp_path):
    entries = 4095 - np.arange(4096)
    got = read_radiograph(
        make_dicom(tmp_path / "a", ramp(), BitsStored=12, ModalityLUTSequence=sequence(0, 12, entries), **WINDOW)
    )
    np.testing.assert_allclose(got.pixels, (4095 - ramp()) / 4096, atol=1e-6)


def test_of_several_windows_the_first_is_used(tmp_path):
    tags = {**WINDOW, "WindowCenter": [2048, 10], "WindowWidth": [4096, 5]}
    got = read_radiograph(make_dicom(tmp_path / "a", ramp(), BitsStored=12, **tags))
    np.testing.assert_allclose(got.pixels, ramp() / 4096, atol=1e-6)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_whatever_the_polarity(tmp_path, photometric):
    stored = ramp(2000) + 500
    stored[:, :9] = 4095
    stored[:, 9:12] = 4090
    tags = {"PixelPaddingValue": 4095, "PixelPaddingRangeLimit": 4090, "PhotometricInterpretation": photometric}
    got = read_radiograph(make_dicom(tmp_path / "a", stored, BitsStored=12, **tags))
    assert (got.pixels[:, :12] == 0).all()
    assert got.pixels[:, 12:].max() == 1  # the range is that of the unpadded pixels


def test_a_header_without_optional_tags_is_read(tmp_path):
    missing = {"PixelRepresentation": None, "HighBit": None, "SamplesPerPixel": None, "PhotometricInterpretation": None}
    got = read_radiograph(make_dicom(tmp_path / "a", ramp(), BitsStored=12, **WINDOW, **missing))
    np.testing.assert_allclose(got.pixels, ramp() / 4096, atol=1e-6)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian], ids=lambda uid: uid.name)
def test_a_file_without_preamble_and_meta_is_read(tmp_path, syntax):
    path = make_dicom(tmp_path / "a", ramp(), syntax=syntax, BitsStored=12, **WINDOW)
    data = path.read_bytes()
    length = int.from_bytes(data[140:144], "little")  # value of (0002,0000)
    path.write_bytes(data[144 + length :])
    got = read_radiograph(path)
    np.testing.assert_allclose(got.pixels, ramp() / 4096, atol=1e-6)
    assert got.notes["guessed_syntax"] == 1


def test_colour_becomes_luminance(tmp_path):
    stored = np.zeros((8, 8, 3), np.uint8)
    stored[:4] = (255, 255, 255)
    stored[4:] = (0, 200, 0)
    got = read_radiograph(make_dicom(tmp_path / "a", stored))
    np.testing.assert_allclose(got.pixels[[0, 7], 0], [1, 0.587 * 200 / 255], rtol=1e-5)


def test_non_square_pixels_become_square_by_shrinking_the_finer_axis(tmp_path):
    got = read_radiograph(make_dicom(tmp_path / "a", ramp(shape=(40, 80)), BitsStored=12, PixelSpacing=[0.4, 0.2]))
    assert got.pixels.shape == (40, 40)
    assert (got.notes["spacing_mm"], got.notes["spacing_from"]) == (0.4, "PixelSpacing")


@pytest.mark.parametrize(
    ("tags", "projection"),
    [
        ({"ViewPosition": "PA"}, "PA"),
        ({"ViewPosition": "AP "}, "AP"),
        ({"ViewPosition": "LL"}, "lateral"),
        ({"ViewPosition": "LPO"}, "other"),
        ({"ViewPosition": ""}, None),
        ({"PatientOrientation": ["A", "F"]}, "lateral"),
        ({"PatientOrientation": ["L", "F"]}, None),
    ],
)
def test_projection_is_read_of_the_header(tmp_path, tags, projection):
    assert read_radiograph(make_dicom(tmp_path / "a", ramp(), **tags)).projection == projection


@pytest.mark.parametrize(
    ("text", "age"),
    [
        ("045Y", 45), ("093Y", 90), ("090Y", 90), ("018M", 1), ("003W", 0), ("000Y", None), ("155Y", None), ("", None),
        ("51", 51), ("148", None),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:Invalid value for VR AS")
def test_ages_are_years_capped_at_90_and_impossible_ones_missing(tmp_path, text, age):
    assert read_radiograph(make_dicom(tmp_path / "a", ramp(), PatientAge=text)).age == age


@pytest.mark.parametrize(("text", "sex"), [("F", "F"), ("M", "M"), ("O", None), ("", None)])
def test_sex_is_read_of_the_header(tmp_path, text, sex):
    assert read_radiograph(make_dicom(tmp_path / "a", ramp(), PatientSex=text)).sex == sex


def test_no_patient_tag_is_on_the_allow_list_and_none_leaves_the_header(tmp_path, caplog):
    names = {tag.__str__() for tag in ALLOWED}
    assert not names & {"(0010,0010)", "(0010,0020)", "(0010,0030)", "(0008,0020)", "(0008,0050)", "(0020,000D)"}
    path = make_dicom(
        tmp_path / "DOE_JANE.dcm", ramp(), PixelSpacing=[0.1, 0.1], PatientAge="050Y", BodyPartExamined="X"
    )
    with caplog.at_level(logging.DEBUG), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        got = read_radiograph(path)
    told = repr(got.notes) + caplog.text + "".join(str(warning.message) for warning in caught)
    for secret in ("DOE", "SECRET77", "20010203", "ACC99", "1.2.826"):
        assert secret not in told
