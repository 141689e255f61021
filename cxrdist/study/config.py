"""A study as a file: datasets, strategies, and one training recipe for every cell."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from cxrdist.config import DEBUG, Config, Tree, override, parse_settings, read_tree, read_yaml
from cxrdist.errors import UsageError, unknown
from cxrdist.report import ReportOptions
from cxrdist.study.names import names_of_debug, names_of_settings, unknown_names, with_nested_changes, without_removed
from cxrdist.study.objects import check_url
from cxrdist.study.parts import Dataset, Stage, Strategy, Variant, together
from cxrdist.study.resources import Resources
from cxrdist.train.run_folder import flatten

RECIPE_LEAVES_OUT = ("shards", "seed", "model.weights")
"""What datasets, seeds and strategies set."""


def ledger_url(ledger: str | None) -> str | None:
    """Return the `ledger` of a study or a sweep.

    Raises:
        ValueError: If it is no folder of objects.
    """
    if ledger is not None and (wrong := check_url(ledger)):
        raise ValueError(wrong)
    return ledger


def plain_names(value: dict[str, Any]) -> dict[str, Any]:
    """Return `value`, whose names, and those one floor further in, become names of folders, joined by two hyphens.

    Raises:
        ValueError: If one cannot.
    """
    inner = [name for one in value.values() if isinstance(one, dict) for name in one]
    wrong = [name for name in (*value, *inner) if not name.replace("-", "").replace("_", "").isalnum() or "--" in name]
    if wrong:
        raise ValueError(f"names must be letters, digits, '_' and single '-', got {', '.join(map(repr, wrong))}")
    return value


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

    dimensions: dict[str, Annotated[dict[str, Variant], Field(min_length=1)]] = {}
    """In place of `variants`: each value of each with each value of the others is a variant, ``probe-500`` where
    ``probe`` is a value of the first and ``500`` of the second.  What a later dimension sets is set over an earlier
    one's; strategies and datasets are those that all its values allow."""

    external: Literal["all"] | list[str] | None = None
    """Datasets, of which any may be no target, whose test split every cell of another one is asked about, over the
    findings that both share; ``all`` is every dataset."""

    seeds: list[int] = Field(default=[0], min_length=1)
    recipe: Tree
    """The fine-tuning of every cell: the content of a run file, without `shards`, `seed` and `model.weights`."""

    resources: Resources = Resources()
    ledger: str | None = None
    """Where it is written what is done; null is a file in the study folder.  A URL, such as ``s3://bucket/study`` or
    ``file:///shared/study``, is a folder of objects, for machines whose shared folder has no locks or is slow."""

    statistics: ReportOptions

    @classmethod
    def read(cls, path: Path, settings: Iterable[str] = (), *, debug: bool = False) -> Self:
        """Return the study in a YAML file, with its own debug size if `debug`, then with ``a.b=value`` `settings`.

        Null takes a dataset, stage, strategy, variant or value of a dimension of the file out of it.

        Raises:
            UsageError: If anything is wrong, also a name in the debug size while it is not asked for.
        """
        read_tree(path, settings := list(settings), debug=debug)  # tells what is wrong with the file itself
        raw = with_nested_changes(read_yaml(path))
        sized, changes = raw.pop(DEBUG, None) or {}, parse_settings(settings)
        wrong = names_of_settings(override(raw, sized if debug else {}), changes)
        if wrong:
            raise UsageError("\n".join(wrong))
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

    _url = field_validator("ledger")(ledger_url)
    _plain = field_validator("datasets", "stages", "strategies", "variants", "dimensions")(plain_names)

    @field_validator("seeds")
    @classmethod
    def _different(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) < len(seeds) or min(seeds) < 0:
            raise ValueError(f"must be different numbers of 0 or more, got {seeds}.")
        return seeds

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
        named = self.variants | {f"{name}.{one}": way for name, values in self.dimensions.items()
                                 for one, way in values.items()}  # fmt: skip
        wrong += list(self._wrong_ways())
        for what, groups, known in (
            ("dataset of strategy", {name: one.datasets for name, one in self.strategies.items()}, self.target_names()),
            ("dataset of variant", {name: one.datasets for name, one in named.items()}, self.target_names()),
            ("strategy of variant", {name: one.strategies for name, one in named.items()}, self.strategies),
            ("dataset of", {"external": self.external if isinstance(self.external, list) else None}, self.datasets),
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
            *self._values_with_cells(variants),
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
        for dimension, values in self.dimensions.items():
            for name, one in values.items():
                parts[f"dimensions.{dimension}.{name}.set"] = (one.set, RECIPE_LEAVES_OUT)
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

    def external_names(self) -> list[str]:
        """Return the datasets that every cell of another one is asked about."""
        return list(self.datasets) if self.external == "all" else list(self.external or ())

    def ways(self) -> dict[str, Variant]:
        """Return the variants by name, those that `dimensions` make included; one without a name where there are none.

        What the limits of its values leave without any strategy or dataset is no variant.
        """
        if not self.dimensions:
            return self.variants or {"": Variant()}
        found = {}
        for values in product(*(one.items() for one in self.dimensions.values())):
            way = together([one for _, one in values])
            if way is not None and self._cells_of(way):
                found["-".join(name for name, _ in values)] = way
        return found

    def grid(self) -> list[tuple[str, str, str, int]]:
        """Return strategy, dataset, variant (empty where there are none) and seed of every cell."""
        cells = {variant: self._cells_of(way) for variant, way in self.ways().items()}
        return [
            (strategy, dataset, variant, seed)
            for dataset in self.target_names()
            for variant, there in cells.items()
            for seed in self.seeds
            for strategy in self.strategies
            if (strategy, dataset) in there
        ]

    def _cells_of(self, way: Variant) -> set[tuple[str, str]]:
        """Return the strategies and datasets of a variant's cells."""
        return {
            (name, dataset)
            for name, strategy in self.strategies.items()
            if way.strategies is None or name in way.strategies
            for dataset in self._targets_of(strategy)
            if way.datasets is None or dataset in way.datasets
        }

    def _wrong_ways(self) -> Iterator[str]:
        """Yield a sentence for what variants and dimensions must not be together."""
        if self.variants and self.dimensions:
            yield (
                f"`variants` must be left out where there are `dimensions`, got {', '.join(self.variants)}. "
                "Make them values of one more dimension"
            )
        twice = Counter("-".join(names) for names in product(*self.dimensions.values()))
        for name, count in twice.items():
            if count > 1:
                yield f"`dimensions` must give each variant a name of its own, got {name!r} {count} times"

    def _values_with_cells(self, variants: set[str]) -> Iterator[tuple[str, list[str], set[str]]]:
        """Yield each dimension with its values, and with those that have a cell."""
        for number, (dimension, values) in enumerate(self.dimensions.items()):
            chosen = (names for names in product(*self.dimensions.values()) if "-".join(names) in variants)
            yield f"value of dimension {dimension!r}", list(values), {names[number] for names in chosen}

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
