"""A study as a file: datasets, strategies, and one training recipe for every cell."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from cxrdist.config import DEBUG, Config, Tree, override, parse_settings, read_tree, read_yaml
from cxrdist.errors import UsageError, unknown
from cxrdist.report import ReportOptions
from cxrdist.study.names import names_of_debug, unknown_names, with_nested_changes, without_removed
from cxrdist.train.run_folder import flatten

RECIPE_LEAVES_OUT = ("shards", "seed", "model.weights")
"""What datasets, seeds and strategies set."""


class Dataset(Config):
    """A packed dataset that the study trains on or learns from."""

    shards: Path | Annotated[list[Path], Field(min_length=1)]
    """Shard folder, or several that are one dataset together; relative to the study's `shards_root`."""

    set: Tree = {}
    """Changes of the recipe for this dataset's cells (``findings``, ``labels`` ...), dotted names or trees."""


class Stage(Config):
    """Work that cells share and that runs once: a pretraining, or a training whose backbone others start from."""

    datasets: list[str] = Field(min_length=1)
    """What it reads (their training splits); one for `train`, any number for `pretrain`."""

    pretrain: Tree | None = None
    """A pretraining by any method; backbone and input size are the recipe's unless set here.  ``watch.shards`` may be
    the name of a dataset of the study, which is all of its folders."""

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

    datasets: list[str] | None = Field(default=None, min_length=1)
    """Targets that it gets cells on; null is all.  What is left out is absent by design, and no gap in a report."""

    set: Tree = {}
    """Changes of the recipe for this strategy's cells (``model.weights: file.safetensors`` ...), which are made last: a
    strategy's own backbone is its own in every variant."""


class Variant(Config):
    """One way in which every strategy is asked: a size of the training set, a protocol, a resolution ..."""

    set: Tree = {}
    """Changes of the recipe for this variant's cells; over what a dataset sets, under what a strategy sets.  Stages are
    the same for all variants."""

    strategies: list[str] | None = Field(default=None, min_length=1)
    """Strategies that get cells of it; null is all."""

    datasets: list[str] | None = Field(default=None, min_length=1)
    """Targets that get cells of it; null is all."""


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
    """Strategies x datasets x variants x seeds, and the statistics over them."""

    title: str
    shards_root: Path = Path()
    """Folder that relative shard folders are in."""

    weights_root: Path | None = None
    """Folder that relative ``model.weights`` are in; null is where the command is started."""

    datasets: dict[str, Dataset] = Field(min_length=1)
    targets: list[str] = []
    """Datasets that get cells; empty is all.  The others only serve stages."""

    stages: dict[str, Stage] = {}
    strategies: dict[str, Strategy] = Field(min_length=1)
    variants: dict[str, Variant] = {}
    """By name, which stands in the names of cells; none is one way, which needs no name."""

    seeds: list[int] = Field(default=[0], min_length=1)
    recipe: Tree
    """The fine-tuning of every cell: the content of a run file, without `shards`, `seed` and `model.weights`."""

    resources: Resources = Resources()
    statistics: ReportOptions

    @classmethod
    def read(cls, path: Path, settings: Iterable[str] = (), *, debug: bool = False) -> Self:
        """Return the study in a YAML file, with its own debug size if `debug`, then with ``a.b=value`` `settings`.

        Null takes a dataset, stage, strategy or variant of the file out of it.

        Raises:
            UsageError: If anything is wrong, also a name in the debug size while it is not asked for.
        """
        read_tree(path, settings := list(settings), debug=debug)  # tells what is wrong with the file itself
        raw = with_nested_changes(read_yaml(path))
        sized, changes = raw.pop(DEBUG, None) or {}, parse_settings(settings)
        study = cls.build(
            without_removed(override(override(raw, sized if debug else {}), changes), raw), where=path.name
        )
        if sized:
            debugged = without_removed(override(override(raw, sized), changes), raw)
            wrong = names_of_debug(raw, sized, debugged, where=path.name)
            try:
                cls.build(debugged, where=f"{path.name}, with --debug")
            except UsageError as error:
                wrong += str(error).splitlines()
            if wrong:
                raise UsageError("\n".join(dict.fromkeys(wrong)))
        return study

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

    @field_validator("seeds")
    @classmethod
    def _different(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) < len(seeds) or min(seeds) < 0:
            raise ValueError(f"must be different numbers of 0 or more, got {seeds}.")
        return seeds

    @field_validator("datasets", "stages", "strategies", "variants")
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
            forgotten = [target for target in self._targets_of(strategy) if target not in strategy.stage_for]
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
        for what, groups, known in (
            ("dataset of strategy", {name: one.datasets for name, one in self.strategies.items()}, self.target_names()),
            ("dataset of variant", {name: one.datasets for name, one in self.variants.items()}, self.target_names()),
            ("strategy of variant", {name: one.strategies for name, one in self.variants.items()}, self.strategies),
        ):
            wrong += [
                unknown(f"A {what} {name!r}", one, known)
                for name, names in groups.items()
                for one in names or ()
                if one not in known
            ]
        if self.statistics.reference not in self.strategies:
            wrong.append(unknown("`statistics.reference`", self.statistics.reference, self.strategies))
        if not wrong:
            wrong = list(self._without_cells())
        if wrong:
            raise ValueError("; ".join(wrong))
        return self

    def _without_cells(self) -> Iterator[str]:
        """Yield a sentence for each part that the lists of names leave without any cell."""
        grid = self.grid()
        used = (set(names) for names in zip(*grid, strict=True)) if grid else ({*()}, {*()}, {*()}, {*()})
        strategies, datasets, variants, _ = used
        for what, names, there in (
            ("strategy", self.strategies, strategies),
            ("target", self.target_names(), datasets),
            ("variant", self.variants, variants),
        ):
            for name in names:
                if name not in there:
                    yield (
                        f"A {what} must have a cell, got none for {name!r}. Look at the `datasets` and `strategies` "
                        "that strategies and variants are limited to"
                    )

    @model_validator(mode="after")
    def _set_once(self) -> Self:
        """What the grid sets must not stand elsewhere too: one of the two would be passed over in silence."""
        parts: dict[str, tuple[Tree, tuple[str, ...]]] = {"recipe": (self.recipe, RECIPE_LEAVES_OUT)}
        parts |= {f"datasets.{name}.set": (one.set, RECIPE_LEAVES_OUT) for name, one in self.datasets.items()}
        parts |= {f"variants.{name}.set": (one.set, RECIPE_LEAVES_OUT) for name, one in self.variants.items()}
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

    def folders_of(self, dataset: str) -> list[Path]:
        """Return the shard folders of a dataset."""
        shards = self.datasets[dataset].shards
        return [(self.shards_root / one).resolve() for one in (shards if isinstance(shards, list) else [shards])]

    def target_names(self) -> list[str]:
        """Return the datasets that get cells."""
        return self.targets or list(self.datasets)

    def grid(self) -> list[tuple[str, str, str, int]]:
        """Return strategy, dataset, variant (empty where there are none) and seed of every cell."""
        variants = self.variants or {"": Variant()}
        return [
            (strategy, dataset, variant, seed)
            for dataset in self.target_names()
            for variant, limits in variants.items()
            for seed in self.seeds
            for strategy, choice in self.strategies.items()
            if dataset in self._targets_of(choice)
            and (limits.datasets is None or dataset in limits.datasets)
            and (limits.strategies is None or strategy in limits.strategies)
        ]

    def _targets_of(self, strategy: Strategy) -> Sequence[str]:
        return [one for one in self.target_names() if strategy.datasets is None or one in strategy.datasets]


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
