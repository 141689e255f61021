"""Reading one radiograph, whatever its format: DICOM, PNG, JPEG or headerless.  The content decides, never the name."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cxrdist.dicom.burned_in import Box, find_text
from cxrdist.dicom.choices import BurnedInPolicy, Equalize
from cxrdist.dicom.content import most_bytes, read_content
from cxrdist.dicom.equalize import equalize_clahe, equalize_global, tayebi2024
from cxrdist.dicom.file import has_preamble, is_dicom, open_dicom
from cxrdist.dicom.header import Header
from cxrdist.dicom.hints import PixelHints
from cxrdist.dicom.picture import Notes, Picture, look_up
from cxrdist.dicom.raster import JPEG_MAGIC, PNG_MAGIC, read_raster
from cxrdist.dicom.raw import raw_bytes, read_raw
from cxrdist.dicom.resize import is_square, shrink, square
from cxrdist.dicom.text import blacken, judge_text
from cxrdist.errors import ImageRejectedError

MAX_PIXELS = 50_000_000
"""Default bound on the pixels of one image: twice the largest detector's, and below a gibibyte for this process
and the one that decodes together."""
AS_FILED = PixelHints()


@dataclass(frozen=True)
class Radiograph:
    """One image ready for display, with what its header says and may be told."""

    pixels: np.ndarray
    """(H, W) float32 in [0, 1], square pixels, bright = dense; padding = 0."""
    bits: int
    """Bits of the source that carry information, 8 to 16."""
    notes: Notes = field(default_factory=dict)
    """Allow-listed remarks: kind, transfer_syntax, photometric, bits_stored, voi, spacing_mm ..."""
    projection: str | None = None
    """``PA``, ``AP``, ``lateral`` or ``other`` by the header; None where it says nothing."""
    sex: str | None = None
    """``F`` or ``M`` by the header."""
    age: int | None = None
    """Years by the header; 90 stands for 90 and above."""
    secondary: bool = False
    """Whether the header says that the image was made from a film, a screen or paper, and not by a detector."""


def read_radiograph(
    path: Path,
    *,
    max_pixels: int = MAX_PIXELS,
    hints: PixelHints = AS_FILED,
    equalize: Equalize = "none",
    size: int | None = None,
    burned_in_text: BurnedInPolicy = "reject",
    declared_text: BurnedInPolicy = "reject",
) -> Radiograph:
    """Return the radiograph in the file `path`.

    Args:
        path: A DICOM, PNG, JPEG or headerless file, recognised by content; gzip may be around it.
        max_pixels: Rows x columns above which a file is refused before anything is decoded; half as many in colour.
        hints: What the dataset knows of the file.  A file that is not headerless as `hints.raw` says is read as what
            it is, and then not turned: someone has converted it.
        equalize: How the histogram is spread; see `cxrdist.dicom.equalize`.  It comes after the resizing.
        size: Pixels of the shorter side at most; None keeps the file's.  ``equalize="tayebi2024"`` needs it, for both
            sides.
        burned_in_text: What becomes of an image in which text is seen.
        declared_text: What becomes of an image whose header says that there is text (0028,0301).  ``mask`` rejects it
            if no text can be seen.

    Raises:
        ImageRejectedError: `missing_file`, `unreadable` (damaged, truncated, no image), `unsupported` (several
            frames ...), `too_large`, `constant_image` or `burned_in_text`.
    """
    if equalize == "tayebi2024" and size is None:
        raise ValueError("`size` must be given for `equalize` 'tayebi2024', got None.")
    with quiet():
        picture, header = _open(path, max_pixels, hints, declared_text)
        pixels = picture.pixels()
        boxes, word = judge_text(
            find_text(pixels),
            declared=header is not None and header.burned_in,
            seen_as=burned_in_text,
            declared_as=declared_text,
        )
        notes = picture.notes | ({"burned_in_text": word} if word else {})
        if equalize == "tayebi2024" and size is not None:
            del pixels  # the spline needs the room
            notes |= {"voi": "none", "equalize": equalize}
            pixels = _prepared(picture, boxes, size)
        else:
            notes |= {"equalize": equalize} if equalize != "none" else {}
            notes |= {} if is_square(picture.aspect) else {"resampled_aspect": round(picture.aspect, 4)}
            pixels = _sized(blacken(pixels, boxes, 0), picture.aspect, size)
            pixels = _equalized(pixels, picture, size, equalize)
    if pixels.min() == pixels.max():
        raise ImageRejectedError("constant_image", "every pixel has the same value")
    if header is None:
        return Radiograph(pixels, picture.bits, notes)
    return Radiograph(pixels, picture.bits, notes, header.projection, header.sex, header.age, header.secondary)


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


def _open(
    path: Path, max_pixels: int, hints: PixelHints, declared_text: BurnedInPolicy
) -> tuple[Picture, Header | None]:
    """Return the decoded picture of a file, the right way round, and its header if it has one."""
    limit = most_bytes(max_pixels)
    data = read_content(path, limit=limit)
    robust = hints.range == "robust"
    header = None
    if data.startswith((PNG_MAGIC, JPEG_MAGIC)):
        picture = read_raster(data, max_pixels=max_pixels, robust=robust)
    elif hints.raw and not has_preamble(data) and (len(data) == raw_bytes(hints.raw) or not is_dicom(data)):
        # The first words of a headerless file can look like the first group of a DICOM file.
        picture = read_raw(data, hints.raw, max_pixels=max_pixels, robust=robust)
        return (picture.turned() if hints.invert else picture), None
    elif is_dicom(data):
        file = open_dicom(data, max_pixels=max_pixels, limit=limit)
        del data  # a copy of the pixels; the decoder needs the room
        header = file.header
        if header.burned_in and declared_text == "reject":
            raise ImageRejectedError("burned_in_text", "(0028,0301) says so")
        picture = file.picture()
    else:
        raise ImageRejectedError("unreadable", "the content is neither DICOM, PNG nor JPEG")
    return (picture.turned() if hints.invert and not hints.raw else picture), header


def _sized(pixels: np.ndarray, aspect: float, size: int | None) -> np.ndarray:
    pixels = square(pixels, aspect)
    return pixels if size is None else shrink(pixels, size)


def _equalized(pixels: np.ndarray, picture: Picture, size: int | None, equalize: Equalize) -> np.ndarray:
    """Return `pixels`, which have their final size, equalised without the picture's padding."""
    if equalize == "none":
        return pixels
    padding = None
    if picture.padding is not None:
        share = look_up(picture.padding.astype(np.float32), picture.words)
        padding = _sized(share, picture.aspect, size) > 0.5
    return (equalize_global if equalize == "global" else equalize_clahe)(pixels, padding)


def _prepared(picture: Picture, boxes: list[Box], size: int) -> np.ndarray:
    values = look_up(picture.values, picture.words)
    if boxes:
        values = blacken(values, boxes, values.max() if picture.inverted else values.min())
    return tayebi2024(values, size, inverted=picture.inverted)
