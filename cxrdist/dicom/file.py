"""DICOM files: decoding to stored values, for every transfer syntax that archives of radiographs hold."""

import io
import zlib
from dataclasses import dataclass

import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.filereader import read_dataset
from pydicom.pixels import get_decoder
from pydicom.tag import BaseTag, Tag
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGExtended12Bit,
    RLELossless,
)

from cxrdist.dicom.codestream import codestream_header, is_whole
from cxrdist.dicom.display import DisplayTable, display_table
from cxrdist.dicom.header import ALLOWED, Header, parse_header
from cxrdist.dicom.jpeg12 import decode_jpeg12
from cxrdist.dicom.raster import luminance
from cxrdist.dicom.resize import resample
from cxrdist.errors import ImageRejectedError

PIXEL_DATA, SYNTAX = Tag("PixelData"), Tag("TransferSyntaxUID")
JPEG_2000 = "1.2.840.10008.1.2.4.9"
HTJ2K = "1.2.840.10008.1.2.4.20"
# Pinned, so that the same file gives the same pixels on every machine; the next is taken where one is not installed.
PLUGINS = {"jpeg2000": ("pylibjpeg", "gdcm", "pillow"), "rle": ("pylibjpeg", "pydicom"), "jpeg": ("gdcm", "pillow")}


@dataclass(frozen=True)
class DicomImage:
    """A decoded DICOM file."""

    pixels: np.ndarray
    """(H, W) float32 in [0, 1], bright = dense."""
    bits: int
    header: Header
    notes: dict[str, str | int | float]


def is_dicom(data: bytes) -> bool:
    """Whether `data` begins like a DICOM file, with its preamble or without (group 0002 or 0008 first)."""
    return data[128:132] == b"DICM" or data[:2] in (b"\x02\x00", b"\x08\x00", b"\x00\x08")


def read_dicom(data: bytes, *, max_pixels: int, allow_burned_in: bool = False) -> DicomImage:
    """Return the display-ready image in the bytes of a DICOM file.

    Raises:
        ImageRejectedError: See `cxrdist.dicom.read_radiograph`.
    """
    body = _body(data, limit=6 * max_pixels + 2**26)
    header = parse_header(body.parse(pixels=False), max_pixels=max_pixels)
    if header.burned_in and not allow_burned_in:
        raise ImageRejectedError("burned_in_text", "(0028,0301) says so")
    values = _decode(body.parse(pixels=True), body.syntax, header)
    notes: dict[str, str | int | float] = {
        "kind": "dicom",
        "transfer_syntax": body.name,
        "photometric": header.photometric,
        "bits_stored": header.bits_stored,
    }
    if body.guessed:
        notes["guessed_syntax"] = 1
    if header.spacing:
        notes["spacing_from"], notes["spacing_mm"] = header.spacing
    if header.samples == 3:
        pixels = luminance(values, 2**header.bits_allocated - 1)
        notes["voi"] = "none"
    else:
        stored = stored_values(values, header, native=not body.syntax.is_encapsulated)
        lowest = -(2 ** (header.bits_stored - 1)) if header.signed else 0
        table = _table(stored, lowest, header)
        pixels = table.levels[stored - lowest]
        notes["voi"] = table.voi
        if header.presentation and header.invert != (header.photometric == "MONOCHROME1"):
            notes["polarity_conflict"] = 1
    if not 0.99 < header.aspect < 1.01:
        pixels = _square(pixels, header.aspect)
        notes["resampled_aspect"] = round(header.aspect, 4)
    return DicomImage(pixels, min(max(header.bits_stored, 8), 16), header, notes)


def stored_values(values: np.ndarray, header: Header, *, native: bool) -> np.ndarray:
    """Return (H, W) int32: `values` without the bits that are no part of the pixel (PS3.5 8.1.1).

    Old files may hold overlays or other dirt above BitsStored, and keep the pixel above bit 0 (HighBit).
    """
    bits = header.bits_stored
    stored = values.astype(np.int32)
    shift = header.high_bit + 1 - bits
    if native and 0 < shift <= header.bits_allocated - bits:
        stored = (stored & (2**header.bits_allocated - 1)) >> shift
    stored = stored & (2**bits - 1)
    return np.where(stored >= 2 ** (bits - 1), stored - 2**bits, stored) if header.signed else stored


def _table(stored: np.ndarray, lowest: int, header: Header) -> DisplayTable:
    counts = np.bincount((stored - lowest).ravel(), minlength=2**header.bits_stored)
    return display_table(
        counts, lowest, modality=header.modality, voi=header.voi, invert=header.invert, padding=header.padding
    )


def _square(pixels: np.ndarray, aspect: float) -> np.ndarray:
    """Return `pixels` with square pixels: the finer axis gives way, so nothing is invented."""
    height, width = pixels.shape
    if aspect > 1:
        return resample(pixels, max(round(width / aspect), 1), height)
    return resample(pixels, width, max(round(height * aspect), 1))


@dataclass(frozen=True)
class _Body:
    """The data set of a file, found and inflated."""

    data: bytes
    syntax: UID
    name: str
    guessed: bool
    implicit: bool
    little: bool

    def parse(self, *, pixels: bool) -> Dataset:
        """Return the allow-listed elements, with the pixel data or without."""
        stop = None if pixels else _at_pixels
        tags = [*ALLOWED, PIXEL_DATA] if pixels else ALLOWED
        try:
            return read_dataset(io.BytesIO(self.data), self.implicit, self.little, stop_when=stop, specific_tags=tags)
        except Exception:  # untrusted bytes: whatever the parser stumbles over, it is one bad image
            raise ImageRejectedError("unreadable", "the DICOM header cannot be parsed") from None


def _body(data: bytes, *, limit: int) -> _Body:
    """Return the data set of a DICOM file; deflated ones are inflated to `limit` bytes at most."""
    file = io.BytesIO(data)
    file.seek(132 if data[128:132] == b"DICM" else 0)
    try:
        syntax = read_dataset(file, False, True, stop_when=_after_meta, specific_tags=[SYNTAX]).get("TransferSyntaxUID")
    except Exception:
        syntax = None
    start = file.tell()
    if syntax:
        uid = UID(str(syntax))
        body = _inflate(data[start:], limit) if uid == DeflatedExplicitVRLittleEndian else data[start:]
        return _Body(body, uid, uid.name, False, uid == ImplicitVRLittleEndian, uid != ExplicitVRBigEndian)
    try:
        ds = dcmread(io.BytesIO(data), force=True, stop_before_pixels=True, specific_tags=[Tag("Rows")])
    except Exception:
        raise ImageRejectedError("unreadable", "the DICOM header cannot be parsed") from None
    implicit, little = ds.original_encoding
    uid = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian
    return _Body(data[start:], uid, uid.name, True, bool(implicit), bool(little))


def _at_pixels(tag: BaseTag, vr: str | None, length: int) -> bool:
    return tag >= PIXEL_DATA


def _after_meta(tag: BaseTag, vr: str | None, length: int) -> bool:
    return tag >> 16 != 2


def _inflate(data: bytes, limit: int) -> bytes:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        body = inflater.decompress(data, limit)
    except zlib.error:
        raise ImageRejectedError("unreadable", "the deflated data set is damaged") from None
    if inflater.unconsumed_tail:
        raise ImageRejectedError("too_large", "the deflated data set is larger than the largest image allowed")
    if not inflater.eof:
        raise ImageRejectedError("unreadable", "the deflated data set is truncated")
    return body


def _decode(ds: Dataset, syntax: UID, header: Header) -> np.ndarray:
    """Return (H, W) or (H, W, 3) values as stored, with the decoder that `PLUGINS` names first."""
    whole = _pixel_module(ds, header)
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise ImageRejectedError("unsupported", "an unknown transfer syntax") from None
    if not decoder.is_available:
        raise ImageRejectedError("unsupported", f"no decoder for {syntax.name} is installed")
    frame = _checked_frame(whole.PixelData, header) if syntax.is_encapsulated and syntax != RLELossless else b""
    try:
        if syntax == JPEGExtended12Bit and header.samples == 1 and 8 < header.bits_stored <= 12:
            return decode_jpeg12(frame, header.rows, header.columns, signed=header.signed)
        # pydicom's own masking forgets HighBit: `stored_values` does it.
        values, _ = decoder.as_array(
            whole, decoding_plugin=_plugin(syntax, decoder.available_plugins), correct_unused_bits=False
        )
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException:  # decoders in Rust panic with an exception that is no `Exception`
        raise ImageRejectedError("unreadable", f"the pixel data ({syntax.name}) is damaged or truncated") from None
    if values.shape[:2] != (header.rows, header.columns):
        raise ImageRejectedError("unreadable", "the pixel data is not of the size the header names")
    return values


def _pixel_module(ds: Dataset, header: Header) -> Dataset:
    """Return the pixel data with the checked header around it: complete, and without what is broken or left over."""
    whole = Dataset()
    whole.Rows, whole.Columns, whole.NumberOfFrames = header.rows, header.columns, 1
    whole.SamplesPerPixel, whole.PhotometricInterpretation = header.samples, header.photometric
    whole.BitsAllocated, whole.BitsStored, whole.HighBit = header.bits_allocated, header.bits_stored, header.high_bit
    whole.PixelRepresentation = int(header.signed)
    if header.samples > 1:
        whole.PlanarConfiguration = header.planar
    try:
        whole.add(ds[PIXEL_DATA])
    except Exception:  # absent, or an element that cannot be parsed
        raise ImageRejectedError("unreadable", "no pixel data") from None
    if not whole.PixelData:
        raise ImageRejectedError("unreadable", "no pixel data")
    return whole


def _checked_frame(data: bytes, header: Header) -> bytes:
    """Return the one frame, whole and of the size the header names."""
    try:
        frame = next(generate_frames(data, number_of_frames=1))
    except Exception:
        raise ImageRejectedError("unreadable", "the compressed pixel data is damaged or truncated") from None
    own = codestream_header(frame)
    if own is None or own[:3] != (header.rows, header.columns, header.samples):
        raise ImageRejectedError("unreadable", "the compressed pixel data is not of the size the header names")
    if not 1 < own.bits <= header.bits_allocated:
        raise ImageRejectedError("unreadable", f"the compressed pixel data has {own.bits} bits")
    if not is_whole(frame):
        raise ImageRejectedError("unreadable", "the compressed pixel data is truncated")
    return frame


def _plugin(syntax: UID, available: tuple[str, ...]) -> str:
    family = "jpeg2000" if syntax.startswith((JPEG_2000, HTJ2K)) else "rle" if syntax == RLELossless else "jpeg"
    return next((plugin for plugin in PLUGINS[family] if plugin in available), "")
