"""Heads on the features, as each paper has them; lightly's where they are the same."""

import torch
from lightly.models.modules.heads import ProjectionHead
from torch import nn
from torch.nn import functional


def moco_v3_head(width: int, hidden: int, embedding: int, *, layers: int, last_norm: bool = True) -> nn.Module:
    """Return linear layers without biases, each with batch norm and a rectifier; none of it, or norm alone, at the end.

    Chen et al. (2021), MoCo v3, section 5 and the authors' code, where the last norm has no weights: 3 layers
    project a vision transformer's features and 2 a CNN's; 2 predict, without the last norm for a CNN.
    """
    blocks: list[tuple[int, int, nn.Module | None, nn.Module | None, bool]] = []
    for layer in range(layers):
        end = layer == layers - 1
        out = embedding if end else hidden
        norm = None if end and not last_norm else nn.BatchNorm1d(out, affine=not end)
        blocks.append((hidden if layer else width, out, norm, None if end else nn.ReLU(), False))
    return ProjectionHead(blocks)


class Prototypes(nn.Module):
    """Directions to which rows are compared (Caron et al. 2020, SwAV, section 3.1; DINO's weight-normalised layer).

    Their lengths are divided out where they are used: SwAV divides the weights after every step instead.

    While `held`, their gradients are zero.  A hook on the gradient is below the engine: it acts before gradients are
    summed over micro-steps and ranks, clipped or counted into their norm, in every ZeRO stage.  AdamW's moments stay
    zero with it.  Its decay still shortens the weights, which changes no prototype.
    """

    def __init__(self, width: int, count: int, *, std: float) -> None:
        """Draw any direction alike; lengths, by `std`, tell how far a step of the optimizer turns them."""
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count, width))
        nn.init.normal_(self.weight, std=std)
        self.held = False
        self.weight.register_hook(lambda gradient: torch.zeros_like(gradient) if self.held else None)

    def forward(self, directions_nE: torch.Tensor) -> torch.Tensor:
        """Return cosines (n, prototypes) float32 with rows of length 1: in bfloat16 they would have three digits."""
        with torch.autocast(directions_nE.device.type, enabled=False):
            return functional.linear(directions_nE.float(), functional.normalize(self.weight.float(), dim=1))
