"""Headerless files: nothing but 16-bit words, whose meaning only the dataset knows (JSRT's .IMG)."""

import numpy as np

from cxrdist.dicom.hints import RawImage
from cxrdist.dicom.picture import Picture, plain_picture
from cxrdist.errors import ImageRejectedError


def raw_bytes(raw: RawImage) -> int:
    """Return the size of such a file."""
    return 2 * raw.rows * raw.columns


def read_raw(data: bytes, raw: RawImage, *, max_pixels: int, robust: bool = False) -> Picture:
    """Return the picture in the bytes of a headerless file; its lowest possible value is black.

    Raises:
        ImageRejectedError: `too_large`; `unreadable` for a file of another size, or with values of more bits than the
            dataset's (words read in the wrong byte order have those); `constant_image`.
    """
    if len(data) != raw_bytes(raw):
        raise ImageRejectedError("unreadable", "the file is not of the size that the dataset's images have")
    if raw.rows * raw.columns > max_pixels:
        raise ImageRejectedError("too_large", f"{raw.columns} x {raw.rows} pixels")
    stored = np.frombuffer(data, ">u2" if raw.big_endian else "<u2").astype(np.uint16)
    # Two's complement becomes plain by adding half the range; what overflows 16 bits is cut off, as it should be.
    words = (stored + np.uint16(2 ** (raw.bits - 1)) if raw.signed else stored).reshape(raw.rows, raw.columns)
    if int(words.max()) >= 2**raw.bits:
        raise ImageRejectedError("unreadable", f"the file has values of more than {raw.bits} bits")
    return plain_picture(words, raw.bits, {"kind": "raw", "bits_stored": raw.bits}, robust=robust)
