"""From thickness to a picture: attenuation, scatter, quantum noise, detector response and each site's processing.

Maps are (H, W) float32; a display picture is in [0, 1], bright = dense.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from cxrdist.phantom.canvas import Frame

ATTENUATION_PER_CM = 0.19
"""Effective attenuation of water at about 120 kV, grid in."""


@dataclass(frozen=True)
class Beam:
    """One exposure's technique."""

    photons: float = 4_000_000.0
    """Detected photons per cm² in air, after the tube's and the detector's losses; sets the noise."""
    scatter: float = 0.35
    """Scattered over primary signal behind an average chest; beds have no grid."""
    attenuation: float = ATTENUATION_PER_CM
    gamma: float = 1.0
    """Shape of the grey scale: above 1 darkens the lungs."""
    sharpen: float = 0.25
    """Share of unsharp masking."""


def expose(frame: Frame, water: np.ndarray, beam: Beam, rng: np.random.Generator) -> np.ndarray:
    """Return the display picture of `water` (cm of water-equivalent thickness).

    The signal is primary plus scattered photons with Poisson noise (its Gaussian limit); the detector is logarithmic;
    the automatic grey scale is set by quantiles of the picture, as exposure-index software does.
    """
    primary = np.exp(-np.float32(beam.attenuation) * water)
    scattered = frame.blur(np.minimum(primary, np.float32(0.35)), 5.0)
    signal = primary + np.float32(beam.scatter) * scattered
    per_pixel = beam.photons / frame.scale**2
    signal += np.sqrt(signal / np.float32(per_pixel)) * rng.standard_normal(signal.shape, dtype=np.float32)
    dense = -np.log(np.maximum(signal, np.float32(2e-4)))
    if beam.sharpen:
        dense += np.float32(beam.sharpen) * (dense - frame.blur(dense, 0.5))
    low, high = _quantiles(dense, (0.015, 0.985))
    low = max(low, 0.35 * high)
    grey = np.clip(
        (dense - np.float32(low)) / np.float32(max(high - low, 1e-3)) * np.float32(0.93) + np.float32(0.03), 0, 1
    )
    return _toe_and_shoulder(grey**beam.gamma)


def _quantiles(image: np.ndarray, shares: tuple[float, float]) -> tuple[float, float]:
    """Return two quantiles of about 4000 of the pixels; sorting all would be slow."""
    step = max(image.shape[0] // 64, 1)
    sample = np.sort(image[::step, ::step], axis=None)
    low, high = (float(sample[int(share * (sample.size - 1))]) for share in shares)
    return low, high


def _toe_and_shoulder(grey: np.ndarray) -> np.ndarray:
    """Return the S-curve of film: little contrast in the blackest and the whitest parts."""
    return np.asarray(0.55 * grey + 0.45 * grey * grey * (3 - 2 * grey), np.float32)


def equalise(grey: np.ndarray) -> np.ndarray:
    """Return the histogram-equalised picture, as CheXpert's files are."""
    return cv2.equalizeHist(np.rint(grey * 255).astype(np.uint8)).astype(np.float32) / 255


def collimate(grey: np.ndarray, margins: np.ndarray, level: float = 0.0) -> np.ndarray:
    """Return the picture with `margins` (top, bottom, left, right; shares of the short side) at a shutter's `level`."""
    height, width = grey.shape
    top, bottom, left, right = (int(min(height, width) * share) for share in margins)
    out = np.full_like(grey, level)
    out[top : height - bottom, left : width - right] = grey[top : height - bottom, left : width - right]
    return out


def stamp(grey: np.ndarray, text: str, at: tuple[float, float], height: float, level: float = 1.0) -> None:
    """Write `text` into the picture: top left corner `at` (x, y) and `height` are shares of the picture."""
    rows = grey.shape[0]
    scale = height * rows / 22.0
    thick = max(int(scale * 2.2 + 0.5), 1)
    canvas = np.zeros(grey.shape, np.uint8)
    origin = (int(at[0] * grey.shape[1]), int((at[1] + height) * rows))
    cv2.putText(canvas, text, origin, cv2.FONT_HERSHEY_SIMPLEX, scale, 255, thick, cv2.LINE_AA)
    np.maximum(grey, canvas.astype(np.float32) / 255 * np.float32(level), out=grey)
