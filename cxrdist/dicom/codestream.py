"""What a compressed frame says of itself, read before any decoder allocates memory for it.

A DICOM header may say 512 x 512 over a codestream that unfolds to gigabytes, and the decoders, written in C, do not
survive every damaged header.
"""

import struct
from typing import NamedTuple

J2K_START = b"\xff\x4f\xff\x51"
NOT_FRAME_HEADERS = (0xC4, 0xC8, 0xCC)
JPEG_LS_FRAME = 0xF7


class Codestream(NamedTuple):
    """The header of a JPEG, JPEG-LS or JPEG 2000 codestream."""

    rows: int
    columns: int
    components: int
    bits: int
    """Of each sample; of JPEG 2000 the most of any component, 0 if its components are not all of full size."""


def codestream_header(frame: bytes) -> Codestream | None:
    """Return what the codestream's own header says; None if it has none."""
    start = frame.find(J2K_START, 0, 4096)  # some writers wrap the codestream in JP2 boxes
    if start >= 0:
        return _jpeg_2000(frame[start : start + 64])
    return _jpeg(frame) if frame.startswith(b"\xff\xd8") else None


def is_whole(frame: bytes) -> bool:
    """Whether the codestream ends with its end marker; decoders fill what is missing with grey and say nothing."""
    return frame.rstrip(b"\x00\xff").endswith(b"\xff\xd9")


def _jpeg_2000(data: bytes) -> Codestream | None:
    """Read the SIZ marker (ISO 15444-1 A.5.1)."""
    if len(data) < 54:
        return None
    right, bottom, left, top, wide, high = struct.unpack_from(">6I", data, 8)
    (components,) = struct.unpack_from(">H", data, 40)
    rows, columns = bottom - top, right - left
    if components not in (1, 3) or not wide or not high or rows < 1 or columns < 1:
        return None
    if -(-rows // high) * -(-columns // wide) > 65535:  # tiles
        return None
    parts = [struct.unpack_from(">3B", data, 42 + 3 * number) for number in range(components)]
    full = all(across == down == 1 for _, across, down in parts)
    return Codestream(rows, columns, components, max((size & 0x7F) + 1 for size, _, _ in parts) if full else 0)


def _jpeg(frame: bytes) -> Codestream | None:
    """Read the frame header (ISO 10918-1 B.2.2; ISO 14495-1 C.2.2 for JPEG-LS)."""
    at = 2
    while at + 10 <= len(frame) and frame[at] == 0xFF:
        marker = frame[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if marker == JPEG_LS_FRAME or (0xC0 <= marker <= 0xCF and marker not in NOT_FRAME_HEADERS):
            bits, rows, columns, components = struct.unpack_from(">BHHB", frame, at + 4)
            return Codestream(rows, columns, components, bits)
        at += 2 + int.from_bytes(frame[at + 2 : at + 4], "big")
    return None
