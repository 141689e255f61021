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
class Moments:
    """Running sums over rows (B, D) of length 1, in float64: a long embedding is not kept for every image."""

    count: int = 0
    total: Any = 0.0
    squares: Any = 0.0

    def add(self, rows_BD: torch.Tensor) -> None:
        """Count rows of any length."""
        rows = normalize(rows_BD.double(), dim=1)
        self.add_sums(len(rows), rows.sum(dim=0).cpu().numpy(), rows.square().sum(dim=0).cpu().numpy())

    def add_sums(self, count: int, total: np.ndarray, squares: np.ndarray) -> None:
        """Count `count` rows by their sums (D,), those of another rank as well."""
        self.count, self.total, self.squares = self.count + count, self.total + total, self.squares + squares

    def std(self) -> float:
        """Return the mean standard deviation of a dimension times sqrt(D), in [0, 1]."""
        mean = self.total / self.count
        variance = np.maximum(self.squares / self.count - mean**2, 0)
        return float(np.sqrt(variance).mean() * math.sqrt(len(variance)))


@dataclass
class Usage:
    """Running sums over distributions (B, P) on prototypes."""

    count: int = 0
    total: Any = 0.0
    entropies: float = 0.0

    def add(self, shares_BP: torch.Tensor) -> None:
        """Count distributions, which sum to 1."""
        shares = shares_BP.float()
        entropies = torch.special.entr(shares).sum(dtype=torch.float64)
        self.add_sums(len(shares), shares.sum(dim=0, dtype=torch.float64).cpu().numpy(), float(entropies))

    def add_sums(self, count: int, total: np.ndarray, entropies: float) -> None:
        """Count `count` distributions by their sum (P,) and the sum of their entropies, in nats."""
        self.count, self.total, self.entropies = self.count + count, self.total + total, self.entropies + entropies

    def values(self) -> dict[str, float]:
        """Return entropy of the mean and mutual information, both by log P."""
        mean = self.total / self.count
        largest = math.log(max(2, len(mean)))
        entropy = max(0.0, -float((mean * np.log(np.maximum(mean, 1e-300))).sum()))
        return {
            "prototype_entropy": entropy / largest,
            "prototype_information": max(0.0, entropy - self.entropies / self.count) / largest,
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
