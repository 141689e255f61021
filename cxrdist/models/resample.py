"""Fit tensors that have the backbone's names to its shapes: channels, patches, positions, windows.

Resampling is timm's: antialiased bicubic for positions, the pseudo-inverse of FlexiViT (Beyer et al. 2023) for patches.
"""

import math
import re
import sys
from collections.abc import Callable
from typing import Any, cast

import torch
from timm.layers import resample_abs_pos_embed
from timm.models import adapt_input_conv
from torch import nn

from cxrdist.log import get_logger
from cxrdist.models.reading import Weights

log = get_logger(__name__)


def fitted(weights: Weights, net: nn.Module) -> tuple[Weights, list[str], list[str]]:
    """Return (`weights` in the shapes of `net` where there is a way, what was resampled, what else was changed).

    What cannot be fitted keeps its shape.  Class and register tokens stay as they are.
    """
    changed: list[str] = []
    found = weights
    for step in (_channels, _last_norm, _class_position, _layer_scale):
        found, said = step(found, net)
        changed += said
    shaped = _by_timm(_pooling_positions(found, net), net)
    resampled = [name for name, value in shaped.items() if name in weights and value.shape != weights[name].shape]
    return shaped, resampled, changed


def _channels(weights: Weights, net: nn.Module) -> tuple[Weights, list[str]]:
    """Fit the first convolution to the network's channels: of one, equal thirds; of three, their sum."""
    first = _facts(net).get("first_conv") or ()
    changed = {}
    for layer in (first,) if isinstance(first, str) else first:
        name = f"{layer}.weight"
        value, wanted = weights.get(name), net.state_dict().get(name)
        if value is None or wanted is None or value.ndim != 4 or value.shape[1] == wanted.shape[1]:
            continue
        if {value.shape[1], wanted.shape[1]} == {1, 3}:
            changed[name] = adapt_input_conv(wanted.shape[1], value, base_chans=value.shape[1])
    said = [f"{name} from {weights[name].shape[1]} to {value.shape[1]} channels" for name, value in changed.items()]
    return weights | changed, said


def _last_norm(weights: Weights, net: nn.Module) -> tuple[Weights, list[str]]:
    """Give the last norm its place: before the pooling of tokens in one network, after it in another."""
    places = net.state_dict().keys()
    for old, new in (("norm", "fc_norm"), ("fc_norm", "norm")):
        names = [f"{old}.{part}" for part in ("weight", "bias")]
        moved = {name.replace(old, new): weights[name] for name in names if name in weights}
        homeless = moved and not any(name in places for name in names)
        if homeless and all(name in places and name not in weights for name in moved):
            rest = {name: value for name, value in weights.items() if name not in names}
            return rest | moved, [f"{old} became {new}"]
    return weights, []


def _class_position(weights: Weights, net: nn.Module) -> tuple[Weights, list[str]]:
    """Fit the positions of class and register tokens, which some networks have and others add to the token.

    A class token plus its position is the same as a class token with the position added to it once for all.
    """
    value, wanted = weights.get("pos_embed"), net.state_dict().get("pos_embed")
    if value is None or wanted is None or value.ndim != 3 or value.shape == wanted.shape:
        return weights, []
    place = cast(Any, net)
    tokens = int(getattr(place, "num_prefix_tokens", 0))
    need = 0 if getattr(place, "no_embed_class", False) else tokens
    have = value.shape[1] - math.isqrt(value.shape[1]) ** 2
    if have == need or have > 8:  # more than any network has: a grid that is no square
        return weights, []
    before, grid = value[:, :have], value[:, have:]
    if have > need:
        changed = {"pos_embed": grid if need == 0 else torch.cat([before[:, :need], grid], dim=1)}
        if need == 0 and "cls_token" in weights:
            changed["cls_token"] = weights["cls_token"] + before[:, :1]
            return weights | changed, ["the position of the class token was added to it"]
        return weights | changed, [f"positions of {have - need} tokens were left out"]
    none = torch.zeros_like(grid[:, : need - have])
    return weights | {"pos_embed": torch.cat([before, none, grid], dim=1)}, [
        f"positions of {need - have} tokens were set to zero"
    ]


def _layer_scale(weights: Weights, net: nn.Module) -> tuple[Weights, list[str]]:
    """Fit LayerScale (Touvron et al. 2021) where one side has none: gamma * (W x + b) = (gamma * W) x + gamma * b."""
    is_scale = re.compile(r"(blocks\.\d+\.)(?:ls|gamma_)([12])(?:\.gamma)?$")
    theirs = {name for name in weights if is_scale.match(name)}
    ours = {name for name, _ in net.named_parameters() if is_scale.match(name)}
    if ours and not theirs:
        ones = {name: torch.ones_like(net.get_parameter(name)) for name in ours}
        return weights | ones, ["LayerScale, which their network has not, was set to one"]
    if ours or not theirs:
        return weights, []
    found = {name: value for name, value in weights.items() if name not in theirs}
    for name in theirs:
        block, which = cast(re.Match[str], is_scale.match(name)).groups()
        layer = f"{block}{'attn.proj' if which == '1' else 'mlp.fc2'}"
        if (weight := found.get(f"{layer}.weight")) is not None:
            found[f"{layer}.weight"] = weights[name][:, None] * weight
        if (bias := found.get(f"{layer}.bias")) is not None:
            found[f"{layer}.bias"] = weights[name] * bias
    return found, ["LayerScale, which the backbone has not, was multiplied into the layers before it"]


def _pooling_positions(weights: Weights, net: nn.Module) -> Weights:
    """Resample the positions of an attention pooling, (1 + H * W, D), which timm leaves as they are."""
    value, wanted = weights.get("head.pos_embed"), net.state_dict().get("head.pos_embed")
    if value is None or wanted is None or value.ndim != 2 or value.shape == wanted.shape:
        return weights
    side = math.isqrt(wanted.shape[0] - 1)
    if side * side + 1 != wanted.shape[0]:
        return weights
    return weights | {"head.pos_embed": resample_abs_pos_embed(value[None], [side, side])[0]}


def _by_timm(weights: Weights, net: nn.Module) -> Weights:
    """Return `weights` after timm's own filter of this architecture: patches, positions, windows."""
    module = sys.modules[type(net).__module__]
    fit = cast(Callable[..., Weights] | None, getattr(module, "checkpoint_filter_fn", None))
    if fit is None:
        return weights
    try:
        return fit(dict(weights), net)
    except (LookupError, RuntimeError, ValueError, TypeError, AttributeError, AssertionError):
        # The filter expected other names or shapes: what is said of the names as they are says more.
        log.debug("timm's filter for %s could not read the weights.", type(net).__name__)
        return weights


def _facts(net: nn.Module) -> dict[str, Any]:
    return cast(dict[str, Any], net.pretrained_cfg)
