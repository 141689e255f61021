"""PNG and JPEG files to grey words.

Pillow decodes, because it refuses truncated files and tells the size before it decodes.  Two things it cannot do are
done here: 16-bit colour PNG (it drops the low byte) and 16-bit grey without clipping (its own ``convert("L")`` turns
every value above 255 white).
"""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import cv2
import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from cxrdist.dicom.picture import BLOCK, Notes, Picture, colour_picture, plain_picture
from cxrdist.errors import ImageRejectedError

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
JPEG_MAGIC = b"\xff\xd8\xff"
EXIF_ORIENTATION = 0x0112
START_OF_SCAN, MOST_SCANS = b"\xff\xda", 200
"""Progressive files have about ten; a thumbnail has one as well."""
# ITU-R BT.601 in thousandths: with whole numbers a grey pixel stored as three equal channels keeps its exact value.
LUMINANCE = np.array([299, 587, 114], np.int64)


def read_raster(data: bytes, *, max_pixels: int, robust: bool = False) -> Picture:
    """Return the picture in the bytes of a PNG or JPEG file.

    Colour becomes luminance, transparent parts become black, an EXIF orientation is applied.

    Args:
        data: The file.
        max_pixels: The most rows x columns; half as many in colour.
        robust: Stretch 16-bit values by their robust range, as they were never brought to the display's.

    Raises:
        ImageRejectedError: `too_large` before anything is decoded; `unreadable` for damaged or truncated content;
            `constant_image`.
    """
    kind = "png" if data.startswith(PNG_MAGIC) else "jpeg"
    if kind == "jpeg" and data.count(START_OF_SCAN) > MOST_SCANS:  # each goes over the whole image
        raise ImageRejectedError("unreadable", "more scans than any writer makes")
    deep = kind == "png" and data[24:25] == b"\x10"  # byte 24 of a PNG is IHDR's bit depth
    try:
        with _strict_pillow(), Image.open(io.BytesIO(data), formats=(kind.upper(),)) as image:
            if image.width * image.height * (2 if len(image.getbands()) > 1 else 1) > max_pixels:
                raise ImageRejectedError("too_large", f"{image.width} x {image.height} pixels")
            image.load()
            mode, orientation = image.mode, _orientation(image)
            words = None if deep else _eight_bit_words(image)
            image.close()  # frees its pixels; leaving the block alone closes the file only
        if words is None:
            words = _sixteen_bit_words(data)
    except ImageRejectedError:
        raise
    except UnidentifiedImageError:
        raise ImageRejectedError("unreadable", f"the {kind} header is damaged") from None
    except Exception:
        # Pillow raises SyntaxError, IndexError ... for broken chunks, OSError for truncated data, ValueError for bombs.
        raise ImageRejectedError("unreadable", f"the {kind} data is damaged or truncated") from None
    notes: Notes = {"kind": kind, "photometric": mode, "bits_stored": 16 if deep else 8}
    words = _turn(words, orientation)
    if words.dtype == np.uint16 and not deep:
        return colour_picture(words, 8, notes)
    return plain_picture(words, 16 if deep else 8, notes, robust=robust and deep)


@contextmanager
def _strict_pillow() -> Iterator[None]:
    """Half-grey images are errors, whatever another library set; our own limit replaces Pillow's."""
    truncated, limit = ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS
    ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = False, None
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = truncated, limit


def _eight_bit_words(image: Image.Image) -> np.ndarray:
    """Return (H, W) uint8 of a loaded grey image, uint16 luminance of any other."""
    if image.mode in ("1", "L"):
        return np.asarray(image.convert("L"))
    transparent = image.mode in ("RGBA", "PA", "LA") or "transparency" in image.info
    wanted = "LA" if image.mode == "LA" else "RGBA" if transparent else "RGB"

    def rows(start: int, stop: int) -> np.ndarray:
        return np.asarray(image.crop((0, start, image.width, stop)).convert(wanted))

    visible = transparent and any(rows(*part)[..., -1].any() for part in _parts(image.height, image.width))
    return luminance(rows, (image.height, image.width), 255, alpha=visible)


def _sixteen_bit_words(data: bytes) -> np.ndarray:
    """Return (H, W) uint16 of a PNG that Pillow has found whole; OpenCV keeps all 16 bits of colour as well."""
    raw = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION)
    if raw is None or raw.dtype != np.uint16:
        raise ValueError("16-bit PNG")
    if raw.ndim == 2:
        return raw
    order = [2, 1, 0, *range(3, raw.shape[2])] if raw.shape[2] >= 3 else slice(None)  # OpenCV: blue, green, red
    visible = raw.shape[2] in (2, 4) and bool(raw[..., -1].any())
    return luminance(lambda start, stop: raw[start:stop][..., order], raw.shape[:2], 65535, alpha=visible)


def luminance(
    rows: Callable[[int, int], np.ndarray], shape: tuple[int, int], top: int, *, alpha: bool = False
) -> np.ndarray:
    """Return (H, W) uint16 luminance in [0, 65535] of an image in colour, some rows at a time.

    Args:
        rows: Returns (rows, W, 1 grey | 2 grey, alpha | 3 RGB | 4 RGBA) values in [0, top] from one row to another.
        shape: (H, W).
        top: The value of white.
        alpha: Whether the last channel counts.  One of zeros throughout is a writer's fault: nobody stores an
            invisible radiograph.
    """
    grey = np.empty(shape, np.uint16)
    for start, stop in _parts(*shape):
        part = rows(start, stop)
        channels = part.shape[2]
        light = part[..., :3].astype(np.int64) @ LUMINANCE if channels >= 3 else part[..., 0].astype(np.int64) * 1000
        share = light / (1000 * top)
        if alpha and channels in (2, 4):
            share *= part[..., -1] / top
        grey[start:stop] = np.rint(share * 65535)
    return grey


def _parts(height: int, width: int) -> Iterator[tuple[int, int]]:
    rows = max(BLOCK // width, 1)
    return ((start, min(start + rows, height)) for start in range(0, height, rows))


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(EXIF_ORIENTATION, 1))
    except Exception:  # a broken EXIF block is no reason to lose the image
        return 1


def _turn(words: np.ndarray, orientation: int) -> np.ndarray:
    """Return `words` the way up that the EXIF `orientation` (1 to 8, EXIF 2.32 table 6) asks for."""
    turns = {
        2: lambda x: x[:, ::-1],
        3: lambda x: x[::-1, ::-1],
        4: lambda x: x[::-1],
        5: lambda x: x.T,
        6: lambda x: x.T[:, ::-1],
        7: lambda x: x.T[::-1, ::-1],
        8: lambda x: x.T[::-1],
    }
    return np.ascontiguousarray(turns[orientation](words)) if orientation in turns else words
