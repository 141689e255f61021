"""The named parts of a study: its datasets, stages, strategies and variants."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from cxrdist.config import Config, Tree, override


class Dataset(Config):
    """A packed dataset that the study trains on or learns from."""

    shards: Path | Annotated[list[Path], Field(min_length=1)]
    """Shard folder, or several that are one dataset together; relative to the study's `shards_root`."""

    set: Tree = {}
    """Changes of the recipe for this dataset's cells (``findings``, ``labels`` ...), dotted names or trees."""

    resources: Tree = {}
    """What its trials hold, where that differs from the study's ``resources``."""


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

    resources: Tree = {}
    """What its trial holds, where that differs from the study's ``resources``."""

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

    resources: Tree = {}
    """What its trials hold, where that differs from the study's ``resources``."""


class Variant(Config):
    """One way in which every strategy is asked: a size of the training set, a protocol, a resolution ..."""

    set: Tree = {}
    """Changes of the recipe for this variant's cells; over what a dataset sets, under what a strategy sets.  Stages are
    the same for all variants."""

    strategies: list[str] | None = Field(default=None, min_length=1)
    """Strategies that get cells of it; null is all."""

    datasets: list[str] | None = Field(default=None, min_length=1)
    """Targets that get cells of it; null is all."""

    resources: Tree = {}
    """What its trials hold, where that differs from the study's ``resources``."""


def together(values: Sequence[Variant]) -> Variant | None:
    """Return the variant that has one value of each dimension; None if their limits leave nothing."""
    limits = {
        name: [set(given) for one in values if (given := getattr(one, name)) is not None]
        for name in ("strategies", "datasets")
    }
    common = {name: sorted(set.intersection(*sets)) if sets else None for name, sets in limits.items()}
    if [] in common.values():
        return None
    tree: Tree = {name: {} for name in Variant.model_fields if name not in common}
    for one in values:
        tree = {name: _then(before, getattr(one, name)) for name, before in tree.items()}
    return Variant(**tree, **common)


def _then(first: Tree, second: Tree) -> Tree:
    """Return the changes that are `first` and then `second`: as dotted names, in the order in which they are made."""
    both = {name: value for name, value in first.items() if name not in second}
    for name, value in second.items():
        # One name at a time, and none of the dots inside its value: as `override` takes a tree.
        both[name] = override({"": first[name]}, {"": value})[""] if name in first else value
    return both
