"""How far a network keeps images apart, and when it no longer does.

Shapes: N images, B those of a batch, D width of what is measured, P prototypes.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.functional import normalize

EPSILON = 1e-7
"""Added to each share of RankMe, as in the paper for float32."""


@dataclass
class Sums:
    """Running sums over rows, in float64: what is long is not kept for every image."""

    count: int = 0
    total: Any = 0.0
    """The sum of the rows."""
    other: Any = 0.0
    """The sum of what else is told of a row."""

    def add_sums(self, count: int, total: Any, other: Any) -> None:
        """Count `count` rows by their sums."""
        self.count, self.total, self.other = self.count + count, self.total + total, self.other + other

    def join(self, sums: "Sums") -> None:
        """Count what another rank has counted."""
        self.add_sums(sums.count, sums.total, sums.other)


class Moments(Sums):
    """Sums over rows (B, D) of length 1 and over their squares (D,)."""

    def add(self, rows_BD: torch.Tensor) -> None:
        """Count rows of any length."""
        rows = normalize(rows_BD.double(), dim=1)
        self.add_sums(len(rows), rows.sum(dim=0).cpu().numpy(), rows.square().sum(dim=0).cpu().numpy())

    def std(self) -> float:
        """Return the mean standard deviation of a dimension times sqrt(D), in [0, 1]."""
        mean = self.total / self.count
        variance = np.maximum(self.other / self.count - mean**2, 0)
        return float(np.sqrt(variance).mean() * math.sqrt(len(variance)))


class Usage(Sums):
    """Sums over distributions (B, P) on prototypes and over their entropies, in nats."""

    def add(self, shares_BP: torch.Tensor) -> None:
        """Count distributions, which sum to 1."""
        shares = shares_BP.float()
        entropies = torch.special.entr(shares).sum(dtype=torch.float64)
        self.add_sums(len(shares), shares.sum(dim=0, dtype=torch.float64).cpu().numpy(), float(entropies))

    def values(self) -> dict[str, float]:
        """Return entropy of the mean and mutual information, both by log P."""
        mean = self.total / self.count
        largest = math.log(max(2, len(mean)))
        entropy = max(0.0, -float((mean * np.log(np.maximum(mean, 1e-300))).sum()))
        return {
            "prototype_entropy": entropy / largest,
            "prototype_information": max(0.0, entropy - self.other / self.count) / largest,
        }


def feature_std(features_ND: np.ndarray) -> float:
    """Return the mean standard deviation of a dimension of the rows, each of length 1, times sqrt(D), in [0, 1]."""
    moments = Moments()
    moments.add(torch.from_numpy(features_ND))
    return moments.std()


def rankme(features_ND: np.ndarray) -> float:
    """Return the effective rank of the features, as they are, in [1, min(N, D)] (Garrido et al. 2023, RankMe)."""
    singular = np.linalg.svd(features_ND.astype(np.float64), compute_uv=False)
    shares = singular / max(singular.sum(), 1e-300) + EPSILON
    return float(np.exp(-(shares * np.log(shares)).sum()))
