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
    """Directions to which embeddings are compared (Caron et al. 2020, SwAV, section 3.1).

    They are divided by their lengths where they are used: the paper divides the weights after every step.
    """

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count, width))
        nn.init.normal_(self.weight)  # any direction alike
        self.trained = True
        """Whether the weights have a gradient: without, optimizers may change their lengths only."""
        self.weight.register_hook(lambda gradient: gradient if self.trained else torch.zeros_like(gradient))

    def forward(self, directions_BE: torch.Tensor) -> torch.Tensor:
        """Return cosines (B, prototypes), float32, of embeddings of length 1."""
        with torch.autocast(directions_BE.device.type, enabled=False):
            return functional.linear(directions_BE.float(), functional.normalize(self.weight.float(), dim=1))
