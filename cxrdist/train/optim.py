"""The optimizer, its parameter groups and the learning rate as a function of the step."""

import math
from typing import Any

import torch
from torch import nn

from cxrdist.train.config import OptimConfig


def build_optimizer(config: OptimConfig, task: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer over the trainable parameters of `task`, without decay on one-dimensional ones."""
    trainable = [parameter for parameter in task.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    fused = any(parameter.is_cuda for parameter in trainable)
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=config.lr, betas=config.betas, fused=fused)


def lr_at(config: OptimConfig, step: int, steps: int) -> float:
    """Return the learning rate of optimizer step `step` of `steps`: a function of the step, with no state."""
    warmup_steps = round(config.warmup * steps)
    if step < warmup_steps:
        return config.lr * (step + 1) / warmup_steps
    if config.schedule == "constant":
        return config.lr
    done = (step - warmup_steps) / max(1, steps - warmup_steps)
    return config.lr * (config.final_lr + (1 - config.final_lr) * 0.5 * (1 + math.cos(math.pi * done)))


def set_lr(optimizer: Any, lr: float) -> None:
    """Give every parameter group the learning rate `lr`, times the group's own `lr_scale` where it has one."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
