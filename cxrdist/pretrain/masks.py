"""Blocks of masked patches, as in BEiT (Bao et al. 2022, algorithm 1), iBOT and DINOv2.

Shapes: B images, C crops (all of a batch), H and W patches of a side, N = H W, M masked patches of the batch.

What is random comes from the seeds of the images.  How many patches a batch masks does not: C crops have a fixed ladder
of numbers of masked patches, evenly over the range of shares (DINOv2's collate function draws each step of it within an
interval; here it is the interval's middle), and the seeds say which crop has which.  So no shape depends on a value,
memory can be planned, and nothing is padded.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch

ATTEMPTS = 10
SMALLEST = 4
"""Patches of the smallest block that is drawn."""
ASPECT = 0.3
"""Smallest height over width of a block; the largest is its inverse."""


@dataclass(frozen=True)
class Masks:
    """The masked patches of a batch."""

    mask: torch.Tensor
    """(C, N) bool."""
    index: torch.Tensor
    """(M,) int64: the masked patches in the flattened (C N), rising."""
    weight: torch.Tensor
    """(M,) float32: 1 / (masked patches of the patch's crop) / C, so that a weighted sum is the loss of iBOT."""

    def to(self, device: torch.device) -> "Masks":
        """Return them on `device`."""
        mask, index, weight = (value.to(device, non_blocking=True) for value in (self.mask, self.index, self.weight))
        return Masks(mask, index, weight)


def ladder(crops: int, patches: int, *, ratio: tuple[float, float], share: float) -> list[int]:
    """Return how many patches each of the masked crops has masked, rising: one crop and one patch at least."""
    masked = max(1, int(crops * share))
    step = (ratio[1] - ratio[0]) / masked
    return [max(1, int(patches * (ratio[0] + step * (place + 0.5)))) for place in range(masked)]


def block_masks(
    seeds: list[int], grid: tuple[int, int], *, crops: int, ratio: tuple[float, float], share: float
) -> Masks:
    """Return the masks of `crops` crops of each image, on the CPU; crops in the order (crop, image).

    Args:
        seeds: Of the images.
        grid: H and W.
        crops: Of each image.
        ratio: Range of the share of patches that is masked in a crop that is.
        share: Of the crops that are masked.
    """
    streams = [np.random.default_rng([seed, crop]) for crop in range(crops) for seed in seeds]
    mask = np.zeros((len(streams), *grid), bool)
    numbers = ladder(len(streams), grid[0] * grid[1], ratio=ratio, share=share)
    drawn = sorted(range(len(streams)), key=[rng.random() for rng in streams].__getitem__)
    weight = np.zeros(len(streams), np.float32)
    for crop, number in zip(drawn[: len(numbers)], numbers, strict=True):
        mask[crop] = block_mask(grid, number, streams[crop])
        weight[crop] = 1 / number / len(streams)
    flat = mask.reshape(len(streams), -1)
    index = np.flatnonzero(flat)
    return Masks(torch.tensor(flat), torch.tensor(index), torch.tensor(weight[index // flat.shape[1]]))


def block_mask(grid: tuple[int, int], number: int, rng: np.random.Generator) -> np.ndarray:
    """Return a mask (H, W) of exactly `number` patches, in blocks.

    Blocks of random size and aspect are laid, over each other or not, until `number` is reached; where no more fits,
    single patches make up the rest (as DINOv3 does; DINOv2 leaves it at fewer).
    """
    mask = np.zeros(grid, bool)
    left = number
    while left:
        block = _block(mask, left, rng)
        if block is None:
            free = np.flatnonzero(~mask)
            mask.reshape(-1)[rng.choice(free, left, replace=False)] = True
            return mask
        mask[block] = True
        left = number - int(mask.sum())
    return mask


def _block(mask: np.ndarray, most: int, rng: np.random.Generator) -> tuple[slice, slice] | None:
    """Return a block that masks between one and `most` patches more, None if none is found."""
    height, width = mask.shape
    for _ in range(ATTEMPTS):
        area = rng.uniform(min(SMALLEST, most), most)
        aspect = math.exp(rng.uniform(math.log(ASPECT), -math.log(ASPECT)))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if h < height and w < width:
            top, left = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
            block = (slice(top, top + h), slice(left, left + w))
            if 0 < h * w - int(mask[block].sum()) <= most:
                return block
    return None
