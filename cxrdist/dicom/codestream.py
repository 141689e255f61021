"""What a compressed frame says of itself, read before any decoder allocates memory for it."""

import struct

J2K_START = b"\xff\x4f\xff\x51"
NOT_FRAME_HEADERS = (0xC4, 0xC8, 0xCC)
JPEG_LS_FRAME = 0xF7


def codestream_size(frame: bytes) -> tuple[int, int] | None:
    """Return (height, width) by the header of a JPEG, JPEG-LS or JPEG 2000 codestream; None if it has none.

    A DICOM header may say 512 x 512 over a codestream that unfolds to gigabytes.
    """
    start = frame.find(J2K_START, 0, 4096)  # some writers wrap the codestream in JP2 boxes
    if start >= 0 and len(frame) >= start + 24:  # ISO 15444-1 A.5.1, SIZ
        right, bottom, left, top = struct.unpack_from(">IIII", frame, start + 8)
        return bottom - top, right - left
    if not frame.startswith(b"\xff\xd8"):
        return None
    at = 2
    while at + 9 <= len(frame) and frame[at] == 0xFF:  # ISO 10918-1 B.1.1
        marker = frame[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if marker == JPEG_LS_FRAME or (0xC0 <= marker <= 0xCF and marker not in NOT_FRAME_HEADERS):
            height, width = struct.unpack_from(">HH", frame, at + 5)
            return height, width
        at += 2 + int.from_bytes(frame[at + 2 : at + 4], "big")
    return None


def is_whole(frame: bytes) -> bool:
    """Whether the codestream ends with its end marker; decoders fill what is missing with grey and say nothing."""
    return frame.rstrip(b"\x00\xff").endswith(b"\xff\xd9")
