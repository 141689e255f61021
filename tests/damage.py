"""Image files that are damaged at random or built to do harm.  Makers of `test_hostile_input.py`."""

import gzip
import io
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from tests.helpers import make_dicom

SYNTAXES = (
    ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian, RLELossless,
    JPEG2000Lossless, JPEGLosslessSV1, JPEGLSLossless,
)  # fmt: skip
SECRETS = ("DOE", "JANE", "SECRET77", "20010203", "ACC99", "1.2.826.0.1.3680043")
"""What the headers and the names of these files hold, and nobody may repeat."""
NUMBERS = (0, 1, 2, 3, 7, 8, 15, 16, 17, 255, 256, 32767, 32768, 65535)
TEXTS = (
    b"",
    b"0",
    b"-1",
    b"nan",
    b"inf",
    b"1e400",
    b"1\\2",
    b"\\",
    b"\xff\xfe",
    b"A" * 64,
    b"1" * 40,
    b"-0.0",
    b"\x00",
)


def clean_files(folder: Path) -> list[Path]:
    """Write small images of every kind the reader knows; all of them can be read."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(1)
    grey = np.clip(np.add.outer(np.arange(48), np.arange(40)) * 20 + rng.integers(0, 200, (48, 40)), 0, 4095)
    files = []
    for number, syntax in enumerate(SYNTAXES):
        tags = {
            "BitsStored": 12,
            "WindowCenter": "2000",
            "WindowWidth": "3000",
            "RescaleSlope": "1",
            "PatientAge": "045Y",
        }
        files.append(make_dicom(folder / f"DOE_{number}.dcm", grey.astype(np.uint16), syntax=syntax, **tags))
        files.append(make_dicom(folder / f"DOE_8_{number}.dcm", (grey // 16).astype(np.uint8), syntax=syntax))
    item = Dataset()
    item.LUTDescriptor, item.LUTData = [4096, 0, 16], np.arange(4096, dtype=np.uint16).tobytes()
    files.append(make_dicom(folder / "DOE_lut.dcm", grey.astype(np.uint16), BitsStored=12, VOILUTSequence=[item]))
    files.append(make_dicom(folder / "DOE_signed.dcm", grey.astype(np.int16) - 1000, PixelPaddingValue=-1000))
    rgb = rng.integers(0, 256, (24, 20, 3), np.uint8)
    files.append(make_dicom(folder / "DOE_rgb.dcm", rgb))
    files.append(folder / "DOE_baseline.dcm")
    _as_baseline(make_dicom(files[-1], (grey // 16).astype(np.uint8)), (grey // 16).astype(np.uint8))
    files.append(folder / "DOE_gzip.dcm.gz")
    files[-1].write_bytes(gzip.compress(files[0].read_bytes(), mtime=0))
    small = Image.fromarray((grey // 16).astype(np.uint8))
    text, exif = PngInfo(), Image.Exif()
    text.add_text("Patient", "DOE JANE")
    text.add_text("Comment", "SECRET77 " * 50, zip=True)
    text.add_itxt("Note", "DOE", zip=True)
    exif[0x0112], exif[0x013B] = 6, "DOE JANE"
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA"):
        files.append(folder / f"DOE_{mode}.png")
        small.convert("RGB").convert(mode).save(files[-1], pnginfo=text)
    files.append(folder / "DOE_16.png")
    Image.fromarray((grey * 16).astype(np.uint16)).save(files[-1])
    for name, options in {"plain": {}, "scans": {"progressive": True}, "restart": {"restart_marker_rows": 1}}.items():
        files.append(folder / f"DOE_{name}.jpg")
        small.save(files[-1], exif=exif, comment=b"DOE JANE", **options)
    files += [folder / "DOE_rgb.jpg", folder / "DOE_cmyk.jpg"]
    small.convert("RGB").save(files[-2])
    small.convert("CMYK").save(files[-1])
    return files


def damaged(data: bytes, others: list[bytes], rng: random.Random) -> tuple[str, bytes]:
    """Return how a file was damaged, and what it is then."""
    ways: list[Callable[[bytes, random.Random], bytes]] = [
        _truncated, _bits, _bits, _run_replaced, _run_replaced, _run_removed, _run_repeated, _numbers, _numbers,
        lambda data, rng: _spliced(data, rng.choice(others), rng),
    ]  # fmt: skip
    if data[128:132] == b"DICM":
        ways += [_tag_edited] * 6
    elif data.startswith(b"\x89PNG"):
        ways += [_chunk_edited] * 4
    elif data.startswith(b"\xff\xd8"):
        ways += [_segment_edited] * 4
    names = []
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        way = rng.choice(ways)
        names.append(way.__name__.strip("_<>"))
        data = way(data, rng) or b"\x00"
    return "+".join(names), data


def _truncated(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def _bits(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 2, 8, 64))):
        changed[_place(data, rng)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _place(data: bytes, rng: random.Random) -> int:
    """Return a place in the data, every other time in the first 1000 bytes, where headers are."""
    return rng.randrange(min(len(data), 1000) if rng.random() < 0.5 else len(data))


def _run_replaced(data: bytes, rng: random.Random) -> bytes:
    start, length = _place(data, rng), rng.choice((1, 4, 16, 300))
    run = rng.choice((b"\x00" * length, b"\xff" * length, rng.randbytes(length)))
    return data[:start] + run + data[start + length :]


def _run_removed(data: bytes, rng: random.Random) -> bytes:
    start = _place(data, rng)
    return data[:start] + data[start + rng.choice((1, 2, 8, 100)) :]


def _run_repeated(data: bytes, rng: random.Random) -> bytes:
    start, length = _place(data, rng), rng.choice((1, 8, 64, 512))
    return data[: start + length] + data[start : start + length] * rng.choice((1, 3, 50)) + data[start + length :]


def _numbers(data: bytes, rng: random.Random) -> bytes:
    form = rng.choice(("<H", ">H", "<I", ">I"))
    number = rng.choice((0, 1, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF))
    number &= 0xFFFF if form[1] == "H" else 0xFFFFFFFF
    start = _place(data, rng)
    return data[:start] + struct.pack(form, number) + data[start + struct.calcsize(form) :]


def _spliced(data: bytes, other: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))] + other[rng.randrange(len(other)) :]


def _elements(data: bytes) -> list[tuple[int, int, int]]:
    """Return (place, place of the value, length) of the elements of an explicit little-endian DICOM file."""
    found, at = [], 132
    while at + 12 <= len(data):
        long = data[at + 4 : at + 6] in (b"OB", b"OW", b"SQ", b"UN", b"UT", b"UC", b"UR")
        value = at + (12 if long else 8)
        (length,) = struct.unpack_from("<I", data, at + 8) if long else struct.unpack_from("<H", data, at + 6)
        found.append((at, value, length))
        at = value + (0 if length == 0xFFFFFFFF else length)
    return found


def _tag_edited(data: bytes, rng: random.Random) -> bytes:  # noqa: PLR0911 - a way a line
    elements = _elements(data) if data[128:132] == b"DICM" else []
    if not elements:
        return data
    at, value, length = rng.choice(elements)
    kind = rng.randrange(6)
    if kind == 0:  # its type
        return data[: at + 4] + rng.choice((b"SQ", b"US", b"UN", b"OB", b"DS", b"UI", b"??", b"FD")) + data[at + 6 :]
    if kind == 1:  # its length
        return (
            data[: at + 6] + struct.pack("<H", rng.choice((0, 1, 2, 3, length + 2 & 0xFFFF, 0xFFFF))) + data[at + 8 :]
        )
    if kind == 2 and length <= 8:  # its numbers
        number = struct.pack("<H", rng.choice(NUMBERS)) * (max(length, 2) // 2)
        return data[:value] + number + data[value + length :]
    if kind == 3:  # its text
        text = rng.choice(TEXTS)
        text += b" " * (len(text) % 2)
        return data[: at + 6] + struct.pack("<H", len(text)) + text + data[value + length :]
    if kind == 4:  # its place: somewhere else, or twice
        return data[: rng.choice(elements)[0]] + data[at : value + min(length, 2**16)] + data[at:]
    return _with_tag(data, rng)


def _with_tag(data: bytes, rng: random.Random) -> bytes:
    try:
        ds = dcmread(io.BytesIO(data))
        keyword, value = rng.choice((
            ("Rows", rng.choice(NUMBERS)), ("Columns", rng.choice(NUMBERS)), ("BitsAllocated", rng.choice(NUMBERS)),
            ("BitsStored", rng.choice(NUMBERS)), ("HighBit", rng.choice(NUMBERS)), ("PixelRepresentation", 1),
            ("SamplesPerPixel", rng.choice((0, 2, 3, 4))), ("NumberOfFrames", rng.choice(("0", "2", "-1", "1000000"))),
            ("PlanarConfiguration", 1), ("PixelPaddingValue", rng.choice(NUMBERS)),
            ("PhotometricInterpretation", rng.choice(("MONOCHROME1", "PALETTE COLOR", "RGB", "YBR_FULL_422", "DOE"))),
            ("WindowWidth", rng.choice(("0", "-5", "1e38", "0.001"))), ("WindowCenter", rng.choice(("1e38", "-1e38"))),
            ("RescaleSlope", rng.choice(("0", "-1", "1e38", "1e-38"))), ("RescaleIntercept", "-1e38"),
            ("PixelSpacing", rng.choice((["0", "1"], ["1e-9", "1e9"], ["1"]))), ("PatientAge", "999Y"),
            ("VOILUTSequence", [_lut(rng)]), ("ModalityLUTSequence", [_lut(rng)]), ("PixelAspectRatio", ["1", "9000"]),
            ("PixelData", rng.choice((b"", b"\x00\x00", rng.randbytes(64)))), ("LossyImageCompression", "01"),
        ))  # fmt: skip
        setattr(ds, keyword, value)
        if rng.random() < 0.2:
            ds.file_meta.TransferSyntaxUID = rng.choice((*SYNTAXES, JPEGBaseline8Bit, "1.2.3", ""))
        out = io.BytesIO()
        ds.save_as(out)
    except Exception:  # what is damaged already need not take another edit
        return data
    return out.getvalue()


def _lut(rng: random.Random) -> Dataset:
    item = Dataset()
    item.LUTDescriptor = [rng.choice((0, 1, 2, 256, 65535)), rng.choice((0, 65535)), rng.choice((0, 1, 8, 16, 200))]
    item.LUTData = rng.randbytes(rng.choice((0, 2, 256, 512, 1000)))
    return item


def _chunk_edited(data: bytes, rng: random.Random) -> bytes:
    """Damage a chunk of a PNG and mend its checksum, so that the damage is looked at."""
    chunks, at = [], 8
    while at + 12 <= len(data) and data.startswith(b"\x89PNG"):
        length = int.from_bytes(data[at : at + 4], "big")
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    if not chunks:
        return data
    number = 0 if rng.random() < 0.4 else rng.randrange(len(chunks))
    kind, content = chunks[number]
    content = rng.choice((_bits, _run_replaced, _truncated, _numbers))(content, rng) if content else content
    kind = rng.choice((kind, kind, kind, b"IDAT", b"tRNS", b"PLTE", b"iCCP", b"eXIf", b"acTL", b"IEND"))
    chunks[number] = (kind, content)
    if rng.random() < 0.2:
        rng.shuffle(chunks)
    return png(*chunks)


def _segment_edited(data: bytes, rng: random.Random) -> bytes:
    """Damage what follows one of the markers of a JPEG."""
    markers = [at for at in range(2, len(data) - 4) if data[at] == 0xFF and 0xC0 <= data[at + 1] <= 0xFE]
    if not markers:
        return data
    at = rng.choice(markers)
    if rng.random() < 0.3:
        return data[: at + 1] + bytes([rng.randrange(0xC0, 0xFF)]) + data[at + 2 :]
    start = at + rng.randrange(2, 20)
    return data[:start] + bytes([rng.choice((0, 1, 2, 17, 127, 255))]) + data[start + 1 :]


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    """Return a PNG of chunks, with right lengths and checksums."""
    parts = [b"\x89PNG\r\n\x1a\n"]
    for kind, content in chunks:
        parts.append(struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content)))
    return b"".join(parts)


def jpeg_segment(marker: int, content: bytes) -> bytes:
    """Return a segment of a JPEG with its length."""
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(content) + 2) + content


def _as_baseline(path: Path, grey: np.ndarray) -> None:
    """Put a baseline JPEG into a DICOM file."""
    out = io.BytesIO()
    Image.fromarray(grey).save(out, "jpeg")
    encapsulated(path, out.getvalue(), JPEGBaseline8Bit)


def encapsulated(path: Path, frame: bytes, syntax: str, **tags: object) -> Path:
    """Replace the pixel data of a DICOM file by one compressed `frame`; `tags` change its header."""
    ds = dcmread(path)
    ds.file_meta.TransferSyntaxUID = syntax
    ds.PixelData = encapsulate([frame])
    ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
    for keyword, value in tags.items():
        setattr(ds, keyword, value)
    ds.save_as(path)
    return path
