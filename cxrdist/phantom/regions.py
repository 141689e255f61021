"""Where a finding lies in a picture: for the boxes and masks of data sets that have them.

A finding is drawn alone into lungs full of even air; where it changes them is its region.  Nothing else of the picture
is made, so this costs a fraction of a drawing.
"""

from collections.abc import Sequence

import cv2
import numpy as np

from cxrdist.phantom.draw import frame_of
from cxrdist.phantom.findings import DRAWERS
from cxrdist.phantom.people import Exam
from cxrdist.phantom.scene import Scene
from cxrdist.phantom.shapes import frontal_shape


def air_left(exam: Exam, names: Sequence[str], shape: tuple[int, int]) -> np.ndarray:
    """Return (H, W) float32, the air of the lungs once the findings `names` are drawn: 1 none of them, 0 filled.

    Above 1 there is more air than a lung holds (a pneumothorax); outside the lungs it is 1.

    Args:
        exam: A frontal exposure.
        names: Findings of `DRAWERS`; those that the exam does not have are passed over.
        shape: Rows and columns of the picture.
    """
    frame, outlines = frame_of(exam, shape), frontal_shape(exam)
    lungs = {side: frame.mask(outline) for side, outline in zip((-1, 1), outlines.lungs, strict=True)}
    x, y = frame.grid
    maps = [frame.zeros() for _ in range(5)]
    scene = Scene(frame, exam, outlines, maps[0], maps[1] + 1, maps[2], maps[3], maps[4], frame.zeros(), lungs, x, y)
    for name, draw in DRAWERS.items():
        if name in names and name in exam.findings:
            draw(scene, exam.findings[name], exam.lesion_rng(name))
    return np.asarray(1 + (scene.air - 1) * np.minimum(scene.lung, 1))


def boxes(mask: np.ndarray, *, least: float = 0.004) -> list[tuple[int, int, int, int]]:
    """Return ``(x, y, width, height)`` around each piece of a mask (H, W) of bool, largest first, pixels.

    Pieces smaller than `least` of the picture are passed over, unless nothing else is there.
    """
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    pieces = sorted(stats[1:].tolist(), key=lambda piece: -piece[4])
    large = [piece for piece in pieces if piece[4] >= least * mask.size] or pieces[:1]
    return [(x, y, width, height) for x, y, width, height, _ in large]
