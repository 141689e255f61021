"""From stored values to display: one table per image, after DICOM PS3.3 C.11.1 (modality) and C.11.2 (VOI).

Stored values have 16 bits at most, and every step maps a value without looking at its neighbours.  So the whole chain
is computed for the ``V = 2**bits_stored`` possible values in float64, exactly, and the image is one lookup.

Shapes: V possible stored values, ascending from the smallest.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from cxrdist.errors import ImageRejectedError

Voi = Literal["lut", "window", "range", "none"]
ROBUST_RANGE = (0.005, 0.995)
"""Share of the unpadded pixels below the black and below the white end, where the header has no usable window."""


@dataclass(frozen=True)
class Lut:
    """A lookup table of a header (PS3.3 C.11.1.1, C.11.2.1.1)."""

    first: int
    """Input value that maps to entry 0; below it entry 0 holds, above the table the last entry."""
    bits: int
    """Output range is [0, 2**bits - 1]."""
    entries: np.ndarray
    """(n,) int64."""

    def apply(self, values: np.ndarray) -> np.ndarray:
        """Return the entry of each value of any shape, float64."""
        # int64: with the table's own 8-bit type the index would wrap at 256.
        index = np.clip(np.rint(values).astype(np.int64) - self.first, 0, len(self.entries) - 1)
        return self.entries[index].astype(np.float64)


@dataclass(frozen=True)
class Window:
    """A VOI window (PS3.3 C.11.2.1.2, C.11.2.1.3)."""

    center: float
    width: float
    function: Literal["LINEAR", "LINEAR_EXACT", "SIGMOID"] = "LINEAR"

    @property
    def usable(self) -> bool:
        """Whether the standard allows these numbers: a width of at least 1 for LINEAR, above 0 for the others."""
        finite = bool(np.isfinite(self.center) and np.isfinite(self.width))
        return finite and (self.width >= 1 if self.function == "LINEAR" else self.width > 0)

    def apply(self, values: np.ndarray) -> np.ndarray:
        """Return `values` in [0, 1] by the standard's formula, float64."""
        if self.function == "SIGMOID":
            exponent = np.clip(-4 * (values - self.center) / self.width, -700, 700)  # exp stays finite
            return 1 / (1 + np.exp(exponent))
        half, middle = (0.5, self.center - 0.5) if self.function == "LINEAR" else (0.0, self.center)
        span = self.width - 2 * half
        if span == 0:  # LINEAR with width 1 is a threshold
            return (values > middle).astype(np.float64)
        return np.clip((values - middle) / span + 0.5, 0.0, 1.0)


@dataclass(frozen=True)
class DisplayTable:
    """What each possible stored value looks like."""

    levels: np.ndarray
    """(V,) float32 in [0, 1], bright = dense; padding = 0."""
    voi: Voi
    """What brought the values of interest to [0, 1]: a header's table or window, a robust range, or the full range."""


def display_table(
    counts: np.ndarray,
    lowest: int,
    *,
    modality: Lut | tuple[float, float] | None = None,
    voi: Lut | Window | None = None,
    invert: bool = False,
    padding: tuple[int, int] | None = None,
) -> DisplayTable:
    """Return the display value of every possible stored value.

    Args:
        counts: (V,) pixels of the image that hold each stored value.
        lowest: The stored value of entry 0: 0, or ``-V // 2`` where values are signed.
        modality: The modality table, or (slope, intercept); None is the identity.
        voi: The header's VOI table or window; an unusable window counts as none.
        invert: Whether small values are bright; applied once, last.
        padding: Lowest and highest stored value that is no image but padding; shown black, in no statistics.

    Raises:
        ImageRejectedError: `constant_image` if the unpadded pixels all have one value.
    """
    stored = np.arange(lowest, lowest + len(counts), dtype=np.int64)
    padded = np.zeros(len(counts), bool) if padding is None else (stored >= padding[0]) & (stored <= padding[1])
    seen = np.where(padded, 0, counts)
    if np.count_nonzero(seen) < 2:
        raise ImageRejectedError("constant_image", "every unpadded pixel has the same value")
    values = _modality(stored, modality)
    shown, name = _voi(values, seen, voi, full_range=len(counts) <= 256 and modality in (None, (1.0, 0.0)))
    if invert:
        shown = 1.0 - shown  # hi + lo - x over the range [0, 1], never the image's own maximum
    return DisplayTable(np.where(padded, 0.0, shown).astype(np.float32), name)


def _modality(stored: np.ndarray, modality: Lut | tuple[float, float] | None) -> np.ndarray:
    if isinstance(modality, Lut):
        return modality.apply(stored)
    slope, intercept = modality or (1.0, 0.0)
    return stored * slope + intercept


def _voi(values: np.ndarray, seen: np.ndarray, voi: Lut | Window | None, *, full_range: bool) -> tuple[np.ndarray, Voi]:
    """Return (V,) values in [0, 1] and what mapped them; a map that shows one level only is passed over."""
    if isinstance(voi, Lut):
        # Some writers declare fewer bits than their entries need.
        top = max(2**voi.bits - 1, int(voi.entries.max()), 1)
        shown = np.clip(voi.apply(values) / top, 0.0, 1.0)
        if _varies(shown, seen):
            return shown, "lut"
    elif voi is not None and voi.usable:
        shown = voi.apply(values)
        if _varies(shown, seen):
            return shown, "window"
    if full_range:  # eight bits without a window are made for the screen, as in a PNG
        return (values - values[0]) / (len(values) - 1), "none"
    return robust_levels(values, seen), "range"


def robust_levels(values: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Return (V,) `values` in [0, 1], black and white where `ROBUST_RANGE` has them.

    Args:
        values: (V,) float64, in any order.
        seen: (V,) pixels that hold each value.

    Raises:
        ImageRejectedError: `constant_image` if all pixels hold one value.
    """
    low, high = _robust_range(values, seen)
    return np.clip((values - low) / (high - low), 0.0, 1.0)


def _varies(shown: np.ndarray, seen: np.ndarray) -> bool:
    visible = shown[seen > 0]
    return bool(visible.max() > visible.min())


def _robust_range(values: np.ndarray, seen: np.ndarray) -> tuple[float, float]:
    """Return the values below which the `ROBUST_RANGE` shares of the pixels lie; all pixels if those two are one."""
    order = np.argsort(values, kind="stable")
    share = np.cumsum(seen[order]) / seen.sum()
    low, high = (float(values[order][np.searchsorted(share, bound)]) for bound in ROBUST_RANGE)
    if low == high:
        visible = values[seen > 0]
        low, high = float(visible.min()), float(visible.max())
    if low == high:  # a modality table can map different stored values to one
        raise ImageRejectedError("constant_image", "every unpadded pixel has the same value")
    return low, high
