"""PNG and JPEG: no clipping, no truncation, the right way up; then smaller and quantised."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageFile

from cxrdist.dicom import quantise, read_radiograph, shrink
from cxrdist.errors import ImageRejectedError


def grey(shape=(32, 48)):
    return np.random.default_rng(2).integers(0, 256, shape, np.uint8)


def save(path, image, **options):
    image.save(path, **options)
    return path


def reason(path, **options):
    with pytest.raises(ImageRejectedError) as caught:
        read_radiograph(path, **options)
    assert path.stem not in caught.value.detail
    return caught.value.reason


def test_a_16_bit_png_keeps_all_its_levels(tmp_path):
    ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    cv2.imwrite(str(tmp_path / "a.png"), ramp)
    got = read_radiograph(tmp_path / "a.png")
    assert got.bits == 16
    assert len(np.unique(got.pixels)) == 65536
    np.testing.assert_array_equal(quantise(got.pixels, 16), ramp)


def test_16_bit_colour_png_keeps_its_low_byte(tmp_path):
    ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    cv2.imwrite(str(tmp_path / "a.png"), np.dstack([ramp] * 3))
    np.testing.assert_array_equal(quantise(read_radiograph(tmp_path / "a.png").pixels, 16), ramp)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P"])
def test_grey_values_survive_every_png_mode(tmp_path, mode):
    values = grey()
    got = read_radiograph(save(tmp_path / "a.png", Image.fromarray(values).convert(mode)))
    np.testing.assert_array_equal(quantise(got.pixels, 8), values)
    assert (got.bits, got.notes["kind"]) == (8, "png")


def test_colour_becomes_luminance_with_bt_601_weights(tmp_path):
    image = np.zeros((4, 3, 3), np.uint8)
    image[:, 0, 0] = image[:, 1, 1] = image[:, 2, 2] = 255
    got = read_radiograph(save(tmp_path / "a.png", Image.fromarray(image)))
    np.testing.assert_allclose(got.pixels[0], [0.299, 0.587, 0.114], atol=1 / 65535)


def test_transparent_parts_are_black_but_an_empty_alpha_channel_is_ignored(tmp_path):
    values = grey()
    alpha = np.full_like(values, 255)
    alpha[:, :10] = 0
    half = read_radiograph(save(tmp_path / "a.png", Image.fromarray(np.dstack([values] * 3 + [alpha]))))
    assert (half.pixels[:, :10] == 0).all() and (quantise(half.pixels, 8)[:, 10:] == values[:, 10:]).all()
    none = read_radiograph(save(tmp_path / "b.png", Image.fromarray(np.dstack([values] * 3 + [alpha * 0]))))
    np.testing.assert_array_equal(quantise(none.pixels, 8), values)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpeg_of_every_mode_is_close_to_its_source(tmp_path, mode):
    smooth = np.add.outer(np.arange(64), np.arange(80)).astype(np.uint8)
    got = read_radiograph(save(tmp_path / "a.jpg", Image.fromarray(smooth).convert(mode), quality=98))
    assert np.abs(quantise(got.pixels, 8).astype(int) - smooth).max() <= 4
    assert got.notes["kind"] == "jpeg"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    upright = np.kron(np.arange(6, dtype=np.uint8).reshape(2, 3) * 50, np.ones((16, 16), np.uint8))
    # How a camera held that way stores the upright picture (EXIF 2.32 table 6), undone.
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.T, 6: upright.T[::-1],
        7: upright.T[::-1, ::-1], 8: upright.T[:, ::-1],
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / "a.jpg", Image.fromarray(np.ascontiguousarray(stored)), exif=exif, quality=100)
    np.testing.assert_allclose(read_radiograph(path).pixels * 255, upright, atol=2)


def test_content_decides_and_not_the_suffix(tmp_path):
    path = save(tmp_path / "a.dcm", Image.fromarray(grey()), format="PNG")
    assert read_radiograph(path).notes["kind"] == "png"


@pytest.mark.parametrize("share", [0.98, 0.5, 0.05])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_truncated_file_is_unreadable_even_if_a_library_allows_them(tmp_path, monkeypatch, kind, share):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    path = save(tmp_path / "patient_x", Image.fromarray(grey((200, 200))), format=kind)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    assert reason(path) == "unreadable"
    assert ImageFile.LOAD_TRUNCATED_IMAGES


def test_a_pixel_bomb_is_refused_before_decoding(tmp_path):
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"not even deflated") + chunk(b"IEND", b"")
    (tmp_path / "patient_x.png").write_bytes(bomb)
    assert reason(tmp_path / "patient_x.png") == "too_large"


def test_the_limit_is_the_callers(tmp_path):
    path = save(tmp_path / "patient_x.png", Image.fromarray(grey((20, 20))))
    assert read_radiograph(path, max_pixels=400).pixels.shape == (20, 20)
    assert reason(path, max_pixels=399) == "too_large"


def test_a_constant_image_is_refused(tmp_path):
    path = save(tmp_path / "patient_x.png", Image.fromarray(np.full((9, 9), 3, np.uint8)))
    assert reason(path) == "constant_image"


def test_another_format_is_unreadable(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(grey()).save(buffer, format="TIFF")
    (tmp_path / "patient_x.png").write_bytes(buffer.getvalue())
    assert reason(tmp_path / "patient_x.png") == "unreadable"


@pytest.mark.parametrize("shape", [(300, 200), (200, 300), (1001, 1000)])
def test_shrinking_keeps_the_aspect_and_the_mean(shape):
    pixels = np.random.default_rng(3).random(shape, np.float32)
    small = shrink(pixels, 64)
    assert min(small.shape) == 64
    assert max(small.shape) == round(max(shape) * 64 / min(shape))
    assert small.mean() == pytest.approx(pixels.mean(), abs=2e-3)
    assert small.dtype == np.float32


def test_shrinking_never_enlarges():
    pixels = np.random.default_rng(3).random((50, 70), np.float32)
    assert shrink(pixels, 50) is pixels and shrink(pixels, 64) is pixels


def test_shrinking_is_antialiased():
    stripes = np.tile(np.array([0, 1], np.float32), (512, 256))  # far above what 64 pixels can show
    assert shrink(stripes, 64).std() < 0.01


@pytest.mark.parametrize(("bits", "dtype"), [(8, np.uint8), (16, np.uint16)])
def test_quantising_rounds_to_the_nearest_level(bits, dtype):
    top = 2**bits - 1
    levels = np.arange(top + 1, dtype=np.float64)
    got = quantise(((levels + 0.4).clip(0, top) / top).astype(np.float32), bits)
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, levels)
    with pytest.raises(ValueError, match="8 or 16"):
        quantise(np.zeros((2, 2), np.float32), 12)
