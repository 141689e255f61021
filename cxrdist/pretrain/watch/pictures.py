"""Pictures of patch features: their first three principal components as red, green and blue, beside the image.

They are made of the packed radiographs and show them.  So the folder of a run with pictures is as private as the shards
that they are of; no id stands in them.  Shapes: n images, H W patches, D features, S side of an image.
"""

from pathlib import Path

import cv2
import numpy as np

from cxrdist.log import get_logger

log = get_logger(__name__)

SIDE = 224
"""Of one image in a picture, pixels."""
GAP = 4


def component_colours(patches_nHWD: np.ndarray) -> np.ndarray:
    """Return the first three principal components over all patches as colours (n, H, W, 3) uint8.

    Each is stretched from its 2nd to its 98th percentile (Oquab et al. 2024, DINOv2, figure 1 has such pictures).
    A component's sign is arbitrary: it is chosen so that the farther tail is bright.
    """
    rows = patches_nHWD.reshape(-1, patches_nHWD.shape[-1]).astype(np.float64)
    rows -= rows.mean(axis=0)
    _, _, axes = np.linalg.svd(rows, full_matrices=False)
    components = np.zeros((len(rows), 3))
    found = min(3, len(axes))
    components[:, :found] = rows @ axes[:found].T
    components *= np.where(components.max(axis=0) < -components.min(axis=0), -1, 1)
    low, high = np.percentile(components, (2, 98), axis=0)
    # A component that is rounding alone would be noise in full colours.
    flat = high - low <= 1e-6 * max(float((high - low).max()), 1e-30)
    shares = np.where(flat, 0.5, (components - low) / np.where(flat, 1, high - low))
    return np.rint(255 * shares.clip(0, 1)).astype(np.uint8).reshape(*patches_nHWD.shape[:3], 3)


def picture_of(images_nSS: np.ndarray, patches_nHWD: np.ndarray) -> np.ndarray:
    """Return one picture (height, width, 3) uint8 RGB: a row for each image, grey at the left, its patches at the
    right; `images_nSS` are uint8, or floats in [0, 1].
    """
    grey = images_nSS if images_nSS.dtype == np.uint8 else np.rint(255 * images_nSS.clip(0, 1)).astype(np.uint8)
    rows = []
    for image, colours in zip(grey, component_colours(patches_nHWD), strict=True):
        shrinks = len(image) > SIDE
        left = cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
        right = cv2.resize(colours, (SIDE, SIDE), interpolation=cv2.INTER_NEAREST)
        row = np.zeros((SIDE + GAP, 2 * SIDE + GAP, 3), np.uint8)
        row[:SIDE, :SIDE], row[:SIDE, -SIDE:] = left[..., None], right
        rows.append(row)
    return np.concatenate(rows)[:-GAP]


def write_picture(path: Path, picture: np.ndarray) -> None:
    """Write an RGB picture as PNG; what the disk refuses is a warning, since the training needs no picture."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        hidden = path.with_name(f".{path.name}")
        _, encoded = cv2.imencode(".png", picture[..., ::-1])
        hidden.write_bytes(encoded.tobytes())
        hidden.replace(path)
    except OSError as error:
        log.warning("The picture of step %s could not be written: %s.", path.stem, error.strerror)
