"""Values that follow from those that were tried: Optuna's TPE (Bergstra et al. 2011), asked again for every trial.

Optuna keeps nothing for us.  A study of its own kind is made of the journal's draws and what became of them whenever a
value is asked for, so a search that goes on after a kill knows all that it knew.
"""

from collections.abc import Mapping
from typing import Any

from cxrdist.errors import UserError
from cxrdist.seeds import Purpose, derive
from cxrdist.study.sweep.config import SweepConfig
from cxrdist.study.sweep.draws import Values
from cxrdist.study.sweep.history import History
from cxrdist.study.sweep.journal import Journal
from cxrdist.study.sweep.plan import Planner, Trial
from cxrdist.study.sweep.space import Space


class Suggested:
    """Trials whose values are asked for one after the other, for every strategy by itself."""

    def __init__(self, planner: Planner, journal: Journal) -> None:
        """Take the draws that the journal has.

        Raises:
            UserError: If Optuna is not installed.
        """
        load_optuna()
        self._planner, self._journal = planner, journal
        self._told: dict[str, list[Trial]] = {name: [] for name in planner.sweep.forms}
        self._search = repr([planner.sweep.search, planner.sweep.seed, planner.sweep.algorithm.startup])
        self._before = True

    def more(self, history: History) -> list[Trial]:
        """Return the journal's draws, then one for each strategy that may have another under way."""
        if self._before:
            self._before = False
            return [trial for line in self._journal.draws(self._search) for trial in self._again(line)]
        new = []
        for strategy, told in self._told.items():
            under_way = sum(trial.job.name not in history.ended for trial in told)
            if len(told) < self._planner.sweep.trials and under_way < self._planner.sweep.algorithm.parallel:
                values = suggest(self._planner.sweep, told, history)
                trial = self._planner.trial(strategy, len(told), values)
                facts = {"strategy": strategy, "number": trial.number, "values": values, "search": self._search}
                self._journal.append(facts)
                told.append(trial)
                new.append(trial)
        return new

    def left(self, history: History) -> bool:
        """Whether a strategy has not had all its trials."""
        return any(len(told) < self._planner.sweep.trials for told in self._told.values())

    def settled(self, trial: Trial) -> bool:
        """Let every failed trial be tried again."""
        return False

    def _again(self, line: Mapping[str, Any]) -> list[Trial]:
        told = self._told.get(line["strategy"])
        if told is None or line["number"] != len(told) or len(told) >= self._planner.sweep.trials:
            return []
        told.append(self._planner.trial(line["strategy"], line["number"], line["values"]))
        return told[-1:]


def suggest(sweep: SweepConfig, told: list[Trial], history: History) -> Values:
    """Return the values of the trial after those `told`; they follow from the seed and what is known of these alone."""
    optuna = load_optuna()
    number = len(told)
    sampler = optuna.samplers.TPESampler(
        seed=derive(sweep.seed, Purpose.SWEEP, number) % 2**32, n_startup_trials=sweep.algorithm.startup
    )
    study = optuna.create_study(direction="maximize", sampler=sampler)
    distributions = {name: _distribution(optuna, space) for name, space in sweep.search.items()}
    states = optuna.trial.TrialState
    for trial in told:
        outcome, value = history.ended.get(trial.job.name), history.best(trial)
        if outcome == "done" and value is None:
            outcome = "failed"
        known = {"done": states.COMPLETE, "stopped": states.PRUNED, "failed": states.FAIL}
        state = states.RUNNING if outcome is None else known[outcome]
        study.add_trial(
            optuna.trial.create_trial(
                state=state,
                value=value if state == states.COMPLETE else None,
                params={name: _told(space, trial.values[name]) for name, space in sweep.search.items()},
                distributions=distributions,
                intermediate_values=dict(history.values.get(trial.job.name, ())),
            )
        )
    asked = study.ask(distributions).params
    return {
        name: space.values[asked[name]] if space.is_listed else _rounded(space, asked[name])
        for name, space in sweep.search.items()
    }


def load_optuna() -> Any:
    """Return the library, silent.

    Raises:
        UserError: If it is not installed.
    """
    try:
        import optuna  # noqa: PLC0415 - an extra
    except ImportError:
        raise UserError(
            "`algorithm` optuna needs the library optuna, got none. Install it: pip install 'cxrdist[optuna]'"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def _distribution(optuna: Any, space: Space) -> Any:
    if space.is_listed:  # by place: Optuna's own lists hold no lists and no mappings
        return optuna.distributions.CategoricalDistribution(range(len(space.values)))
    low, high = space.values
    kind = optuna.distributions.IntDistribution if space.is_whole else optuna.distributions.FloatDistribution
    return kind(low, high, log=space.is_log)


def _told(space: Space, value: Any) -> Any:
    return space.values.index(value) if space.is_listed else value


def _rounded(space: Space, value: Any) -> Any:
    return value if space.is_whole else space.inside(float(f"{value:.6g}"))
