"""Small files that would unfold to much, or keep a reader busy for long.  Makers of `test_hostile_input.py`."""

import gzip
import io
import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
)

from cxrdist.dicom import MAX_PIXELS
from tests.damage import encapsulated, jpeg_segment, png
from tests.helpers import make_dicom

IHDR = struct.Struct(">IIBBBBB")


def bombs(folder: Path, *, megabytes: int) -> Iterator[Path]:
    """Write files that unfold to at least `megabytes`, or name as much; their names say what they are."""
    folder.mkdir(parents=True, exist_ok=True)
    for makers in (_dicoms, _codestreams, _pngs, _jpegs):
        for name, data in makers(folder, megabytes):
            path = folder / f"DOE_{name}"
            path.write_bytes(data)
            yield path


def _dicoms(folder: Path, megabytes: int) -> Iterator[tuple[str, bytes]]:
    grey = np.arange(48 * 40, dtype=np.uint16).reshape(48, 40)
    plain = make_dicom(folder / "plain", grey).read_bytes()
    start = plain.index(b"\xe0\x7f\x10\x00")
    zeros = megabytes * 2**20
    yield "gzip_bomb.dcm.gz", _deflated(plain, zeros, 16 + zlib.MAX_WBITS)
    yield "gzip_in_gzip.dcm.gz", gzip.compress(_zeros_gzipped(zeros), mtime=0)
    deflated = make_dicom(folder / "deflated", grey, syntax=DeflatedExplicitVRLittleEndian).read_bytes()
    at = deflated.index(b"UI", 132)  # group 2 says in its first element how long it is
    at = 144 + struct.unpack_from("<I", deflated, 140)[0]
    inside = zlib.decompress(deflated[at:], -zlib.MAX_WBITS)
    yield "deflated_bomb.dcm", deflated[:at] + _deflated(inside[: inside.index(b"\xe0\x7f\x10\x00")], zeros)
    head, pixels = plain[:start], plain[start:]
    nested = b"\x08\x00\x40\x11SQ\x00\x00\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    yield "nested_sequences.dcm", head + nested * (megabytes * 1000) + pixels
    yield "nested_unknown.dcm", head + nested.replace(b"SQ", b"UN") * (megabytes * 1000) + pixels
    small = b"\x09\x00\x01\x00LO\x00\x00"
    yield "many_elements.dcm", head[:132] + head[132:] + small * (megabytes * 2**20 // 64) + pixels
    listed = b"\x28\x00\x50\x10DS" + struct.pack("<H", 65534) + b"1\\" * 32767
    yield "many_values.dcm", head + listed * megabytes + pixels
    implicit = make_dicom(folder / "implicit", grey, syntax=ImplicitVRLittleEndian).read_bytes()
    place = implicit.index(b"\xe0\x7f\x10\x00")
    numbers = b"1\\" * (megabytes * 2**19)
    long = b"\x28\x00\x50\x10" + struct.pack("<I", len(numbers)) + numbers
    yield "long_value.dcm", implicit[:place] + long + implicit[place:]
    item = b"\xfe\xff\x00\xe0\x00\x00\x00\x00"
    items = item * (megabytes * 2**20 // 64)
    yield "many_items.dcm", head + b"\x28\x00\x10\x30SQ\x00\x00" + struct.pack("<I", len(items)) + items + pixels
    for name, length in (("beyond", 0xFFFFFFF0), ("undefined", 0xFFFFFFFF)):
        yield f"length_{name}.dcm", head + pixels[:8] + struct.pack("<I", length) + pixels[12:]
    for rows, columns in ((65535, 65535), (10000, 10000), (1, 65535)):
        yield f"{rows}_rows.dcm", make_dicom(folder / "rows", grey, Rows=rows, Columns=columns).read_bytes()


def _codestreams(folder: Path, megabytes: int) -> Iterator[tuple[str, bytes]]:
    grey = np.arange(48 * 40, dtype=np.uint16).reshape(48, 40)
    side = int((megabytes * 2**20 / 2) ** 0.5) & ~15

    def dicom(frame: bytes, syntax: str, rows: int = 48, columns: int = 40, **tags: object) -> bytes:
        path = make_dicom(folder / "frame", grey)
        return encapsulated(path, frame, syntax, Rows=rows, Columns=columns, **tags).read_bytes()

    j2k = _j2k_frame(grey)
    at = j2k.index(b"\xff\x51") + 4  # what the SIZ marker holds from here: capabilities, then the sizes
    for name, place, form, number in (
        ("wide", 2, ">I", 2**31), ("offset", 10, ">I", 39), ("tiny_tiles", 18, ">2I", (1, 1)),
        ("no_tiles", 18, ">I", 0),
        ("components", 34, ">H", 16384), ("deep", 36, ">B", 37), ("sparse", 37, ">2B", (255, 255)),
    ):  # fmt: skip
        numbers = number if isinstance(number, tuple) else (number,)
        changed = bytearray(j2k)
        struct.pack_into(form, changed, at + place, *numbers)
        yield f"j2k_{name}.dcm", dicom(bytes(changed), JPEG2000Lossless)
    empty = bytearray(j2k)
    struct.pack_into(">2I", empty, at + 2, side, side)
    struct.pack_into(">2I", empty, at + 18, side, side)
    yield "j2k_empty.dcm", dicom(bytes(empty), JPEG2000Lossless, side, side)
    levels = bytearray(j2k)
    place = j2k.index(b"\xff\x52") + 4
    levels[place + 5] = 32
    yield "j2k_levels.dcm", dicom(bytes(levels), JPEG2000Lossless)
    layers = bytearray(j2k)
    struct.pack_into(">H", layers, place + 2, 65535)
    yield "j2k_layers.dcm", dicom(bytes(layers), JPEG2000Lossless)
    for count in (0, 2, 15, 2**32 - 1):
        segments = struct.pack("<16I", count, *range(64, 64 + 15))
        yield f"rle_{count % 100}_segments.dcm", dicom(segments + b"\x81\x00" * 3000, RLELossless)
    yield "rle_of_zeros.dcm", dicom(_rle_zeros(side), RLELossless, side, side)
    jls = b"\xff\xd8\xff\xf7\x00\x0b\x10" + struct.pack(">HH", side, side) + b"\x01\x01\x11\x00"
    jls += b"\xff\xda\x00\x08\x01\x01\x00\x00\x00\x00" + bytes(100) + b"\xff\xd9"
    yield "jls_of_zeros.dcm", dicom(jls, JPEGLSLossless, side, side)
    fragments = b"\xfe\xff\x00\xe0\x00\x00\x00\x00" * (megabytes * 2**20 // 64)
    whole = dicom(_jpeg(48, 40), JPEGBaseline8Bit, **{"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7})
    end = whole.index(encapsulate([b"x"])[:8])
    yield "many_fragments.dcm", whole[: end + 8] + fragments + whole[end + 8 :]
    for name, frame in _scans(side):
        bits = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}
        yield f"{name}.dcm", dicom(frame, JPEGBaseline8Bit, side, side, **bits)


def _pngs(folder: Path, megabytes: int) -> Iterator[tuple[str, bytes]]:
    zeros = megabytes * 2**20
    side = int(zeros**0.5)
    grey = zlib.compress(b"".join(b"\x00" + bytes(range(40)) for _ in range(48)))
    head, data, end = (b"IHDR", IHDR.pack(40, 48, 8, 0, 0, 0, 0)), (b"IDAT", grey), (b"IEND", b"")
    bomb = _zlibbed(zeros)
    for width, height in ((65535, 65535), (2**31 - 1, 1), (1, 2**31 - 1), (0, 0), (10000, 10001)):
        yield f"ihdr_{width}_{height}.png", png((b"IHDR", IHDR.pack(width, height, 8, 0, 0, 0, 0)), data, end)
    for depth, colour in ((16, 0), (8, 2), (16, 6), (1, 0), (8, 3)):
        size = int(side / {0: 1, 2: 3**0.5, 6: 8**0.5, 3: 1}[colour])
        ihdr = (b"IHDR", IHDR.pack(size, size, depth, colour, 0, 0, 0))
        yield f"zeros_{depth}_{colour}.png", png(ihdr, (b"PLTE", b"ABC" * 256), (b"IDAT", bomb), end)
    yield "ztxt_bomb.png", png(head, (b"zTXt", b"Note\0\0" + bomb), data, end)
    yield "itxt_bomb.png", png(head, (b"iTXt", b"Note\0\x01\0\0\0" + bomb), data, end)
    yield "iccp_bomb.png", png(head, (b"iCCP", b"Note\0\0" + bomb), data, end)
    yield "idat_bomb.png", png(head, (b"IDAT", bomb), end)
    text = (b"zTXt", b"Note\0\0" + zlib.compress(bytes(900_000)))
    yield "many_texts.png", png(head, *[text] * (megabytes * 2), data, end)
    yield "many_chunks.png", png(head, *[(b"tEXt", b"a\0b")] * (megabytes * 1000), data, end)
    yield "many_idats.png", png(head, data, *[(b"IDAT", b"")] * (megabytes * 1000), end)
    yield "exif_loop.png", png(head, (b"eXIf", _looped_exif()), data, end)
    frames = [
        (b"acTL", struct.pack(">II", 2**31 - 1, 0)),
        (b"fcTL", struct.pack(">5I2H2B", 0, 40, 48, 0, 0, 1, 1, 0, 0)),
    ]
    yield "frames.png", png(head, *frames, data, end)
    deep = zlib.compress(b"".join(b"\x00" + bytes(range(80)) for _ in range(48)))
    head16 = (b"IHDR", IHDR.pack(40, 48, 16, 0, 0, 0, 0))
    yield "frames_16.png", png(head16, *frames, (b"IDAT", deep), *[frames[1]] * 1000, end)


def _jpegs(folder: Path, megabytes: int) -> Iterator[tuple[str, bytes]]:
    side = min(int((megabytes * 2**20) ** 0.5), 9990)
    plain = _jpeg(48, 40)
    at = plain.index(b"\xff\xc0")
    for name, rows, columns in (
        ("huge", 65535, 65535),
        ("large", 9999, 9999),
        ("no_height", 0, 40),
        ("long", 65535, 1),
    ):
        yield f"{name}.jpg", plain[: at + 5] + struct.pack(">HH", rows, columns) + plain[at + 9 :]
    dnl = b"\xff\xdc\x00\x04" + struct.pack(">H", 65535)
    yield "dnl.jpg", plain[: at + 5] + b"\x00\x00" + plain[at + 7 : -2] + dnl + plain[-2:]
    yield "dnl_again.jpg", plain[:-2] + dnl * 1000 + plain[-2:]
    yield (
        "restarts.jpg",
        plain[:-2] + b"".join(b"\xff" + bytes([0xD0 + number % 8]) for number in range(10**5)) + plain[-2:],
    )
    yield "exif_loop.jpg", plain[:2] + jpeg_segment(0xE1, b"Exif\0\0" + _looped_exif()) + plain[2:]
    yield "many_comments.jpg", plain[:2] + jpeg_segment(0xFE, b"DOE JANE") * (megabytes * 2000) + plain[2:]
    yield "icc_parts.jpg", plain[:2] + jpeg_segment(0xE2, b"ICC_PROFILE\0\x01\xff" + bytes(60000)) * 255 + plain[2:]
    for name, data in _scans(side):
        yield f"{name}.jpg", data


def _scans(side: int) -> Iterator[tuple[str, bytes]]:
    """Yield a JPEG of few bytes whose decoder has to go over a large image thousands of times."""
    grey = Image.fromarray(np.tile(np.arange(64, dtype=np.uint8) * 4, (64, 1)))
    out = io.BytesIO()
    grey.resize((side, side)).save(out, "jpeg", progressive=True, quality=5)
    data = out.getvalue()
    last = data.rindex(b"\xff\xda")
    # A later scan may refine the same bit again: the standard forbids it, decoders only warn.
    scan = b"\xff\xda\x00\x08\x01\x01\x00\x01\x3f\x10" + b"\x00" * 40
    yield "many_scans", data[:last] + data[last:-2] + scan * 3000 + data[-2:]


def _jpeg(rows: int, columns: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.add.outer(np.arange(rows), np.arange(columns)).astype(np.uint8)).save(out, "jpeg")
    return out.getvalue()


def _j2k_frame(grey: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(grey).save(out, "JPEG2000", no_jp2=True, irreversible=False)
    return out.getvalue()


def _rle_zeros(side: int) -> bytes:
    """Return the RLE frame of a 16-bit image of zeros; 2 bytes make 128."""
    segment = b"\x81\x00" * (side * side // 128)
    return struct.pack("<16I", 2, 64, 64 + len(segment), *[0] * 13) + segment * 2


def _looped_exif() -> bytes:
    """Return an EXIF block whose directory says that it is followed by itself, and is within itself."""
    entry = struct.pack(">HHII", 0x8769, 4, 1, 8)
    return b"MM\x00\x2a" + struct.pack(">I", 8) + struct.pack(">H", 2000) + entry * 2000 + struct.pack(">I", 8)


def _deflated(first: bytes, zeros: int, wbits: int = -zlib.MAX_WBITS) -> bytes:
    deflater = zlib.compressobj(9, zlib.DEFLATED, wbits)
    parts = [deflater.compress(first)]
    parts += [deflater.compress(bytes(2**20)) for _ in range(zeros // 2**20)]
    return b"".join([*parts, deflater.flush()])


def _zlibbed(zeros: int) -> bytes:
    return _deflated(b"", zeros, zlib.MAX_WBITS)


def _zeros_gzipped(zeros: int) -> bytes:
    return _deflated(b"", zeros, 16 + zlib.MAX_WBITS)


def largest(folder: Path) -> list[Path]:
    """Write images of as many pixels as are allowed; all can be read, but their reader must not make many copies."""
    folder.mkdir(parents=True, exist_ok=True)
    side = math.isqrt(MAX_PIXELS) - 1
    grey = np.zeros((side, side), np.uint8)
    grey[100:200, 300:-100] = np.arange(side - 400) % 251
    half = math.isqrt(MAX_PIXELS // 2) - 1  # colour counts double
    small = grey[:half, :half]
    for name, image in (
        ("grey", Image.fromarray(grey)),
        ("bits", Image.fromarray(grey).convert("1")),
        ("deep", Image.fromarray(grey.astype(np.uint16) * 257)),
        ("colour", Image.fromarray(small).convert("RGB")),
        ("alpha", Image.fromarray(small).convert("RGBA")),
        ("palette", Image.fromarray(small).convert("P")),
    ):
        image.save(folder / f"DOE_{name}.png", compress_level=1)
    deep_colour = np.repeat(small.astype(np.uint16)[..., None] * 257, 4, axis=2)
    cv2.imwrite(str(folder / "DOE_deep_alpha.png"), deep_colour, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    del deep_colour
    for name, image, options in (
        ("grey", Image.fromarray(grey), {}),
        ("scans", Image.fromarray(grey), {"progressive": True}),
        ("cmyk", Image.fromarray(small).convert("CMYK"), {}),
    ):
        image.save(folder / f"DOE_{name}.jpg", **options)
    words = grey.astype(np.uint16)
    plain = make_dicom(folder / "DOE_words.dcm", words, WindowCenter="100", WindowWidth="200")
    (folder / "DOE_words.dcm.gz").write_bytes(gzip.compress(plain.read_bytes(), 1))
    make_dicom(folder / "DOE_deflated.dcm", words, syntax=DeflatedExplicitVRLittleEndian)
    make_dicom(folder / "DOE_signed.dcm", words.astype(np.int16), PixelPaddingValue=0, PixelSpacing=["1", "2"])
    make_dicom(folder / "DOE_rgb.dcm", np.repeat(small[..., None], 3, axis=2))
    make_dicom(folder / "DOE_j2k.dcm", words, syntax=JPEG2000Lossless)
    make_dicom(folder / "DOE_rle.dcm", words, syntax=RLELossless)
    return sorted(folder.iterdir())
