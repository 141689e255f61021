"""From a study's file to its jobs: stages first, then cells, each with the key by which the ledger knows it.

A key is a hash of the resolved configuration, with each shard folder replaced by the hash of its manifest and each
stage's weights by that stage's key.  So moving the folders changes nothing, and changing one strategy changes its cells
only.  Jobs of equal content have equal keys: two strategies of the same meaning, or a stage that trains what a cell
trains.  Each is done and failed by itself, so a job is known by its `identity`.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from cxrdist.config import Config, Tree, override
from cxrdist.datasets.shard_format import manifest_sha256
from cxrdist.errors import UsageError, UserError
from cxrdist.finetune.config import FinetuneConfig
from cxrdist.models.locate import absolute_weights, is_timm_name, weight_files
from cxrdist.pretrain.config import PretrainConfig
from cxrdist.study.config import StudyConfig
from cxrdist.train.run_folder import FREE, flatten

KEY_LENGTH = 16
SHARED_INPUT = ("image_size", "fit", "projection", "workers")
"""What a pretraining takes from the recipe's `input`: its backbone must fit the cells that start from it."""


Identity = tuple[str, str, str]
"""Kind, name and key of a job."""


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
    needs: tuple[Identity, ...] = ()
    """The stages that must be done before it."""
    strategy: str = ""
    dataset: str = ""
    seed: int = 0

    @property
    def identity(self) -> Identity:
        """Return what tells it from every other job of its study; a key alone does not (see the module)."""
        return self.kind, self.name, self.key


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
    recipe = override({}, study.recipe)
    hashes = _manifest_hashes(study)
    faults = _Faults()
    stages: dict[str, Job] = {}
    for name in _stages_in_order(study):
        job = _stage_job(study, name, recipe, stages, hashes, out, faults)
        if job is not None:
            # Two stages of one content have one folder, so they are one job under the first's name.
            stages[name] = next((other for other in stages.values() if other.key == job.key), job)
    cells: list[Job] = []
    for strategy, dataset, seed in _grid(study):
        choice = study.strategies[strategy]
        # A stage with a fault has no job; its cells are looked at all the same, so that all faults are told at once.
        start = stages.get(choice.stage_for.get(dataset, choice.stage) or "")
        name = f"{strategy}--{dataset}--seed{seed}"
        tree = override(override(recipe, study.datasets[dataset].set), choice.set)
        tree = override(tree, {"shards": str(study.shards_of(dataset)), "seed": seed})
        config = _build(FinetuneConfig, tree, start, name, faults)
        if config is None:
            continue
        key = _key("train", config, start, [hashes[dataset]])
        folder = out / "cells" / name
        needs = (start.identity,) if start else ()
        cells.append(Job("cell", "train", name, key, folder, config.tree(), needs, strategy, dataset, seed))
    faults.refuse()
    return Plan(tuple({job.key: job for job in stages.values()}.values()), tuple(cells))


@dataclass
class _Faults:
    """What is wrong, each sentence once, with the jobs that it is wrong in."""

    jobs: dict[str, list[str]] = field(default_factory=dict)

    def add(self, error: UsageError, job: str) -> None:
        for line in str(error).splitlines():
            self.jobs.setdefault(line.removesuffix(f" [in {job}]"), []).append(job)

    def refuse(self) -> None:
        lines = [
            f"{sentence} [in {', '.join(jobs[:2])}{f' and {len(jobs) - 2} more' if len(jobs) > 2 else ''}]"
            for sentence, jobs in self.jobs.items()
        ]
        if lines:
            raise UsageError("\n".join(lines))


def _manifest_hashes(study: StudyConfig) -> dict[str, str]:
    hashes, errors = {}, []
    for name in study.datasets:
        try:
            hashes[name] = manifest_sha256(study.shards_of(name))
        except UserError as error:
            errors.append(error)
    if errors:
        raise type(errors[0])("\n".join(dict.fromkeys(map(str, errors))))
    return hashes


def _grid(study: StudyConfig) -> list[tuple[str, str, int]]:
    return [
        (strategy, dataset, seed)
        for dataset in study.target_names()
        for seed in study.seeds
        for strategy in study.strategies
    ]


def _stages_in_order(study: StudyConfig) -> list[str]:
    """Return the needed stages in the file's order, but each after the one it starts from."""
    ordered: list[str] = []

    def visit(name: str, above: tuple[str, ...]) -> None:
        if name in above:
            raise UsageError(f"Stages must not start from each other in a circle, got {' -> '.join([*above, name])}.")
        start = study.stages[name].start
        if start is not None:
            visit(start, (*above, name))
        if name not in ordered:
            ordered.append(name)

    used = {
        strategy.stage_for.get(dataset, strategy.stage)
        for strategy in study.strategies.values()
        for dataset in study.target_names()
    }
    for stage in study.stages:
        if stage in used:
            visit(stage, ())
    return ordered


def _stage_job(
    study: StudyConfig,
    name: str,
    recipe: Tree,
    stages: Mapping[str, Job],
    hashes: Mapping[str, str],
    out: Path,
    faults: _Faults,
) -> Job | None:
    stage = study.stages[name]
    start = stages.get(stage.start or "")
    folders = [str(study.shards_of(dataset)) for dataset in stage.datasets]
    config: Config | None
    method: Literal["train", "pretrain"]
    if stage.pretrain is not None:
        given = recipe.get("input")
        shared = {one: given[one] for one in SHARED_INPUT if one in given} if isinstance(given, dict) else {}
        base = {"model": recipe.get("model", {}), "input": shared}
        method, tree = "pretrain", override(base, {**stage.pretrain, "shards": folders})
        config = _build(PretrainConfig, tree, start, f"stage {name}", faults)
    else:
        base = override(recipe, study.datasets[stage.datasets[0]].set)
        method, tree = "train", override(base, {**(stage.train or {}), "shards": folders[0]})
        config = _build(FinetuneConfig, tree, start, f"stage {name}", faults)
    if config is None:
        return None
    key = _key(method, config, start, [hashes[dataset] for dataset in stage.datasets])
    needs = (start.identity,) if start else ()
    return Job("stage", method, name, key, out / "stages" / key, config.tree(), needs)


def _build(cls: type[Any], tree: Tree, start: Job | None, job: str, faults: _Faults) -> Any:
    if start is not None:
        tree = override(tree, {"model.weights": str(start.folder)})
    try:
        config = cls.build(tree, where=job)
    except UsageError as error:
        faults.add(error, job)
        return None
    if config.model.weights is not None:
        # A worker on another machine has another working folder.
        model = config.model.model_copy(update={"weights": absolute_weights(config.model.weights)})
        config = config.model_copy(update={"model": model})
    if config.train.deepspeed is not None:
        train = config.train.model_copy(update={"deepspeed": config.train.deepspeed.absolute()})
        config = config.model_copy(update={"train": train})
    return config


def _key(method: str, config: Config, start: Job | None, manifests: list[str]) -> str:
    content = {name: value for name, value in flatten(config.tree()).items() if name not in FREE}
    content["shards"] = manifests
    if start is not None:
        content["model.weights"] = start.key
    elif content.get("model.weights") is not None:
        content["model.weights"] = _weights_hash(content["model.weights"])
    if content.get("train.deepspeed") is not None:
        content["train.deepspeed"] = _weights_hash(content["train.deepspeed"])
    canonical = json.dumps([method, content], sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:KEY_LENGTH]


def _weights_hash(weights: str) -> str:
    """Return the hash of the files that hold `weights`; the text itself where there are none yet.

    A timm name stands for itself: what a tag means does not change, and its file may lie on the workers only.
    """
    if is_timm_name(weights):
        return weights
    try:
        files = weight_files(Path(weights))
    except UserError:
        return weights
    facts = [(file, file.stat()) for file in files]
    hashes = [_file_hash(file, stat.st_mtime_ns, stat.st_size) for file, stat in facts]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


@cache
def _file_hash(path: Path, mtime_ns: int, size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
