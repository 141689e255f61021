"""PNG and JPEG files to (H, W) float32 in [0, 1].

Pillow decodes, because it refuses truncated files and tells the size before it decodes.  Two things it cannot do are
done here: 16-bit colour PNG (it drops the low byte) and 16-bit grey without clipping (its own ``convert("L")`` turns
every value above 255 white).
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from cxrdist.errors import ImageRejectedError

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
JPEG_MAGIC = b"\xff\xd8\xff"
EXIF_ORIENTATION = 0x0112
# ITU-R BT.601 in thousandths: with whole numbers a grey pixel stored as three equal channels keeps its exact value.
LUMINANCE = np.array([299, 587, 114], np.int64)


@dataclass(frozen=True)
class Raster:
    """A decoded PNG or JPEG."""

    pixels: np.ndarray
    """(H, W) float32 in [0, 1]."""
    bits: int
    """8 or 16."""
    notes: dict[str, str | int | float]


def read_raster(data: bytes, *, max_pixels: int) -> Raster:
    """Return the image in the bytes of a PNG or JPEG file.

    Colour becomes luminance, transparent parts become black, an EXIF orientation is applied.

    Raises:
        ImageRejectedError: `too_large` before anything is decoded; `unreadable` for damaged or truncated content.
    """
    kind = "png" if data.startswith(PNG_MAGIC) else "jpeg"
    try:
        with _strict_pillow(), Image.open(io.BytesIO(data), formats=(kind.upper(),)) as image:
            if image.width * image.height > max_pixels:
                raise ImageRejectedError("too_large", f"{image.width} x {image.height} pixels")
            image.load()
            mode, orientation = image.mode, _orientation(image)
            values, bits = _values(image, data, kind)
    except ImageRejectedError:
        raise
    except UnidentifiedImageError:
        raise ImageRejectedError("unreadable", f"the {kind} header is damaged") from None
    except (OSError, SyntaxError, ValueError, EOFError, MemoryError, cv2.error):
        # Pillow raises SyntaxError for broken PNG chunks, OSError for truncated data, ValueError for text bombs.
        raise ImageRejectedError("unreadable", f"the {kind} data is damaged or truncated") from None
    notes: dict[str, str | int | float] = {"kind": kind, "photometric": mode, "bits_stored": bits, "voi": "none"}
    return Raster(_turn(values, orientation), bits, notes)


@contextmanager
def _strict_pillow() -> Iterator[None]:
    """Half-grey images are errors, whatever another library set; our own limit replaces Pillow's."""
    truncated, limit = ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS
    ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = False, None
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = truncated, limit


def _values(image: Image.Image, data: bytes, kind: str) -> tuple[np.ndarray, int]:
    """Return (H, W) float32 in [0, 1] and the bits of a loaded image."""
    if kind == "png" and data[24] == 16:  # byte 24 of a PNG is IHDR's bit depth
        # Pillow has checked that the data is whole; OpenCV keeps all 16 bits of colour as well.
        raw = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION)
        if raw is None or raw.dtype != np.uint16:
            raise ValueError("16-bit PNG")
        channels = raw[..., None] if raw.ndim == 2 else raw
        if channels.shape[2] >= 3:
            channels = channels[..., [2, 1, 0, *range(3, channels.shape[2])]]  # OpenCV's order is blue, green, red
        return luminance(channels, 65535), 16
    if image.mode in ("1", "L"):
        return np.asarray(image.convert("L"), np.float32) / np.float32(255), 8
    if image.mode == "LA":
        return luminance(np.asarray(image), 255), 8
    wanted = "RGBA" if image.mode in ("RGBA", "PA") or "transparency" in image.info else "RGB"
    return luminance(np.asarray(image.convert(wanted)), 255), 8


def luminance(channels: np.ndarray, top: int) -> np.ndarray:
    """Return (H, W) float32 in [0, 1] of (H, W, 1 grey | 2 grey, alpha | 3 RGB | 4 RGBA) values in [0, top]."""
    if channels.shape[2] >= 3:
        grey = (channels[..., :3].astype(np.int64) @ LUMINANCE).astype(np.float64) / (1000 * top)
    else:
        grey = channels[..., 0].astype(np.float64) / top
    if channels.shape[2] in (2, 4):
        alpha = channels[..., -1]
        # An alpha channel of zeros throughout is a writer's fault: nobody stores an invisible radiograph.
        if alpha.any() and not (alpha == top).all():
            grey = grey * (alpha.astype(np.float64) / top)
    return grey.astype(np.float32)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(EXIF_ORIENTATION, 1))
    except Exception:  # a broken EXIF block is no reason to lose the image
        return 1


def _turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Return `pixels` the way up that the EXIF `orientation` (1 to 8, EXIF 2.32 table 6) asks for."""
    turns = {
        2: lambda x: x[:, ::-1],
        3: lambda x: x[::-1, ::-1],
        4: lambda x: x[::-1],
        5: lambda x: x.T,
        6: lambda x: x.T[:, ::-1],
        7: lambda x: x.T[::-1, ::-1],
        8: lambda x: x.T[::-1],
    }
    return np.ascontiguousarray(turns[orientation](pixels)) if orientation in turns else pixels
