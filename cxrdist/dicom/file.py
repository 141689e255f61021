"""DICOM files: the data set found and parsed, and the chain from its stored values to a picture (PS3.3 C.7.6, C.11)."""

import io
from dataclasses import dataclass, replace

import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.pixels import apply_color_lut
from pydicom.tag import BaseTag, Tag
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from cxrdist.dicom.content import DEFLATE, inflate
from cxrdist.dicom.decode import PIXEL_DATA, decode, stored_values
from cxrdist.dicom.display import display_table
from cxrdist.dicom.header import ALLOWED, Header, parse_header
from cxrdist.dicom.picture import Notes, Picture, colour_picture, count_words
from cxrdist.dicom.raster import LUMINANCE
from cxrdist.errors import ImageRejectedError

SYNTAX = Tag("TransferSyntaxUID")
MOST_READS = 200_000
"""Of one header; one element takes two or three, and most files have some hundred elements."""


@dataclass(frozen=True)
class DicomFile:
    """A parsed DICOM file whose pixels are not decoded yet."""

    header: Header
    syntax: UID
    guessed: bool
    """Whether the file does not say its transfer syntax."""
    dataset: Dataset
    """The pixel data and allow-listed tags."""

    def picture(self) -> Picture:
        """Return the decoded picture.

        Raises:
            ImageRejectedError: `unreadable`, `unsupported` or `constant_image`.
        """
        words = decode(self.dataset, self.syntax, self.header)
        if self.header.samples == 3:
            picture = colour_picture(words, self.header.bits_stored, self._notes())
        else:
            picture = _grey_picture(words, self.header, self.syntax, self._notes())
        return replace(picture, aspect=self.header.aspect)

    def _notes(self) -> Notes:
        header = self.header
        notes: Notes = {
            "kind": "dicom",
            "transfer_syntax": self.syntax.name,
            "photometric": header.photometric,
            "bits_stored": header.bits_stored,
        }
        if self.guessed:
            notes["guessed_syntax"] = 1
        if header.secondary:
            notes["secondary"] = 1
        if header.spacing:
            notes["spacing_from"], notes["spacing_mm"] = header.spacing
        return notes


def is_dicom(data: bytes) -> bool:
    """Whether `data` begins like a DICOM file, with its preamble or without (group 0002 or 0008 first)."""
    return has_preamble(data) or data[:2] in (b"\x02\x00", b"\x08\x00", b"\x00\x08")


def has_preamble(data: bytes) -> bool:
    """Whether `data` begins with the 132 bytes that only a DICOM file has."""
    return data[128:132] == b"DICM"


def open_dicom(data: bytes, *, max_pixels: int, limit: int) -> DicomFile:
    """Return the DICOM file in `data`; a deflated one is inflated to `limit` bytes at most.

    Raises:
        ImageRejectedError: See `cxrdist.dicom.read_radiograph`.
    """
    body = _body(data, limit=limit)
    header = parse_header(body.parse(pixels=False), max_pixels=max_pixels)
    return DicomFile(header, body.syntax, body.guessed, body.parse(pixels=True))


def _grey_picture(words: np.ndarray, header: Header, syntax: UID, notes: Notes) -> Picture:
    """Return the picture of (H, W) words of one sample a pixel: the chain of `display_table`, or a palette."""
    counts = count_words(words)
    stored = stored_values(np.arange(len(counts), dtype=words.dtype), header, syntax)
    bits = min(max(header.bits_stored, 8), 16)
    if header.palette is not None:
        levels = _palette_levels(header.palette, stored)
        visible = levels[counts > 0]
        if visible.min() == visible.max():
            raise ImageRejectedError("constant_image", "every pixel has the same value")
        top = 2**bits - 1
        values = np.rint(levels * top).astype(np.uint8 if bits == 8 else np.uint16)
        return Picture(words, levels.astype(np.float32), values, bits, {**notes, "voi": "none"})
    lowest = -(2 ** (header.bits_stored - 1)) if header.signed else 0
    table = display_table(
        np.bincount(stored - lowest, weights=counts, minlength=2**header.bits_stored).astype(np.int64),
        lowest,
        modality=header.modality,
        voi=header.voi,
        invert=header.invert,
        padding=header.padding,
    )
    notes = {**notes, "voi": table.voi}
    if header.presentation and header.invert != header.monochrome1:
        notes["polarity_conflict"] = 1
    padded = None
    if header.padding is not None:
        padded = (stored >= header.padding[0]) & (stored <= header.padding[1])
    return Picture(
        words,
        table.levels[stored - lowest],
        stored.astype(np.int16 if header.signed else words.dtype),
        bits,
        notes,
        inverted=header.monochrome1,
        padding=padded if padded is not None and counts[padded].any() else None,
    )


def _palette_levels(palette: Dataset, stored: np.ndarray) -> np.ndarray:
    """Return the luminance in [0, 1] that a palette gives each of (W,) `stored` values (PS3.3 C.7.6.3.1.6); float64."""
    try:
        colours = apply_color_lut(stored, palette)[:, :3]
        return (colours.astype(np.int64) @ LUMINANCE) / (1000 * np.iinfo(colours.dtype).max)
    except Exception:  # absent tables, or numbers that do not fit each other
        raise ImageRejectedError("unsupported", "a colour palette that cannot be read") from None


class _Bounded(io.BytesIO):
    """Bytes for the parser; millions of empty elements, or of items in items, would keep it busy for hours."""

    reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads += 1
        if self.reads > MOST_READS:
            raise OSError("too many elements")
        return super().read(size)


@dataclass(frozen=True)
class _Body:
    """The data set of a file, found and inflated."""

    data: bytes
    start: int
    """Where it begins in `data`; cutting off what is before would be a copy of all."""
    syntax: UID
    guessed: bool
    implicit: bool
    little: bool

    def parse(self, *, pixels: bool) -> Dataset:
        """Return the allow-listed elements, with the pixel data or without."""
        stop = None if pixels else _at_pixels
        tags = [*ALLOWED, PIXEL_DATA] if pixels else ALLOWED
        file = _Bounded(self.data)
        file.seek(self.start)
        try:
            return read_dataset(file, self.implicit, self.little, stop_when=stop, specific_tags=tags)
        except Exception:  # untrusted bytes: whatever the parser stumbles over, it is one bad image
            raise ImageRejectedError("unreadable", "the DICOM header cannot be parsed") from None


def _body(data: bytes, *, limit: int) -> _Body:
    """Return the data set of a DICOM file; deflated ones are inflated to `limit` bytes at most."""
    file = _Bounded(data)
    file.seek(132 if has_preamble(data) else 0)
    try:
        syntax = read_dataset(file, False, True, stop_when=_after_meta, specific_tags=[SYNTAX]).get("TransferSyntaxUID")
    except Exception:
        syntax = None
    start = file.tell()
    if syntax:
        uid = UID(str(syntax))
        if uid == DeflatedExplicitVRLittleEndian:
            data, start = inflate(data[start:], DEFLATE, limit=limit), 0
        return _Body(data, start, uid, False, uid == ImplicitVRLittleEndian, uid != ExplicitVRBigEndian)
    try:
        ds = dcmread(_Bounded(data), force=True, stop_before_pixels=True, specific_tags=[Tag("Rows")])
    except Exception:
        raise ImageRejectedError("unreadable", "the DICOM header cannot be parsed") from None
    implicit, little = ds.original_encoding
    uid = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian
    return _Body(data, start, uid, True, bool(implicit), bool(little))


def _at_pixels(tag: BaseTag, vr: str | None, length: int) -> bool:
    return tag >= PIXEL_DATA


def _after_meta(tag: BaseTag, vr: str | None, length: int) -> bool:
    return tag >> 16 != 2
