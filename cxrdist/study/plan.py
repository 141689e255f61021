"""From a study's file to its jobs: stages first, then cells, each with the key by which the ledger knows it.

A key is a hash of the resolved configuration, with each shard folder replaced by the hash of its manifest and each
stage's weights by that stage's key.  So moving the folders changes nothing, and changing one strategy changes its cells
only.  Jobs of equal content have equal keys: two strategies of the same meaning, or a stage that trains what a cell
trains.  Each is done and failed by itself, so a job is known by its `identity`.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from cxrdist.config import Config, Tree, override
from cxrdist.datasets.shard_format import MANIFEST, Manifest, manifest_sha256, read_manifest
from cxrdist.errors import UsageError, UserError, unknown
from cxrdist.finetune.config import FinetuneConfig
from cxrdist.models.locate import absolute_weights, is_timm_name, weight_files
from cxrdist.pretrain.config import PretrainConfig
from cxrdist.study.config import StudyConfig
from cxrdist.study.external import ask, external_job
from cxrdist.study.jobs import Job
from cxrdist.study.parts import Variant
from cxrdist.study.resources import TrialResources
from cxrdist.train.run_folder import FREE, flatten

KEY_LENGTH = 16
LATER = {"optim.final_weight_decay": None, "train.stop_at": None}
"""Names that configurations got after the first keys were made, with the value that means what was before: a key says
nothing of them where they have it."""
LOOKED_AT_EVERY = 100
"""What a pretraining's key says of `train.evaluate_every`: how often it is looked at changes no result."""
SHARED_INPUT = ("image_size", "fit", "projection", "workers")
"""What a pretraining takes from the recipe's `input`: its backbone must fit the cells that start from it."""


@dataclass(frozen=True)
class Plan:
    """All jobs of a study; a stage stands after the stages it needs."""

    stages: tuple[Job, ...]
    cells: tuple[Job, ...]
    externals: tuple[Job, ...] = ()
    """Of each cell that is asked about other datasets; see `cxrdist.study.external`."""

    @property
    def jobs(self) -> tuple[Job, ...]:
        """Return all, each after those it needs."""
        return self.stages + self.cells + self.externals


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
    ways = study.ways()
    for strategy, dataset, variant, seed in study.grid():
        choice = study.strategies[strategy]
        # A stage with a fault has no job; its cells are looked at all the same, so that all faults are told at once.
        start = stages.get(choice.stage_for.get(dataset, choice.stage) or "")
        name = cell_name(strategy, dataset, variant, seed)
        tree = override(_cell_tree(study, recipe, strategy, dataset, ways[variant]), {"seed": seed})
        config = _build(study, FinetuneConfig, tree, start, name, faults)
        if config is None:
            continue
        key = job_key("train", config, start, hashes[dataset])
        folder = out / "cells" / name
        needs = (start.identity,) if start else ()
        limits = ways[variant].resources
        held = _resources(study, name, faults, study.datasets[dataset].resources, limits, choice.resources)
        about = (strategy, dataset, variant, seed)
        cells.append(Job("cell", "train", name, key, folder, config.tree(), needs, *about, resources=held))
    externals = _external_jobs(study, cells, recipe, hashes, faults)
    faults.refuse()
    return Plan(tuple({job.key: job for job in stages.values()}.values()), tuple(cells), tuple(externals))


def cell_name(strategy: str, dataset: str, variant: str, seed: int) -> str:
    """Return ``<strategy>--<dataset>--<variant>--seed<k>``, without a nameless variant."""
    return "--".join([strategy, dataset, *([variant] if variant else []), f"seed{seed}"])


def missing_weights(jobs: Sequence[Job]) -> dict[str, list[str]]:
    """Return each weight file that `jobs` start from and that is not here, with the names of those jobs.

    Weights that a stage makes, and names that timm knows, are not asked for.
    """
    missing: dict[str, list[str]] = {}
    for job in jobs:
        weights = job.tree["model"]["weights"]
        # A job has one start, so one with a stage has no file besides.
        if weights is None or job.needs or is_timm_name(weights):
            continue
        try:
            weight_files(Path(weights))
        except UserError:
            missing.setdefault(weights, []).append(job.name)
    return missing


def check_weights(jobs: Sequence[Job], *, of: str, way_out: str) -> None:
    """Make sure that every weight file is there before the first hour is spent.

    Args:
        jobs: That will run.
        of: What they belong to: "study".
        way_out: What to do instead of putting the files there.

    Raises:
        UserError: If one is not; all are told.
    """
    missing = missing_weights(jobs)
    if missing:
        more = {path: f" and {len(names) - 2} more" if len(names) > 2 else "" for path, names in missing.items()}
        told = [f"{path!r} (for {', '.join(names[:2])}{more[path]})" for path, names in missing.items()]
        raise UserError(
            f"Every weight file of a {of} must be there before it starts, got none at {'; '.join(told)}. Put "
            f"{'it' if len(told) == 1 else 'them'} there, or {way_out}."
        )


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


def _one_or_all(study: StudyConfig, dataset: str) -> str | list[str]:
    """Return a dataset's shard folders as a run file has them."""
    folders = [str(folder) for folder in study.folders_of(dataset)]
    return folders[0] if len(folders) == 1 else folders


def _cell_tree(study: StudyConfig, recipe: Tree, strategy: str, dataset: str, way: Variant) -> Tree:
    """Return the run file of a cell, but for its seed and its stage's weights."""
    tree = override(override(recipe, study.datasets[dataset].set), way.set)
    return override(override(tree, study.strategies[strategy].set), {"shards": _one_or_all(study, dataset)})


def _external_jobs(
    study: StudyConfig, cells: Sequence[Job], recipe: Tree, hashes: Mapping[str, list[str]], faults: _Faults
) -> list[Job]:
    """Return a job for each cell that is asked about other datasets."""
    ways, asked = study.ways(), study.external_names()
    built: dict[tuple[str, str, str], FinetuneConfig | None] = {}
    jobs = []
    for cell in cells:
        others = {}
        for name in asked:
            place = cell.strategy, name, cell.variant
            if name == cell.dataset:
                continue
            if place not in built:
                tree = _cell_tree(study, recipe, cell.strategy, name, ways[cell.variant])
                built[place] = _build(study, FinetuneConfig, tree, None, f"{cell.name} on {name}", faults)
            config = built[place]
            if config is not None:
                own = flatten(override({}, study.datasets[name].set)).get("findings") or ()
                others[name] = ask(cell, name, config, hashes[name], findings=own)
        if others:
            jobs.append(external_job(cell, others))
    return jobs


def _manifest_hashes(study: StudyConfig) -> dict[str, list[str]]:
    """Return the hash of each folder's manifest by dataset."""
    hashes: dict[str, list[str]] = {}
    errors = []
    for name in study.datasets:
        for folder in study.folders_of(name):
            try:
                hashes.setdefault(name, []).append(manifest_sha256(folder))
            except UserError as error:
                errors.append((error, name))
    if errors:
        raise type(errors[0][0])("\n".join(f"{error} [dataset {name}]" for error, name in errors))
    return hashes


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

    choices = [(study.strategies[strategy], dataset) for strategy, dataset, _, _ in study.grid()]
    used = {choice.stage_for.get(dataset, choice.stage) for choice, dataset in choices}
    for stage in study.stages:
        if stage in used:
            visit(stage, ())
    return ordered


def _stage_job(
    study: StudyConfig,
    name: str,
    recipe: Tree,
    stages: Mapping[str, Job],
    hashes: Mapping[str, list[str]],
    out: Path,
    faults: _Faults,
) -> Job | None:
    stage = study.stages[name]
    start = stages.get(stage.start or "")
    folders = [str(folder) for dataset in stage.datasets for folder in study.folders_of(dataset)]
    config: Config | None
    method: Literal["train", "pretrain"]
    if stage.pretrain is not None:
        given = recipe.get("input")
        shared = {one: given[one] for one in SHARED_INPUT if one in given} if isinstance(given, dict) else {}
        base = {"model": recipe.get("model", {}), "input": shared}
        method, tree = "pretrain", override(base, {**stage.pretrain, "shards": folders})
        config = _build(study, PretrainConfig, tree, start, f"stage {name}", faults)
    else:
        base = override(recipe, study.datasets[stage.datasets[0]].set)
        method, tree = "train", override(base, {**(stage.train or {}), "shards": _one_or_all(study, stage.datasets[0])})
        config = _build(study, FinetuneConfig, tree, start, f"stage {name}", faults)
    if config is None:
        return None
    key = job_key(method, config, start, [one for dataset in stage.datasets for one in hashes[dataset]])
    needs = (start.identity,) if start else ()
    held = _resources(study, f"stage {name}", faults, stage.resources)
    return Job("stage", method, name, key, out / "stages" / key, config.tree(), needs, resources=held)


def _resources(study: StudyConfig, job: str, faults: _Faults, *changes: Tree) -> TrialResources:
    """Return the study's resources with `changes`, later ones over earlier ones."""
    tree = study.resources.of_trial().tree()
    for change in changes:
        tree = override(tree, change)
    try:
        return TrialResources.build(tree, where=f"resources, {job}")
    except UsageError as error:
        faults.add(error, job)
        return TrialResources()


def _build(study: StudyConfig, cls: type[Any], tree: Tree, start: Job | None, job: str, faults: _Faults) -> Any:
    if start is not None:
        tree = override(tree, {"model.weights": str(start.folder)})
    try:
        config = cls.build(tree, where=job)
    except UsageError as error:
        faults.add(error, job)
        return None
    # A worker on another machine has another working folder.
    if config.model.weights is not None:
        model = config.model.model_copy(update={"weights": _absolute(config.model.weights, study.weights_root)})
        config = config.model_copy(update={"model": model})
    if cls is PretrainConfig and config.watch.shards is not None:
        try:
            folders = [folder for given in config.watch.folders for folder in _watched(study, given)]
        except UsageError as error:
            faults.add(error, job)
            return None
        shards = folders[0] if len(folders) == 1 else folders
        config = config.model_copy(update={"watch": config.watch.model_copy(update={"shards": shards})})
    if cls is FinetuneConfig:
        # Here, where it is still known what the study says of labels and what it leaves to each dataset.
        try:
            config = config.resolved(_manifest)
        except UsageError as error:
            faults.add(error, job)
            return None
    if config.train.deepspeed is not None:
        train = config.train.model_copy(update={"deepspeed": config.train.deepspeed.absolute()})
        config = config.model_copy(update={"train": train})
    return config


def _watched(study: StudyConfig, given: Path) -> list[Path]:
    """Return all folders of a dataset of the study, where `given` is its name, or else the shard folder `given`.

    Raises:
        UsageError: If it is neither.
    """
    if str(given) in study.datasets:
        return study.folders_of(str(given))
    try:
        manifest_sha256(given)
    except UserError:
        raise UsageError(unknown("`watch.shards`", str(given), study.datasets)) from None
    return [given.absolute()]


def _absolute(weights: str, root: Path | None) -> str:
    return absolute_weights(weights if root is None or is_timm_name(weights) else str(root / weights))


def job_key(method: str, config: Config, start: Job | None, manifests: list[str]) -> str:
    """Return the key of a job.

    Args:
        method: ``train`` or ``pretrain``.
        config: Resolved.
        start: The stage whose weights it starts from.
        manifests: Hashes of its shard folders' manifests, in order.
    """
    content = {name: value for name, value in flatten(config.tree()).items() if name not in FREE}
    content = {name: value for name, value in content.items() if name not in LATER or value != LATER[name]}
    if method == "pretrain":
        content["train.evaluate_every"] = LOOKED_AT_EVERY
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


def _manifest(folder: Path) -> Manifest:
    """Return a folder's manifest, read once for all cells."""
    stat = (folder / MANIFEST).stat()
    return _read_manifest(folder, stat.st_mtime_ns, stat.st_size)


@cache
def _read_manifest(folder: Path, mtime_ns: int, size: int) -> Manifest:
    return read_manifest(folder)


@cache
def _file_hash(path: Path, mtime_ns: int, size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
