"""What a dataset knows about its image files that the files themselves do not say."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class RawImage:
    """A headerless file of 16-bit words, row by row."""

    rows: int
    columns: int
    bits: int
    """Bits of each word that carry information."""
    big_endian: bool = True
    signed: bool = False


@dataclass(frozen=True)
class PixelHints:
    """How the files of one dataset have to be read."""

    raw: RawImage | None = None
    """Their shape, where they have no header at all."""
    invert: bool = False
    """Turn the polarity once more: values were written as they were stored, small ones bright."""
    range: Literal["file", "robust"] = "file"
    """robust: a raster's values were never brought to the display range (12 bits in 16) and are stretched here."""
