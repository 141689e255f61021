"""Checks of rigor that need the shards, the plan or the ledger; the report adds those that need predictions only."""

import itertools
import json
import math
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from cxrdist.data.samples import read_samples
from cxrdist.datasets import read_facts
from cxrdist.datasets.shard_format import read_index, read_manifest
from cxrdist.errors import UsageError
from cxrdist.finetune.config import FinetuneConfig
from cxrdist.report import Guard
from cxrdist.stats.auroc import auroc
from cxrdist.study.config import StudyConfig
from cxrdist.study.plan import Identity, Job, Plan
from cxrdist.train.run_folder import flatten, read_test_accesses

FREE = ("model.weights", "shards", "seed", "findings", "input.workers")
"""What may differ between the strategies of one dataset."""


SHORTCUT_AUROC = 0.65
"""From here on the projection alone is a rival of the models that a reader must know of."""


def check_study(study: StudyConfig, plan: Plan, done: Sequence[Job]) -> list[Guard]:
    """Return the guards of a study, failed ones included: a report shows what is, not what should be.

    `done` are its finished cells, whose run folders are read.
    """
    indexes = {name: read_index(study.shards_of(name)) for name in study.datasets}
    return [
        _disjoint_splits(indexes),
        _no_overlaps(study, plan),
        _shared_patients(study, indexes, plan),
        _own_labels(plan),
        _test_after_choice(done),
        _same_recipe(plan),
        *_projection_alone(study, done),
    ]


def describe_confounds(plan: Plan) -> list[str]:
    """Return sentences on what differs between strategies besides their weights, and on what does not differ at all."""
    notes = []
    for dataset in dict.fromkeys(job.dataset for job in plan.cells):
        for name in ("model.backbone", "model.args.patch_size", "model.args.img_size", "input.image_size"):
            values = {job.strategy: flatten(job.tree).get(name) for job in plan.cells if job.dataset == dataset}
            if len(set(values.values())) > 1:
                shown = ", ".join(f"{strategy}: {value}" for strategy, value in values.items())
                notes.append(
                    f"{dataset}: `{name}` differs between strategies ({shown}); weights are not all that is compared."
                )
        keys: dict[tuple[str, ...], list[str]] = {}
        for strategy in dict.fromkeys(job.strategy for job in plan.cells):
            ours = [job.key for job in plan.cells if (job.strategy, job.dataset) == (strategy, dataset)]
            keys.setdefault(tuple(ours), []).append(strategy)
        notes += [
            f"{dataset}: {', '.join(names)} have the same configuration and the same start; they compare nothing."
            for names in keys.values()
            if len(names) > 1
        ]
    return notes


def _disjoint_splits(indexes: dict[str, pd.DataFrame]) -> Guard:
    shared = {}
    for name, index in indexes.items():
        splits = index.groupby("patient_id")["split"].nunique()
        if (splits > 1).any():
            shared[name] = int((splits > 1).sum())
    detail = ", ".join(f"{name}: {count} patients in two splits" for name, count in shared.items())
    patients = ", ".join(f"{name} {index['patient_id'].nunique()}" for name, index in indexes.items())
    return Guard("No patient is in two splits of a dataset", not shared, detail or f"Patients: {patients}.")


def _no_overlaps(study: StudyConfig, plan: Plan) -> Guard:
    """Datasets known to share images must not be a cell's source and its test."""
    known = {}
    for name in study.datasets:
        dataset = read_manifest(study.shards_of(name)).dataset
        try:
            known[name] = (dataset, set(read_facts(dataset).overlaps))
        except UsageError:  # packed with a fact file of the user's own, which need not be here
            known[name] = (dataset, set())
    found = []
    for job, _, source in _sources(study, plan):
        (target, overlaps), (origin, other) = known[job.dataset], known[source]
        if source != job.dataset and (origin in overlaps or target in other or origin == target):
            found.append(f"{job.strategy} on {job.dataset} starts from {source}")
    detail = (
        "; ".join(dict.fromkeys(found)) or "No strategy starts from a dataset known to share images with its target."
    )
    return Guard("No known overlap between pretraining and test data", not found, detail)


def _shared_patients(study: StudyConfig, indexes: dict[str, pd.DataFrame], plan: Plan) -> Guard:
    """The same pseudonym under one key is the same patient, whatever the dataset."""
    patients = {
        (name, split): set(index.loc[index["split"] == split, "patient_id"])
        for name, index in indexes.items()
        for split in ("train", "val", "test")
    }
    found: dict[str, int] = {}
    for job, stage, source in _sources(study, plan):
        val, test = patients[job.dataset, "val"], patients[job.dataset, "test"]
        met = patients[source, "train"] & (val | test)
        if stage.method == "train":
            # It chooses its step on its validation split; to choose twice by the same patients tells nothing of test.
            met |= patients[source, "val"] & test
        if met:
            cell = f"{job.strategy} on {job.dataset}"
            found[cell] = max(len(met), found.get(cell, 0))
    detail = "; ".join(f"{cell}: {count} patients" for cell, count in found.items())
    return Guard(
        "No test or validation patient was trained on in a stage",
        not found,
        detail
        or "No pseudonym of a test split is in what a stage learned from (of a supervised one also the validation "
        "split), and none of a validation split in what it trained on.",
    )


def _own_labels(plan: Plan) -> Guard:
    stages = {stage.identity: stage for stage in plan.stages}
    found = [
        f"{job.strategy} on {job.dataset}"
        for job in plan.cells
        for stage in _ancestors(job, stages)
        if stage.method == "train" and stage.tree["shards"] == job.tree["shards"]
    ]
    detail = (
        "; ".join(dict.fromkeys(found)) or "Supervised stages read other datasets than the cells that start from them."
    )
    return Guard("No strategy was pretrained on the labels of its own target", not found, detail)


def _test_after_choice(done: Sequence[Job]) -> Guard:
    """Every finished cell has opened its test split, so one without a record of it proves nothing."""
    wrong, opened = [], 0
    for job in done:
        accesses = read_test_accesses(job.folder)
        opened += len(accesses)
        chosen = json.loads((job.folder / "result.json").read_bytes())["time"]
        if not accesses:
            wrong.append(f"{job.name} has test predictions and no record of an opening")
        elif any(access["time"] < chosen for access in accesses):
            wrong.append(f"{job.name} was opened before")
    detail = f"{opened} openings of a test split, each after its training had ended and its step was chosen."
    if not done:
        detail = "Nothing to check: no cell is done."
    return Guard("Test splits are opened after the step is chosen", not wrong, "; ".join(wrong) or detail)


def _same_recipe(plan: Plan) -> Guard:
    different = []
    for dataset in dict.fromkeys(job.dataset for job in plan.cells):
        trees = [flatten(job.tree) for job in plan.cells if job.dataset == dataset]
        names = {name for tree in trees for name in tree}
        different += [
            f"{dataset}: {name}"
            for name in sorted(names)
            if name not in FREE and len({repr(tree.get(name)) for tree in trees}) > 1
        ]
    detail = (
        ", ".join(different)
        or "Same steps, batches, seeds, sample order and optimizer for all strategies of a dataset."
    )
    return Guard("Every strategy has the same recipe and budget", not different, detail)


def _projection_alone(study: StudyConfig, done: Sequence[Job]) -> Iterator[Guard]:
    """How well the projection (PA, AP) alone predicts each finding: a known shortcut (Zech et al. 2018)."""
    for name in study.target_names():
        cells = [job for job in done if job.dataset == name]
        if not cells:
            continue
        predicted = [json.loads((job.folder / "result.json").read_bytes())["findings"] for job in cells]
        config = FinetuneConfig.build(cells[0].tree, where=cells[0].name)
        areas = _projection_areas(config, list(dict.fromkeys(itertools.chain(*predicted))))
        if not areas:
            continue
        worst = max(areas, key=lambda finding: areas[finding])
        mean = sum(areas.values()) / len(areas)
        passed = areas[worst] < SHORTCUT_AUROC
        seen = f"The projection alone reaches an AUROC of {areas[worst]:.3f} for {worst}, {mean:.3f} on average"
        meaning = (
            "."
            if passed
            else ": a model can earn that much of its AUROC without looking at the chest. Read the table against it,"
            " or study one projection (`input.projection`)."
        )
        yield Guard(f"Projection alone says little about the findings of {name}", passed, seen + meaning)


def _projection_areas(config: FinetuneConfig, findings: Sequence[str]) -> dict[str, float]:
    """Return the test AUROC of each finding's rate per projection in training; one-class findings are left out.

    Images and targets are those of a cell with `config`: its projections, its policy of training and of test.
    """
    train, test = (
        read_samples([config.shards], split, projection=config.input.projection) for split in ("train", "test")
    )
    config = config.resolved()
    seen, known = train.targets(findings, config.labels), test.targets(findings, config.evaluation_policy())
    areas = {}
    for column, finding in enumerate(findings):
        labels = pd.Series(seen[:, column].astype(float))
        rate = labels.groupby(train.table["projection"].to_numpy()).mean()
        scores = test.table["projection"].map(rate).astype(float).fillna(float(labels.mean())).to_numpy()
        there = ~np.isnan(known[:, column])
        area = auroc(known[there, column].astype(float), scores[there])
        if not math.isnan(area):
            areas[finding] = area
    return areas


def _sources(study: StudyConfig, plan: Plan) -> Iterator[tuple[Job, Job, str]]:
    """Yield every cell with every stage behind it and every dataset that the stage learned from."""
    names = {str(study.shards_of(name)): name for name in study.datasets}
    stages = {stage.identity: stage for stage in plan.stages}
    for job in plan.cells:
        for stage in _ancestors(job, stages):
            folders = stage.tree["shards"]
            for folder in folders if isinstance(folders, list) else [folders]:
                yield job, stage, names[folder]


def _ancestors(job: Job, stages: dict[Identity, Job]) -> Iterator[Job]:
    for identity in job.needs:
        yield stages[identity]
        yield from _ancestors(stages[identity], stages)
