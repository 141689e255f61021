"""Redraws of patients, and numbers worked out under many redraws at once.

Shapes: N images, P units (patients, or images), R redraws, B redraws worked out together, C columns of numbers.

The bootstrap (Efron 1979, Ann Stat 7:1), of whole clusters (Field & Welsh 2007, JRSS B 69:369).  A redraw never copies
an image: it says how often each unit counts.  Redraw r is a pure function of (seed, r), and a statistic works every
redraw out by itself in one fixed order; so any map function, any number of workers and any grouping of redraws give the
same bits.  On processors of unlike kinds AUROC, AUPRC, rates, Brier score and calibration error have the same bits as
well, being made of sums, products and quotients; log loss, calibration slope and intercept take exponentials and
logarithms, whose last bit may differ there.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np

from cxrdist.seeds import Purpose, stream

MapFunction = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]
"""The builtin `map`, an executor's or a cluster's: calls a function on each item and yields the results in order."""

TOGETHER = 128
"""Redraws worked out at once, the lanes of the kernels: enough to pay for each call, few enough for the cache."""


class Statistic(Protocol):
    """One number of one model on one finding, prepared (sorted, summed) so that redraws are cheap; it pickles."""

    def under(self, counts: np.ndarray) -> np.ndarray:
        """Return (B,) float64 values for the (P, B) `counts` of each unit; NaN where undefined.

        `counts` are uint16 (redraws) or non-negative float64 (weights).  The value of a column depends on that column
        alone, to the bit.
        """
        ...


@dataclass(frozen=True)
class Units:
    """What is redrawn: patients with all their images, or single images."""

    of_image: np.ndarray
    """(N,) int64 in [0, P): the unit of each image."""
    n: int
    """P."""
    strata: tuple[np.ndarray, ...] = ()
    """Units drawn among themselves only, each a (Ps,) int64 array; together all units.  Empty: one stratum of all."""

    def draw(self, redraws: Sequence[int], seed: int) -> np.ndarray:
        """Return (P, B) uint16: how often each unit is drawn in each of `redraws`; a column's sum is P.

        Units of a stratum are drawn from the one stream ``stream(seed, Purpose.BOOTSTRAP, redraw)``, stratum after
        stratum.
        """
        counts = np.empty((len(redraws), self.n), dtype=np.uint16)
        for row, redraw in enumerate(redraws):
            rng = stream(seed, Purpose.BOOTSTRAP, redraw)
            if not self.strata:
                counts[row] = np.bincount(rng.integers(0, self.n, self.n), minlength=self.n)
            for units in self.strata:
                drawn = rng.integers(0, len(units), len(units))
                counts[row, units] = np.bincount(drawn, minlength=len(units))
        return np.ascontiguousarray(counts.T)


def whole_units(ids: np.ndarray) -> Units:
    """Return the units whose (N,) `ids` tell which images belong together, P in the sorted order of the ids."""
    names, of_image = np.unique(ids, return_inverse=True)
    return Units(of_image.astype(np.int64), len(names))


def redraw(
    statistics: Sequence[Statistic],
    units: Units,
    *,
    n_resamples: int,
    seed: int,
    map: MapFunction = map,
    together: int = TOGETHER,
) -> np.ndarray:
    """Return (R, C): every statistic in each of `n_resamples` redraws, which all statistics share (Efron 1979).

    Args:
        statistics: C, prepared for `units`.
        units: What is drawn, P of P with replacement, strata each by itself.
        n_resamples: R; 0 gives (0, C).
        seed: Redraw r is a pure function of (seed, r).
        map: Where to work.
        together: Redraws in one call; changes no bit of the result.

    Raises:
        ValueError: If a statistic is prepared for other units.
    """
    calls = [range(first, min(first + together, n_resamples)) for first in range(0, n_resamples, together)]
    rows = list(map(partial(_redrawn, tuple(statistics), units, seed), calls))
    return np.concatenate(rows) if rows else np.empty((0, len(statistics)))


def jackknife(
    statistics: Sequence[Statistic], units: Units, *, map: MapFunction = map, together: int = TOGETHER
) -> np.ndarray:
    """Return (P, C): every statistic with one unit left out, in the order of units (Efron & Tibshirani 1993, 11).

    Raises:
        ValueError: If a statistic is prepared for other units, or there are none.
    """
    calls = [range(first, min(first + together, units.n)) for first in range(0, units.n, together)]
    return np.concatenate(list(map(partial(_without_each, tuple(statistics), units.n), calls)))


def full_sample(statistics: Sequence[Statistic], units: Units) -> np.ndarray:
    """Return (C,): every statistic on the sample as it is, every unit counted once.

    Raises:
        ValueError: If a statistic is prepared for other units.
    """
    return _under(statistics, np.ones((units.n, 1), dtype=np.uint16))[0]


def _redrawn(statistics: Sequence[Statistic], units: Units, seed: int, redraws: Sequence[int]) -> np.ndarray:
    return _under(statistics, units.draw(redraws, seed))


def _without_each(statistics: Sequence[Statistic], n_units: int, left_out: Sequence[int]) -> np.ndarray:
    counts = np.ones((n_units, len(left_out)), dtype=np.uint16)
    counts[left_out, np.arange(len(left_out))] = 0
    return _under(statistics, counts)


def _under(statistics: Sequence[Statistic], counts: np.ndarray) -> np.ndarray:
    return np.stack([statistic.under(counts) for statistic in statistics], axis=1)
