"""The bytes of an image file: read, and inflated where they are compressed, to a bound."""

import stat
import zlib
from pathlib import Path

from cxrdist.errors import ImageRejectedError

GZIP_MAGIC = b"\x1f\x8b\x08"
GZIP, DEFLATE = 16 + zlib.MAX_WBITS, -zlib.MAX_WBITS
"""What `zlib` calls a stream with gzip's header, and one without any."""


def most_bytes(max_pixels: int) -> int:
    """Return how large a file of `max_pixels` may be.

    Uncompressed that is 2 bytes a pixel, or 6 in colour, of which half as many pixels are allowed.  The rest is room
    for headers, icons and overlays.
    """
    return 3 * max_pixels + 2**26


def read_content(path: Path, *, limit: int) -> bytes:
    """Return the bytes of a file, those inside if it is compressed with gzip.

    Raises:
        ImageRejectedError: `missing_file`, `unreadable`, or `too_large` above `limit` bytes.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # reading a pipe may wait without end
            raise ImageRejectedError("unreadable", "no plain file")
        if status.st_size > limit:
            raise ImageRejectedError("too_large", "the file is larger than the largest image allowed")
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise ImageRejectedError("missing_file") from None
    except OSError:
        raise ImageRejectedError("unreadable", "the file cannot be opened") from None
    return inflate(data, GZIP, limit=limit) if data.startswith(GZIP_MAGIC) else data


def inflate(data: bytes, form: int, *, limit: int) -> bytes:
    """Return what a `GZIP` or `DEFLATE` stream unfolds to.

    Raises:
        ImageRejectedError: `unreadable` if it is damaged or truncated, `too_large` above `limit` bytes.
    """
    inflater = zlib.decompressobj(form)
    try:
        inside = inflater.decompress(data, limit)
    except zlib.error:
        raise ImageRejectedError("unreadable", "the compressed file is damaged") from None
    if not inflater.eof:
        if len(inside) == limit:
            raise ImageRejectedError("too_large", "the compressed file holds more than the largest image allowed")
        raise ImageRejectedError("unreadable", "the compressed file is truncated")
    return inside
