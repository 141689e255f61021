"""What all ranks have made of a batch, on every rank.

The loss of the whole batch is the mean of the ranks' losses L_r, and the engine takes the mean of their gradients.  A
rank's values enter the losses of all, so what comes back to them is the sum over ranks of dL_r / dvalues: the mean over
ranks of what follows is then the gradient of the mean loss (`lightly.utils.dist.gather` does the same, for real tensors
in a process group).

Without a process group (a plan, or a trial of a size), or alone in one, nothing is exchanged.  Every rank must have the
same number of values.
"""

from typing import Any

import torch
import torch.distributed


def world_size() -> int:
    """Return how many ranks there are."""
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def rank() -> int:
    """Return which of them this is."""
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def gather(values: torch.Tensor) -> torch.Tensor:
    """Return the ``values`` (B, ...) of all ranks, by rank (world_size * B, ...), with the gradient."""
    if world_size() == 1:
        return values
    gathered: torch.Tensor = _Gather.apply(values)
    return gathered


@torch.no_grad()
def gather_values(values: torch.Tensor) -> torch.Tensor:
    """Return the ``values`` (B, ...) of all ranks, by rank (world_size * B, ...), without a gradient."""
    return gather(values.detach())


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: torch.Tensor) -> torch.Tensor:
        parts = [torch.empty_like(values, memory_format=torch.contiguous_format) for _ in range(world_size())]
        torch.distributed.all_gather(parts, values.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(total)
        return total.chunk(world_size())[rank()]
