"""Calibration error over bins of equal mass, many redraws at once.  Shapes: n images, P units, B redraws."""

import numpy as np

from cxrdist.stats.compiling import compiled
from cxrdist.stats.kernels import typed, writable


def equal_mass_error(
    counts: np.ndarray, unit: np.ndarray, scores: np.ndarray, positive: np.ndarray, n_bins: int
) -> np.ndarray:
    """Return (B,) the sum over bins of |sum of p - sum of y| over the sum of weights; NaN where that is 0.

    The expected calibration error of Naeini et al. 2015 in bins of equal mass; see `calibration.ece_statistic`.

    Images come by ascending score.  Equal scores are a group and fall into one bin, that of their middle on the line
    of all weights: with c the weight below and w that of the group, bin ``floor(n_bins (c + w / 2) / total)``.  It is
    found by comparing ``n_bins (2 c + w)`` with ``2 total (bin + 1)``, exact for whole weights.

    Args:
        counts: (P, B) uint16 or float64.
        unit: (n,) unit of each image.
        scores: (n,) ascending.
        positive: (n,) bool.
        n_bins: 1 or more.

    Raises:
        ValueError: If `counts` are not (P, B) of one of these types.
    """
    return _error(writable(typed(counts)), writable(unit), writable(scores), writable(positive), n_bins)


@compiled
def _sum_rows(total: np.ndarray, counts: np.ndarray, unit: np.ndarray, first: int, last: int) -> None:
    for i in range(first, last):
        u = unit[i]
        for b in range(len(total)):
            total[b] += counts[u, b]


@compiled
def _any_beyond(below: np.ndarray, weight: np.ndarray, n_bins: int, limit: np.ndarray) -> bool:
    """Return whether the middle of the group lies beyond the bin of the one before it in any lane.

    Lanes differ in where that is, so it is asked of all of them at once: a branch in each would end vectorisation.
    """
    beyond = np.int64(0)
    for b in range(len(below)):
        beyond |= np.int64(n_bins * (2 * below[b] + weight[b]) >= limit[b])
    return bool(beyond != 0)


@compiled
def _close_bins(
    below: np.ndarray,
    weight: np.ndarray,
    n_bins: int,
    limit: np.ndarray,
    total: np.ndarray,
    bin_of_last: np.ndarray,
    gap: np.ndarray,
    error: np.ndarray,
) -> None:
    """Close the bin of the group before in lanes where this one lies beyond it; `limit` is 2 total (bin + 1)."""
    for b in range(len(below)):
        twice_middle = n_bins * (2 * below[b] + weight[b])
        if twice_middle >= limit[b]:
            error[b] += abs(gap[b])
            gap[b] = 0.0
            while twice_middle >= limit[b]:
                bin_of_last[b] += 1
                # The last bin is closed above: rounding of float weights must not open one more.
                limit[b] = 2 * total[b] * (bin_of_last[b] + 1) if bin_of_last[b] < n_bins - 1 else np.inf


@compiled
def _add_gap(gap: np.ndarray, below: np.ndarray, weight: np.ndarray, present: np.ndarray, score: float) -> None:
    for b in range(len(gap)):
        gap[b] += weight[b] * score - present[b]
        below[b] += weight[b]


@compiled
def _error(counts: np.ndarray, unit: np.ndarray, scores: np.ndarray, positive: np.ndarray, n_bins: int) -> np.ndarray:
    lanes = counts.shape[1]
    total = np.zeros(lanes)
    _sum_rows(total, counts, unit, 0, len(unit))
    error = np.zeros(lanes)
    below = np.zeros(lanes)  # weight of all groups done
    bin_of_last = np.zeros(lanes)
    limit = 2 * total if n_bins > 1 else np.full(lanes, np.inf)
    gap = np.zeros(lanes)  # sum of p - y in the bin of the last group
    weight = np.zeros(lanes)  # of the group under way
    present = np.zeros(lanes)  # the part of it with the finding
    end = 0
    while end < len(unit):
        first, end = end, end + 1
        while end < len(unit) and scores[end] == scores[first]:
            end += 1
        weight[:] = counts[unit[first]]
        _sum_rows(weight, counts, unit, first + 1, end)
        present[:] = 0.0
        for i in range(first, end):
            if positive[i]:
                _sum_rows(present, counts, unit, i, i + 1)
        # A group without weight may close a bin as well: the next one with weight lies further up and would close it.
        if _any_beyond(below, weight, n_bins, limit):
            _close_bins(below, weight, n_bins, limit, total, bin_of_last, gap, error)
        _add_gap(gap, below, weight, present, scores[first])
    for b in range(lanes):
        error[b] = (error[b] + abs(gap[b])) / total[b] if total[b] > 0 else np.nan
    return error
