"""The projection head of DINO (Caron et al. 2021, section 3.1, and appendix C).

Shapes: n rows, D width of the features, H hidden width, E bottleneck, K prototypes.
"""

import torch
from torch import nn
from torch.nn import functional

from cxrdist.pretrain.projection import Prototypes


class DinoHead(nn.Module):
    """A perceptron of three layers with GELU, l2 normalisation, prototypes; no batch norm, as for transformers.

    `rows` and `prototypes` are modules that are called one after the other, so that either half can be had.
    """

    def __init__(self, width: int, *, hidden: int, bottleneck: int, prototypes: int) -> None:
        """Draw matrices from a truncated normal distribution of deviation 0.02; biases are zero."""
        super().__init__()
        self.rows = nn.Sequential(
            nn.Linear(width, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, bottleneck),
            _Normalise(),
        )
        for layer in self.rows:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.prototypes = Prototypes(bottleneck, prototypes, std=0.02)

    def forward(self, features_nD: torch.Tensor) -> torch.Tensor:
        """Return logits (n, K) float32 in [-1, 1], to be divided by a temperature."""
        logits: torch.Tensor = self.prototypes(self.rows(features_nD))
        return logits


class _Normalise(nn.Module):
    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return functional.normalize(rows.float(), dim=1)
