"""What keeps a teacher from giving every image one prototype: a running mean that is taken off, or equal shares.

Shapes: n rows (crops or patches) of this rank, K prototypes.  All sums are over the rows of all ranks, whose numbers
may differ; there must be one row at least on every rank.
"""

from typing import Literal

import torch
import torch.distributed
from torch import nn


@torch.no_grad()
def sinkhorn(logits_nK: torch.Tensor, *, temperature: float | torch.Tensor, iterations: int = 3) -> torch.Tensor:
    """Return assignments (n, K) float32 whose rows sum to 1, and whose columns nearly have equal sums over all ranks.

    Sinkhorn & Knopp (1967) as in Caron et al. (2020, SwAV, algorithm of appendix A) and in DINOv2: columns and rows of
    ``exp(logits / temperature)`` are divided by their sums in turn, rows last.  The factors 1 / K and 1 / n that are
    printed there cancel, so the number of rows of other ranks is not needed.

    Args:
        logits_nK: Of this rank's rows, any floating type.
        temperature: SwAV's epsilon, DINOv2's temperature of the teacher.
        iterations: Of both divisions, 1 or more; 3 in both papers.
    """
    with torch.autocast(logits_nK.device.type, enabled=False):
        scaled = logits_nK.float() / temperature
        # A factor on a column is gone after the first division: the largest entry of each becomes 1, and nothing
        # overflows.  The first iteration stays in logarithms: a row far below the others is not lost, whatever the
        # temperature.
        scaled -= over_ranks(scaled.amax(dim=0), "max")
        assigned = scaled.sub_(over_ranks(scaled.exp().sum(dim=0)).log()).softmax(dim=1)
        tiny = torch.finfo(torch.float32).tiny
        for _ in range(iterations - 1):
            assigned /= over_ranks(assigned.sum(dim=0)).clamp(min=tiny)
            assigned /= assigned.sum(dim=1, keepdim=True)
        return assigned


class Centre(nn.Module):
    """The running mean of a teacher's logits (Caron et al. 2021, DINO, equation 4).

    `note` the logits of every micro-batch, `move` once after the optimizer step: all micro-batches of a step have the
    centre of the step before, so that a global batch may be divided without another result.
    """

    value: torch.Tensor
    """(K,) float32: what is taken off the logits."""

    total: torch.Tensor
    count: torch.Tensor

    def __init__(self, prototypes: int, *, momentum: float) -> None:
        """Begin at zero."""
        super().__init__()
        self.momentum = momentum
        self.register_buffer("value", torch.zeros(prototypes))
        # Of the step that is under way; no checkpoint is written within one.
        self.register_buffer("total", torch.zeros(prototypes), persistent=False)
        self.register_buffer("count", torch.zeros(()), persistent=False)

    @torch.no_grad()
    def probabilities(self, logits_nK: torch.Tensor, *, temperature: float | torch.Tensor) -> torch.Tensor:
        """Return the softmax (n, K) float32 of the centred logits (equation 1 of the paper)."""
        return ((logits_nK.float() - self.value) / temperature).softmax(dim=1)

    @torch.no_grad()
    def note(self, logits_nK: torch.Tensor) -> None:
        """Count the logits of a micro-batch."""
        self.total += logits_nK.float().sum(dim=0)
        self.count += len(logits_nK)

    @torch.no_grad()
    def move(self) -> None:
        """Follow the mean of what was noted, on all ranks; every rank must call it together."""
        mean = over_ranks(self.total) / over_ranks(self.count)
        self.value.lerp_(mean, 1 - self.momentum)
        self.forget()

    @torch.no_grad()
    def forget(self) -> None:
        """Begin a new step."""
        self.total.zero_()
        self.count.zero_()


def over_ranks(tensor: torch.Tensor, by: Literal["sum", "max"] = "sum") -> torch.Tensor:
    """Reduce `tensor` in place over all ranks and return it; without a process group it is left as it is."""
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        kinds = torch.distributed.ReduceOp
        torch.distributed.all_reduce(tensor, op=kinds.SUM if by == "sum" else kinds.MAX)
    return tensor
