"""From the pixel data of a DICOM file to stored values, for every transfer syntax archives of radiographs hold."""

import numpy as np
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.pixels import get_decoder
from pydicom.tag import Tag
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
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

from cxrdist.dicom.codecs import Encoded, decode_pixels
from cxrdist.dicom.codestream import codestream_header, is_whole
from cxrdist.dicom.header import Header
from cxrdist.dicom.isolation import decode_apart
from cxrdist.dicom.raster import luminance
from cxrdist.errors import ImageRejectedError

PIXEL_DATA = Tag("PixelData")
JPEG_2000 = (JPEG2000Lossless, JPEG2000, HTJ2KLossless, HTJ2KLosslessRPCL, HTJ2K)
SYNTAXES = (
    *(ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian),
    *(RLELossless, JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1, JPEGLSLossless),
    *(JPEGLSNearLossless, *JPEG_2000),
)
"""What archives of radiographs hold."""
LOSSY = (JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless, JPEG2000, HTJ2K)
# Pinned, so that the same file gives the same pixels on every machine; the next is taken where one is not installed.
PLUGINS = {"jpeg2000": ("pylibjpeg", "gdcm", "pillow"), "rle": ("pylibjpeg", "pydicom"), "jpeg": ("gdcm", "pillow")}


def decode(ds: Dataset, syntax: UID, header: Header) -> np.ndarray:
    """Return the one frame of `ds`: (H, W) uint8 or uint16 words, for colour the luminance in [0, 65535].

    Words of signed images are two's complement; bits above BitsStored are as the file has them.

    Raises:
        ImageRejectedError: `unsupported` or `unreadable`.
    """
    values, photometric = _decode(ds, syntax, header)
    if values.shape[:2] != (header.rows, header.columns) or values.dtype.kind not in "ui":
        raise ImageRejectedError("unreadable", "the pixel data is not of the size the header names")
    if values.ndim == 3:
        return _grey(values, photometric, header)
    if not values.dtype.isnative:
        values = values.astype(values.dtype.newbyteorder("="))
    return np.ascontiguousarray(values).view(f"u{values.dtype.itemsize}")


def installed_decoders() -> dict[str, str]:
    """Return the decoder that is taken for each of `SYNTAXES`, by its name; empty where none is installed."""
    found = {}
    for syntax in SYNTAXES:
        decoder = get_decoder(syntax)
        named = _plugin(syntax, decoder.available_plugins) if syntax.is_encapsulated else "pydicom"
        found[syntax.name] = named if decoder.is_available else ""
    return found


def stored_values(words: np.ndarray, header: Header, syntax: UID) -> np.ndarray:
    """Return int64: `words` without the bits that are no part of the pixel (PS3.5 8.1.1), and with their sign.

    Old files may hold overlays or other dirt above BitsStored, and keep the pixel above bit 0 (HighBit), which decoders
    of JPEG and its kin undo.  A lossy codestream of more bits than BitsStored overshoots instead: bright pixels must
    not become black by losing their highest bit.
    """
    bits = header.bits_stored
    stored = words.astype(np.int64)
    if syntax in LOSSY:
        container = 8 * words.dtype.itemsize
        stored = _signed(stored, container) if header.signed else stored
        lowest = -(2 ** (bits - 1)) if header.signed else 0
        return np.clip(stored, lowest, lowest + 2**bits - 1)
    shift = header.high_bit + 1 - bits
    if (not syntax.is_encapsulated or syntax == RLELossless) and 0 < shift <= header.bits_allocated - bits:
        stored >>= shift
    stored &= 2**bits - 1
    return _signed(stored, bits) if header.signed else stored


def _signed(stored: np.ndarray, bits: int) -> np.ndarray:
    return np.where(stored >= 2 ** (bits - 1), stored - 2**bits, stored)


def _decode(ds: Dataset, syntax: UID, header: Header) -> tuple[np.ndarray, str]:
    """Return the values, and what their three channels mean, with the decoder that `PLUGINS` names first."""
    data, vr = _pixel_data(ds)
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise ImageRejectedError("unsupported", "an unknown transfer syntax") from None
    if not decoder.is_available:
        raise ImageRejectedError("unsupported", f"no decoder for {syntax.name} is installed")
    bits = header.bits_stored
    if syntax.is_encapsulated and syntax != RLELossless:
        bits = _check_frame(data, header)
    encoded = Encoded(
        syntax=str(syntax),
        plugin=_plugin(syntax, decoder.available_plugins),
        rows=header.rows,
        columns=header.columns,
        samples=header.samples,
        planar=header.planar,
        photometric=header.photometric,
        bits_allocated=header.bits_allocated,
        bits_stored=bits,
        high_bit=header.high_bit if bits == header.bits_stored else bits - 1,
        signed=header.signed,
        data=data,
        vr=vr,
    )
    if syntax.is_encapsulated:
        return decode_apart(encoded)
    try:
        return decode_pixels(encoded)
    except Exception:
        raise ImageRejectedError("unreadable", "the pixel data is not of the size the header names") from None


def _grey(values: np.ndarray, photometric: str, header: Header) -> np.ndarray:
    """Return (H, W) uint16 luminance of (H, W, 3) `values`; the Y of YBR is the luminance."""
    values = values.view(f"u{values.dtype.itemsize}")
    mask = values.dtype.type(2**header.bits_stored - 1)
    channels = slice(0, 1) if photometric.startswith("YBR") else slice(None)
    return luminance(lambda start, stop: values[start:stop, :, channels] & mask, values.shape[:2], int(mask))


def _pixel_data(ds: Dataset) -> tuple[bytes, str]:
    """Return the pixel data and its VR."""
    try:
        element = ds[PIXEL_DATA]
        data, vr = element.value, str(element.VR)
    except Exception:  # absent, or an element that cannot be parsed
        data, vr = None, ""
    if not isinstance(data, bytes) or not data:
        raise ImageRejectedError("unreadable", "no pixel data")
    return data, vr


def _check_frame(data: bytes, header: Header) -> int:
    """Return the bits that a decoder is to expect; raise unless the frame is whole and of the size the header names."""
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
    # GDCM ends its process over fewer than 8 bits stored.
    return 8 if header.bits_allocated == 8 else header.bits_stored


def _plugin(syntax: UID, available: tuple[str, ...]) -> str:
    family = "jpeg2000" if syntax in JPEG_2000 else "rle" if syntax == RLELossless else "jpeg"
    return next((plugin for plugin in PLUGINS[family] if plugin in available), "")
