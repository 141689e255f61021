"""Calibration error over bins of equal mass, many redraws at once.  Shapes: n images, P units, B redraws."""

import numpy as np

from cxrdist.stats.kernels import compiled, typed, writable


def equal_mass_error(
    counts: np.ndarray, unit: np.ndarray, scores: np.ndarray, positive: np.ndarray, n_bins: int
) -> np.ndarray:
    """Return (B,) the sum over bins of |sum of p - sum of y| over the sum of weights; NaN where that is 0.

    Images come by ascending score.  Equal scores are a group and fall into one bin, that of their middle on the line
    of all weights: with c the weight below and w that of the group, bin ``floor(n_bins (c + w / 2) / total)``.  It is
    found by comparing ``n_bins (2 c + w)`` with ``2 total (bin + 1)``, exact for whole weights.

    Args:
        counts: (P, B) uint16 or float64.
        unit: (n,) unit of each image.
        scores: (n,) ascending.
        positive: (n,) bool.
        n_bins: 1 or more.
    """
    return _error(writable(typed(counts)), writable(unit), writable(scores), writable(positive), n_bins)


@compiled
def _error(counts, unit, scores, positive, n_bins):  # type: ignore[no-untyped-def]
    lanes = counts.shape[1]
    total = np.zeros(lanes)
    for i in range(len(unit)):
        for b in range(lanes):
            total[b] += counts[unit[i], b]
    error = np.zeros(lanes)
    below = np.zeros(lanes)  # weight of all groups done
    bin_of_last = np.zeros(lanes)
    gap = np.zeros(lanes)  # sum of p - y in the bin of the last group
    weight = np.zeros(lanes)  # of the group under way
    present = np.zeros(lanes)  # the part of it with the finding
    for i in range(len(unit)):
        for b in range(lanes):
            weight[b] += counts[unit[i], b]
        if positive[i]:
            for b in range(lanes):
                present[b] += counts[unit[i], b]
        if i + 1 < len(unit) and scores[i + 1] == scores[i]:
            continue
        for b in range(lanes):
            if weight[b] > 0:
                twice_middle = n_bins * (2 * below[b] + weight[b])
                if twice_middle >= 2 * total[b] * (bin_of_last[b] + 1):
                    error[b] += abs(gap[b])
                    gap[b] = 0.0
                    # The last bin is closed above: rounding of float weights must not open one more.
                    while bin_of_last[b] < n_bins - 1 and twice_middle >= 2 * total[b] * (bin_of_last[b] + 1):
                        bin_of_last[b] += 1
                gap[b] += weight[b] * scores[i] - present[b]
                below[b] += weight[b]
                weight[b] = 0.0
                present[b] = 0.0
    for b in range(lanes):
        error[b] = (error[b] + abs(gap[b])) / total[b] if total[b] > 0 else np.nan
    return error
