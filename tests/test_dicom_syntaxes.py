"""Every transfer syntax of archives of radiographs, and what bits mean in it."""

import base64
from pathlib import Path

import cv2
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from cxrdist.dicom import read_radiograph
from cxrdist.dicom.codestream import codestream_header, is_whole
from cxrdist.dicom.file import open_dicom
from cxrdist.dicom.radiograph import quiet
from cxrdist.errors import ImageRejectedError
from tests.helpers import make_dicom

LOSSLESS = [
    ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian, RLELossless,
    JPEG2000Lossless, JPEGLSLossless, JPEGLossless, JPEGLosslessSV1,
]  # fmt: skip
LOSSY = [JPEGExtended12Bit, JPEGLSNearLossless, JPEG2000]
WINDOW = {"BitsStored": 12, "WindowCenter": 2048, "WindowWidth": 4096, "VOILUTFunction": "LINEAR_EXACT"}
# HTJ2K of (12, 14) values 300 * row + 40 * column, written by OpenJPH; no encoder comes with the decoders.
HT_VALUES = np.add.outer(np.arange(12) * 300, np.arange(14) * 40).astype(np.uint16)
HT_CODESTREAM = base64.b64decode(
    "/0//UQApQAAAAAAOAAAADAAAAAAAAAAAAAAADgAAAAwAAAAAAAAAAAABDwEB/1AACAACAAAACv9SAAwAAgABAAIEBEAB/1wACiCIkJCQiIiI/2QA"
    "FwABT3BlbkpQSCBWZXIgMC4yNi4zLv+QAAoAAAAAAG8AAf+TwAAt4P9/n/a//l/1wH4I/YX/LN6+3qp+S3egP3NCADG3AMAAE8AAFYCZ/IT+S3UA"
    "RCUqUYn6wFKBvrYAwAArIAAWkE7HcTrO5y/X4It3AFZasWLFihUr+ghAI/ZCAey6AP/Z"
)


def scene(top=4095, shape=(64, 80), seed=5):
    """Return (H, W) uint16 of smooth hills from black to white."""
    hills = cv2.GaussianBlur(np.random.default_rng(seed).random(shape), (0, 0), 6)
    return ((hills - hills.min()) / np.ptp(hills) * top).round().astype(np.uint16)


def with_frames(path, frames, syntax):
    """Replace the pixel data of a file by compressed frames."""
    ds = dcmread(path)
    ds.PixelData = encapsulate(frames)
    ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
    ds.file_meta.TransferSyntaxUID = syntax
    ds.save_as(path)
    return path


@pytest.mark.parametrize("syntax", LOSSLESS, ids=lambda uid: uid.name)
def test_every_lossless_transfer_syntax_gives_the_same_pixels(tmp_path, syntax):
    stored = scene()
    got = read_radiograph(make_dicom(tmp_path / "a", stored, syntax=syntax, **WINDOW))
    np.testing.assert_allclose(got.pixels, stored / 4096, atol=1e-6)
    assert got.notes["transfer_syntax"] == syntax.name
    assert (got.bits, got.notes["voi"], got.pixels.dtype) == (12, "window", np.float32)


@pytest.mark.parametrize("syntax", [HTJ2KLossless, HTJ2KLosslessRPCL, HTJ2K], ids=lambda uid: uid.name)
def test_high_throughput_jpeg_2000_is_read(tmp_path, syntax):
    path = with_frames(make_dicom(tmp_path / "a", HT_VALUES, **WINDOW), [HT_CODESTREAM], syntax)
    got = read_radiograph(path)
    np.testing.assert_allclose(got.pixels, HT_VALUES / 4096, atol=1e-6)
    assert got.notes["transfer_syntax"] == syntax.name
    assert codestream_header(HT_CODESTREAM) == (12, 14, 1, 16) and is_whole(HT_CODESTREAM)


@pytest.mark.parametrize("syntax", LOSSY, ids=lambda uid: uid.name)
def test_lossy_syntaxes_of_12_bits_are_close_to_their_source(tmp_path, syntax):
    stored = scene()
    if syntax == JPEG2000:
        path = make_dicom(tmp_path / "a", stored, **WINDOW)
        ds = dcmread(path)
        ds.compress(JPEG2000, j2k_cr=[10], generate_instance_uid=False)
        ds.save_as(path)
    else:
        path = make_dicom(tmp_path / "a", stored, syntax=syntax, **WINDOW)
    got = read_radiograph(path)
    np.testing.assert_allclose(got.pixels, stored / 4096, atol=0.01)
    assert got.notes["transfer_syntax"] == syntax.name


@pytest.mark.parametrize("syntax", [JPEGBaseline8Bit, JPEGExtended12Bit], ids=lambda uid: uid.name)
def test_jpeg_of_8_bits_is_close_to_its_source(tmp_path, syntax):
    stored = scene(255).astype(np.uint8)
    got = read_radiograph(make_dicom(tmp_path / "a", stored, syntax=syntax))
    np.testing.assert_allclose(got.pixels, stored / 255, atol=3 / 255)
    assert (got.bits, got.notes["voi"]) == (8, "none")


@pytest.mark.parametrize("syntax", LOSSLESS, ids=lambda uid: uid.name)
def test_8_bit_images_are_the_same_in_every_lossless_syntax(tmp_path, syntax):
    odd = syntax not in (RLELossless, JPEGLossless, JPEGLosslessSV1)  # GDCM cannot write those
    stored = scene(255, shape=(63, 81) if odd else (64, 80)).astype(np.uint8)  # words of two pixels, padded fragments
    got = read_radiograph(make_dicom(tmp_path / "a", stored, syntax=syntax))
    np.testing.assert_allclose(got.pixels, stored / 255, atol=1e-6)


@pytest.mark.parametrize("bits", [10, 12, 14, 15, 16])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless, JPEG2000Lossless, JPEGLSLossless])
def test_bits_stored_is_the_truth_and_not_the_container(tmp_path, syntax, bits):
    stored = scene(2**bits - 1)
    tags = {"BitsStored": bits, "WindowCenter": 2 ** (bits - 1), "WindowWidth": 2**bits}
    got = read_radiograph(make_dicom(tmp_path / "a", stored, syntax=syntax, **tags))
    np.testing.assert_allclose(got.pixels, stored / (2**bits - 1), atol=1e-6)
    assert (got.bits, got.notes["bits_stored"]) == (bits, bits)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless, JPEG2000Lossless])
def test_signed_values_are_signed_in_every_syntax(tmp_path, syntax):
    stored = (scene().astype(np.int32) - 2048).astype(np.int16)
    got = read_radiograph(make_dicom(tmp_path / "a", stored, syntax=syntax, **{**WINDOW, "WindowCenter": 0}))
    np.testing.assert_allclose(got.pixels, (stored + 2048.0) / 4096, atol=1e-6)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless, JPEG2000Lossless])
def test_dirt_above_bits_stored_is_masked(tmp_path, syntax):
    stored = scene()
    clean = read_radiograph(make_dicom(tmp_path / "a", stored, syntax=syntax, **WINDOW))
    full = make_dicom(tmp_path / "b", stored | 0xF000, syntax=syntax, **{**WINDOW, "BitsStored": 16})
    ds = dcmread(full)
    ds.BitsStored, ds.HighBit = 12, 11
    ds.save_as(full)
    np.testing.assert_array_equal(clean.pixels, read_radiograph(full).pixels)


@pytest.mark.parametrize("signed", [False, True])
def test_a_lossy_codestream_that_overshoots_its_bits_is_clipped_and_does_not_wrap(tmp_path, signed):
    offset = 2048 if signed else 0
    over = scene(4400).astype(np.int32) - 150 - offset  # from below 0 to above 4095
    over = np.clip(over, None if signed else 0, None).astype(np.int16 if signed else np.uint16)
    path = make_dicom(tmp_path / "a", over)
    ds = dcmread(path)
    ds.compress(JPEG2000, j2k_cr=[4], generate_instance_uid=False)
    ds.BitsStored, ds.HighBit = 12, 11
    ds.WindowCenter, ds.WindowWidth, ds.VOILUTFunction = 2048 - offset, 4096, "LINEAR_EXACT"
    ds.save_as(path)
    got = read_radiograph(path)
    np.testing.assert_allclose(got.pixels, np.clip((over + offset) / 4096, 0, 4095 / 4096), atol=0.01)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless])
def test_values_kept_at_the_high_end_of_their_container_are_shifted_down(tmp_path, syntax):
    stored = scene()
    low = read_radiograph(make_dicom(tmp_path / "a", stored, **WINDOW))
    high = read_radiograph(make_dicom(tmp_path / "b", stored << 4, HighBit=15, syntax=syntax, **WINDOW))
    np.testing.assert_array_equal(low.pixels, high.pixels)


def test_overlays_in_the_unused_bits_and_in_their_own_group_are_ignored(tmp_path):
    stored = scene()
    plain = read_radiograph(make_dicom(tmp_path / "a", stored, **WINDOW))
    text = np.zeros_like(stored)
    text[10:20, 5:60] = 1
    path = make_dicom(tmp_path / "b", stored | (text << 15), **WINDOW)
    ds = dcmread(path)
    for group, position in ((0x6000, 15), (0x6002, 0)):
        ds.add_new((group, 0x0010), "US", 64)
        ds.add_new((group, 0x0011), "US", 80)
        ds.add_new((group, 0x0040), "CS", "G")
        ds.add_new((group, 0x0050), "SS", [1, 1])
        ds.add_new((group, 0x0100), "US", 16 if position else 1)
        ds.add_new((group, 0x0102), "US", position)
    ds.add_new((0x6002, 0x3000), "OW", np.packbits(text.astype(np.uint8), bitorder="little").tobytes())
    ds.save_as(path)
    np.testing.assert_array_equal(read_radiograph(path).pixels, plain.pixels)


def test_a_fragmented_frame_is_put_together(tmp_path):
    path = make_dicom(tmp_path / "a", HT_VALUES, **WINDOW)
    ds = dcmread(path)
    ds.PixelData = encapsulate([HT_CODESTREAM], fragments_per_frame=3, has_bot=False)
    ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
    ds.file_meta.TransferSyntaxUID = HTJ2KLossless
    ds.save_as(path)
    np.testing.assert_allclose(read_radiograph(path).pixels, HT_VALUES / 4096, atol=1e-6)


@pytest.mark.parametrize("frames", [1, None, ""])
def test_a_file_that_says_it_has_one_frame_is_read(tmp_path, frames):
    path = make_dicom(tmp_path / "a", scene(), NumberOfFrames=frames, **WINDOW)
    assert read_radiograph(path).pixels.shape == (64, 80)


@pytest.mark.parametrize("declared", [2, 30])
def test_a_file_of_several_frames_is_refused_with_the_reason(tmp_path, declared):
    with pytest.raises(ImageRejectedError, match="unsupported: several frames in one file"):
        read_radiograph(make_dicom(tmp_path / "a", scene(), NumberOfFrames=declared, **WINDOW))


def test_frames_that_the_header_does_not_declare_are_not_decoded(tmp_path):
    path = with_frames(make_dicom(tmp_path / "a", HT_VALUES, **WINDOW), [HT_CODESTREAM] * 3, HTJ2KLossless)
    np.testing.assert_allclose(read_radiograph(path).pixels, HT_VALUES / 4096, atol=1e-6)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_a_missing_transfer_syntax_is_guessed_and_noted(tmp_path, syntax):
    data = make_dicom(tmp_path / "a", scene(), syntax=syntax, **WINDOW).read_bytes()
    end = 144 + int.from_bytes(data[140:144], "little")  # value of (0002,0000)
    place = data.index(b"\x02\x00\x10\x00UI", 0, end)
    length = 8 + int.from_bytes(data[place + 6 : place + 8], "little")
    group = (end - 144 - length).to_bytes(4, "little")
    without_tag = data[:140] + group + data[144:place] + data[place + length :]
    for name, content in (("without the tag", without_tag), ("without the group", data[:132] + data[end:])):
        (tmp_path / name).write_bytes(content)
        got = read_radiograph(tmp_path / name)
        np.testing.assert_allclose(got.pixels, scene() / 4096, atol=1e-6)
        assert got.notes["guessed_syntax"] == 1 and got.notes["transfer_syntax"] == syntax.name


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.4.100", "1.2.3.4.5", "1.2.840.10008.1.2.1.98"])
def test_syntaxes_of_videos_and_unknown_ones_are_unsupported(tmp_path, syntax):
    path = with_frames(make_dicom(tmp_path / "a", HT_VALUES, **WINDOW), [HT_CODESTREAM], syntax)
    with pytest.raises(ImageRejectedError, match="unsupported: an unknown transfer syntax"):
        read_radiograph(path)


@pytest.mark.parametrize(
    "name",
    [
        "693_J2KI.dcm", "J2K_pixelrep_mismatch.dcm", "MR_small_RLE.dcm", "MR_small_bigendian.dcm", "CT_small.dcm",
        "MR_small_padded.dcm", "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm", "image_dfl.dcm",
    ],
)  # fmt: skip
def test_files_of_other_writers_have_the_stored_values_that_pydicom_finds(name):
    path = get_testdata_file(name, download=False)
    if path is None:
        pytest.skip(f"pydicom came without {name}")
    with quiet():
        file = open_dicom(Path(path).read_bytes(), max_pixels=10**6, limit=10**7)
        picture = file.picture()
        expected = dcmread(path).pixel_array
    np.testing.assert_array_equal(picture.values[picture.words], expected)
