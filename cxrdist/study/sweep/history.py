"""What is known of the trials of a sweep: their validations, and how they ended."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cxrdist.study.sweep.plan import Trial
from cxrdist.study.watching import Outcome
from cxrdist.train.metrics import read_metrics

OBJECTIVE = "auroc_macro"
"""Validation AUROC, macro over findings: what the run itself chooses its checkpoint by."""


@dataclass
class History:
    """Of all trials, by name."""

    values: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    """Step and objective of each validation that counts: up to the one that stopped the trial."""
    ended: dict[str, Outcome] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    def best(self, trial: Trial) -> float | None:
        """Return the best validation that counts."""
        return max((value for _, value in self.values.get(trial.job.name, ())), default=None)

    def last(self, trial: Trial) -> float | None:
        """Return the last validation that counts."""
        found = self.values.get(trial.job.name)
        return found[-1][1] if found else None


def validations(folder: Path) -> list[tuple[int, float]]:
    """Return step and objective of each validation of a run; where it was not defined there is none."""
    return [
        (line["step"], float(line[OBJECTIVE]))
        for line in _lines(folder)
        if line.get("kind") == "val" and isinstance(line.get(OBJECTIVE), int | float)
    ]


def trained_to(folder: Path) -> int:
    """Return the last step that a run has written of; 0 before its first line."""
    return max((line["step"] for line in _lines(folder)), default=0)


def _lines(folder: Path) -> list[dict[str, Any]]:
    return [line for line in read_metrics(folder / "metrics.jsonl") if isinstance(line.get("step"), int)]
