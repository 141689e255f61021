"""A study as a file: datasets, strategies, and one training recipe for every cell."""

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from cxrdist.config import Config, Tree, override
from cxrdist.errors import UsageError, unknown
from cxrdist.report import ReportOptions
from cxrdist.study.names import unknown_names
from cxrdist.train.run_folder import flatten

RECIPE_LEAVES_OUT = ("shards", "seed", "model.weights")
"""What datasets, seeds and strategies set."""


class Dataset(Config):
    """A packed dataset that the study trains on or learns from."""

    shards: Path
    """Shard folder; relative to the study's `shards_root`."""

    set: Tree = {}
    """Changes of the recipe for this dataset's cells (``findings``, ``labels`` ...), dotted names or trees."""


class Stage(Config):
    """Work that cells share and that runs once: a pretraining, or a training whose backbone others start from."""

    datasets: list[str] = Field(min_length=1)
    """What it reads (their training splits); one for `train`, any number for `pretrain`."""

    pretrain: Tree | None = None
    """A self-supervised pretraining; backbone and input size are the recipe's unless set here."""

    train: Tree | None = None
    """A supervised training; the recipe with these changes."""

    start: str | None = None
    """A stage whose weights it starts from."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.pretrain is None) == (self.train is None):
            raise ValueError("a stage must have one of `pretrain` and `train`")
        if self.train is not None and len(self.datasets) != 1:
            raise ValueError(f"a stage with `train` must have one dataset, got {len(self.datasets)}")
        return self


class Strategy(Config):
    """How the backbone of a cell gets its initial weights."""

    stage: str | None = None
    """The stage whose weights it starts from; null (and no ``model.weights`` in `set`) is random."""

    stage_for: dict[str, str | None] = {}
    """Other stages for single datasets, so that no cell starts from its own dataset's labels; null is random there.

    Where `stage` is null, every target must be in it.
    """

    set: Tree = {}
    """Changes of the recipe for this strategy's cells (``model.weights: file.safetensors`` ...)."""


class Resources(Config):
    """What one trial holds while it runs; its workers are placed together."""

    workers: int = Field(default=1, ge=1)
    """Processes that train together."""

    cpus_per_worker: float = Field(default=1, gt=0)
    gpus_per_worker: float = Field(default=0, ge=0)

    max_concurrent: int | None = Field(default=None, ge=1)
    """Trials at a time; null is as many as fit."""

    retries: int = Field(default=2, ge=0)
    """How often a trial goes on from its last checkpoint after a worker died."""

    autoscaling: bool = False
    """The cluster grows on demand: a trial that does not fit yet waits, where it would be refused."""


class StudyConfig(Config):
    """Strategies x datasets x seeds, and the statistics over them."""

    title: str
    shards_root: Path = Path()
    """Folder that relative shard folders are in."""

    datasets: dict[str, Dataset] = Field(min_length=1)
    targets: list[str] = []
    """Datasets that get cells; empty is all.  The others only serve stages."""

    stages: dict[str, Stage] = {}
    strategies: dict[str, Strategy] = Field(min_length=1)
    seeds: list[int] = Field(default=[0], min_length=1)
    recipe: Tree
    """The fine-tuning of every cell: the content of a run file, without `shards`, `seed` and `model.weights`."""

    resources: Resources = Resources()
    statistics: ReportOptions

    @classmethod
    def build(cls, tree: Mapping[str, Any], *, where: str) -> Self:
        """Return the study that `tree` describes.

        Raises:
            UsageError: If anything is wrong; wrong names are told at once, those inside the recipe too.
        """
        try:
            return super().build(tree, where=where)
        except UsageError as error:
            lines = str(error).splitlines()
        try:
            # Names across the parts are compared only once no part has an unknown name.
            super().build(_without_unknown(cls, tree), where=where)
        except UsageError as error:
            lines += str(error).splitlines()
        lines += unknown_names(tree, where=where)
        raise UsageError("\n".join(dict.fromkeys(lines)))

    @field_validator("datasets", "stages", "strategies")
    @classmethod
    def _plain_names(cls, value: dict[str, Any]) -> dict[str, Any]:
        # They become folder names, joined by two hyphens.
        wrong = [name for name in value if not name.replace("-", "").replace("_", "").isalnum() or "--" in name]
        if wrong:
            raise ValueError(f"names must be letters, digits, '_' and single '-', got {', '.join(map(repr, wrong))}")
        return value

    @model_validator(mode="after")
    def _names_exist(self) -> Self:
        wrong = [unknown("A target", name, self.datasets) for name in self.targets if name not in self.datasets]
        for name, stage in self.stages.items():
            wrong += [
                unknown(f"A dataset of stage {name!r}", dataset, self.datasets)
                for dataset in stage.datasets
                if dataset not in self.datasets
            ]
            if stage.start is not None and stage.start not in self.stages:
                wrong.append(unknown(f"`start` of stage {name!r}", stage.start, self.stages))
        for name, strategy in self.strategies.items():
            used = [strategy.stage] if strategy.stage else []
            wrong += [
                unknown(f"The stage of strategy {name!r}", stage, self.stages)
                for stage in [*used, *strategy.stage_for.values()]
                if stage is not None and stage not in self.stages
            ]
            forgotten = [target for target in self.target_names() if target not in strategy.stage_for]
            if strategy.stage_for and strategy.stage is None and forgotten:
                wrong.append(
                    f"`stage_for` of strategy {name!r} must name every target, as it has no `stage` for the others, "
                    f"got none for {', '.join(forgotten)}. Null there means random weights"
                )
            wrong += [
                unknown(f"`stage_for` of strategy {name!r}", dataset, self.datasets)
                for dataset in strategy.stage_for
                if dataset not in self.datasets
            ]
        if self.statistics.reference not in self.strategies:
            wrong.append(unknown("`statistics.reference`", self.statistics.reference, self.strategies))
        if wrong:
            raise ValueError("; ".join(wrong))
        return self

    @model_validator(mode="after")
    def _set_once(self) -> Self:
        """What the grid sets must not stand elsewhere too: one of the two would be passed over in silence."""
        parts: dict[str, tuple[Tree, tuple[str, ...]]] = {"recipe": (self.recipe, RECIPE_LEAVES_OUT)}
        parts |= {f"datasets.{name}.set": (one.set, RECIPE_LEAVES_OUT) for name, one in self.datasets.items()}
        for name, strategy in self.strategies.items():
            staged = strategy.stage is not None or bool(strategy.stage_for)
            parts[f"strategies.{name}.set"] = (strategy.set, RECIPE_LEAVES_OUT if staged else ("shards", "seed"))
        for name, stage in self.stages.items():
            kind, tree = ("train", stage.train) if stage.train is not None else ("pretrain", stage.pretrain or {})
            parts[f"stages.{name}.{kind}"] = (tree, ("shards", "model.weights") if stage.start else ("shards",))
        wrong = [
            f"`{where}` must leave out `{name}`, which the study itself sets"
            for where, (tree, left_out) in parts.items()
            for name in left_out
            if flatten(override({}, tree)).get(name) is not None
        ]
        if wrong:
            raise ValueError("; ".join(wrong))
        return self

    def shards_of(self, dataset: str) -> Path:
        """Return the shard folder of a dataset."""
        return (self.shards_root / self.datasets[dataset].shards).resolve()

    def target_names(self) -> list[str]:
        """Return the datasets that get cells."""
        return self.targets or list(self.datasets)


def _without_unknown(cls: type[Config], tree: Mapping[str, Any]) -> Tree:
    """Return a copy of `tree` without the names that `cls` does not know."""
    copy = deepcopy(dict(tree))
    try:
        cls.model_validate(tree)
    except ValidationError as error:
        for details in error.errors():
            if details["type"] == "extra_forbidden":
                *parents, last = details["loc"]
                node: Any = copy
                for parent in parents:
                    node = node[parent]
                node.pop(last)
    return copy
