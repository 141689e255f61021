"""Which trials go on: pure rules over what trials report.  Higher is better; steps are optimizer steps.

A rule knows nothing but the reports it was given, in their order.  So its state needs no file of its own: given the
same reports again it makes the same decisions.
"""

import math
from collections.abc import Sequence
from statistics import mean, median
from typing import Protocol

import numpy as np


class Rule(Protocol):
    """Decides on each report whether its trial goes on."""

    def reported(self, trial: str, step: int, value: float) -> bool:
        """Take note of the validation `value` of `trial` after `step` steps; return whether it goes on."""


class GoOn:
    """Every trial runs to its end."""

    def reported(self, trial: str, step: int, value: float) -> bool:
        """Let it go on."""
        return True


class Asha:
    """Asynchronous successive halving, the variant that stops (Li et al. 2020, "A System for Massively Parallel
    Hyperparameter Tuning"; one bracket, as Ray Tune's `AsyncHyperBandScheduler` has it).

    Rungs stand at ``grace * reduction**k`` steps.  A trial that comes to a rung goes on if its value there is not below
    the quantile 1 - 1/reduction of those that came before it; nobody waits for others.
    """

    def __init__(self, *, grace: int, reduction: float, steps: int) -> None:
        """Place the rungs.

        Args:
            grace: Steps that every trial makes, at least 1.
            reduction: About one trial of so many passes a rung; above 1.
            steps: Of a whole trial, at least `grace`.
        """
        self.reduction = reduction
        count = int(np.log(steps / grace) / np.log(reduction) + 1)
        self.rungs: dict[float, dict[str, float]] = {grace * reduction**k: {} for k in range(count)}
        """By its steps, the values of the trials that came to each, in the order they came."""

    def reported(self, trial: str, step: int, value: float) -> bool:
        """Judge it at the highest rung that it has come to and was not judged at; between rungs it goes on."""
        for rung in sorted(self.rungs, reverse=True):
            came = self.rungs[rung]
            if step < rung or trial in came:
                continue
            goes_on = not came or value >= self.cutoff(rung)
            came[trial] = value
            return goes_on
        return True

    def cutoff(self, rung: float) -> float:
        """Return the value below which a trial ends at `rung`; NaN while nobody has come there."""
        values = list(self.rungs[rung].values())
        return float(np.percentile(values, (1 - 1 / self.reduction) * 100)) if values else math.nan


class MedianStopping:
    """Stop a trial whose best value is below the median of the others' running means up to its step.

    (Golovin et al. 2017, "Google Vizier", section 3.2.1; as Ray Tune's `MedianStoppingRule` has it.)  Of the others
    count those that have come as far.
    """

    def __init__(self, *, grace: int, fewest: int) -> None:
        """Set the limits.

        Args:
            grace: Steps that every trial makes; values from before are in no mean.
            fewest: Other trials that must have come as far, before one is stopped.
        """
        self.grace, self.fewest = grace, fewest
        self.reports: dict[str, list[tuple[int, float]]] = {}

    def reported(self, trial: str, step: int, value: float) -> bool:
        """Compare it with the others."""
        mine = self.reports.setdefault(trial, [])
        mine.append((step, value))
        if step < self.grace:
            return True
        others = [reports for other, reports in self.reports.items() if other != trial and reports[-1][0] >= step]
        means = [found for reports in others if (found := self._mean(reports, step)) is not None]
        return len(means) < self.fewest or max(value for _, value in mine) >= median(means)

    def _mean(self, reports: Sequence[tuple[int, float]], step: int) -> float | None:
        values = [value for at, value in reports if self.grace <= at <= step]
        return mean(values) if values else None
