"""Families of differences: p-values adjusted over all that were looked at, also over several comparisons."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from cxrdist.stats.comparison import Comparison, Difference
from cxrdist.stats.families import adjust_redrawn
from cxrdist.stats.meanings import AVERAGES


def adjust(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Return `comparisons` with q set over all of them.

    Of each metric, the differences of averages are one family, those of findings another.  A report over several
    datasets declares its families over all of them, so it calls this once more with all.  The corrections are those of
    `families.adjust_redrawn`, over M differences of (R,) redraws each.

    Raises:
        ValueError: If the comparisons differ in their correction or their number of redraws.
    """
    for name in ("correction", "n_resamples"):
        found = dict.fromkeys(getattr(one.options, name) for one in comparisons)
        if len(found) > 1:
            raise ValueError(f"`{name}` must be one for a family, got {', '.join(str(one) for one in found)}.")
    families: dict[tuple[str, bool], list[tuple[int, int, Difference]]] = {}
    for i, one in enumerate(comparisons):
        for j, d in enumerate(one.differences):
            families.setdefault((d.metric, d.finding in AVERAGES), []).append((i, j, d))
    changed = [list(one.differences) for one in comparisons]
    for family in families.values():
        p, value = (np.array([getattr(d, name) for _, _, d in family]) for name in ("p", "value"))
        delta = np.stack([d.redraws for _, _, d in family], axis=1)
        q = adjust_redrawn(p, delta, value, comparisons[0].options.correction)
        for (i, j, d), adjusted in zip(family, q, strict=True):
            changed[i][j] = replace(d, q=float(adjusted))
    return [replace(one, differences=tuple(new)) for one, new in zip(comparisons, changed, strict=True)]
