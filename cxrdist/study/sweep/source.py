"""Which trial comes next and which ends early: the sweep's side of the running of jobs, all of it in the driver."""

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from cxrdist.study.jobs import Identity, Job
from cxrdist.study.ledger import Ledger, State, is_complete
from cxrdist.study.sweep.history import History, validations
from cxrdist.study.sweep.journal import Journal
from cxrdist.study.sweep.plan import Trial
from cxrdist.study.sweep.schedulers import Rule
from cxrdist.study.watching import Outcome, Progress

Prepare = Callable[[list[Trial]], None]


class Supply(Protocol):
    """Where trials come from."""

    def more(self, history: History) -> list[Trial]:
        """Return the trials that can be told now and were not told before; what they are follows from `history`."""

    def left(self, history: History) -> bool:
        """Whether `more` will tell others later."""

    def settled(self, trial: Trial) -> bool:
        """Whether others were made of how it ended in an earlier run, so that it is not tried again if it failed."""


class Listed:
    """Trials that are all known beforehand."""

    def __init__(self, trials: Iterable[Trial]) -> None:
        self._trials = list(trials)

    def more(self, history: History) -> list[Trial]:
        """Return all of them, once."""
        told, self._trials = self._trials, []
        return told

    def left(self, history: History) -> bool:
        """Whether they have not been told."""
        return bool(self._trials)

    def settled(self, trial: Trial) -> bool:
        """Let every failed trial be tried again."""
        return False


class SweepSource:
    """The trials of a sweep, in turn, each watched by its strategy's rule.

    Validations are read from the run folder, every one and in order: what a rule sees does not depend on when somebody
    looked.  A trial that the rule has stopped counts up to there, however far it has come meanwhile.
    """

    def __init__(
        self,
        supply: Supply,
        rules: Mapping[str, Rule],
        *,
        rule: str,
        journal: Journal,
        ledger: Ledger,
        prepare: Prepare = lambda trials: None,
    ) -> None:
        """Go on from what the journal and the ledger tell.

        Args:
            supply: Where the trials come from.
            rules: A rule of its own for every strategy, so that its trials compete among themselves alone.
            rule: The rules' settings in words; what rules with other settings have decided is left alone.
            journal: Of this sweep's folder.
            ledger: The same.
            prepare: Makes the run folders ready of trials that have just been told.
        """
        self.history = History()
        self.trials: dict[Identity, Trial] = {}
        self._supply, self._rules, self._rule = supply, rules, rule
        self._journal, self._ledger, self._prepare = journal, ledger, prepare
        self._waiting: list[Trial] = []
        self._to_replay = journal.reports(rule)
        """What was judged in earlier runs, of trials that have not been told yet."""
        self._fill()

    def next(self) -> Job | None:
        """Return the job of the next trial, those that were under way first."""
        self._fill()
        return self._waiting.pop(0).job if self._waiting else None

    def left(self) -> bool:
        """Whether a trial has not started yet."""
        self._fill()
        return bool(self._waiting) or self._supply.left(self.history)

    def tried_again(self, trial: Trial) -> bool:
        """Whether a trial that has failed would be tried again by another run."""
        return not self._supply.settled(trial)

    def reported(self, job: Job, progress: Progress) -> bool:
        """Give the rule what is new; return whether the trial goes on."""
        trial = self.trials[job.identity]
        if job.name in self.history.ended:
            return self.history.ended[job.name] != "stopped"
        known = self.history.values.get(job.name)
        if progress.value_step is not None and known and known[-1][0] >= progress.value_step:
            return True
        return self._catch_up(trial)

    def ended(self, job: Job, outcome: Outcome, reason: str) -> None:
        """Take note of how a trial ended; the rule sees the validations that came last."""
        trial = self.trials[job.identity]
        if job.name in self.history.ended:  # stopped by the rule
            return
        if outcome != "failed" and not self._catch_up(trial):
            return
        self.history.ended[job.name] = outcome
        if reason:
            self.history.reasons[job.name] = reason

    def _catch_up(self, trial: Trial) -> bool:
        """Give the rule all validations that it has not seen; return whether the trial goes on."""
        known = self.history.values.setdefault(trial.job.name, [])
        for step, value in validations(trial.job.folder):
            if known and step <= known[-1][0]:
                continue
            goes_on = self._rules[trial.strategy].reported(trial.job.key, step, value)
            goes_on = goes_on or step >= trial.to_step  # it has come to its end, and there is nothing left to stop
            self._write(trial, step, value, goes_on)
            known.append((step, value))
            if not goes_on:
                self._stop(trial, step, value)
                return False
        return True

    def _write(self, trial: Trial, step: int, value: float, goes_on: bool) -> None:
        facts = {"strategy": trial.strategy, "name": trial.job.name, "key": trial.job.key, "rule": self._rule}
        self._journal.append(facts | {"step": step, "value": value, "goes_on": goes_on})

    def _stop(self, trial: Trial, step: int, value: float) -> None:
        self.history.ended[trial.job.name] = "stopped"
        self.history.reasons[trial.job.name] = f"Validation AUROC {value:.4f} after {step} steps was too low."

    def _fill(self) -> None:
        """Take what the supply can tell; trials that have ended in an earlier run tell it more at once."""
        while new := self._supply.more(self.history):
            self._prepare(new)
            for trial in new:
                self.trials[trial.job.identity] = trial
            self._replay(new)
            states = self._ledger.states([trial.job for trial in new])
            waiting = [trial for trial in new if not self._ended_before(trial, states[trial.job.identity])]
            started = [trial for trial in waiting if states[trial.job.identity] in ("running", "stopped")]
            self._waiting += started + [trial for trial in waiting if trial not in started]

    def _replay(self, new: list[Trial]) -> None:
        """Give the rules the reports that they judged of `new`, in order, so that the rungs are what they were."""
        # By key: under a number that has other values now, a trial may come back under another number.
        by_key: dict[tuple[str, str], dict[str, Trial]] = {}
        for trial in new:
            by_key.setdefault((trial.strategy, trial.job.key), {})[trial.job.name] = trial
        lines, self._to_replay = self._to_replay, []
        for line in lines:
            equal = by_key.get((line["strategy"], line["key"]))
            if equal is None:
                self._to_replay.append(line)
                continue
            trial = equal.get(line.get("name", "")) or next(iter(equal.values()))
            self._rules[trial.strategy].reported(trial.job.key, line["step"], line["value"])
            self.history.values.setdefault(trial.job.name, []).append((line["step"], line["value"]))
            if not line["goes_on"] and line["step"] < trial.to_step:
                self._stop(trial, line["step"], line["value"])

    def _ended_before(self, trial: Trial, state: State) -> bool:
        if trial.job.name in self.history.ended:
            return True
        if state == "failed" and self._supply.settled(trial):
            self.history.ended[trial.job.name] = "failed"
            self.history.reasons[trial.job.name] = self._ledger.failures().get(trial.job.identity, "")
            return True
        if not is_complete(trial.job):
            return False
        if state != "done":  # it was run under another number
            self._ledger.append("done", trial.job)
        # It ran to its end under another rule, or none: this one learns from it, and does not undo it.
        known = self.history.values.setdefault(trial.job.name, [])
        for step, value in validations(trial.job.folder):
            if not known or step > known[-1][0]:
                self._rules[trial.strategy].reported(trial.job.key, step, value)
                self._write(trial, step, value, True)
                known.append((step, value))
        self.history.ended[trial.job.name] = "done"
        return True
