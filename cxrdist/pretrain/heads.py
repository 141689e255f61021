"""The projection head of DINO (Caron et al. 2021, section 3.1, and appendix C), and its prototypes.

Shapes: n rows, D width of the features, H hidden width, E bottleneck, K prototypes.
"""

import torch
from torch import nn
from torch.nn import functional


class Prototypes(nn.Module):
    """Directions that rows are compared with: the paper's weight-normalised layer, its lengths fixed at 1.

    The lengths of the weights' rows take no part.  `hold` keeps the directions as they are.
    """

    def __init__(self, width: int, prototypes: int) -> None:
        """Draw the directions from a truncated normal distribution."""
        super().__init__()
        self.weight = nn.Parameter(torch.empty(prototypes, width))
        nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(self, rows_nE: torch.Tensor) -> torch.Tensor:
        """Return cosines (n, K) float32 with rows of length 1: in bfloat16 they would have three digits."""
        with torch.autocast(rows_nE.device.type, enabled=False):
            return functional.linear(rows_nE.float(), functional.normalize(self.weight.float(), dim=1))


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
        self.prototypes = Prototypes(bottleneck, prototypes)

    def forward(self, features_nD: torch.Tensor) -> torch.Tensor:
        """Return logits (n, K) float32 in [-1, 1], to be divided by a temperature."""
        logits: torch.Tensor = self.prototypes(self.rows(features_nD))
        return logits


class _Normalise(nn.Module):
    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return functional.normalize(rows.float(), dim=1)


class Hold:
    """Keeps parameters where they are while `on`: their gradients are zero.

    A hook on each gradient, below the engine: it acts before gradients are summed over micro-steps and ranks, clipped
    or counted into their norm, in every ZeRO stage.  AdamW's moments stay zero with it.  Its decay still shortens the
    weights, which changes no prototype.
    """

    def __init__(self) -> None:
        """Hold nothing yet."""
        self.on = False

    def add(self, parameter: nn.Parameter) -> None:
        """Hold `parameter` too, whenever `on`."""
        parameter.register_hook(self._gradient)

    def _gradient(self, gradient: torch.Tensor) -> torch.Tensor | None:
        return torch.zeros_like(gradient) if self.on else None
