"""Backbones by their timm name, with a linear head of one logit per finding.

Shapes: B images, K findings, S input side; ``images_B1SS`` grey, ``logits_BK``.
"""

import re
from typing import Any

import timm
import torch
from torch import nn

from cxrdist.errors import UsageError, nearest
from cxrdist.models.config import ModelConfig
from cxrdist.seeds import Purpose, derive


class RadiographModel(nn.Module):
    """A timm network that takes grey images and normalises them with the constants its weights were trained with."""

    net: Any
    mean: torch.Tensor
    std: torch.Tensor

    fixed_constants: bool
    """Whether the user chose the constants: weights that are loaded do not change them then."""

    def __init__(
        self, net: nn.Module, *, mean: tuple[float, ...], std: tuple[float, ...], fixed_constants: bool = False
    ) -> None:
        super().__init__()
        self.net = net
        self.fixed_constants = fixed_constants
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def normalise(self, images_B1SS: torch.Tensor) -> torch.Tensor:
        """Return (B, 3, S, S) float32, the grey level in every channel; takes uint8, or float32 in [0, 1]."""
        images = images_B1SS.float()
        if not images_B1SS.is_floating_point():
            images = images / torch.iinfo(images_B1SS.dtype).max
        return (images - self.mean) / self.std

    def forward(self, images_B1SS: torch.Tensor) -> torch.Tensor:
        """Return logits (B, K)."""
        logits_BK: torch.Tensor = self.net(self.normalise(images_B1SS))
        return logits_BK


def build_model(config: ModelConfig, *, num_classes: int, image_size: int, seed: int) -> RadiographModel:
    """Return the network with random weights drawn from `seed`; `load_weights` then replaces the backbone's.

    Raises:
        UsageError: If timm does not know the backbone or refuses an argument.
    """
    name = config.backbone
    if not timm.is_model(name):
        known = timm.list_models()
        raise UsageError(f"`model.backbone` must be a timm model, got {name!r}.{nearest(name.split('.')[0], known)}")
    args = dict(config.args)
    facts = timm.get_pretrained_cfg(name)
    if facts is not None and facts.fixed_input_size:
        args.setdefault("img_size", image_size)
    if args.get("img_size", image_size) != image_size:
        raise UsageError(
            f"`model.args.img_size` must be `input.image_size`={image_size}, got {args['img_size']}. Leave it out."
        )
    patch = args.get("patch_size", _patch_of(name))
    if isinstance(patch, int) and image_size % patch and facts is not None and facts.fixed_input_size:
        below = image_size // patch * patch
        raise UsageError(
            f"`input.image_size` must be a multiple of the backbone's patch of {patch} pixels, got {image_size}: the "
            f"rest would not be looked at. Nearest: {max(below, patch)}, {below + patch}."
        )
    if config.drop_path:
        args["drop_path_rate"] = config.drop_path
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, Purpose.INIT))
        try:
            net = timm.create_model(name, pretrained=False, num_classes=num_classes, **args)
        except (TypeError, ValueError, AssertionError, RuntimeError) as error:
            raise UsageError(f"`model.args` must suit {name!r}, got {args}: {error}.") from None
    net.model_args = args
    mean, std = (config.mean, config.std) if config.mean and config.std else (None, None)
    return RadiographModel(
        net,
        mean=mean or tuple(net.pretrained_cfg["mean"]),
        std=std or tuple(net.pretrained_cfg["std"]),
        fixed_constants=mean is not None,
    )


def _patch_of(name: str) -> int | None:
    """Return the patch size in the name of a vision transformer, such as ``vit_base_patch16_224``."""
    found = re.search(r"patch(\d+)", name)
    return int(found[1]) if found else None
