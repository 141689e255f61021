"""Paired permutation test of two models' AUROCs.  Shapes: N images, P units (patients), B permutations, S files.

If two models are alike, swapping their scores of a patient changes nothing that matters.  So the difference of the
AUROCs is held against its differences after swapping them for a random half of the patients (Bandos, Rockette & Gur
2005, Statistics in Medicine 24:2873).  As they do, each model's scores are first replaced by their ranks, since models
have scales of their own.  A patient's images are swapped together, because they are not independent.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy.stats import rankdata

from cxrdist.seeds import Purpose, stream
from cxrdist.stats.auroc import auroc_statistic
from cxrdist.stats.resample import TOGETHER, MapFunction, Statistic, Units


@dataclass(frozen=True)
class _Swaps:
    """All a worker needs: each file's own and swapped entries, and the pairs, which make sums of AUROCs whole."""

    of_file: tuple[Statistic, ...]
    """Over 2P units: entry u is what a patient has of the first model, entry P + u what of the second."""
    n_units: int
    twice_pairs: int
    """Twice the number of pairs of a positive and a negative: every AUROC is a whole number of these parts."""
    seed: int

    def differences(self, swapped: np.ndarray) -> np.ndarray:
        """Return (B,) int64: S times twice the pairs times the difference, exactly, for (P, B) uint16 of 1 = swapped.

        Whole numbers, so that permutations which tie with the observed difference are counted as such.
        """
        first = np.ascontiguousarray(np.concatenate([1 - swapped, swapped]))
        second = np.ascontiguousarray(np.concatenate([swapped, 1 - swapped]))
        wins = [
            np.rint(statistic.under(counts) * self.twice_pairs).astype(np.int64)
            for counts in (first, second)
            for statistic in self.of_file
        ]
        return np.sum(wins[: len(self.of_file)], axis=0) - np.sum(wins[len(self.of_file) :], axis=0)


def permutation_test(
    targets: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    units: Units,
    *,
    n_permutations: int,
    seed: int,
    map: MapFunction = map,
) -> float:
    """Return the two-sided p-value that two models are exchangeable, by the difference of their AUROCs.

    Bandos et al. 2005, with whole units swapped.

    ``p = (#{|permuted difference| >= |difference|} + 1) / (n_permutations + 1)``: the observed sample is one of the
    permutations (Phipson & Smyth 2010, Stat Appl Genet Mol Biol 9:39), so p is valid for any number of them and never
    0.  Permutation number i is a function of (seed, i) alone, hence p does not depend on `map`, and tests with one seed
    swap the same patients.

    Args:
        targets: (N,) of 1, 0, NaN for masked.
        first: (N,) scores, or (S, N) of S files whose mean AUROC is meant; file s is swapped with file s.
        second: As `first`, with the same S.
        units: What is swapped as a whole: patients, or images.  `strata` do not matter.
        n_permutations: How many random swaps.
        seed: Permutation i comes from ``stream(seed, Purpose.PERMUTATION, i)``.
        map: Where to work.

    Returns:
        p in (0, 1]; NaN if a class is absent.

    Raises:
        ValueError: If shapes or values are wrong, or `n_permutations` is below 1.
    """
    targets = np.asarray(targets, dtype=np.float64)
    ours, theirs = np.atleast_2d(first), np.atleast_2d(second)
    _check(targets, ours, theirs, units, n_permutations)
    known = ~np.isnan(targets)
    positive, negative = int((targets == 1).sum()), int((targets == 0).sum())
    if not positive or not negative:
        return float("nan")
    unit = units.of_image[known]
    entries = Units(np.concatenate([unit, unit + units.n]), 2 * units.n)
    of_file = tuple(
        auroc_statistic(np.tile(targets[known], 2), np.r_[rankdata(a[known]), rankdata(b[known])], entries)
        for a, b in zip(ours, theirs, strict=True)
    )
    swaps = _Swaps(of_file, units.n, 2 * positive * negative, seed)
    observed = abs(int(swaps.differences(np.zeros((units.n, 1), dtype=np.uint16))[0]))
    calls = [range(start, min(start + TOGETHER, n_permutations)) for start in range(0, n_permutations, TOGETHER)]
    as_large = sum(map(partial(_count_as_large, swaps, observed), calls))
    return (as_large + 1) / (n_permutations + 1)


def _count_as_large(swaps: _Swaps, observed: int, numbers: Sequence[int]) -> int:
    """Return how many of the permutations of these `numbers` differ by as much as was observed, or more."""
    swapped = np.empty((swaps.n_units, len(numbers)), dtype=np.uint16)
    for column, number in enumerate(numbers):
        swapped[:, column] = stream(swaps.seed, Purpose.PERMUTATION, number).integers(0, 2, swaps.n_units, np.uint8)
    return int(np.count_nonzero(np.abs(swaps.differences(swapped)) >= observed))


def _check(targets: np.ndarray, ours: np.ndarray, theirs: np.ndarray, units: Units, n_permutations: int) -> None:
    if n_permutations < 1:
        raise ValueError(f"`n_permutations` must be 1 or more, got {n_permutations}.")
    if ours.shape != theirs.shape or ours.shape[1:] != targets.shape:
        shapes = f"{ours.shape}, {theirs.shape} and {targets.shape}"
        raise ValueError(f"`first` and `second` must have one shape, (N,) of `targets` or (S, N), got {shapes}.")
    if units.of_image.shape != targets.shape:
        raise ValueError(f"`units` must be of the {len(targets)} images of `targets`, got {len(units.of_image)}.")
