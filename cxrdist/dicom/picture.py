"""A decoded image: the words of the file and, for each possible word, what it means and how it looks.

Everything up to the display maps one word to one grey level, so it is done to 65536 table entries and not to the
pixels; these are looked up once.  Shapes: W possible words, 256 or 65536; (H, W) images.
"""

from dataclasses import dataclass, replace

import cv2
import numpy as np

from cxrdist.dicom.display import robust_levels
from cxrdist.errors import ImageRejectedError

Notes = dict[str, str | int | float]
BLOCK = 2**16
"""Words looked up at a time: NumPy turns indices to 8 bytes each, which for a whole image would be its largest copy."""
MOST_COUNTED = 2**24
"""Words counted at a time: OpenCV, twice as fast as NumPy, hands its counts over in float32."""


@dataclass(frozen=True)
class Picture:
    """One image at the size of its file."""

    words: np.ndarray
    """(H, W) uint8 or uint16."""
    levels: np.ndarray
    """(W,) float32 in [0, 1]: how a word looks, bright = dense; padding = 0."""
    values: np.ndarray
    """(W,) uint8, uint16 or int16: the number a word stands for, before any step of the display."""
    bits: int
    """Bits of the source that carry information, 8 to 16."""
    notes: Notes
    inverted: bool = False
    """Whether small `values` are bright."""
    padding: np.ndarray | None = None
    """(W,) bool: words that are padding; None if the image has none."""
    aspect: float = 1.0
    """Height of a pixel over its width."""

    def pixels(self) -> np.ndarray:
        """Return (H, W) float32 in [0, 1] for display."""
        return look_up(self.levels, self.words)

    def turned(self) -> "Picture":
        """Return the picture with its polarity turned once more; padding stays black."""
        levels = np.float32(1) - self.levels
        if self.padding is not None:
            levels[self.padding] = 0
        return replace(self, levels=levels, inverted=not self.inverted)


def plain_picture(words: np.ndarray, bits: int, notes: Notes, *, robust: bool = False) -> Picture:
    """Return the picture of unsigned words whose whole range, [0, 2**bits - 1], is black to white.

    With `robust` black to white is the robust range of the pixels instead, and the picture's `bits` are those in use.

    Raises:
        ImageRejectedError: `constant_image`.
    """
    counts = count_words(words)
    found = np.flatnonzero(counts)
    if len(found) < 2:
        raise ImageRejectedError("constant_image", "every pixel has the same value")
    values = np.arange(len(counts), dtype=words.dtype)
    if robust:
        levels = robust_levels(values.astype(np.float64), counts).astype(np.float32)
        return Picture(words, levels, values, max(int(found[-1]).bit_length(), 8), {**notes, "voi": "range"})
    levels = np.minimum(np.arange(len(counts)) / (2**bits - 1), 1).astype(np.float32)
    return Picture(words, levels, values, max(bits, 8), {**notes, "voi": "none"})


def colour_picture(words: np.ndarray, bits: int, notes: Notes) -> Picture:
    """Return the picture of uint16 luminance, [0, 65535], that comes from channels of `bits` bits.

    Raises:
        ImageRejectedError: `constant_image`.
    """
    picture = plain_picture(words, 16, notes)
    grey = np.rint(np.arange(2**16) * ((2**bits - 1) / 65535))
    return replace(picture, values=grey.astype(np.uint8 if bits <= 8 else np.uint16), bits=max(bits, 8))


def count_words(words: np.ndarray) -> np.ndarray:
    """Return (W,) int64: how many pixels of (H, W) uint8 or uint16 `words` hold each word."""
    counts = np.zeros(2 ** (8 * words.dtype.itemsize), np.int64)
    rows = max(MOST_COUNTED // words.shape[1], 1)
    for start in range(0, len(words), rows):
        part = cv2.calcHist([words[start : start + rows]], [0], None, [len(counts)], [0, len(counts)])
        counts += part.ravel().astype(np.int64)
    return counts


def look_up(table: np.ndarray, words: np.ndarray) -> np.ndarray:
    """Return (H, W) entries of the (W,) `table`."""
    found = np.empty(words.shape, table.dtype)
    rows = max(BLOCK // words.shape[1], 1)
    for start in range(0, len(words), rows):
        # "clip" never clips here, but with "raise" NumPy buffers the output.
        np.take(table, words[start : start + rows], out=found[start : start + rows], mode="clip")
    return found
