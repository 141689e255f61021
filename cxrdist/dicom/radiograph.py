"""Reading one radiograph, whatever its format: DICOM, PNG or JPEG.  The content decides, never the file's name."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cxrdist.dicom.file import is_dicom, read_dicom
from cxrdist.dicom.raster import JPEG_MAGIC, PNG_MAGIC, read_raster
from cxrdist.errors import ImageRejectedError

MAX_PIXELS = 100_000_000
"""Default bound on the pixels of one image: twice the largest detector's, far below what fills a memory."""


@dataclass(frozen=True)
class Radiograph:
    """One image ready for display, with what its header says and may be told."""

    pixels: np.ndarray
    """(H, W) float32 in [0, 1], square pixels, bright = dense; padding = 0."""
    bits: int
    """Bits of the source that carry information, 8 to 16."""
    notes: dict[str, str | int | float] = field(default_factory=dict)
    """Allow-listed remarks: kind, transfer_syntax, photometric, bits_stored, voi, spacing_mm ..."""
    projection: str | None = None
    """``PA``, ``AP``, ``lateral`` or ``other`` by the header; None where it says nothing."""
    sex: str | None = None
    """``F`` or ``M`` by the header."""
    age: int | None = None
    """Years by the header; 90 stands for 90 and above."""


def read_radiograph(path: Path, *, max_pixels: int = MAX_PIXELS, allow_burned_in: bool = False) -> Radiograph:
    """Return the radiograph in the file `path`.

    Args:
        path: A DICOM, PNG or JPEG file, recognised by content.
        max_pixels: Rows x columns above which a file is refused before anything is decoded.
        allow_burned_in: Accept files whose header says that text is burned into the pixels (0028,0301).

    Raises:
        ImageRejectedError: `missing_file`, `unreadable` (damaged, truncated, no image), `unsupported` (several
            frames, colour palette ...), `too_large`, `constant_image` or `burned_in_text`.
    """
    with quiet():
        data = _read_bytes(path, max_pixels)
        if data.startswith((PNG_MAGIC, JPEG_MAGIC)):
            raster = read_raster(data, max_pixels=max_pixels)
            return Radiograph(_not_constant(raster.pixels), raster.bits, raster.notes)
        if is_dicom(data):
            image = read_dicom(data, max_pixels=max_pixels, allow_burned_in=allow_burned_in)
            header = image.header
            pixels = _not_constant(image.pixels)
            return Radiograph(pixels, image.bits, image.notes, header.projection, header.sex, header.age)
    raise ImageRejectedError("unreadable", "the content is neither DICOM, PNG nor JPEG")


@contextmanager
def quiet() -> Iterator[None]:
    """Hold back the decoders' warnings and log lines: they can quote the file's name and header values."""
    loggers = [logging.getLogger(name) for name in ("pydicom", "PIL")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _read_bytes(path: Path, max_pixels: int) -> bytes:
    try:
        # Uncompressed 16-bit colour is 6 bytes a pixel; the rest is room for headers, icons and overlays.
        if path.stat().st_size > 6 * max_pixels + 2**26:
            raise ImageRejectedError("too_large", "the file is larger than the largest image allowed")
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise ImageRejectedError("missing_file") from None
    except OSError:
        raise ImageRejectedError("unreadable", "the file cannot be opened") from None


def _not_constant(pixels: np.ndarray) -> np.ndarray:
    if pixels.size == 0 or pixels.min() == pixels.max():
        raise ImageRejectedError("constant_image", "every pixel has the same value")
    return pixels
