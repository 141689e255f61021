"""Mixup (Zhang et al. 2018) within pairs.  Shapes: B images of a micro-batch, K findings, S input side.

Positions 2j and 2j + 1 of the training stream are a pair, and its lambda comes from the seeds of its two images.  A
micro-batch is a contiguous block of the stream that begins at an even position, so a pair is never divided, and the
global batch is the same however it is divided among ranks and micro-batches.
"""

import numpy as np
import torch

from cxrdist.data.order import Batching
from cxrdist.errors import UsageError
from cxrdist.seeds import Purpose, stream


def check_mixup(batching: Batching) -> None:
    """Refuse micro-batches that would divide a pair.

    Raises:
        UsageError: If the micro-batch is odd.
    """
    if batching.micro_batch_size % 2:
        raise UsageError(
            f"`train.micro_batch_size` must be even with `mixup`, which mixes pairs, got {batching.micro_batch_size}. "
            "Choose another `train.micro_batch_size` or `train.global_batch_size`, or set `mixup` to 0."
        )


def mixup(
    images_B1SS: torch.Tensor,
    targets_BK: torch.Tensor,
    seeds_B: torch.Tensor,
    alpha: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images float32 in [0, 1] and targets, each ``lambda * own + (1 - lambda) * partner's``.

    A mixed target is known only where both are: NaN times any lambda stays NaN.

    Args:
        images_B1SS: uint8, or float32 in [0, 1]; B is even.
        targets_BK: In [0, 1], NaN masked.
        seeds_B: The image's own seed (`cxrdist.data.loader.Batch`).
        alpha: Lambda is drawn from Beta(alpha, alpha), once for a pair.
    """
    images = images_B1SS.float()
    if not images_B1SS.is_floating_point():
        images = images / torch.iinfo(images_B1SS.dtype).max
    own = torch.from_numpy(_lambdas(seeds_B.tolist(), alpha)).to(images.device)
    partner = torch.arange(len(images), device=images.device) ^ 1
    image_share, target_share = own.view(-1, 1, 1, 1), own.view(-1, 1)
    mixed = image_share * images + (1 - image_share) * images[partner]
    return mixed, target_share * targets_BK + (1 - target_share) * targets_BK[partner]


def mixed_known_share(targets: np.ndarray) -> float:
    """Return the share of targets to expect known after `mixup`, from those of the training set (N, K), NaN masked.

    The partner is any other image, so a finding known in a share s of the images is known in s^2 of the pairs.
    """
    return float(((~np.isnan(targets)).mean(axis=0) ** 2).mean())


def _lambdas(seeds: list[int], alpha: float) -> np.ndarray:
    """Return the image's own share, float32 (B,): one draw for a pair, the same for both."""
    pairs = zip(seeds[::2], seeds[1::2], strict=True)
    drawn = [stream(first, Purpose.MIXUP, second).beta(alpha, alpha) for first, second in pairs]
    return np.repeat(np.array(drawn, np.float32), 2)
