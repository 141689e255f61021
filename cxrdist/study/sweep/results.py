"""What a sweep has found: a row per trial, the best of each strategy, and whether the strategies were treated alike."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cxrdist.report import Guard
from cxrdist.study.sweep.config import PbtScheduler, SweepConfig
from cxrdist.study.sweep.history import History, trained_to
from cxrdist.study.sweep.plan import Trial
from cxrdist.train.run_folder import TEST_ACCESSES

ALIKE = 0.1
"""How much the steps that strategies really trained may differ: rules stop their trials at different places."""


@dataclass(frozen=True)
class Row:
    """One trial and what became of it."""

    trial: Trial
    state: str
    """``done``, ``stopped``, ``failed`` or ``left``."""
    values: tuple[tuple[int, float], ...]
    """Step and validation AUROC of each validation that counts."""
    steps: int
    """Optimizer steps that it really trained, those after the decision to stop it among them."""
    images: int
    """Training images seen in them."""
    reason: str = ""

    @property
    def best(self) -> float | None:
        """Return the best validation AUROC."""
        return max((value for _, value in self.values), default=None)

    @property
    def name(self) -> str:
        """Return the name of the trial."""
        return self.trial.job.name


@dataclass(frozen=True)
class Findings:
    """A whole sweep."""

    sweep: SweepConfig
    rows: tuple[Row, ...]
    """By strategy, number and generation."""

    @property
    def strategies(self) -> list[str]:
        """Return the names of the strategies in the file's order."""
        return list(self.sweep.forms)

    def of(self, strategy: str) -> list[Row]:
        """Return the rows of one strategy."""
        return [row for row in self.rows if row.trial.strategy == strategy]

    def best(self, strategy: str) -> Row | None:
        """Return the best trial that ran to its end; of equal ones the first.

        In a population it is the best member of the last generation: values of earlier ones are of unfinished runs.
        """
        done = [row for row in self.of(strategy) if row.state == "done" and row.best is not None]
        if isinstance(self.sweep.scheduler, PbtScheduler):
            last = max((row.trial.generation for row in done), default=0)
            done = [row for row in done if row.trial.generation == last]
            return max(done, key=lambda row: (row.values[-1][1], -row.trial.number), default=None)
        return max(done, key=lambda row: (row.best or -math.inf, -row.trial.number), default=None)


def gather(sweep: SweepConfig, trials: Sequence[Trial], history: History) -> Findings:
    """Return what is known of `trials`."""
    rows = []
    for trial in sorted(trials, key=lambda one: (one.strategy, one.number, one.generation)):
        name = trial.job.name
        steps = max(trained_to(trial.job.folder) - trial.from_step, 0)
        rows.append(
            Row(
                trial,
                history.ended.get(name, "left"),
                tuple(history.values.get(name, ())),
                steps,
                steps * int(trial.job.tree["train"]["global_batch_size"]),
                history.reasons.get(name, ""),
            )
        )
    order = list(sweep.forms)
    return Findings(sweep, tuple(sorted(rows, key=lambda row: order.index(row.trial.strategy))))


def budget(found: Findings) -> list[dict[str, Any]]:
    """Return what each strategy was given and what it used."""
    table = []
    for strategy in found.strategies:
        rows = found.of(strategy)
        table.append(
            {
                "strategy": strategy,
                "trials": len(rows),
                **{state: sum(row.state == state for row in rows) for state in ("done", "stopped", "failed", "left")},
                "allowed_steps": sum(row.trial.to_step - row.trial.from_step for row in rows),
                "steps": sum(row.steps for row in rows),
                "images": sum(row.images for row in rows),
            }
        )
    return table


def check(found: Findings, out: Path) -> list[Guard]:
    """Return the checks of a sweep."""
    used, rows = budget(found), found.rows
    opened = sorted({path.parent.name for path in (out / "trials").rglob(TEST_ACCESSES)})
    opened += sorted({path.parent.parent.name for path in (out / "trials").rglob("predictions/test.*")})
    unfinished = [row.name for row in rows if row.state in ("failed", "left")]
    guards = [
        Guard(
            "The test split is not opened",
            not opened,
            f"Opened by {', '.join(opened[:5])}." if opened else "No trial has predictions of it or a line of access.",
        ),
        Guard(
            "Every trial has ended",
            not unfinished,
            f"Without an end: {', '.join(unfinished[:5])}." if unfinished else f"{len(rows)} trials.",
        ),
    ]
    if len(used) < 2:
        return guards
    counts = {line["strategy"]: (line["trials"], line["allowed_steps"]) for line in used}
    told = "; ".join(f"{name}: {trials} trials, {steps:,} steps" for name, (trials, steps) in counts.items())
    guards.append(Guard("Every strategy is given the same budget", len(set(counts.values())) == 1, f"{told}."))
    if found.sweep.algorithm.name == "random" and not isinstance(found.sweep.scheduler, PbtScheduler):
        drawn = [[row.trial.values for row in found.of(name)] for name in found.strategies]
        same = all(one == drawn[0] for one in drawn)
        told = "Draw i is the same for all." if same else "Values of some trials differ."
        guards.append(Guard("Every strategy has the same draws", same, told))
    for what in ("steps", "images"):
        sums = [line[what] for line in used]
        alike = max(sums) <= (1 + ALIKE) * min(sums)
        told = "; ".join(f"{line['strategy']}: {line[what]:,}" for line in used)
        guards.append(Guard(f"Every strategy has trained about as many {what}, within {ALIKE:.0%}", alike, f"{told}."))
    return guards


def trial_rows(found: Findings) -> list[dict[str, Any]]:
    """Return a flat row per trial for csv."""
    best = {row.name for name in found.strategies if (row := found.best(name))}
    return [
        {
            "trial": row.name,
            "strategy": row.trial.strategy,
            "number": row.trial.number,
            **({"generation": row.trial.generation} if isinstance(found.sweep.scheduler, PbtScheduler) else {}),
            "state": row.state,
            "validation_auroc": math.nan if row.best is None else row.best,
            "validations": len(row.values),
            "last_validation_step": row.values[-1][0] if row.values else 0,
            "steps": row.steps,
            "images": row.images,
            "best": row.name in best,
            **{name: plain(value) for name, value in row.trial.values.items()},
            "donor": row.trial.donor.name if row.trial.donor else "",
            "reason": row.reason,
        }
        for row in found.rows
    ]


def plain(value: Any) -> Any:
    """Return a value as one cell of a table has it."""
    return json.dumps(value) if isinstance(value, list | Mapping) else "null" if value is None else value
