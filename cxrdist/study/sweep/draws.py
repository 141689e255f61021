"""The values of each trial, before anything has run."""

from itertools import product
from typing import Any
from zlib import crc32

from cxrdist.seeds import Purpose, stream
from cxrdist.study.sweep.config import SweepConfig

Values = dict[str, Any]


def draw(sweep: SweepConfig) -> list[Values]:
    """Return the values of all trials of a strategy, in order; every strategy has the same.

    Draw i of a name depends on the sweep's seed, i and the name alone: more trials come after the others, and another
    name beside it changes nothing.  Draws of equal values are one.
    """
    grids = {name: space.values for name, space in sweep.search.items() if space.kind == "grid"}
    found: list[Values] = []
    for i in range(sweep.trials):
        drawn = draw_one(sweep, i)
        for chosen in product(*grids.values()):
            both = drawn | dict(zip(grids, chosen, strict=True))
            values = {name: both[name] for name in sweep.search}
            if values not in found:
                found.append(values)
    return found


def draw_one(sweep: SweepConfig, i: int) -> Values:
    """Return draw `i` of every name that has no grid."""
    return {
        name: space.at(stream(sweep.seed, Purpose.SWEEP, i, crc32(name.encode())).random())
        for name, space in sweep.search.items()
        if space.kind != "grid"
    }
