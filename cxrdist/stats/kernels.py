"""The inner loops of the statistics, compiled.  Shapes: P units, B redraws (lanes), E entries, G groups, V values.

An entry is an image that takes part, as its row in the (P, B) counts; entries are sorted by score once.  A kernel walks
the sorted entries and handles all lanes of a row at once, so that the compiler works on them with vector instructions.
A lane never meets another lane and has one fixed order of additions (no fast-math): its value does not depend on which
or how many lanes there are.  Kernels release the GIL, so threads run them side by side.
"""

import numpy as np

from cxrdist.stats.compiling import compiled

NARROW = 2**16 - 1
WIDE = 2**32 - 1


@compiled
def _add_rows(total: np.ndarray, counts: np.ndarray, units: np.ndarray, first: int, last: int) -> None:
    """Add the rows of entries [first, last) to `total` (B,), one after the other, in the type of `total`."""
    lanes = total.shape[0]
    i = first
    while i + 4 <= last:  # four rows for one read and write of `total`
        u, v, w, x = units[i], units[i + 1], units[i + 2], units[i + 3]
        for b in range(lanes):
            total[b] = total[b] + counts[u, b] + counts[v, b] + counts[w, b] + counts[x, b]
        i += 4
    while i < last:
        u = units[i]
        for b in range(lanes):
            total[b] = total[b] + counts[u, b]
        i += 1


@compiled
def _walk_group(
    counts: np.ndarray,
    units: np.ndarray,
    first: int,
    group: tuple[int, int, int],
    below: np.ndarray,
    before: np.ndarray,
    here: np.ndarray,
    positive: np.ndarray,
    twice: np.ndarray,
) -> None:
    """Take one group, and the negatives before it, into the sums of `twice` wins."""
    start, tied, end = group
    _add_rows(below, counts, units, first, start)
    for b in range(below.shape[0]):
        here[b] = 0
        before[b] = below[b]
    _add_rows(here, counts, units, start, tied)
    _add_rows(below, counts, units, tied, end)
    for b in range(below.shape[0]):
        positive[b] += here[b]
        # A positive wins over the negatives below it and half-wins over the tied.
        twice[b] += here[b] * (before[b] + below[b])


@compiled
def walk_float(counts: np.ndarray, units: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return (B,) AUROCs under float64 (P, B) `counts`; see `auroc_under`, which checks what comes here."""
    lanes = counts.shape[1]
    below, before, here = np.zeros(lanes), np.zeros(lanes), np.zeros(lanes)
    positive, twice = np.zeros(lanes), np.zeros(lanes)
    first = 0
    for g in range(groups.shape[0]):
        group = (groups[g, 0], groups[g, 1], groups[g, 2])
        _walk_group(counts, units, first, group, below, before, here, positive, twice)
        first = group[2]
    _add_rows(below, counts, units, first, units.shape[0])
    value = np.full(lanes, np.nan)
    for b in range(lanes):
        pairs = positive[b] * below[b]
        if pairs > 0:
            value[b] = twice[b] / (2 * pairs)
    return value


@compiled
def _flush(
    below: np.ndarray,
    positive: np.ndarray,
    twice: np.ndarray,
    low: np.ndarray,
    low_positive: np.ndarray,
    low_twice: np.ndarray,
) -> None:
    """Move the narrow sums of a stretch into the wide ones."""
    for b in range(below.shape[0]):
        twice[b] += np.uint64(2) * np.uint64(below[b]) * np.uint64(low_positive[b]) + np.uint64(low_twice[b])
    for b in range(below.shape[0]):
        below[b] = np.uint32(below[b] + low[b])
        positive[b] = np.uint32(positive[b] + low_positive[b])
        low[b] = 0
        low_positive[b] = 0
        low_twice[b] = 0


@compiled
def walk_uint16(counts: np.ndarray, units: np.ndarray, groups: np.ndarray, stretch: int) -> np.ndarray:
    """Return (B,) AUROCs under uint16 (P, B) `counts`, exact but for the last division; see `auroc_under`.

    Sums are narrow over a stretch of entries, whose counts add up to 65,535 at most: n of negatives and p of positives,
    each in 16 bits, and twice the wins, 2 n p < 2^32, in 32 bits.  A group that is longer is summed in wide numbers.
    """
    lanes = counts.shape[1]
    below, before = np.zeros(lanes, np.uint32), np.zeros(lanes, np.uint32)
    here, positive = np.zeros(lanes, np.uint32), np.zeros(lanes, np.uint32)
    twice = np.zeros(lanes, np.uint64)
    low, low_before = np.zeros(lanes, np.uint16), np.zeros(lanes, np.uint16)
    low_here, low_positive = np.zeros(lanes, np.uint16), np.zeros(lanes, np.uint16)
    low_twice = np.zeros(lanes, np.uint32)
    first, used = 0, 0
    for g in range(groups.shape[0]):
        start, tied, end = groups[g, 0], groups[g, 1], groups[g, 2]
        used += end - first
        if used > stretch:
            _flush(below, positive, twice, low, low_positive, low_twice)
            used = end - first
        if used > stretch:
            _walk_group(counts, units, first, (start, tied, end), below, before, here, positive, twice)
            used = 0
        elif end == start + 1:  # one positive tied with none: by far the most frequent
            _add_rows(low, counts, units, first, start)
            u = units[start]
            for b in range(lanes):
                low_positive[b] = np.uint16(low_positive[b] + counts[u, b])
                low_twice[b] = np.uint32(low_twice[b] + np.uint32(counts[u, b]) * np.uint32(2 * low[b]))
        else:
            _add_rows(low, counts, units, first, start)
            for b in range(lanes):
                low_here[b] = 0
                low_before[b] = low[b]
            _add_rows(low_here, counts, units, start, tied)
            _add_rows(low, counts, units, tied, end)
            for b in range(lanes):
                low_positive[b] = np.uint16(low_positive[b] + low_here[b])
                low_twice[b] = np.uint32(
                    low_twice[b] + np.uint32(low_here[b]) * (np.uint32(low_before[b]) + np.uint32(low[b]))
                )
        first = end
    _flush(below, positive, twice, low, low_positive, low_twice)
    _add_rows(below, counts, units, first, units.shape[0])
    value = np.full(lanes, np.nan)
    for b in range(lanes):
        pairs = np.uint64(positive[b]) * np.uint64(below[b])
        if pairs > 0:
            value[b] = np.float64(twice[b]) / np.float64(np.uint64(2) * pairs)
    return value


@compiled
def _walk_precision(
    counts: np.ndarray, units: np.ndarray, groups: np.ndarray, below: np.ndarray, here: np.ndarray, positive: np.ndarray
) -> np.ndarray:
    """Return (B,) average precisions; sums of counts in the type of the zeros given."""
    lanes = counts.shape[1]
    value = np.zeros(lanes)
    first = 0
    for g in range(groups.shape[0]):
        start, tied, end = groups[g, 0], groups[g, 1], groups[g, 2]
        _add_rows(below, counts, units, first, start)
        for b in range(lanes):
            here[b] = 0
        _add_rows(here, counts, units, start, tied)
        _add_rows(below, counts, units, tied, end)
        for b in range(lanes):
            positive[b] += here[b]
            called = np.float64(positive[b]) + np.float64(below[b])
            # Without a weight so far there is no precision, and no recall to go with it.
            value[b] += np.float64(here[b]) * (np.float64(positive[b]) / called if called > 0 else 0.0)
        first = end
    for b in range(lanes):
        value[b] = value[b] / np.float64(positive[b]) if positive[b] > 0 else np.nan
    return value


@compiled
def _greatest(counts: np.ndarray) -> np.uint16:
    """Return the largest of the uint16 `counts`, or 1; NumPy's own would keep other threads waiting."""
    flat, largest = counts.reshape(-1), np.uint16(1)
    for i in range(flat.shape[0]):
        if flat[i] > largest:  # noqa: PLR1730 - `max` is of a wider type, which no vector instruction takes
            largest = flat[i]
    return largest


@compiled
def _add_products(total: np.ndarray, counts: np.ndarray, values: np.ndarray) -> None:
    lanes = counts.shape[1]
    row = np.empty(lanes)
    for p in range(counts.shape[0]):
        for b in range(lanes):
            row[b] = counts[p, b]
        for v in range(values.shape[1]):
            value = values[p, v]
            if value != 0:
                for b in range(lanes):
                    total[v, b] += row[b] * value


def auroc_under(counts: np.ndarray, units: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return the (B,) AUROCs (Mann & Whitney 1947; ties count one half); NaN where a class has no weight.

    Args:
        counts: (P, B) uint16 or float64 weights of the units.
        units: (E,) int32, the unit of each entry, by ascending score and among equal scores positives first.
        groups: (G, 3) int64, ascending: entries [start, tied) are positives, [tied, end) the negatives that score the
            same; the entries between two groups are negatives.

    Raises:
        ValueError: If counts are not of these types, or so large that their sum might not fit 32 bits.
    """
    counts = writable(typed(counts))
    if counts.dtype == np.float64:
        return walk_float(counts, writable(units), writable(groups))
    return walk_uint16(counts, writable(units), writable(groups), NARROW // _largest(counts, len(units)))


def average_precision_under(counts: np.ndarray, units: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return the (B,) average precisions, scikit-learn's sum of precision x gain in recall; NaN without positives.

    Args:
        counts: (P, B) uint16 or float64 weights of the units.
        units: (E,) int32, the unit of each entry, by descending score and among equal scores positives first.
        groups: (G, 3) int64 as for `auroc_under`, one for each distinct score of a positive.

    Raises:
        ValueError: If counts are not of these types, or so large that their sum might not fit 32 bits.
    """
    counts = writable(typed(counts))
    if counts.dtype == np.uint16:
        _largest(counts, len(units))
    kind = np.float64 if counts.dtype == np.float64 else np.uint32
    below, here, positive = np.zeros((3, counts.shape[1]), kind)
    return _walk_precision(counts, writable(units), writable(groups), below, here, positive)


def weighted_sums(counts: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return (V, B) float64: the sum over units of count x value, unit after unit.

    Args:
        counts: (P, B) uint16 or float64.
        values: (P, V), finite numbers; zeros cost nothing.

    Raises:
        ValueError: If the shapes differ, or `counts` are of another type.
    """
    values = np.ascontiguousarray(values, dtype=np.float64)
    if values.ndim != 2 or len(values) != len(counts):
        raise ValueError(f"`values` must have the shape ({len(counts)}, V), got {values.shape}.")
    total = np.zeros((values.shape[1], counts.shape[1]))
    _add_products(total, writable(typed(counts)), writable(values))
    return total


def _largest(counts: np.ndarray, entries: int) -> int:
    """Return the largest of the uint16 `counts`, at least 1; raise a ValueError where sums might not fit 32 bits."""
    largest = int(_greatest(counts))
    if largest * entries > WIDE:
        raise ValueError(f"`counts` x images must be at most {WIDE}, got {largest} x {entries}.")
    return largest


def typed(counts: np.ndarray) -> np.ndarray:
    """Return (P, B) `counts` as they are.

    Raises:
        ValueError: If they are not (P, B), or not of uint16 or float64, the types that kernels take.
    """
    if counts.ndim != 2 or counts.dtype not in (np.uint16, np.float64):
        raise ValueError(f"`counts` must be (P, B) of uint16 or float64, got {counts.shape} of {counts.dtype}.")
    return counts


def writable(array: np.ndarray) -> np.ndarray:
    """Return the (...) array contiguous and writable: a read-only one (Ray's) would be compiled for anew."""
    return np.require(array, requirements=("C", "W"))
