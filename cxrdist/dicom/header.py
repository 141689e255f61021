"""What is read of a DICOM header: an allow-list, so no patient module is ever in memory.

Tags that are not in `ALLOWED` are skipped while the file is parsed (PS3.15 Annex E warns that remove-lists fail when
vendors add tags).  Numbers come from untrusted files: each is checked before it is used.
"""

import math
import re
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from cxrdist.dicom.display import Lut, Window
from cxrdist.errors import ImageRejectedError

# fmt: off
PIXEL_TAGS = (
    "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "Rows", "Columns",
    "PixelAspectRatio", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue",
    "PixelPaddingRangeLimit", "PixelSpacing", "ImagerPixelSpacing", "BurnedInAnnotation", "WindowCenter", "WindowWidth",
    "RescaleIntercept", "RescaleSlope", "ModalityLUTSequence", "VOILUTSequence", "VOILUTFunction",
    "PresentationLUTShape",
)
PALETTE_TAGS = tuple(
    f"{segmented}{colour}PaletteColorLookupTable{part}"
    for colour in ("Red", "Green", "Blue")
    for segmented, part in (("", "Descriptor"), ("", "Data"), ("Segmented", "Data"))
)
ORIGIN_TAGS = ("SOPClassUID", "Modality", "ConversionType", "DetectorType")
"""Read for `Header.secondary` alone; what they say goes nowhere."""
PERSON_TAGS = ("ViewPosition", "ViewCodeSequence", "PatientOrientation", "PatientSex", "PatientAge")
# fmt: on
ALLOWED = [Tag(keyword) for keyword in (*PIXEL_TAGS, *PALETTE_TAGS, *ORIGIN_TAGS, *PERSON_TAGS)]

# PS3.3 C.7.6.3.1.2, retired ones included.
PHOTOMETRIC_WORDS = (
    "MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB", "HSV", "ARGB", "CMYK", "YBR_FULL", "YBR_FULL_422",
    "YBR_PARTIAL_422", "YBR_PARTIAL_420", "YBR_ICT", "YBR_RCT", "XYB",
)  # fmt: skip
SEXES: dict[str | None, Literal["F", "M"]] = {"F": "F", "M": "M"}
PROJECTIONS = {"PA": "PA", "AP": "AP", "LL": "lateral", "RL": "lateral", "LATERAL": "lateral", "LAT": "lateral"}
# PS3.16 CID 4010: SNOMED RT, then SNOMED CT.
VIEW_CODES = {
    "R-10206": "AP", "R-10214": "PA", "R-10236": "lateral", "R-10232": "lateral",
    "399348003": "AP", "272479007": "PA", "399067008": "lateral", "399173006": "lateral",
}  # fmt: skip
MAX_AGE, TOP_AGE = 120, 90
ITEMS = (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00")
"""What an item of a sequence begins with, in both byte orders."""
MOST_ITEMS = 1000
MOST_BYTES, MOST_SEQUENCE_BYTES = 2**18, 2**22
"""Of one element; the largest that are read are a table of 65536 entries, and a sequence of some."""

# Secondary Capture (PS3.4 B.5: one class, and four by frames and colour), retired hardcopies, photographs.
SECONDARY_CLASS = re.compile(r"1\.2\.840\.10008\.5\.1\.(4\.1\.1\.7(\.[1-4])?|1\.(29|30)|4\.1\.1\.77\.1\.4)")
CONVERSIONS = ("DV", "DI", "DF", "WSD", "SD", "SI")
"""PS3.3 C.8.6.1: digitised video, interface, film, workstation, scanned document, scanned image."""
FILM_MODALITIES = ("RG", "HC", "XC")
"""PS3.3 C.7.3.1.1.1: film and screen, hardcopy, photograph by a camera."""


@dataclass(frozen=True)
class Header:
    """The allow-listed content of a header, checked."""

    rows: int
    columns: int
    samples: int
    planar: int
    """0: RGBRGB..., 1: RR...GG...BB...; of colour images."""
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    photometric: str
    presentation: str | None
    padding: tuple[int, int] | None
    modality: Lut | tuple[float, float] | None
    voi: Lut | Window | None
    aspect: float
    """Height of a pixel over its width."""
    spacing: tuple[str, float] | None
    """Tag that says it, and millimetres between rows."""
    burned_in: bool
    """Whether the header says that text is burned into the pixels."""
    secondary: bool
    """Whether the image was made from a picture (film, screen, paper) and not by a detector: text is likelier."""
    palette: Dataset | None
    """The colour tables of a palette image."""
    projection: str | None
    sex: Literal["F", "M"] | None
    age: int | None

    @property
    def invert(self) -> bool:
        """Whether small values are bright: PresentationLUTShape says so, and where it is absent MONOCHROME1."""
        # The two are redundant: obeying both would invert twice.
        if self.presentation in ("INVERSE", "IDENTITY"):
            return self.presentation == "INVERSE"
        return self.monochrome1

    @property
    def monochrome1(self) -> bool:
        """Whether the photometric interpretation says that small values are bright."""
        return self.photometric == "MONOCHROME1"


def parse_header(ds: Dataset, *, max_pixels: int) -> Header:
    """Return the checked header of a data set that holds `ALLOWED` tags only.

    Raises:
        ImageRejectedError: `too_large`, `unsupported` or `unreadable`.
    """
    rows, columns, samples = _whole(ds, "Rows"), _whole(ds, "Columns"), _whole(ds, "SamplesPerPixel", 1)
    if rows < 1 or columns < 1:
        raise ImageRejectedError("unreadable", "the DICOM header names no rows or no columns")
    if rows * columns * (1 if samples == 1 else 2) > max_pixels:
        raise ImageRejectedError("too_large", f"{columns} x {rows} pixels")
    if _whole(ds, "NumberOfFrames", 1) > 1:
        raise ImageRejectedError("unsupported", "several frames in one file")
    allocated = _whole(ds, "BitsAllocated", 16)
    stored = _whole(ds, "BitsStored", allocated)
    if allocated not in (8, 16):
        raise ImageRejectedError("unsupported", f"{allocated} bits allocated")
    if not 1 < stored <= allocated:
        raise ImageRejectedError("unreadable", f"{stored} bits stored in {allocated} allocated")
    photometric = (_text(ds, "PhotometricInterpretation") or ("MONOCHROME2" if samples == 1 else "RGB")).upper()
    palette = photometric == "PALETTE COLOR"
    if (samples, palette) not in ((1, False), (1, True), (3, False)):
        # A reason stands in a file that is passed on, and a header can hold a person's name in any field.
        word = photometric if photometric in PHOTOMETRIC_WORDS else "an unknown kind"
        raise ImageRejectedError("unsupported", f"{samples} samples per pixel of {word}")
    signed = _whole(ds, "PixelRepresentation", 0) == 1
    spacing = _spacing(ds)
    return Header(
        rows=rows,
        columns=columns,
        samples=samples,
        planar=_whole(ds, "PlanarConfiguration", 0),
        bits_allocated=allocated,
        bits_stored=stored,
        high_bit=_whole(ds, "HighBit", stored - 1),
        signed=signed,
        photometric=photometric,
        presentation=_text(ds, "PresentationLUTShape"),
        padding=_padding(ds, stored, signed=signed),
        modality=_modality(ds, signed=signed),
        voi=_voi(ds, signed=signed),
        aspect=_aspect(ds),
        spacing=spacing,
        burned_in=_text(ds, "BurnedInAnnotation") == "YES",
        secondary=_secondary(ds),
        palette=_palette(ds) if palette else None,
        projection=_projection(ds),
        sex=SEXES.get(_text(ds, "PatientSex")),
        age=parse_age(_text(ds, "PatientAge")),
    )


def parse_age(text: str | None) -> int | None:
    """Return years of a DICOM age string (``045Y``, ``018M``, ``003W``, ``010D``); 90 stands for 90 and above.

    Years without the unit, against PS3.5 6.2, are in every file of the RSNA's and the SIIM's challenges.

    ``000Y`` is what de-identification leaves behind, never an infant's age (those have months, weeks or days).
    """
    match = re.fullmatch(r"(\d{1,3})([YMWD]?)", text or "")
    if not match:
        return None
    number, unit = int(match[1]), match[2] or "Y"
    if unit == "Y" and not 0 < number <= MAX_AGE:
        return None
    return min(int(number / {"Y": 1, "M": 12, "W": 52, "D": 365}[unit]), TOP_AGE)


def wrap(value: int, bits: int, *, signed: bool) -> int:
    """Return `value` as a field of `bits` bits holds it."""
    value &= 2**bits - 1
    return value - 2**bits if signed and value >= 2 ** (bits - 1) else value


def _padding(ds: Dataset, stored: int, *, signed: bool) -> tuple[int, int] | None:
    ends = [_number(ds, name) for name in ("PixelPaddingValue", "PixelPaddingRangeLimit")]
    values = [wrap(int(end), stored, signed=signed) for end in ends if end is not None]
    return (min(values), max(values)) if ends[0] is not None else None


def _modality(ds: Dataset, *, signed: bool) -> Lut | tuple[float, float] | None:
    table = _lut(ds, "ModalityLUTSequence", signed=signed)
    if table is not None:
        return table
    slope, intercept = _number(ds, "RescaleSlope"), _number(ds, "RescaleIntercept")
    if slope is None and intercept is None:
        return None
    return slope or 1.0, intercept or 0.0  # a slope of 0 would leave no image


def _voi(ds: Dataset, *, signed: bool) -> Lut | Window | None:
    modality = _modality(ds, signed=signed)
    negative = signed or (isinstance(modality, tuple) and min(modality) < 0)
    table = _lut(ds, "VOILUTSequence", signed=negative)
    if table is not None:
        return table
    center, width = _number(ds, "WindowCenter"), _number(ds, "WindowWidth")
    if center is None or width is None:
        return None
    function = _text(ds, "VOILUTFunction")
    if function == "LINEAR_EXACT":
        return Window(center, width, "LINEAR_EXACT")
    return Window(center, width, "SIGMOID" if function == "SIGMOID" else "LINEAR")


def _lut(ds: Dataset, sequence: str, *, signed: bool) -> Lut | None:
    """Return the first table of `sequence`; None if there is none or it is damaged."""
    items = _raw(ds, sequence)
    descriptor = _raw(items[0], "LUTDescriptor") if items else None
    data = _raw(items[0], "LUTData") if items else None
    if data is None or descriptor is None or len(descriptor) != 3:
        return None
    number, first, bits = (int(part) for part in descriptor)
    number = (number & 0xFFFF) or 2**16  # PS3.3 C.11.1.1: 0 stands for 65536 entries
    entries = _entries(data, number, little=ds.original_encoding[1] is not False)
    if entries is None or not 1 <= bits <= 16:
        return None
    return Lut(wrap(first, 16, signed=signed), bits, entries)


def _entries(data: Any, number: int, *, little: bool) -> np.ndarray | None:
    if isinstance(data, bytes):
        if len(data) in (number, number + number % 2):  # 8-bit entries, filled to an even length
            return np.frombuffer(data, np.uint8)[:number].astype(np.int64)
        if len(data) < 2 * number:
            return None
        return np.frombuffer(data[: 2 * number], "<u2" if little else ">u2").astype(np.int64)
    words = np.atleast_1d(np.asarray(data, np.int64)) & 0xFFFF
    if len(words) == (number + 1) // 2 and number > 1:  # two 8-bit entries in each word
        return np.stack([words & 0xFF, words >> 8], 1).ravel()[:number]
    return words[:number] if len(words) >= number else None


def _spacing(ds: Dataset) -> tuple[str, float] | None:
    for name in ("PixelSpacing", "ImagerPixelSpacing"):
        pair = _pair(ds, name)
        if pair:
            return name, pair[0]
    return None


def _aspect(ds: Dataset) -> float:
    for name in ("PixelSpacing", "ImagerPixelSpacing", "PixelAspectRatio"):
        pair = _pair(ds, name)
        if pair:
            return pair[0] / pair[1]
    return 1.0


def _secondary(ds: Dataset) -> bool:
    return (
        SECONDARY_CLASS.fullmatch(_text(ds, "SOPClassUID") or "") is not None
        or _text(ds, "ConversionType") in CONVERSIONS
        or _text(ds, "Modality") in FILM_MODALITIES
        or _text(ds, "DetectorType") == "FILM"
    )


def _palette(ds: Dataset) -> Dataset:
    """Return the colour tables alone."""
    tables = Dataset()
    for name in PALETTE_TAGS:
        value = _raw(ds, name)
        if value is not None:
            setattr(tables, name, value)
    return tables


def _projection(ds: Dataset) -> str | None:
    view = _text(ds, "ViewPosition")
    if view:
        return PROJECTIONS.get(view, "other")
    codes = _raw(ds, "ViewCodeSequence")
    code = _text(codes[0], "CodeValue") if codes else None
    if code in VIEW_CODES:
        return VIEW_CODES[code]
    # Rows that run from front to back show the patient from the side (PS3.3 C.7.6.1.1.1).
    orientation = _raw(ds, "PatientOrientation")
    row = str(orientation[0]) if orientation is not None and len(orientation) == 2 else ""
    return "lateral" if row[:1] in ("A", "P") else None


def _raw(ds: Dataset, name: str) -> Any:
    """Return the value of a tag; None if it is absent, empty, cannot be parsed, or is far larger than it may be."""
    try:
        raw = ds.get_item(name)
        if raw is not None and isinstance(raw.value, bytes) and _is_excessive(name, raw.value):
            return None  # each number and each item of it would become an object
        value = ds.get(name)
    except Exception:  # one broken optional element is no reason to lose the image
        return None
    return None if value is None or (hasattr(value, "__len__") and len(value) == 0) else value


def _is_excessive(name: str, value: bytes) -> bool:
    if name.endswith("Sequence"):
        return len(value) > MOST_SEQUENCE_BYTES or sum(value.count(item) for item in ITEMS) > MOST_ITEMS
    return len(value) > MOST_BYTES


def _text(ds: Dataset, name: str) -> str | None:
    value = _raw(ds, name)
    return None if value is None else str(value).strip().upper() or None


def _number(ds: Dataset, name: str) -> float | None:
    """Return the first number of a tag; None if there is none or it is not finite."""
    value = _raw(ds, name)
    if value is not None and not isinstance(value, str) and hasattr(value, "__len__"):
        value = value[0]
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _whole(ds: Dataset, name: str, default: int = 0) -> int:
    number = _number(ds, name)
    return default if number is None else int(number)


def _pair(ds: Dataset, name: str) -> tuple[float, float] | None:
    value = _raw(ds, name)
    try:
        first, second = (float(part) for part in value)
    except (TypeError, ValueError):
        return None
    return (first, second) if 0 < first < 1e6 and 0 < second < 1e6 else None
