"""The last two steps before an image is stored: smaller, then whole numbers.  Shapes: (H, W) float32 in [0, 1]."""

from typing import Literal

import cv2
import numpy as np


def shrink(pixels: np.ndarray, short_side: int) -> np.ndarray:
    """Return `pixels` with the shorter side at `short_side` at most; keeps the aspect and never enlarges.

    Averages over the area of each target pixel, in float: fine structure above the new Nyquist limit is averaged out
    instead of folded into false edges.
    """
    height, width = pixels.shape
    if min(height, width) <= short_side:
        return pixels
    scale = short_side / min(height, width)
    target = (max(round(width * scale), short_side), max(round(height * scale), short_side))
    return resample(pixels, *target)


def is_square(aspect: float) -> bool:
    """Return whether pixels of this height over width count as square."""
    return 0.99 < aspect < 1.01


def square(pixels: np.ndarray, aspect: float) -> np.ndarray:
    """Return an image, whose pixels have height over width `aspect`, with square ones; the finer axis gives way."""
    height, width = pixels.shape
    if is_square(aspect):
        return pixels
    if aspect > 1:
        return resample(pixels, max(round(width / aspect), 1), height)
    return resample(pixels, width, max(round(height * aspect), 1))


def resample(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """Return `pixels` averaged to (height, width); neither may grow."""
    smaller = cv2.resize(np.ascontiguousarray(pixels, np.float32), (width, height), interpolation=cv2.INTER_AREA)
    return np.clip(smaller, 0.0, 1.0)


def quantise(pixels: np.ndarray, bits: Literal[8, 16]) -> np.ndarray:
    """Return `pixels` of [0, 1] rounded to the ``2**bits`` levels of uint8 or uint16."""
    if bits not in (8, 16):
        raise ValueError(f"`bits` must be 8 or 16, got {bits}.")
    # float32 has 24 bits of mantissa, so every 16-bit level survives the way to [0, 1] and back.
    return np.rint(pixels * np.float32(2**bits - 1)).astype(np.uint8 if bits == 8 else np.uint16)
