"""Teachers: networks that follow another as a running mean of its weights (Tarvainen & Valpola 2017)."""

import math
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from cxrdist.train.moved import gather_again, own_parts

M = TypeVar("M", bound=nn.Module)


def twin(build: Callable[[], M], of: M) -> M:
    """Return another module of `build` with the weights and buffers of `of`, frozen: a teacher at its start."""
    made = build()
    made.load_state_dict(of.state_dict())
    return made.requires_grad_(False)


def only_norms_learn(teacher: nn.Module) -> None:
    """Put `teacher` in evaluation mode, all but its batch norms, which learn from its own batches.

    A target is not random: dropout, as a module or as a function, and stochastic depth are off in training mode too.
    To be called wherever modes are set, and at the start, before which nobody may have set one.
    """
    for module in teacher.modules():
        module.training = module.training and isinstance(module, _BatchNorm)


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Move every parameter of `teacher`: ``teacher = momentum teacher + (1 - momentum) student``.

    Buffers (the running statistics of batch norm) are the teacher's own.  To be called between two steps, by all ranks
    together: under ZeRO 3 each moves its own parts.
    """
    followers = list(teacher.parameters())
    theirs, ours = own_parts(followers), own_parts(student.parameters())
    # Where weights are offloaded, small ones may not be: the two networks need not agree on which.
    ours = [one.to(other.device) for one, other in zip(ours, theirs, strict=True)]
    torch._foreach_lerp_(theirs, ours, 1 - momentum)
    gather_again(followers)


def half_cosine(start: float, end: float, step: int, steps: int) -> float:
    """Return the value at `step` of `steps` on the half cosine from `start` to `end`."""
    return end - (end - start) * 0.5 * (1 + math.cos(math.pi * step / max(1, steps)))


def ramp(start: float, end: float, step: int, steps: float) -> float:
    """Return the value at `step` on the line from `start` at 0 to `end` at `steps` and after."""
    return end if step >= steps else start + (end - start) * step / steps
