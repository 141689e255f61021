"""Spreading the grey levels by their histogram, as several public copies of radiographs had it done to them.

All work with 8 bits, as their sources do.  Shapes: (H, W) float32 in [0, 1], in and out.
"""

import cv2
import numpy as np
from scipy import ndimage

from cxrdist.errors import ImageRejectedError

CLIP_LIMIT, TILES = 2.0, (8, 8)
MOST_ZOOMED = 50_000_000
"""Pixels above which `tayebi2024` refuses an image: the coefficients of its spline take 8 bytes each."""


def equalize_global(pixels: np.ndarray, padding: np.ndarray | None = None) -> np.ndarray:
    """Return `pixels` with the histogram equalised, by OpenCV's `equalizeHist` where there is no padding.

    Args:
        pixels: The displayed picture at its final size; it is rounded to 8 bits first.
        padding: (H, W) bool of what is no image: not counted, and black.  None: all is image.

    Raises:
        ImageRejectedError: `constant_image`.
    """
    grey = _eight_bits(pixels)
    image = np.ones(grey.shape, bool) if padding is None else ~padding
    counts = np.bincount(grey[image], minlength=256)
    seen = np.flatnonzero(counts)
    if len(seen) < 2:
        raise ImageRejectedError("constant_image", "every unpadded pixel has the same value")
    below = np.cumsum(counts) - counts[seen[0]]  # the darkest level becomes 0
    # OpenCV multiplies in float32; so the levels agree to the last one.
    scale = np.float32(255) / np.float32(below[-1])
    spread = np.clip(np.rint(below.astype(np.float32) * scale), 0, 255) / 255
    return np.where(image, spread.astype(np.float32)[grey], np.float32(0))


def equalize_clahe(pixels: np.ndarray, padding: np.ndarray | None = None) -> np.ndarray:
    """Return `pixels` equalised in 8 x 8 tiles with OpenCV's CLAHE, clip limit 2.0; `padding` is black afterwards."""
    spread = cv2.createCLAHE(CLIP_LIMIT, TILES).apply(_eight_bits(pixels)) / np.float32(255)
    return spread if padding is None else np.where(padding, np.float32(0), spread)


def tayebi2024(values: np.ndarray, size: int, *, inverted: bool) -> np.ndarray:
    """Return the image as Tayebi Arasteh et al. prepared theirs (Eur Radiol Exp 8:10, 2024), (size, size).

    The order matters: resized by a quadratic spline without keeping the aspect, stretched from its own minimum to its
    own maximum, rounded to 8 bits, inverted, equalised.  No rescaling, window or VOI table of the header enters.

    Args:
        values: (H, W) uint8, uint16 or int16: stored values of a DICOM file, or grey values of a PNG or JPEG.  The
            spline keeps the type, and so rounds.
        size: Pixels of both sides.
        inverted: Whether small values are bright (MONOCHROME1).

    Raises:
        ImageRejectedError: `constant_image`; `too_large` above `MOST_ZOOMED`.
    """
    if values.size > MOST_ZOOMED:
        raise ImageRejectedError("too_large", f"{values.shape[1]} x {values.shape[0]} pixels for a spline")
    resized = ndimage.zoom(values, np.divide((size, size), values.shape), order=2).astype(np.float64)
    low, high = resized.min(), resized.max()
    if low == high:
        raise ImageRejectedError("constant_image", "one grey level after resizing")
    grey = np.rint((resized - low) / (high - low) * 255).astype(np.uint8)
    return cv2.equalizeHist(255 - grey if inverted else grey) / np.float32(255)


def _eight_bits(pixels: np.ndarray) -> np.ndarray:
    return np.rint(pixels * np.float32(255)).astype(np.uint8)
