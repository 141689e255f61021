"""The optimizer, its parameter groups, and learning rate and weight decay as functions of the step."""

import math
import re
from fnmatch import fnmatch
from typing import Any

import torch
from timm.models import group_parameters
from timm.optim import Lamb, Lars
from torch import nn

from cxrdist.errors import UsageError
from cxrdist.models.head import head_parameters
from cxrdist.train.config import OptimConfig

_MATRIX = re.compile(r"(weight(_v|_[ih]h_l\d+(_reverse)?)?|weight\.original1|lora_[ab])$")
"""Ends of the names of matrices and kernels, the only parameters that decay.  Tokens, position embeddings, tables of
relative positions and layer scales have two dimensions and more in some networks, but never such a name."""


def build_optimizer(config: OptimConfig, task: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer over the trainable parameters of `task`, in the groups of `parameter_groups`.

    Raises:
        UsageError: If `config.layer_decay` is below 1 and the backbone's layers have no known order.
    """
    lars = config.name == "lars"
    groups = parameter_groups(
        task,
        weight_decay=config.weight_decay,
        layer_decay=config.layer_decay,
        matrices_apart=lars or config.final_weight_decay is not None,
    )
    for group in groups:
        group["lr"] = config.lr * group["lr_scale"]
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0)
    if config.name == "lamb":
        # The engine clips; LAMB's own clipping would do so a second time.
        return Lamb(groups, lr=config.lr, betas=config.betas, max_grad_norm=None)
    if lars:
        # Biases and norms are neither decayed nor adapted (Chen et al. 2020, SimCLR; Grill et al. 2020, BYOL).  Left to
        # itself timm would adapt no matrix either where nothing decays.
        for group in groups:
            group["always_adapt"] = group["matrices"]
        return Lars(groups, lr=config.lr, momentum=config.momentum)
    # On a CPU, too: a quarter of the time of the loop over parameters.
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)


def check_optimizer(config: OptimConfig, zero_stage: int) -> None:
    """Refuse an optimizer that a ZeRO stage would make another one.

    LAMB and LARS divide by the norms of whole layers (You et al. 2020, algorithm 2; You et al. 2017); from
    stage 1 on a rank sees all layers of a group as one flat piece, whose norm is none of a layer.

    Raises:
        UsageError: For LAMB and LARS at stage 1 or above.
    """
    if config.name in ("lamb", "lars") and zero_stage > 0:
        raise UsageError(
            f"`optim.name` {config.name!r} must have `train.zero_stage` 0, got {zero_stage}: it scales each layer's "
            "step by the whole layer's norm, which no rank sees. Use 'adamw', or stage 0."
        )


def parameter_groups(
    task: nn.Module, *, weight_decay: float, layer_decay: float, matrices_apart: bool = False
) -> list[dict[str, Any]]:
    """Return the trainable parameters of `task`, each in exactly one group, in as few groups as there are settings.

    A group has ``params``; ``weight_decay``, 0 but for matrices and kernels that the network itself does not except,
    whose groups have ``matrices`` True where there is a decay, or with `matrices_apart`;
    ``lr_scale``, `layer_decay` to the number of layers above, 1 outside the backbone (head, decoder, adapters).
    Where ``task.head_first`` is true the backbone shares no group with the rest, and its groups have ``backbone`` True,
    so that they can be held.  The order is that of the task's parameters: the same on every rank, in every start.

    Raises:
        UsageError: If `layer_decay` is below 1 and the backbone's layers have no known order.
    """
    net = getattr(getattr(task, "model", None), "net", None)
    scales = {} if net is None else layer_scales(net, layer_decay)
    excepted = set() if net is None else _excepted(net)
    apart = bool(getattr(task, "head_first", False))
    matrices_apart = matrices_apart or weight_decay > 0
    groups: dict[tuple[bool, float, bool], dict[str, Any]] = {}
    for name, parameter in task.named_parameters():
        if not parameter.requires_grad:
            continue
        matrix = parameter.ndim > 1 and _MATRIX.search(name) is not None and id(parameter) not in excepted
        scale = scales.get(id(parameter), 1.0)
        key = (apart and id(parameter) in scales, scale, matrix and matrices_apart)
        decay = weight_decay if key[2] else 0.0
        group = {"params": [], "weight_decay": decay, "lr_scale": scale, "backbone": key[0], "matrices": key[2]}
        groups.setdefault(key, group)["params"].append(parameter)
    return list(groups.values())


def layer_scales(net: Any, layer_decay: float) -> dict[int, float]:
    """Return the factor on the learning rate by `id` of each parameter of the backbone `net`, head and adapters not.

    The layers are timm's: stem 0, then block after block, the head above the last (Bao et al. 2022, BEiT, whose rule
    this is; timm counts the last norm to the last block).

    Raises:
        UsageError: If `layer_decay` is below 1 and timm does not know the order of the layers of `net`.
    """
    head = {id(parameter) for parameter in head_parameters(net)}
    backbone = {
        name: parameter
        for name, parameter in net.named_parameters()
        if id(parameter) not in head and not name.endswith((".lora_a", ".lora_b"))
    }
    if layer_decay == 1:
        return {id(parameter): 1.0 for parameter in backbone.values()}
    if not hasattr(net, "group_matcher"):
        raise UsageError(
            f"`optim.layer_decay` needs a backbone whose layers timm orders, got {layer_decay} for "
            f"{type(net).__name__}. Leave it at 1 or choose another `model.backbone`."
        )
    layer_of = group_parameters(net, net.group_matcher(coarse=False), reverse=True)
    top = max(layer_of.values())
    return {id(parameter): layer_decay ** (top - layer_of[name]) for name, parameter in backbone.items()}


def lr_at(config: OptimConfig, step: int, steps: int) -> float:
    """Return the learning rate of optimizer step `step` of `steps`: a function of the step, with no state."""
    warmup_steps = round(config.warmup * steps)
    if step < warmup_steps:
        return config.lr * (step + 1) / warmup_steps
    if config.schedule == "constant":
        return config.lr
    done = (step - warmup_steps) / max(1, steps - warmup_steps)
    left = 1 - done if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return config.lr * (config.final_lr + (1 - config.final_lr) * left)


def set_lr(optimizer: Any, lr: float) -> None:
    """Give every parameter group the learning rate `lr`, times the group's own `lr_scale`; none where it is held.

    `optimizer` may be the engine's.
    """
    for group in optimizer.param_groups:
        group["lr"] = 0.0 if group.get("held") else lr * group.get("lr_scale", 1.0)


def weight_decay_at(config: OptimConfig, step: int, steps: int) -> float:
    """Return the weight decay of optimizer step `step` of `steps`: a function of the step, with no state."""
    if config.final_weight_decay is None:
        return config.weight_decay
    left = 0.5 * (1 + math.cos(math.pi * step / steps))
    return config.final_weight_decay + (config.weight_decay - config.final_weight_decay) * left


def set_weight_decay(optimizer: Any, weight_decay: float) -> None:
    """Give every parameter group of matrices the weight decay `weight_decay`; `optimizer` may be the engine's."""
    for group in optimizer.param_groups:
        if group.get("matrices"):
            group["weight_decay"] = weight_decay


def _excepted(net: Any) -> set[int]:
    """Return the `id` of each parameter that the network itself excepts from decay; its names may be patterns."""
    patterns = net.no_weight_decay() if hasattr(net, "no_weight_decay") else ()
    return {id(p) for name, p in net.named_parameters() if any(fnmatch(name, pattern) for pattern in patterns)}
