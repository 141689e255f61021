"""What a dataset knows of its files: headerless images, polarity, range; and files that are compressed as a whole."""

import gzip

import cv2
import numpy as np
import pytest
from pydicom.uid import ExplicitVRLittleEndian

from cxrdist.dicom import PixelHints, RawImage, quantise, read_radiograph
from cxrdist.errors import ImageRejectedError
from tests.helpers import make_dicom

RAW = RawImage(rows=24, columns=30, bits=12)
JSRT = PixelHints(raw=RAW, invert=True)
ROBUST = PixelHints(range="robust")


def film(top=4095, shape=(24, 30)):
    return np.linspace(0, top, shape[0] * shape[1]).round().astype(np.uint16).reshape(shape)


def write(path, data):
    path.write_bytes(data)
    return path


def reason(path, **options):
    with pytest.raises(ImageRejectedError) as caught:
        read_radiograph(path, **options)
    assert path.stem not in caught.value.detail
    return caught.value.reason


def test_a_headerless_file_is_read_by_its_datasets_shape_byte_order_and_polarity(tmp_path):
    path = write(tmp_path / "JPCLN001.IMG", film().astype(">u2").tobytes())
    got = read_radiograph(path, hints=JSRT)
    np.testing.assert_allclose(got.pixels, 1 - film() / 4095, atol=1e-6)
    assert (got.bits, got.notes) == (12, {"kind": "raw", "bits_stored": 12, "voi": "none"})
    as_stored = read_radiograph(path, hints=PixelHints(raw=RAW))
    np.testing.assert_allclose(as_stored.pixels, film() / 4095, atol=1e-6)


def test_headerless_words_may_be_little_endian_and_signed(tmp_path):
    signed = (film().astype(np.int32) - 2048).astype("<i2")
    raw = RawImage(24, 30, 12, big_endian=False, signed=True)
    got = read_radiograph(write(tmp_path / "a.img", signed.tobytes()), hints=PixelHints(raw=raw))
    np.testing.assert_allclose(got.pixels, film() / 4095, atol=1e-6)


def test_a_headerless_file_that_begins_like_a_dicom_group_is_still_headerless(tmp_path):
    values = film()
    values[0, 0] = 8  # 00 08: how a file without preamble in big endian begins
    got = read_radiograph(write(tmp_path / "a.img", values.astype(">u2").tobytes()), hints=JSRT)
    assert got.notes["kind"] == "raw"


@pytest.mark.parametrize("size", [0, 100, 24 * 30 * 2 - 1, 24 * 30 * 2 + 1, 24 * 30 * 4])
def test_a_headerless_file_of_another_size_is_unreadable(tmp_path, size):
    data = (film().astype(">u2").tobytes() * 2)[:size]
    assert reason(write(tmp_path / "patient_x.img", data), hints=JSRT) == "unreadable"


def test_a_headerless_file_in_the_wrong_byte_order_is_unreadable(tmp_path):
    assert reason(write(tmp_path / "patient_x.img", film().astype("<u2").tobytes()), hints=JSRT) == "unreadable"


def test_a_headerless_file_of_one_value_is_constant(tmp_path):
    assert reason(write(tmp_path / "patient_x.img", bytes(24 * 30 * 2)), hints=JSRT) == "constant_image"


@pytest.mark.parametrize("kind", ["png", "jpg", "dcm"])
def test_a_converted_file_among_headerless_ones_is_read_as_what_it_is_and_not_turned(tmp_path, kind):
    bright_below = film(255).astype(np.uint8)
    path = tmp_path / "JPCLN001.IMG"
    if kind == "dcm":
        make_dicom(path, bright_below)
    else:
        path.write_bytes(cv2.imencode(f".{kind}", bright_below)[1].tobytes())
    got = read_radiograph(path, hints=JSRT)
    assert got.pixels[0].mean() < 0.1 and got.pixels[-1].mean() > 0.9


@pytest.mark.parametrize("kind", ["png", "jpg", "dcm"])
def test_the_hint_to_invert_turns_any_format_once(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    if kind == "dcm":
        make_dicom(path, film(255).astype(np.uint8))
    else:
        cv2.imwrite(str(path), film(255).astype(np.uint8))
    plain, turned = read_radiograph(path), read_radiograph(path, hints=PixelHints(invert=True))
    np.testing.assert_allclose(turned.pixels, 1 - plain.pixels, atol=1e-6)


def test_padding_stays_black_when_a_hint_turns_the_picture(tmp_path):
    stored = film(3000)
    stored[:, :5] = 4000
    path = make_dicom(tmp_path / "a", stored, BitsStored=12, PixelPaddingValue=4000)
    for hints in (PixelHints(), PixelHints(invert=True)):
        assert (read_radiograph(path, hints=hints).pixels[:, :5] == 0).all()


def test_twelve_bits_in_a_16_bit_png_are_stretched_only_when_the_dataset_asks_for_it(tmp_path):
    values = film(4095, (120, 100))
    values[0, 0] = 4095
    cv2.imwrite(str(tmp_path / "a.png"), values)
    dark = read_radiograph(tmp_path / "a.png")
    assert dark.pixels.max() < 0.07 and (dark.bits, dark.notes["voi"]) == (16, "none")
    shown = read_radiograph(tmp_path / "a.png", hints=ROBUST)
    # Black and white at the 0.5th and 99.5th percentile.
    expected = np.clip((values / 4095 - 0.005) / 0.99, 0, 1)
    np.testing.assert_allclose(shown.pixels, expected, atol=2e-3)
    assert (shown.bits, shown.notes["voi"]) == (12, "range")


def test_one_hot_pixel_does_not_darken_a_stretched_png(tmp_path):
    values = film(2000, (120, 100))
    values[60, 50] = 65535
    cv2.imwrite(str(tmp_path / "a.png"), values)
    shown = read_radiograph(tmp_path / "a.png", hints=ROBUST).pixels
    assert shown[60, 50] == 1 and np.median(shown) == pytest.approx(0.5, abs=0.01)


def test_eight_bit_images_are_at_the_display_range_already(tmp_path):
    values = np.clip(film(255).astype(np.uint8), 50, 100)
    cv2.imwrite(str(tmp_path / "a.png"), values)
    got = read_radiograph(tmp_path / "a.png", hints=ROBUST)
    np.testing.assert_array_equal(quantise(got.pixels, 8), values)


@pytest.mark.parametrize("kind", ["dcm", "png", "img"])
def test_a_file_compressed_as_a_whole_is_read_as_the_one_inside(tmp_path, kind):
    inside, hints = tmp_path / f"a.{kind}", PixelHints()
    if kind == "dcm":
        make_dicom(inside, film(), syntax=ExplicitVRLittleEndian, BitsStored=12)
    elif kind == "png":
        cv2.imwrite(str(inside), film())
    else:
        inside.write_bytes(film().astype(">u2").tobytes())
        hints = JSRT
    around = write(tmp_path / "DOE_JANE.gz", gzip.compress(inside.read_bytes()))
    got, plain = read_radiograph(around, hints=hints), read_radiograph(inside, hints=hints)
    np.testing.assert_array_equal(got.pixels, plain.pixels)
    assert got.notes == plain.notes


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_compressed_file_is_unreadable(tmp_path, damage):
    make_dicom(tmp_path / "a", film(), BitsStored=12)
    data = bytearray(gzip.compress((tmp_path / "a").read_bytes()))
    if damage == "flipped":
        data[len(data) // 2] ^= 0xFF
    kept = {"cut": data[:-20], "flipped": data, "empty": data[:4]}[damage]
    assert reason(write(tmp_path / "patient_x.dcm.gz", bytes(kept))) == "unreadable"


def test_a_compressed_bomb_is_refused(tmp_path):
    bomb = gzip.compress(b"\x08\x00" + bytes(120_000_000), 9)
    assert len(bomb) < 200_000
    assert reason(write(tmp_path / "patient_x.dcm.gz", bomb), max_pixels=1_000_000) == "too_large"
