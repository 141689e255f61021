"""Reading DICOM files: every step from stored values to display, and nothing of the patient."""

import logging
import warnings

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from cxrdist.dicom import read_radiograph
from cxrdist.dicom.header import ALLOWED
from tests.helpers import make_dicom

WINDOW = {"WindowCenter": 2048, "WindowWidth": 4096, "VOILUTFunction": "LINEAR_EXACT"}


def ramp(top=4095, shape=(40, 50)):
    return np.linspace(0, top, shape[0] * shape[1]).round().astype(np.uint16).reshape(shape)


def sequence(first, bits, entries, *, vr="US"):
    item = Dataset()
    item.add_new("LUTDescriptor", vr, [len(entries), first, bits])
    data = np.asarray(entries, np.uint16)
    item.add_new("LUTData", "OW", data.tobytes())
    return [item]


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


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        ("SIGMOID", lambda x: 1 / (1 + np.exp(-4 * (x - 2000) / 1000))),
        ("LINEAR_EXACT", lambda x: np.clip((x - 1500) / 1000, 0, 1)),
        ("LINEAR", lambda x: np.clip((x - 1999.5) / 999 + 0.5, 0, 1)),
        ("", lambda x: np.clip((x - 1999.5) / 999 + 0.5, 0, 1)),
        ("SOMETHING ELSE", lambda x: np.clip((x - 1999.5) / 999 + 0.5, 0, 1)),
    ],
)
def test_the_windows_function_is_the_headers(tmp_path, function, expected):
    tags = {"WindowCenter": 2000, "WindowWidth": 1000, "VOILUTFunction": function}
    got = read_radiograph(make_dicom(tmp_path / "a", ramp(), BitsStored=12, **tags))
    np.testing.assert_allclose(got.pixels, expected(ramp().astype(float)), atol=1e-6)


@pytest.mark.parametrize(
    ("width", "function", "voi"),
    [(0, "LINEAR", "range"), (0.5, "LINEAR", "range"), (-3, "LINEAR_EXACT", "range"), (0.5, "LINEAR_EXACT", "window")],
)
def test_a_window_that_the_standard_forbids_is_passed_over(tmp_path, width, function, voi):
    tags = {"WindowCenter": 2000, "WindowWidth": width, "VOILUTFunction": function}
    got = read_radiograph(make_dicom(tmp_path / "a", ramp(), BitsStored=12, **tags))
    assert got.notes["voi"] == voi and got.pixels.max() == 1


def test_a_window_of_several_values_is_not_mixed_with_the_table(tmp_path):
    tags = {"WindowCenter": [2048, 10], "WindowWidth": 4096, "VOILUTFunction": "LINEAR_EXACT"}
    got = read_radiograph(make_dicom(tmp_path / "a", ramp(), BitsStored=12, **tags))
    np.testing.assert_allclose(got.pixels, ramp() / 4096, atol=1e-6)


def test_rescaling_with_a_negative_slope_turns_the_picture_before_the_window(tmp_path):
    tags = {**WINDOW, "RescaleSlope": -1, "RescaleIntercept": 4095}
    got = read_radiograph(make_dicom(tmp_path / "a", ramp(), BitsStored=12, **tags))
    np.testing.assert_allclose(got.pixels, (4095 - ramp()) / 4096, atol=1e-6)


def test_a_voi_table_after_a_fractional_rescale_is_indexed_by_the_nearest_whole_number(tmp_path):
    entries = np.arange(1024)
    tags = {"RescaleSlope": 0.25, "RescaleIntercept": -0.3, "VOILUTSequence": sequence(0, 10, entries)}
    got = read_radiograph(make_dicom(tmp_path / "a", ramp(), BitsStored=12, **tags))
    index = np.clip(np.rint(ramp() * 0.25 - 0.3), 0, 1023)
    np.testing.assert_allclose(got.pixels, index / 1023, atol=1e-6)


def test_a_voi_table_of_65536_entries_says_0_in_its_descriptor(tmp_path):
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [0, 0, 16])
    item.add_new("LUTData", "OW", np.arange(65536, dtype=np.uint16)[::-1].tobytes())
    got = read_radiograph(make_dicom(tmp_path / "a", ramp(65535), VOILUTSequence=[item]))
    np.testing.assert_allclose(got.pixels, 1 - ramp(65535) / 65535, atol=1e-6)


def test_a_voi_table_over_signed_values_begins_below_zero(tmp_path):
    stored = (ramp().astype(np.int32) - 2048).astype(np.int16)
    item = Dataset()
    item.add_new("LUTDescriptor", "SS", [4096, -2048, 12])
    item.add_new("LUTData", "OW", np.arange(4096, dtype=np.uint16).tobytes())
    got = read_radiograph(make_dicom(tmp_path / "a", stored, BitsStored=12, VOILUTSequence=[item]))
    np.testing.assert_allclose(got.pixels, ramp() / 4095, atol=1e-6)


@pytest.mark.parametrize(
    "broken", [{"LUTDescriptor": [4096, 0]}, {"LUTData": b"\x00\x01"}, {"LUTDescriptor": [5, 0, 99]}]
)
def test_a_broken_voi_table_gives_way_to_the_window(tmp_path, broken):
    [item] = sequence(0, 12, np.arange(4096))
    for name, value in broken.items():
        item[name].value = value
    got = read_radiograph(make_dicom(tmp_path / "a", ramp(), BitsStored=12, VOILUTSequence=[item], **WINDOW))
    np.testing.assert_allclose(got.pixels, ramp() / 4096, atol=1e-6)
    assert got.notes["voi"] == "window"


def test_padding_of_a_signed_image_may_be_written_unsigned(tmp_path):
    stored = (ramp(1000).astype(np.int32) - 500).astype(np.int16)
    stored[:, :7] = -2000
    path = make_dicom(tmp_path / "a", stored)
    ds = dcmread(path)
    ds.add_new("PixelPaddingValue", "US", 65536 - 2000)
    ds.save_as(path)
    got = read_radiograph(path)
    assert (got.pixels[:, :7] == 0).all() and np.median(got.pixels[:, 7:]) == pytest.approx(0.5, abs=0.1)


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


def test_non_square_pixels_become_square_by_shrinking_the_finer_axis(tmp_path):
    got = read_radiograph(make_dicom(tmp_path / "a", ramp(shape=(40, 80)), BitsStored=12, PixelSpacing=[0.4, 0.2]))
    assert got.pixels.shape == (40, 40)
    assert (got.notes["spacing_mm"], got.notes["spacing_from"]) == (0.4, "PixelSpacing")


@pytest.mark.parametrize(
    ("tags", "shape", "notes"),
    [
        ({"ImagerPixelSpacing": [0.2, 0.4]}, (20, 80), ("ImagerPixelSpacing", 0.2)),
        ({"PixelAspectRatio": [2, 1]}, (40, 40), None),
        ({"PixelAspectRatio": [1, 1]}, (40, 80), None),
        ({"PixelSpacing": [0.2, 0.2], "ImagerPixelSpacing": [0.2, 0.4]}, (40, 80), ("PixelSpacing", 0.2)),
        ({"PixelSpacing": [0, 0.2], "ImagerPixelSpacing": [0.3, 0.3]}, (40, 80), ("ImagerPixelSpacing", 0.3)),
    ],
)
def test_the_shape_of_pixels_is_that_of_the_spacing_told_first(tmp_path, tags, shape, notes):
    got = read_radiograph(make_dicom(tmp_path / "a", ramp(shape=(40, 80)), BitsStored=12, **tags))
    assert got.pixels.shape == shape and ("resampled_aspect" in got.notes) == (shape != (40, 80))
    assert (got.notes.get("spacing_from"), got.notes.get("spacing_mm")) == (notes or (None, None))


@pytest.mark.parametrize(
    ("view", "code", "projection"),
    [(None, "R-10206", "AP"), ("", "272479007", "PA"), ("PA", "R-10206", "PA"), (None, "R-99999", None)],
)
def test_the_view_code_speaks_where_the_view_position_is_silent(tmp_path, view, code, projection):
    item = Dataset()
    item.CodeValue, item.CodeMeaning = code, "DOE"
    got = read_radiograph(make_dicom(tmp_path / "a", ramp(), ViewPosition=view, ViewCodeSequence=[item]))
    assert got.projection == projection


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
