"""Random crops of an image, for methods that compare several of them.  Shapes: V large crops, L small, S and s sides.

An image is a square first, as `InputConfig.fit` makes it, at the resolution it was packed in.  A crop is an upright or
turned rectangle of that square, brought to its own square in one step, so that nothing is blurred by being resampled
twice; then its grey levels change.  Pixels stay integers: what depends on the grey level alone is a table of 256.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
import torch
from scipy.special import ndtri
from torch.utils.data import Dataset

from cxrdist.data.config import CropConfig, Fit, InputConfig, LocalCropsConfig, Positives
from cxrdist.data.loader import Batch, as_tensor
from cxrdist.data.order import sample_at
from cxrdist.data.partners import Partners
from cxrdist.data.samples import Samples
from cxrdist.data.transforms import resize
from cxrdist.seeds import Purpose, derive, stream

LARGE_CROPS = 2
BLUR_SIZE = 224
"""Side of the crop that `CropConfig.blur_sigma` is told for, pixels."""
WIDEST_STEP = 1.25
"""Source pixels between two samples of a turned crop: more of them, and what lies between would be missed."""


class CropImages(Dataset[Batch]):
    """Crops by position in the training stream; the same position gives the same tensors anywhere.

    An item has ``image`` (2, 1, S, S), ``local`` (L, 1, s, s) where there are small crops, both uint8 or float32 in
    [0, 1], ``target`` (0,), ``sample`` and ``seed``.  With `positives` the second large crop is of another image of the
    same study or patient, where there is one; all other crops are of the sample itself.
    """

    def __init__(
        self,
        samples: Samples,
        config: InputConfig,
        seed: int,
        *,
        crops: CropConfig,
        local: LocalCropsConfig | None = None,
        positives: Positives = "image",
    ) -> None:
        """Prepare; of `config` only `image_size`, `fit` and `workers` count here.

        Raises:
            UsageError: If `positives` asks for other images and no sample has one.
        """
        self.samples, self.config, self.seed = samples, config, seed
        self.crops, self.local = crops, local if local and local.count else None
        # Here and not where it is first needed, so that forked reading processes share it.
        self.positives = positives
        self.partners = None if positives == "image" else Partners(samples, positives)

    def __getitem__(self, position: int) -> Batch:
        epoch, sample = sample_at(position, len(self.samples), self.seed)
        first = self.samples.image(sample)
        second = self._partner(epoch, sample, first)
        size = self.config.image_size
        large = [
            self._crop(image, self.crops, size, epoch, sample, number) for number, image in enumerate((first, second))
        ]
        item = {"image": as_tensor(np.stack(large))[:, None]}
        if self.local:
            numbers = range(LARGE_CROPS, LARGE_CROPS + self.local.count)
            small = [self._crop(first, self.local, self.local.size, epoch, sample, number) for number in numbers]
            item["local"] = as_tensor(np.stack(small))[:, None]
        return item | {
            "target": torch.zeros(0),
            "sample": torch.tensor(sample),
            "seed": torch.tensor(derive(self.seed, Purpose.MASK, epoch, sample)),
        }

    def _partner(self, epoch: int, sample: int, image: np.ndarray) -> np.ndarray:
        if self.partners is None:
            return image
        partner = self.partners.choose(sample, stream(self.seed, Purpose.PARTNER, epoch, sample))
        return image if partner == sample else self.samples.image(partner)

    def _crop(
        self, image: np.ndarray, config: CropConfig, size: int, epoch: int, sample: int, number: int
    ) -> np.ndarray:
        rng = stream(self.seed, Purpose.CROPS, epoch, sample, number)
        drawn = draw_crop(config, rng)
        return change_levels(cut(image, drawn, size, self.config.fit), drawn, rng)


@dataclass(frozen=True)
class DrawnCrop:
    """Where a crop lies and how its grey levels change."""

    left: float
    top: float
    width: float
    height: float
    """The upright rectangle, in shares of the square's side; it never leaves the square."""
    angle: float
    """By which it is then turned about its centre, degrees; corners that leave the square are black."""
    mirrored: bool
    brightness: float
    """Added, as a share of the full range."""
    contrast: float
    """Factor of the distance from mid-grey."""
    gamma: float
    """Power of the grey level, which is in [0, 1]."""
    sigma: float
    """Standard deviation of the blur, pixels of a crop of `BLUR_SIZE`; 0 is no blur."""
    noise: float
    """Standard deviation of the noise, as a share of the full range."""


def draw_crop(config: CropConfig, rng: np.random.Generator) -> DrawnCrop:
    """Return a crop, drawn by twelve numbers whatever is switched on.

    The share of the area is uniform in `scale`.  The logarithm of width over height is uniform in that part of `ratio`
    in which a rectangle of this area fits into the square; without such a part the ratio is the nearest to 1 and the
    rectangle the largest that fits.
    """
    area, ratio, x, y, angle, brightness, contrast, gamma, blurred, sigma, noise, mirrored = rng.random(12).tolist()
    width, height = _rectangle(_between(config.scale, area), config.ratio, ratio)
    return DrawnCrop(
        left=x * (1 - width),
        top=y * (1 - height),
        width=width,
        height=height,
        angle=config.rotate * (2 * angle - 1),
        mirrored=config.flip and mirrored < 0.5,
        brightness=config.brightness * (2 * brightness - 1),
        contrast=1 + config.contrast * (2 * contrast - 1),
        gamma=config.gamma ** (2 * gamma - 1),
        sigma=_between(config.blur_sigma, sigma) if blurred < config.blur else 0.0,
        noise=config.noise * noise,
    )


def cut(image: np.ndarray, drawn: DrawnCrop, size: int, how: Fit) -> np.ndarray:
    """Return the crop of a packed `image` (H, W) as a square (S, S) of the same dtype, its grey levels unchanged.

    Upright rectangles end on whole pixels and shrink by the area mean, as `fit` does; of a turned one, each pixel is
    the mean of so many bilinear samples that they lie about a pixel of the image apart.
    """
    height, width = image.shape
    span_x, span_y, left, top = width, height, 0, 0  # the square's sides in pixels, and where the image lies in it
    if how == "crop":
        span_x = span_y = side = min(height, width)
        above, before = (height - side) // 2, (width - side) // 2
        image = image[above : above + side, before : before + side]
    elif how == "pad":
        span_x = span_y = max(height, width)
        left, top = (span_x - width) // 2, (span_y - height) // 2
    if not drawn.angle:
        box = _pixels(drawn.left, drawn.width, span_x), _pixels(drawn.top, drawn.height, span_y)
        square = resize(_upright(image, box[0] - left, box[1] - top), size, size)
        return cv2.flip(square, 1) if drawn.mirrored else square
    return _turned(image, drawn, size, (span_x, span_y), (left, top))


def change_levels(image: np.ndarray, drawn: DrawnCrop, rng: np.random.Generator) -> np.ndarray:
    """Return a crop (S, S) with its grey levels changed as `drawn`, same dtype; `rng` gives the noise alone."""
    if image.dtype == np.uint8:
        image = cv2.LUT(image, _levels(np.arange(256, dtype=np.uint8), drawn))
    else:  # a table of 65536 values has more than most crops have pixels
        image = _levels(image, drawn)
    if drawn.sigma:
        sigma = drawn.sigma * len(image) / BLUR_SIZE
        image = cv2.GaussianBlur(image, (0, 0), sigma)
    if drawn.noise:
        image = _noisy(image, drawn.noise, rng)
    return image


def _between(limits: tuple[float, float], share: float) -> float:
    return limits[0] + (limits[1] - limits[0]) * share


def _rectangle(area: float, ratios: tuple[float, float], share: float) -> tuple[float, float]:
    """Return width and height in shares of the side, neither above 1."""
    low, high = max(ratios[0], area), min(ratios[1], 1 / area)
    if low <= high:
        ratio = low * (high / low) ** share
    else:  # all are too wide, or all too high
        ratio = ratios[0] if ratios[0] > 1 else ratios[1]
        area = min(ratio, 1 / ratio)
    return min(1.0, math.sqrt(area * ratio)), min(1.0, math.sqrt(area / ratio))


def _pixels(begin: float, length: float, span: int) -> np.ndarray:
    """Return the first pixel and the one after the last, at least one apart, int64 of shape (2,)."""
    first = min(round(begin * span), span - 1)
    return np.array([first, max(first + 1, min(round((begin + length) * span), span))])


def _upright(image: np.ndarray, columns: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return a rectangle of `image`, black where it leaves it."""
    (left, right), (top, bottom) = columns.tolist(), rows.tolist()
    inside = image[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
    if inside.shape == (bottom - top, right - left):
        return inside
    canvas = np.zeros((bottom - top, right - left), image.dtype)
    if inside.size:
        canvas[max(-top, 0) :, max(-left, 0) :][: inside.shape[0], : inside.shape[1]] = inside
    return canvas


def _turned(
    image: np.ndarray, drawn: DrawnCrop, size: int, span: tuple[int, int], corner: tuple[int, int]
) -> np.ndarray:
    """Return a turned crop; `span` are the square's sides in pixels, at `corner` of which the image begins."""
    cosine, sine = math.cos(math.radians(drawn.angle)), math.sin(math.radians(drawn.angle))
    across = drawn.width / size * (-1 if drawn.mirrored else 1)
    down = drawn.height / size
    # From pixels of the crop to pixels of the image, about the crop's centre.
    linear = np.array(
        [[cosine * across * span[0], -sine * down * span[0]], [sine * across * span[1], cosine * down * span[1]]]
    )
    samples_x, samples_y = (max(1, math.ceil(step / WIDEST_STEP)) for step in np.hypot(*linear).tolist())
    linear /= (samples_x, samples_y)
    fine = size * samples_x, size * samples_y
    centre = np.array(
        [
            (drawn.left + drawn.width / 2) * span[0] - corner[0] - 0.5,
            (drawn.top + drawn.height / 2) * span[1] - corner[1] - 0.5,
        ]
    )
    shift = centre - linear @ ((fine[0] - 1) / 2, (fine[1] - 1) / 2)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    crop = cv2.warpAffine(image, np.column_stack([linear, shift]), fine, flags=flags, borderValue=0)
    return crop if fine == (size, size) else cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA)


def _levels(levels: np.ndarray, drawn: DrawnCrop) -> np.ndarray:
    """Return what becomes of grey levels, of any shape, same dtype."""
    top = np.iinfo(levels.dtype).max
    # With float32, 16 bits come back as they were where nothing changes.
    grey = (levels.astype(np.float32) / top) ** np.float32(drawn.gamma)
    grey = (grey - 0.5) * np.float32(drawn.contrast) + np.float32(0.5 + drawn.brightness)
    return np.rint(np.clip(grey, 0, 1) * top).astype(levels.dtype)


def _noisy(image: np.ndarray, deviation: float, rng: np.random.Generator) -> np.ndarray:
    # As many equally likely values as the type has, instead of a normal number for each pixel: ten times faster.
    top = np.iinfo(image.dtype).max
    values = np.rint(_normal_values(top + 1) * (deviation * top))
    drawn = rng.integers(0, top, image.shape, image.dtype, endpoint=True)
    if image.dtype == np.uint8:
        return cv2.add(image, cv2.LUT(drawn, values.astype(np.int16)), dtype=cv2.CV_8U)
    return np.clip(image + values.astype(np.int32)[drawn], 0, top).astype(image.dtype)


@lru_cache
def _normal_values(count: int) -> np.ndarray:
    """Return `count` equally likely values that stand for a normal distribution of mean 0 and deviation 1."""
    values = ndtri((np.arange(count) + 0.5) / count)
    return values / values.std()
