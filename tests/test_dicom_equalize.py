"""Equalisation: OpenCV's, without what is no image; and the preparation of a published study, step by step."""

import cv2
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless
from scipy.ndimage import zoom

from cxrdist.dicom import PixelHints, quantise, read_radiograph
from cxrdist.dicom.equalize import equalize_global
from cxrdist.errors import ImageRejectedError
from tests.helpers import make_dicom


def scene(shape=(90, 110), top=4095, seed=3):
    """Return (H, W) uint16 of a smooth dark picture with a bright half and noise."""
    rng = np.random.default_rng(seed)
    slope = np.linspace(0, 0.4, shape[1]) ** 2 * np.ones((shape[0], 1))
    slope[shape[0] // 2 :] += 0.3
    return np.clip((slope + rng.normal(0, 0.01, shape)) * top, 0, top).astype(np.uint16)


# --- global and clahe


@pytest.mark.parametrize("seed", range(5))
def test_global_equalisation_without_padding_is_opencvs(seed):
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    grey = np.clip(rng.normal(rng.integers(30, 200), 20, (60, 70)), 0, 255).astype(np.uint8)
    got = equalize_global(grey / np.float32(255))
    np.testing.assert_array_equal(quantise(got, 8), cv2.equalizeHist(grey))


def test_padding_is_not_counted_by_the_equalisation_and_stays_black(tmp_path):
    stored = scene()
    padded = np.full((90, 200), 4095, np.uint16)
    padded[:, :110] = stored
    path = make_dicom(tmp_path / "a", padded, BitsStored=12, PixelPaddingValue=4095)
    got = read_radiograph(path, equalize="global")
    alone = read_radiograph(make_dicom(tmp_path / "b", stored, BitsStored=12), equalize="global")
    assert (got.pixels[:, 110:] == 0).all()
    np.testing.assert_array_equal(got.pixels[:, :110], alone.pixels)
    assert got.notes["equalize"] == "global" and alone.pixels.max() == 1


def test_equalisation_sees_the_displayed_picture_at_its_final_size(tmp_path):
    path = make_dicom(tmp_path / "a", scene((300, 360)), BitsStored=12, PhotometricInterpretation="MONOCHROME1")
    shown = quantise(read_radiograph(path, size=64).pixels, 8)
    assert min(shown.shape) == 64
    for equalize, expected in (
        ("global", cv2.equalizeHist(shown)),
        ("clahe", cv2.createCLAHE(2.0, (8, 8)).apply(shown)),
    ):
        got = read_radiograph(path, size=64, equalize=equalize)
        np.testing.assert_array_equal(quantise(got.pixels, 8), expected)
        assert got.notes["equalize"] == equalize


def test_an_unequalised_picture_has_no_note_of_it_and_the_size_asked_for(tmp_path):
    path = make_dicom(tmp_path / "a", scene((300, 360)), BitsStored=12)
    got = read_radiograph(path, size=100)
    assert got.pixels.shape == (100, 120) and "equalize" not in got.notes


# --- the preset


def as_published(grey, size, *, monochrome1=False):
    """The authors' order, written down once more: zoom, min-max, 8 bits, inversion, equalisation."""
    small = zoom(grey, np.divide((size, size), grey.shape), order=2)
    low, high = int(small.min()), int(small.max())
    unit = (small.astype(np.float64) - low) / (high - low)
    eight = np.clip(np.rint(unit * 255), 0, 255).astype(np.uint8)
    if monochrome1:
        eight = np.invert(eight)
    return cv2.equalizeHist(eight)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, JPEG2000Lossless], ids=lambda uid: uid.name)
def test_the_preset_prepares_dicom_files_as_published_whatever_the_header_says_of_display(
    tmp_path, syntax, photometric
):
    window = {"WindowCenter": 300, "WindowWidth": 100, "RescaleSlope": -2, "RescaleIntercept": 7}
    path = make_dicom(
        tmp_path / "a", scene(), syntax=syntax, BitsStored=12, PhotometricInterpretation=photometric, **window
    )
    expected = as_published(dcmread(path).pixel_array, 48, monochrome1=photometric == "MONOCHROME1")
    got = read_radiograph(path, equalize="tayebi2024", size=48)
    np.testing.assert_array_equal(quantise(got.pixels, 8), expected)
    assert (got.notes["equalize"], got.notes["voi"], got.pixels.dtype) == ("tayebi2024", "none", np.float32)


def test_the_preset_prepares_signed_files_as_published(tmp_path):
    path = make_dicom(tmp_path / "a", (scene().astype(np.int32) - 2048).astype(np.int16), BitsStored=12)
    got = read_radiograph(path, equalize="tayebi2024", size=48)
    np.testing.assert_array_equal(quantise(got.pixels, 8), as_published(dcmread(path).pixel_array, 48))


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_the_preset_prepares_8_bit_rasters_as_published(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    cv2.imwrite(str(path), (scene() >> 4).astype(np.uint8))
    expected = as_published(cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2GRAY), 48)
    np.testing.assert_array_equal(quantise(read_radiograph(path, equalize="tayebi2024", size=48).pixels, 8), expected)


def test_the_preset_keeps_16_bits_of_a_png_and_no_aspect(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), scene((60, 200), top=65535))
    got = read_radiograph(tmp_path / "a.png", equalize="tayebi2024", size=48)
    np.testing.assert_array_equal(quantise(got.pixels, 8), as_published(scene((60, 200), top=65535), 48))
    assert got.pixels.shape == (48, 48)


def test_the_preset_turns_colour_to_grey_first(tmp_path):
    rng = np.random.default_rng(0)
    colour = np.dstack([scene(seed=seed) >> 4 for seed in range(3)]).astype(np.uint8)
    colour[rng.random(colour.shape[:2]) < 0.1] = (10, 200, 60)
    cv2.imwrite(str(tmp_path / "a.png"), colour)
    grey = np.rint(colour[..., ::-1] @ np.array([0.299, 0.587, 0.114])).astype(np.uint8)
    got = quantise(read_radiograph(tmp_path / "a.png", equalize="tayebi2024", size=48).pixels, 8)
    assert np.mean(got == as_published(grey, 48)) > 0.999


def test_the_preset_turns_a_png_that_was_written_without_inverting(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), (scene() >> 4).astype(np.uint8))
    got = read_radiograph(tmp_path / "a.png", hints=PixelHints(invert=True), equalize="tayebi2024", size=48)
    expected = as_published((scene() >> 4).astype(np.uint8), 48, monochrome1=True)
    np.testing.assert_array_equal(quantise(got.pixels, 8), expected)


def test_the_preset_needs_a_size(tmp_path):
    with pytest.raises(ValueError, match="`size` must be given"):
        read_radiograph(tmp_path / "a.png", equalize="tayebi2024")


@pytest.mark.parametrize("equalize", ["none", "global", "clahe", "tayebi2024"])
def test_a_constant_picture_is_refused_by_every_equalisation(tmp_path, equalize):
    path = make_dicom(tmp_path / "a", np.full((20, 20), 9, np.uint16))
    with pytest.raises(ImageRejectedError, match="constant_image"):
        read_radiograph(path, equalize=equalize, size=16)
