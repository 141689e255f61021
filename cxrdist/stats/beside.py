"""Tests of a difference that stand beside the bootstrap's p.  Shapes: N images, S files of a model, P units."""

import math
from dataclasses import dataclass

import numpy as np

from cxrdist.stats.delong import DeLong, delong_test
from cxrdist.stats.mcnemar import mcnemar_test
from cxrdist.stats.permutation import permutation_test
from cxrdist.stats.resample import MapFunction, Units

CALLED = {"sensitivity": 1.0, "specificity": 0.0, "accuracy": None}
"""Metrics that McNemar's test compares -> the target of the images they are about (None: both)."""


@dataclass(frozen=True)
class Pair:
    """Two models on one finding, for the tests of `delong`, `permutation` and `mcnemar`, which cite their sources."""

    targets: np.ndarray
    """(N,) of 1, 0, NaN for masked."""
    first: np.ndarray
    """(S, N) scores of the one model's files."""
    second: np.ndarray
    """(S, N) of the other's; S may differ."""
    units: Units
    """Of the N images."""
    clustered: bool
    """Whether units are patients, else images."""

    def delong(self, metric: str) -> DeLong | None:
        """Return DeLong's test of the mean AUROCs (`delong_test`), clustered by the units; None for other metrics.

        Raises:
            ValueError: If a shape or value is wrong.
        """
        return delong_test(self.targets, self.first, self.second, self.units.of_image) if metric == "auroc" else None

    def permutation(self, metric: str, n_permutations: int, seed: int, map: MapFunction) -> float:
        """Return the p of `permutation_test` of the AUROCs; NaN if none is asked for or files cannot be swapped.

        File s of the one is swapped with file s of the other, so there must be as many of each.

        Raises:
            ValueError: If a shape or value is wrong, or `n_permutations` is negative.
        """
        if not n_permutations or metric != "auroc" or len(self.first) != len(self.second):
            return math.nan
        return permutation_test(
            self.targets, self.first, self.second, self.units, n_permutations=n_permutations, seed=seed, map=map
        )

    def mcnemar(self, metric: str, thresholds: tuple[float, float] | None) -> float:
        """Return the p of McNemar's test (`mcnemar_test`) of the calls at `thresholds`, of the first and the second.

        NaN for several files, without thresholds, and for metrics that are no share of calls (`CALLED`).

        Raises:
            ValueError: If a shape or value is wrong.
        """
        if metric not in CALLED or thresholds is None or len(self.first) + len(self.second) != 2:
            return math.nan
        if math.isnan(thresholds[0]) or math.isnan(thresholds[1]):
            return math.nan
        about = CALLED[metric]
        targets = self.targets if about is None else np.where(self.targets == about, self.targets, np.nan)
        first, second = self.first[0] >= thresholds[0], self.second[0] >= thresholds[1]
        return mcnemar_test(targets, first, second, self.units if self.clustered else None).p
