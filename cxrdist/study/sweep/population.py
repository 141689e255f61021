"""Population based training (Jaderberg et al. 2017) as generations of trials.

Member m of generation g is a trial of its own: it goes on from a checkpoint of generation g - 1, its own or, if it was
among the worst, that of one of the best, then with changed values.  Who goes on from whom follows from the seed and the
results of the generation before, so that the ledger alone is enough to go on after a kill.
"""

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

from cxrdist.errors import UserError
from cxrdist.seeds import Purpose, stream
from cxrdist.study.folders import make_way, move_aside
from cxrdist.study.ledger import claim, claimed_by, is_complete
from cxrdist.study.sweep.config import PbtScheduler, SweepConfig
from cxrdist.study.sweep.draws import Values, draw
from cxrdist.study.sweep.history import History
from cxrdist.study.sweep.plan import Planner, Trial
from cxrdist.train.checkpoints import checkpoint_name


@dataclass(frozen=True)
class Heir:
    """Where a member of the next generation comes from."""

    donor: int
    """The member whose checkpoint it goes on from."""
    values: Values


def next_generation(
    sweep: SweepConfig, generation: int, values: Mapping[int, Values], results: Mapping[int, float]
) -> dict[int, Heir]:
    """Return where each member of `generation` comes from.

    Args:
        sweep: With the scheduler `pbt`.
        generation: Its number, from 1.
        values: Of each member in the generation before.
        results: Their last validation; who has failed has none, and counts as the worst.
    """
    scheduler = sweep.scheduler
    assert isinstance(scheduler, PbtScheduler)
    best_first = sorted(values, key=lambda member: (-results.get(member, float("-inf")), member))
    count = max(1, round(scheduler.quantile * len(values)))
    best = [member for member in best_first[:count] if member in results]
    worst = {member for member in values if member not in results} | set(best_first[len(values) - count :])
    heirs = {}
    for member in sorted(values):
        if member not in worst:
            heirs[member] = Heir(member, values[member])
            continue
        donor = best[int(stream(sweep.seed, Purpose.POPULATION, generation, member).integers(len(best)))]
        heirs[member] = Heir(donor, explore(sweep, generation, member, values[donor]))
    return heirs


def explore(sweep: SweepConfig, generation: int, member: int, values: Values) -> Values:
    """Return changed `values`: each drawn anew, or made a little more or a little less."""
    scheduler = sweep.scheduler
    assert isinstance(scheduler, PbtScheduler)
    changed = {}
    for name, space in sweep.search.items():
        rng = stream(sweep.seed, Purpose.POPULATION, generation, member, crc32(name.encode()))
        anew, share, way = rng.random() < scheduler.resample, rng.random(), int(rng.integers(2))
        if anew:
            changed[name] = space.at(share)
        elif space.is_listed:
            place = space.values.index(values[name]) + (1, -1)[way]
            changed[name] = space.values[min(max(place, 0), len(space.values) - 1)]
        else:
            value = values[name] * scheduler.factors[way]
            changed[name] = space.inside(round(value) if space.is_whole else float(f"{value:.6g}"))
    return changed


def generation_ends(sweep: SweepConfig) -> list[int]:
    """Return the step that each generation ends at."""
    scheduler, train = sweep.scheduler, sweep.base.train
    assert isinstance(scheduler, PbtScheduler)
    every = scheduler.every or train.evaluate_every
    return [*range(every, train.steps, every), train.steps]


class Population:
    """The members of every strategy, generation after generation."""

    def __init__(self, planner: Planner) -> None:
        self._planner = planner
        self._ends = generation_ends(planner.sweep)
        self._told: dict[str, list[list[Trial]]] = {name: [] for name in planner.sweep.forms}
        self._renewed: set[str] = set()
        """Strategies of which a generation was not the one that lay in its folders."""

    def more(self, history: History) -> list[Trial]:
        """Return the next generation of each strategy whose present one has ended."""
        new = []
        for strategy, generations in self._told.items():
            if not self._is_due(generations, history):
                continue
            trials = self._first(strategy) if not generations else self._following(strategy, generations[-1], history)
            generations.append(trials)
            new += trials
        return new

    def left(self, history: History) -> bool:
        """Whether a strategy has a generation before it, and somebody to go on."""
        return any(
            not generations or (len(generations) < len(self._ends) and self._survives(generations[-1], history))
            for generations in self._told.values()
        )

    def settled(self, trial: Trial) -> bool:
        """Whether the generation after that of `trial` has begun: who its members go on from is decided."""
        return any((self._planner.out / "trials").glob(f"{trial.strategy}--*--gen{trial.generation + 1}"))

    def prepare(self, trials: Sequence[Trial]) -> None:
        """Make the run folders of a generation ready, each with its donor's checkpoints.

        Later generations follow from this one: where it is another than the one that lay there, they are moved aside,
        and come back one by one if they are told again.

        Raises:
            UserError: If a donor's checkpoints are gone.
        """
        out = self._planner.out
        self._renewed |= {trial.strategy for trial in trials if claimed_by(trial.job.folder) != trial.job.key}
        for strategy, generation in {(trial.strategy, trial.generation) for trial in trials}:
            for folder in sorted((out / "trials").glob(f"{strategy}--*--gen*")) if strategy in self._renewed else ():
                if int(folder.name.rpartition("--gen")[2]) > generation:
                    move_aside(folder, folder.name, out)
        make_way([trial.job for trial in trials], out, renamed=True)
        for trial in trials:
            if trial.strategy in self._renewed and self._has_nothing_to_leave(trial):
                move_aside(trial.job.folder, trial.job.name, out)
            if not self.settled(trial):
                inherit(trial)
        prune(trials, out)

    def _has_nothing_to_leave(self, trial: Trial) -> bool:
        """Whether it has ended and its checkpoints are gone, so that it must train again for others to go on from."""
        if trial.generation == len(self._ends) - 1 or not is_complete(trial.job):
            return False
        return not (trial.job.folder / "checkpoints" / checkpoint_name(trial.to_step)).is_dir()

    def _is_due(self, generations: Sequence[Sequence[Trial]], history: History) -> bool:
        if not generations:
            return True
        ended = all(trial.job.name in history.ended for trial in generations[-1])
        return ended and len(generations) < len(self._ends) and self._survives(generations[-1], history)

    def _survives(self, trials: Iterable[Trial], history: History) -> bool:
        """Whether one of `trials` has not ended in vain."""
        return any(
            trial.job.name not in history.ended
            or (history.ended[trial.job.name] == "done" and history.last(trial) is not None)
            for trial in trials
        )

    def _first(self, strategy: str) -> list[Trial]:
        members = enumerate(draw(self._planner.sweep))
        return [self._planner.trial(strategy, m, values, generation=0, stop_at=self._ends[0]) for m, values in members]

    def _following(self, strategy: str, before: Sequence[Trial], history: History) -> list[Trial]:
        number = before[0].generation + 1
        by_member = {trial.number: trial for trial in before}
        done = [trial for trial in before if history.ended[trial.job.name] == "done"]
        results = {trial.number: last for trial in done if (last := history.last(trial)) is not None}
        values = {member: trial.values for member, trial in by_member.items()}
        end = self._ends[number] if number < len(self._ends) - 1 else None
        return [
            self._planner.trial(
                strategy, member, heir.values, generation=number, donor=by_member[heir.donor], stop_at=end
            )
            for member, heir in next_generation(self._planner.sweep, number, values, results).items()
        ]


def inherit(trial: Trial) -> None:
    """Put the donor's checkpoints into the run folder of `trial`, from which its training goes on.

    They are links where the disk has them: a checkpoint is never written to again.  The folder gets them at once.

    Raises:
        UserError: If the donor's are gone.
    """
    if trial.donor is None or is_complete(trial.job) or (trial.job.folder / "checkpoints").exists():
        return
    source = trial.donor.folder / "checkpoints"
    if not (source / checkpoint_name(trial.from_step)).is_dir():
        raise UserError(
            f"A member of a population goes on from its donor's checkpoint, got none for {trial.job.name} "
            f"[in {trial.donor.name}]. Take the folders of its generation and of later ones out of `trials`."
        )
    claim(trial.job)
    partial = trial.job.folder / ".checkpoints"
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source, partial, copy_function=_link, ignore=shutil.ignore_patterns(".*"))
    partial.rename(trial.job.folder / "checkpoints")


def prune(trials: Iterable[Trial], out: Path) -> None:
    """Remove the checkpoints that nobody can go on from any more: those of two generations before `trials`."""
    for strategy, generation in {(trial.strategy, trial.generation) for trial in trials}:
        for folder in (out / "trials").glob(f"{strategy}--*--gen{generation - 2}"):
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def _link(source: str, target: str) -> str:
    try:
        os.link(source, target)
        return target
    except OSError:
        return str(shutil.copy2(source, target))
