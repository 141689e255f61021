"""Radiographs in colour: screenshots, secondary captures and palettes become grey."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.pixels import apply_color_lut
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
)

from cxrdist.dicom import read_radiograph
from cxrdist.errors import ImageRejectedError
from tests.helpers import make_dicom

WEIGHTS = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
KEEP = {"burned_in_text": "flag", "declared_text": "flag"}


def scene(shape=(32, 46), seed=1):
    """Return (H, W, 3) uint8 of soft colours."""
    rng = np.random.default_rng(seed)
    return np.clip(cv2.GaussianBlur(rng.random((*shape, 3)), (0, 0), 3) * 900 - 330, 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    "syntax",
    [
        ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian,
        RLELossless, JPEG2000Lossless,
    ],
    ids=lambda uid: uid.name,
)  # fmt: skip
def test_rgb_becomes_luminance_in_every_syntax(tmp_path, syntax):
    got = read_radiograph(make_dicom(tmp_path / "a", scene(), syntax=syntax))
    np.testing.assert_allclose(got.pixels, scene() @ WEIGHTS / 255, atol=1e-5)
    assert (got.bits, got.notes["photometric"], got.notes["voi"]) == (8, "RGB", "none")


def test_colour_by_plane_is_read_as_colour_by_pixel(tmp_path):
    path = make_dicom(tmp_path / "a", scene())
    ds = dcmread(path)
    ds.PlanarConfiguration = 1
    ds.PixelData = np.ascontiguousarray(scene().transpose(2, 0, 1)).tobytes()
    ds.save_as(path)
    np.testing.assert_allclose(read_radiograph(path).pixels, scene() @ WEIGHTS / 255, atol=1e-5)


def test_colour_of_12_bits_in_16_is_scaled_by_its_bits(tmp_path):
    deep = scene().astype(np.uint16) * 16
    got = read_radiograph(make_dicom(tmp_path / "a", deep | 0xF000, BitsStored=12))
    np.testing.assert_allclose(got.pixels, deep @ WEIGHTS / 4095, atol=1e-5)
    assert got.bits == 12


@pytest.mark.parametrize("photometric", ["YBR_FULL", "YBR_FULL_422"])
def test_of_luminance_and_chrominance_the_first_is_all_that_is_wanted(tmp_path, photometric):
    light = np.random.default_rng(2).integers(0, 256, (32, 46), np.uint8)
    stored = np.dstack([light, np.full_like(light, 20), np.full_like(light, 230)])
    path = make_dicom(tmp_path / "a", stored, PhotometricInterpretation=photometric)
    if photometric == "YBR_FULL_422":  # two Y, then the Cb and Cr they share
        ds = dcmread(path)
        pairs = np.dstack([light[:, ::2], light[:, 1::2], stored[:, ::2, 1], stored[:, ::2, 2]])
        ds.PixelData = pairs.tobytes()
        ds.save_as(path)
    np.testing.assert_allclose(read_radiograph(path).pixels, light / 255, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [
        ("SC_rgb_jpeg_dcmd.dcm", 1e-4), ("SC_rgb_jpeg.dcm", 1e-4), ("SC_jpeg_no_color_transform.dcm", 1e-4),
        ("SC_rgb_dcmtk_+eb+cr.dcm", 1e-4), ("SC_rgb_jls_lossy_line.dcm", 1e-4), ("SC_rgb_gdcm_KY.dcm", 1e-4),
        ("GDCMJ2K_TextGBR.dcm", 1e-4), ("SC_rgb_rle_16bit.dcm", 1e-4), ("SC_rgb_small_odd_big_endian.dcm", 1e-4),
        # RGB clips what lossy compression pushed out of its cube; the Y of YBR does not.
        ("SC_rgb_dcmtk_+eb+cy+s4.dcm", 0.01), ("SC_ybr_full_422_uncompressed.dcm", 0.01),
        ("SC_rgb_jpeg_dcmtk.dcm", 0.01),
    ],
)  # fmt: skip
def test_colour_files_of_other_writers_have_the_luminance_that_pydicom_finds(name, tolerance):
    path = get_testdata_file(name, download=False)
    if path is None:
        pytest.skip(f"pydicom came without {name}")
    ds = dcmread(path)
    expected = ds.pixel_array @ WEIGHTS / (2**ds.BitsStored - 1)
    np.testing.assert_allclose(read_radiograph(Path(path), **KEEP).pixels, expected, atol=tolerance)


def palette(bits, entries, first=0):
    """Return tags of a palette whose red falls, green rises and blue is fixed."""
    dtype = np.uint8 if bits == 8 else np.uint16
    top = 2**bits - 1
    rising = np.linspace(0, top, entries).astype(dtype)
    tables = {"Red": rising[::-1], "Green": rising, "Blue": np.full(entries, top // 3, dtype)}
    tags = {f"{name}PaletteColorLookupTableData": table.tobytes() for name, table in tables.items()}
    tags |= {f"{name}PaletteColorLookupTableDescriptor": [entries % 65536, first, bits] for name in tables}
    return tags, np.stack(list(tables.values()), 1) @ WEIGHTS / top


@pytest.mark.parametrize(("bits", "entries", "first"), [(8, 256, 0), (16, 256, 0), (16, 100, 20), (8, 64, 0)])
def test_a_palette_becomes_the_luminance_of_its_colours(tmp_path, bits, entries, first):
    stored = np.arange(256, dtype=np.uint8).reshape(16, 16)
    tags, light = palette(bits, entries, first)
    got = read_radiograph(make_dicom(tmp_path / "a", stored, PhotometricInterpretation="PALETTE COLOR", **tags))
    expected = light[np.clip(stored.astype(int) - first, 0, entries - 1)]
    np.testing.assert_allclose(got.pixels, expected, atol=1e-5)
    assert (got.notes["photometric"], got.notes["voi"]) == ("PALETTE COLOR", "none")


def test_a_palette_of_65536_colours_is_read(tmp_path):
    stored = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)
    tags, light = palette(16, 65536)
    got = read_radiograph(make_dicom(tmp_path / "a", stored, PhotometricInterpretation="PALETTE COLOR", **tags))
    np.testing.assert_allclose(got.pixels, light[stored], atol=1e-5)


def test_a_palette_of_another_writer_is_read_as_pydicom_reads_it():
    path = get_testdata_file("examples_palette.dcm", download=False)
    if path is None:
        pytest.skip("pydicom came without the file")
    ds = dcmread(path)
    expected = apply_color_lut(ds.pixel_array, ds) @ WEIGHTS / 65535
    np.testing.assert_allclose(read_radiograph(Path(path), **KEEP).pixels, expected, atol=1e-5)


@pytest.mark.parametrize("missing", ["GreenPaletteColorLookupTableData", "RedPaletteColorLookupTableDescriptor"])
def test_a_palette_with_a_table_missing_is_unsupported(tmp_path, missing):
    stored = np.arange(256, dtype=np.uint8).reshape(16, 16)
    tags = palette(8, 256)[0] | {missing: None}
    with pytest.raises(ImageRejectedError, match="unsupported: a colour palette that cannot be read"):
        read_radiograph(make_dicom(tmp_path / "a", stored, PhotometricInterpretation="PALETTE COLOR", **tags))


def test_a_palette_of_one_shade_is_constant(tmp_path):
    stored = np.arange(256, dtype=np.uint8).reshape(16, 16)
    tags = palette(8, 256)[0]
    tags |= {f"{name}PaletteColorLookupTableData": bytes([77] * 256) for name in ("Red", "Green", "Blue")}
    with pytest.raises(ImageRejectedError, match="constant_image"):
        read_radiograph(make_dicom(tmp_path / "a", stored, PhotometricInterpretation="PALETTE COLOR", **tags))


def test_colour_may_have_half_as_many_pixels(tmp_path):
    path = make_dicom(tmp_path / "a", scene((20, 20)))
    assert read_radiograph(path, max_pixels=800).pixels.shape == (20, 20)
    with pytest.raises(ImageRejectedError, match="too_large"):
        read_radiograph(path, max_pixels=799)
