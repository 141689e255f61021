"""From a packed image to what a backbone sees.  Shapes: H W source pixels, S input side.

Pixels stay integers (uint8, or uint16 for 16-bit shards) until they are on the device: a quarter of the memory traffic
of floats.  Normalisation by the backbone's mean and standard deviation belongs to the model (`cxrdist.models`).
"""

import cv2
import numpy as np

from cxrdist.data.config import AugmentConfig, Fit


def fit(image: np.ndarray, size: int, how: Fit) -> np.ndarray:
    """Return `image` (H, W) as a square (S, S) of the same dtype; shrinking is antialiased (area mean).

    ``pad`` keeps everything and fills with black, ``crop`` keeps the centre square, ``squash`` ignores the aspect.
    """
    height, width = image.shape
    if how == "squash" or height == width:
        return resize(image, size, size)
    if how == "crop":
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        return resize(np.ascontiguousarray(image[top : top + side, left : left + side]), size, size)
    scale = size / max(height, width)
    scaled = resize(image, max(1, round(height * scale)), max(1, round(width * scale)))
    height, width = scaled.shape
    square = np.zeros((size, size), image.dtype)
    top, left = (size - height) // 2, (size - width) // 2
    square[top : top + height, left : left + width] = scaled
    return square


def augment(image: np.ndarray, config: AugmentConfig, rng: np.random.Generator) -> np.ndarray:
    """Return a randomly changed copy of a square `image` (S, S), same dtype.

    Every draw is made in every call, so the stream does not depend on which changes are switched on.
    """
    size = image.shape[0]
    angle = rng.uniform(-config.rotate, config.rotate)
    shift_x, shift_y = rng.uniform(-config.shift, config.shift, 2) * size
    zoom = rng.uniform(*config.zoom)
    brightness = rng.uniform(-config.brightness, config.brightness)
    contrast = 1 + rng.uniform(-config.contrast, config.contrast)
    mirrored = rng.random() < 0.5 and config.flip
    centre = (size - 1) / 2
    matrix = cv2.getRotationMatrix2D((centre, centre), angle, zoom)
    matrix[:, 2] += (shift_x, shift_y)
    if mirrored:
        matrix = matrix @ np.array([[-1.0, 0.0, size - 1], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    top = np.iinfo(image.dtype).max
    warped = cv2.warpAffine(image, matrix, (size, size), flags=cv2.INTER_LINEAR, borderValue=0)
    offset = top * (0.5 - 0.5 * contrast + brightness)
    changed = np.rint(np.clip(warped.astype(np.float32) * contrast + offset, 0, top))
    return changed.astype(image.dtype)


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return `image` in another size, same dtype: the area mean along what shrinks, linear along what grows."""
    # Shrink first: OpenCV's area mean silently becomes linear, without antialiasing, if the other axis grows.
    smaller = min(height, image.shape[0]), min(width, image.shape[1])
    if smaller != image.shape:
        image = cv2.resize(image, smaller[::-1], interpolation=cv2.INTER_AREA)
    if smaller != (height, width):
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    return image
