"""How much each searched value mattered: permutation importance of a random forest (Breiman 2001), with its spread."""

import json
from dataclasses import dataclass

import numpy as np

from cxrdist.study.sweep.config import SweepConfig
from cxrdist.study.sweep.results import Row
from cxrdist.study.sweep.space import Space

FEWEST = 10
"""Trials, below which a forest says nothing."""
TREES, REPEATS = 100, 20


@dataclass(frozen=True)
class Importance:
    """Of one searched name."""

    name: str
    mean: float
    """Mean loss of R² of the forest when the name's values change places, over repeats."""
    spread: float
    """Standard deviation of that over repeats."""


def importances(sweep: SweepConfig, rows: list[Row]) -> tuple[int, list[Importance]]:
    """Return the step at which trials are compared, and the importance of each name, the greatest first.

    Trials that were stopped early have trained less, so all are compared at the last step that each of them came to:
    by its best validation up to there.  Of a population only the first generation counts: later
    members were trained with other values before.  Empty with fewer than `FEWEST` trials, or where all have one value.
    """
    from sklearn.ensemble import RandomForestRegressor  # noqa: PLC0415 - a second
    from sklearn.inspection import permutation_importance  # noqa: PLC0415

    known = [row for row in rows if row.values and row.trial.generation == 0]
    step = min((row.values[-1][0] for row in known), default=0)
    values = np.array([max(value for at, value in row.values if at <= step) for row in known])
    if len(known) < FEWEST or np.ptp(values) == 0:
        return step, []
    places = np.array([[place(space, row.trial.values[name]) for name, space in sweep.search.items()] for row in known])
    forest = RandomForestRegressor(TREES, random_state=sweep.seed % 2**32, n_jobs=1).fit(places, values)
    found = permutation_importance(forest, places, values, n_repeats=REPEATS, random_state=sweep.seed % 2**32, n_jobs=1)
    pairs = zip(sweep.search, found.importances_mean, found.importances_std, strict=True)
    return step, sorted((Importance(name, float(m), float(s)) for name, m, s in pairs), key=lambda one: -one.mean)


def place(space: Space, value: object) -> float:
    """Return where in [0, 1] of its space `value` lies; numbers of a list by their order, others by their place."""
    if not space.is_listed:
        return float(min(max(space.share(value), 0.0), 1.0))
    values = space.values
    numbers = all(isinstance(one, int | float) and not isinstance(one, bool) for one in values)
    ordered = sorted(values) if numbers else values
    return ordered.index(value) / max(len(ordered) - 1, 1)


def shown(value: object) -> str:
    """Return a value as a figure has it."""
    if isinstance(value, float):
        return f"{value:.3g}"
    return value if isinstance(value, str) else json.dumps(value)
