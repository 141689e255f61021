"""What becomes of an image with text in its pixels."""

import numpy as np

from cxrdist.dicom.burned_in import Box
from cxrdist.dicom.choices import BurnedInPolicy
from cxrdist.errors import ImageRejectedError


def judge_text(
    boxes: list[Box], *, declared: bool, seen_as: BurnedInPolicy, declared_as: BurnedInPolicy
) -> tuple[list[Box], str | None]:
    """Return the boxes to blacken, and ``declared``, ``seen``, ``masked`` or None for the notes.

    Args:
        boxes: Where text is seen.
        declared: Whether the header says that there is text.
        seen_as: What becomes of text that is seen.
        declared_as: What becomes of an image whose header says so.  What is blackened by it is not seen any more;
            ``flag`` keeps the image, but text that is seen in it is judged as in any other.

    Raises:
        ImageRejectedError: `burned_in_text`.
    """
    if declared and declared_as == "reject":
        raise ImageRejectedError("burned_in_text", "(0028,0301) says so")
    if declared and declared_as == "mask":
        if not boxes:
            raise ImageRejectedError("burned_in_text", "(0028,0301) says so, but no text is found to be masked")
        return boxes, "masked"
    if not boxes:
        return [], "declared" if declared else None
    if seen_as == "reject":
        raise ImageRejectedError("burned_in_text", "text is seen in the pixels")
    return (boxes, "masked") if seen_as == "mask" else ([], "seen")


def blacken(pixels: np.ndarray, boxes: list[Box], black: float) -> np.ndarray:
    """Return (H, W) `pixels`, changed in place, with the value `black` inside the boxes."""
    for top, left, bottom, right in boxes:
        pixels[top:bottom, left:right] = black
    return pixels
