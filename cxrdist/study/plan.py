"""From a study's file to its jobs: stages first, then cells, each with the key by which the ledger knows it.

A key is a hash of the resolved configuration, with each shard folder replaced by the hash of its manifest and each
stage's weights by that stage's key.  So moving the folders changes nothing, and changing one strategy changes its cells
only.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from cxrdist.config import Config, Tree, override
from cxrdist.datasets.shard_format import manifest_sha256
from cxrdist.errors import UsageError
from cxrdist.finetune.config import FinetuneConfig
from cxrdist.pretrain.config import PretrainConfig
from cxrdist.study.config import Stage, StudyConfig
from cxrdist.train.run_folder import FREE, flatten

KEY_LENGTH = 16
SHARED_INPUT = ("image_size", "fit", "projection", "workers")
"""What a pretraining takes from the recipe's `input`: its backbone must fit the cells that start from it."""


@dataclass(frozen=True)
class Job:
    """One training of a study."""

    kind: Literal["stage", "cell"]
    method: Literal["train", "pretrain"]
    name: str
    """Readable: the stage's name, or ``<strategy>--<dataset>--seed<k>``."""
    key: str
    folder: Path
    """Its run folder."""
    tree: Tree
    """Its resolved configuration."""
    needs: tuple[str, ...] = ()
    """Keys of the stages that must be done before it."""
    strategy: str = ""
    dataset: str = ""
    seed: int = 0


@dataclass(frozen=True)
class Plan:
    """All jobs of a study; a stage stands after the stages it needs."""

    stages: tuple[Job, ...]
    cells: tuple[Job, ...]

    @property
    def jobs(self) -> tuple[Job, ...]:
        """Return stages and cells."""
        return self.stages + self.cells


def plan_study(study: StudyConfig, out: Path) -> Plan:
    """Return the jobs of `study` with run folders below `out`.  Stages that no cell needs are left out.

    Raises:
        UsageError: If a resolved configuration is wrong (all are told), or stages need each other in a circle.
        UserError: If a shard folder is missing or unfinished.
    """
    out = out.resolve()
    hashes = {name: manifest_sha256(study.shards_of(name)) for name in study.datasets}
    wrong: list[str] = []
    stages: dict[str, Job] = {}
    for name in _stages_in_order(study):
        stage = study.stages[name]
        start = stages[stage.start] if stage.start else None
        job = _stage_job(study, name, stage, start, hashes, out, wrong)
        if job is not None:
            stages[name] = job
        elif wrong:
            break
    cells: list[Job] = []
    if not wrong:
        for strategy, dataset, seed in _grid(study):
            choice = study.strategies[strategy]
            stage_name = choice.stage_for.get(dataset, choice.stage)
            start = stages[stage_name] if stage_name else None
            name = f"{strategy}--{dataset}--seed{seed}"
            tree = override(override(study.recipe, study.datasets[dataset].set), choice.set)
            tree = override(tree, {"shards": str(study.shards_of(dataset)), "seed": seed})
            config = _build(FinetuneConfig, tree, start, name, wrong)
            if config is None:
                continue
            key = _key("train", config, start, [hashes[dataset]])
            folder = out / "cells" / name
            needs = (start.key,) if start else ()
            cells.append(Job("cell", "train", name, key, folder, config.tree(), needs, strategy, dataset, seed))
    if wrong:
        raise UsageError("\n".join(dict.fromkeys(wrong)))
    return Plan(tuple(stages.values()), tuple(cells))


def _grid(study: StudyConfig) -> list[tuple[str, str, int]]:
    return [
        (strategy, dataset, seed)
        for dataset in study.target_names()
        for seed in study.seeds
        for strategy in study.strategies
    ]


def _stages_in_order(study: StudyConfig) -> list[str]:
    """Return the needed stages, each after the one it starts from."""
    ordered: list[str] = []

    def visit(name: str, above: tuple[str, ...]) -> None:
        if name in above:
            raise UsageError(f"Stages must not start from each other in a circle, got {' -> '.join([*above, name])}.")
        start = study.stages[name].start
        if start is not None:
            visit(start, (*above, name))
        if name not in ordered:
            ordered.append(name)

    for strategy in study.strategies.values():
        for dataset in study.target_names():
            stage = strategy.stage_for.get(dataset, strategy.stage)
            if stage is not None:
                visit(stage, ())
    return ordered


def _stage_job(
    study: StudyConfig,
    name: str,
    stage: Stage,
    start: Job | None,
    hashes: Mapping[str, str],
    out: Path,
    wrong: list[str],
) -> Job | None:
    folders = [str(study.shards_of(dataset)) for dataset in stage.datasets]
    config: Config | None
    method: Literal["train", "pretrain"]
    if stage.pretrain is not None:
        shared = {field: value for field, value in study.recipe.get("input", {}).items() if field in SHARED_INPUT}
        base = {"model": study.recipe.get("model", {}), "input": shared}
        method, tree = "pretrain", override(base, {**stage.pretrain, "shards": folders})
        config = _build(PretrainConfig, tree, start, f"stage {name}", wrong)
    else:
        base = override(study.recipe, study.datasets[stage.datasets[0]].set)
        method, tree = "train", override(base, {**(stage.train or {}), "shards": folders[0]})
        config = _build(FinetuneConfig, tree, start, f"stage {name}", wrong)
    if config is None:
        return None
    key = _key(method, config, start, [hashes[dataset] for dataset in stage.datasets])
    needs = (start.key,) if start else ()
    return Job("stage", method, name, key, out / "stages" / key, config.tree(), needs)


def _build(cls: type[Any], tree: Tree, start: Job | None, where: str, wrong: list[str]) -> Any:
    if start is not None:
        tree = override(tree, {"model.weights": str(start.folder)})
    try:
        return cls.build(tree, where=where)
    except UsageError as error:
        wrong.append(str(error))
        return None


def _key(method: str, config: Config, start: Job | None, manifests: list[str]) -> str:
    content = {name: value for name, value in flatten(config.tree()).items() if name not in FREE}
    content["shards"] = manifests
    weights = content.get("model.weights")
    if start is not None:
        content["model.weights"] = start.key
    elif weights is not None and Path(weights).is_file():
        content["model.weights"] = _file_hash(weights)
    canonical = json.dumps([method, content], sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:KEY_LENGTH]


@cache
def _file_hash(path: str) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
