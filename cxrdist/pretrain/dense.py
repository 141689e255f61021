"""Pooled features and patches of any backbone, some patches masked.

Shapes: B images, S side, N patches (transformers) or cells of the last feature map (CNNs), D width of the pooled
features, F of the patches, P side of a patch or stride of a CNN, pixels.

In a transformer a learned token takes the place of masked patches behind the patch embedding, before positions are
added (Bao et al. 2022, BEiT; Zhou et al. 2022, iBOT).  A CNN has no such place: a learned square takes the place of the
pixels of a masked cell of the last map, which the network then has to fill from its neighbourhood.  iBOT on CNNs is in
no paper.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn import functional

from cxrdist.data.config import LocalCropsConfig
from cxrdist.errors import UsageError
from cxrdist.models.build import RadiographModel
from cxrdist.pretrain.task import grid_of

WITH_TOKENS = (VisionTransformer, Eva, Beit)
"""Networks whose patches keep their number and order from the patch embedding to the end."""


def patch_of(model: RadiographModel) -> int:
    """Return P.

    Raises:
        UsageError: If the network does not say so.
    """
    net = model.net
    if isinstance(net, WITH_TOKENS):
        return int(net.patch_embed.patch_size[0])
    facts = getattr(net, "feature_info", None)
    if not facts:
        raise UsageError(
            f"`model.backbone` must be a network whose stride timm knows, got {type(net).__name__}. "
            "Choose a vision transformer, a ConvNeXt or a ResNet."
        )
    return int(facts[-1]["reduction"])


def check_small_crops(model: RadiographModel, local: LocalCropsConfig) -> None:
    """Refuse small crops that a transformer cannot divide into its patches.

    Raises:
        UsageError: If their size is no multiple of the patch.
    """
    if not local.count or not isinstance(model.net, WITH_TOKENS):
        return
    patch, size = patch_of(model), local.size
    if size % patch:
        below = size // patch * patch
        raise UsageError(
            f"`method.local_crops.size` must be a multiple of the backbone's patch of {patch} pixels, got {size}. "
            f"Nearest: {max(below, patch)}, {below + patch}."
        )


def grid_at(model: RadiographModel, side: int) -> tuple[int, int]:
    """Return rows and columns of the patches of an image of `side` pixels, N together.

    Raises:
        UsageError: If `side` is no multiple of the patch or stride.
    """
    patch = patch_of(model)
    if side % patch:
        below = side // patch * patch
        raise UsageError(
            f"A crop with masked patches must have a side that is a multiple of the backbone's {patch} pixels, got "
            f"{side}. Nearest: {max(below, patch)}, {below + patch}."
        )
    return side // patch, side // patch


def mask_token(model: RadiographModel) -> nn.Parameter:
    """Return what stands in the place of a masked patch, zero at first: (F,), or (3, P, P) normalised pixels.

    Raises:
        UsageError: If the network does not say what its stride is.
    """
    if isinstance(model.net, WITH_TOKENS):
        return nn.Parameter(torch.zeros(model.net.embed_dim))
    patch = patch_of(model)
    return nn.Parameter(torch.zeros(3, patch, patch))


def dense_features(
    model: RadiographModel,
    images_B1SS: torch.Tensor,
    *,
    mask_BN: torch.Tensor | None = None,
    token: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return pooled features (B, D) and patches (B, N, F), `token` in the place of what `mask_BN` (bool) masks.

    Raises:
        UsageError: If the last features of the network are no square grid.
    """
    net = model.net
    pixels = model.normalise(images_B1SS)
    masking: Any = nullcontext()
    if mask_BN is not None:
        assert token is not None
        if isinstance(net, WITH_TOKENS):
            masking = masked_tokens(net, mask_BN, token)
        else:
            pixels = _masked_pixels(pixels, mask_BN, token)
    with masking:
        features = net.forward_features(pixels)
    grid = grid_of(net, features)
    if grid is None:
        raise UsageError(
            f"`model.backbone` must have a square grid of features, got {tuple(features.shape[1:])} from "
            f"{type(net).__name__}. Choose a vision transformer, a ConvNeXt or a ResNet."
        )
    return net.forward_head(features, pre_logits=True), grid.flatten(1, 2)


@contextmanager
def masked_tokens(net: Any, mask_BN: torch.Tensor, token_F: torch.Tensor) -> Iterator[None]:
    """Let the patch embedding of `net` give `token_F` for masked patches within the block."""

    def replaced(module: nn.Module, inputs: Any, patches: torch.Tensor) -> torch.Tensor:
        # (B, N, F), or (B, H, W, F) where images may have another size than the network was built for.
        mask = mask_BN.view(*patches.shape[:-1], 1)
        return torch.where(mask, token_F.to(patches.dtype), patches)

    handle = net.patch_embed.register_forward_hook(replaced)
    try:
        yield
    finally:
        handle.remove()


def _masked_pixels(pixels_B3SS: torch.Tensor, mask_BN: torch.Tensor, token_3PP: torch.Tensor) -> torch.Tensor:
    """Return images with `token_3PP` in every masked cell."""
    side, patch = pixels_B3SS.shape[-1], token_3PP.shape[-1]
    cells = side // patch
    mask_B1HW = mask_BN.view(-1, 1, cells, cells).to(pixels_B3SS.dtype)
    mask = functional.interpolate(mask_B1HW, size=(side, side), mode="nearest").bool()
    return torch.where(mask, token_3PP.repeat(1, cells, cells), pixels_B3SS)
