"""SimMIM (Xie et al. 2022, "SimMIM: a Simple Framework for Masked Image Modeling").

Random squares of the image are masked (section 3.2), the whole goes through the network, and one linear layer on its
last feature map gives the pixels (section 3.3), whose absolute error counts where they were masked (section 3.4).

A vision transformer, also one with windows, gets a learned token in place of the masked patches' embeddings, before
positions and prefix tokens, as in the paper.  The embedding of a CNN is no such place: its windows overlap, so masked
pixels would be seen by those beside them.  It gets a learned colour in place of the masked pixels of the normalised
image.  Its squares lie on the grid of its last feature map, as in ConvNeXt V2 (Woo et al. 2023, section 3.1), but its
convolutions are the usual, not sparse.

Shapes: B images, S their side, D width, H and W of the last feature map, R pixels of its stride, h squares in a side.
"""

import math

import torch
from timm.layers import PatchEmbed
from torch import nn
from torch.nn.functional import pixel_shuffle

from cxrdist.data.loader import Batch
from cxrdist.errors import UsageError
from cxrdist.models.build import RadiographModel
from cxrdist.pretrain.ahead import look_ahead
from cxrdist.pretrain.batchnorm import join_batch_norm
from cxrdist.pretrain.dense import masked_tokens
from cxrdist.pretrain.methods import SimmimConfig
from cxrdist.pretrain.seeded import permutations
from cxrdist.pretrain.task import PretrainTask, grid_of


class SimmimTask(PretrainTask):
    """A network that sees a part of the squares, and one layer that gives the pixels of the others."""

    def __init__(self, model: RadiographModel, config: SimmimConfig, *, fresh: bool) -> None:
        """Wrap `model`; whether its weights are `fresh` makes no difference.

        Raises:
            UsageError: If the backbone has no feature map, or its patches or stride do not divide the squares.
        """
        super().__init__()
        self.model = model
        self.config = config
        net = model.net
        ahead = look_ahead(net)
        if ahead.stride is None:
            raise UsageError(
                f"`method` 'simmim' needs a backbone whose last feature map divides the image, got "
                f"{type(net).__name__}. Choose a vision transformer, a ConvNeXt, a ResNet or a DenseNet."
            )
        self.stride = ahead.stride
        for parameter in ahead.beyond:
            parameter.requires_grad_(False)
        self.patch: int | None = None
        """Side of the patches that are masked as tokens; None where pixels are."""
        shape = [3, 1, 1]
        embed = getattr(net, "patch_embed", None)
        if isinstance(embed, PatchEmbed):
            self.patch, shape = embed.patch_size[0], [embed.proj.out_channels]
        grid, named = (self.stride, "stride") if self.patch is None else (self.patch, "patch")
        if config.mask_patch % grid:
            raise UsageError(
                f"`method.mask_patch` must be a multiple of the backbone's {named} of {grid} pixels, got "
                f"{config.mask_patch}. Nearest: {max(1, config.mask_patch // grid) * grid}."
            )
        # No images are compared: joint statistics let the result not depend on the number of ranks.
        join_batch_norm(net)
        self.mask_token = nn.Parameter(torch.empty(shape))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.predict = nn.Linear(net.num_features, 3 * self.stride**2)

    def loss(self, batch: Batch) -> torch.Tensor:
        """Return the mean absolute error of the masked pixels, a scalar; the squares must divide the image.

        Every image has as many of them, so the mean over ranks is that of all images.
        """
        images_B3SS = self.model.normalise(batch["image"])
        size, square = images_B3SS.shape[-1], self.config.mask_patch
        squares_Bhh = random_squares(batch["seed"], size // square, self.config.mask_ratio).to(images_B3SS.device)
        masked_BSS = enlarged(squares_Bhh, square)
        grid_BHWD = self._features(images_B3SS, masked_BSS)
        predicted_B3SS = pixel_shuffle(self.predict(grid_BHWD).float().permute(0, 3, 1, 2), self.stride)
        errors_BSS = (predicted_B3SS - images_B3SS).abs().mean(dim=1)
        pixels = len(errors_BSS) * count_masked(squares_Bhh[0].numel(), self.config.mask_ratio) * square**2
        return (errors_BSS * masked_BSS).sum() / pixels

    def _features(self, images_B3SS: torch.Tensor, masked_BSS: torch.Tensor) -> torch.Tensor:
        net = self.model.net
        if self.patch is None:
            features = net.forward_features(torch.where(masked_BSS[:, None], self.mask_token, images_B3SS))
        else:
            masked_BN = masked_BSS[:, :: self.patch, :: self.patch].flatten(1)
            with masked_tokens(net, masked_BN, self.mask_token):
                features = net.forward_features(images_B3SS)
        grid_BHWD = grid_of(net, features)
        assert grid_BHWD is not None  # the stride is of one
        return grid_BHWD


def random_squares(seeds: torch.Tensor, side: int, ratio: float) -> torch.Tensor:
    """Return which of the squares of each image are masked: bool (B, side, side) on the CPU, in each row as many."""
    squares = side**2
    chosen = permutations(seeds, squares)[:, : count_masked(squares, ratio)]
    return torch.zeros(len(seeds), squares, dtype=torch.bool).scatter(1, chosen, True).unflatten(1, (side, side))


def count_masked(squares: int, ratio: float) -> int:
    """Return how many of `squares` are masked: `ratio` of them, rounded up as in the authors' code, but not all."""
    return min(math.ceil(squares * ratio), squares - 1)


def enlarged(squares_Bhh: torch.Tensor, times: int) -> torch.Tensor:
    """Return `squares_Bhh` with each value `times` in both directions."""
    return squares_Bhh.repeat_interleave(times, 1).repeat_interleave(times, 2)
