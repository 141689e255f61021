"""A sweep as a file: one fine-tuning, the values of it that are searched, and how trials are drawn and stopped."""

from collections.abc import Mapping
from itertools import chain
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from cxrdist.config import Config, Tree, override
from cxrdist.errors import UsageError
from cxrdist.finetune.config import FinetuneConfig
from cxrdist.study.config import ledger_url, plain_names
from cxrdist.study.resources import Resources
from cxrdist.study.sweep.space import Space
from cxrdist.train.run_folder import FREE, flatten

OTHER_VALIDATION = "changes what validation measures, so that values cannot be compared"
OTHER_BUDGET = "changes how long trials train or how often they are looked at, so that their budgets differ"
FIXED = {
    "shards": OTHER_VALIDATION,
    "findings": OTHER_VALIDATION,
    "labels": OTHER_VALIDATION,
    "eval_labels": OTHER_VALIDATION,
    "input.projection": OTHER_VALIDATION,
    "seed": "is chance and no setting: the best of it is luck",
    "train_images": OTHER_BUDGET,
    "train.steps": OTHER_BUDGET,
    "train.stop_at": OTHER_BUDGET,
    "train.evaluate_every": OTHER_BUDGET,
    "train.early_stopping": OTHER_BUDGET,
}
"""What neither a search nor a strategy may set, with the reason."""
PBT_MAY = ("optim", "loss", "mixup", "input.augment", "model.drop_path")
"""What a training that goes on can take in another form: nothing that its weights, its optimizer's state or the order
of its images depend on."""
PBT_MAY_NOT = ("optim.name", "optim.warmup", "optim.schedule", "loss.name")
ONE = "run"
"""The strategy of a sweep without strategies."""


class Strategy(Config):
    """One form of the run that gets a search of its own."""

    set: Tree = {}
    """Changes of the run (``model.weights``, ``model.backbone`` ...), dotted names or trees."""


class Algorithm(Config):
    """Where the values of a trial come from."""

    name: Literal["random", "optuna"] = "random"
    """``random``: draw i depends on the seed and on i alone; ``optuna``: TPE (Bergstra et al. 2011), which learns from
    the trials that have ended and needs the extra ``optuna``."""

    startup: int = Field(default=10, ge=1)
    """``optuna``: trials that are drawn at random before it begins to learn."""

    parallel: int = Field(default=4, ge=1)
    """``optuna``: trials that may be under way at once; fewer learn more from each other."""


class NoScheduler(Config):
    """Every trial runs to its end."""

    name: Literal["none"] = "none"


class AshaScheduler(Config):
    """Asynchronous successive halving: the worse trials end at rungs (Li et al. 2020)."""

    name: Literal["asha"]
    grace: int | None = Field(default=None, gt=0)
    """Steps of the first rung; null is the first validation."""

    reduction: float = Field(default=4, gt=1)
    """About one trial of so many passes a rung; rungs stand at ``grace * reduction**k`` steps."""


class MedianScheduler(Config):
    """Median stopping (Golovin et al. 2017): who is below the others' median ends."""

    name: Literal["median"]
    grace: int | None = Field(default=None, gt=0)
    """Steps that every trial makes; null is the first validation."""

    fewest: int = Field(default=3, ge=1)
    """Other trials that must have come as far, before one is stopped."""


class PbtScheduler(Config):
    """Population based training (Jaderberg et al. 2017), in generations that wait for each other.

    After each, the worst members go on from the checkpoints of the best, with changed values.
    """

    name: Literal["pbt"]
    every: int | None = Field(default=None, gt=0)
    """Steps of a generation, a multiple of `train.evaluate_every`; null is that."""

    quantile: float = Field(default=0.25, gt=0, le=0.5)
    """Share of the members that is replaced, and of those that replace."""

    resample: float = Field(default=0.25, ge=0, le=1)
    """Chance that a changed value is drawn anew from its space."""

    factors: tuple[float, float] = (0.8, 1.2)
    """Else it is multiplied by one of these; a value of a list becomes a neighbour in it."""


Scheduler = Annotated[
    NoScheduler | AshaScheduler | MedianScheduler | PbtScheduler,
    Field(discriminator="name"),
]


class SweepConfig(Config):
    """A search for the values of a fine-tuning, judged by validation AUROC; the test split is never opened."""

    title: str
    run: Tree
    """The fine-tuning: the content of a run file, with `shards`."""

    strategies: dict[str, Strategy] = {}
    """Forms of the run that each get the same search, draws (with ``optuna`` as many) and budget, so that a comparison
    of the best is fair; none is the run as it stands."""

    search: dict[str, Space] = Field(min_length=1)
    """The values that are searched, by dotted name."""

    trials: int = Field(default=1, ge=1)
    """Draws; each is made once for every combination of the grids.  More of them later keep the earlier ones."""

    algorithm: Algorithm = Algorithm()
    scheduler: Scheduler = NoScheduler()
    seed: int = Field(default=0, ge=0)
    """Of the draws; the training's own seed is the run's."""

    resources: Resources = Resources()
    ledger: str | None = None
    """Where it is written what is done; null is a file in the sweep's folder; see a study's."""

    @classmethod
    def build(cls, tree: Mapping[str, Any], *, where: str) -> Self:
        """Return the sweep that `tree` describes.

        Raises:
            UsageError: If anything is wrong, in the run, the strategies and both ends of each space too; all is told.
        """
        try:
            sweep = super().build(tree, where=where)
        except UsageError as error:
            run = tree.get("run")
            more = _faults({str(name): one for name, one in run.items()}, "run") if isinstance(run, dict) else []
            raise UsageError("\n".join([str(error), *(f"{line} [in {where}, run]" for line in more)])) from None
        faults = sweep._faults()
        if faults:
            raise UsageError("\n".join(f"{line} [in {where}{part}]" for line, part in faults.items()))
        return sweep

    @field_validator("search", mode="before")
    @classmethod
    def _dotted(cls, search: Any) -> Any:
        return _dotted(search) if isinstance(search, dict) else search

    @field_validator("strategies", mode="before")
    @classmethod
    def _without_removed(cls, value: Any) -> Any:
        # A debug size takes a strategy out by null.
        return {name: one for name, one in value.items() if one is not None} if isinstance(value, dict) else value

    _url = field_validator("ledger")(ledger_url)
    _plain = field_validator("strategies")(plain_names)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        grids = [name for name, space in self.search.items() if space.kind == "grid"]
        if len(grids) == len(self.search) and self.trials > 1:
            raise ValueError(f"`trials` must be 1 where every space is a grid, got {self.trials}")
        own = {"optuna": self.algorithm.name == "optuna", "pbt": self.scheduler.name == "pbt"}
        for name in (name for name, chosen in own.items() if chosen):
            if grids:
                raise ValueError(f"`{name}` must have no grid, got one for {', '.join(grids)}. Make it a choice")
        if all(own.values()):
            raise ValueError("`scheduler` pbt must have `algorithm` random, got optuna")
        if own["pbt"] and self.trials < 4:
            raise ValueError(f"`trials` must be at least 4 with `scheduler` pbt: its members, got {self.trials}")
        return self

    @property
    def forms(self) -> dict[str, Tree]:
        """Return the tree of each strategy's run, before anything is drawn."""
        run = override({}, self.run)
        return {name: override(run, one.set) for name, one in self.strategies.items()} or {ONE: run}

    @property
    def base(self) -> FinetuneConfig:
        """Return the run as it stands; what rules and budgets depend on is the same for all strategies."""
        return FinetuneConfig.build(next(iter(self.forms.values())), where="run")

    def _faults(self) -> dict[str, str]:
        """Return a sentence for everything that is wrong within the parts, with where it is."""
        found = self._name_faults()
        if self.run.get("shards") is None:
            return found | {"`run.shards` is required, got nothing.": ""}
        for strategy, tree in self.forms.items():
            wrong = _faults(tree, "run")
            for line in wrong:
                found.setdefault(line, f", strategies.{strategy}" if self.strategies else ", run")
            for name, space in () if wrong else self.search.items():
                lines = (_faults(override(tree, {name: value}), "search") for value in space.values)
                for line in chain.from_iterable(lines):
                    found.setdefault(line, f", search.{name}")
        return found or self._scheduler_faults()

    def _name_faults(self) -> dict[str, str]:
        """Return a sentence for each name that must not be searched, or set by a strategy."""
        found: dict[str, str] = {}
        for name in self.search:
            fixed = _covering(name, [*FIXED, *FREE])
            if fixed:
                found[f"A sweep must not vary `{name}`, which {FIXED.get(fixed, 'changes no result')}."] = ", search"
            elif self.scheduler.name == "pbt" and (not _covering(name, PBT_MAY) or _covering(name, PBT_MAY_NOT)):
                found[
                    f"A sweep with `scheduler` pbt must vary what a training can change on its way, got `{name}`. "
                    f"Such are {', '.join(PBT_MAY)}."
                ] = ", search"
        for strategy, one in self.strategies.items():
            where = f", strategies.{strategy}.set"
            for name in flatten(override({}, one.set)):
                fixed = _covering(name, FIXED)
                if fixed:
                    found[f"A strategy must not set `{name}`, which {FIXED[fixed]}."] = where
                if _covering(name, self.search):
                    found[f"A strategy must not set `{name}`, which is searched."] = where
        return found

    def _scheduler_faults(self) -> dict[str, str]:
        train, part = self.base.train, ", scheduler"
        grace = getattr(self.scheduler, "grace", None)
        if grace is not None and grace > train.steps:
            return {f"`grace` must be at most the {train.steps} steps of a trial, got {grace}.": part}
        if isinstance(self.scheduler, PbtScheduler):
            every = self.scheduler.every or train.evaluate_every
            if every % train.evaluate_every or every >= train.steps:
                return {
                    f"`every` must be a multiple of `train.evaluate_every` ({train.evaluate_every}) below the "
                    f"{train.steps} steps of a trial, got {every}.": part
                }
            if train.early_stopping is not None:
                return {"`train.early_stopping` must be null with `scheduler` pbt.": ", run"}
        return {}


def _dotted(search: Mapping[Any, Any], above: str = "") -> Tree:
    """Return the spaces by dotted name; null takes one out.  ``--set search.optim.lr=...`` nests them."""
    found: Tree = {}
    for name, one in search.items():
        place = f"{above}{name}"
        if isinstance(one, dict) and one and not Space.model_fields.keys() & one.keys() and _nested(one):
            found |= _dotted(one, f"{place}.")
        elif one is not None:
            found[place] = one
        else:
            found.pop(place, None)
    return found


def _nested(one: Mapping[Any, Any]) -> bool:
    return all(value is None or isinstance(value, dict) for value in one.values())


def _covering(name: str, names: Any) -> str | None:
    """Return which of `names` is `name`, holds it, or is in it."""
    return next((one for one in names if f"{name}.".startswith(f"{one}.") or f"{one}.".startswith(f"{name}.")), None)


def _faults(tree: Tree, part: str) -> list[str]:
    """Return a sentence for each fault of a run's tree."""
    try:
        FinetuneConfig.build(override({}, tree), where=part)
    except UsageError as error:
        return [line.removesuffix(f" [in {part}]") for line in str(error).splitlines()]
    return []
