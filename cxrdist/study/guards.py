"""Checks of rigor that need the shards, the plan or the ledger; the report adds those that need predictions only."""

import itertools
import json
import math
from collections.abc import Iterator, Sequence

import pandas as pd

from cxrdist.datasets import read_facts
from cxrdist.datasets.shard_format import finding_column, read_index, read_manifest
from cxrdist.errors import UsageError
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
        *_projection_alone(study, indexes, done),
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
    for job, source in _sources(study, plan):
        (target, overlaps), (origin, other) = known[job.dataset], known[source]
        if source != job.dataset and (origin in overlaps or target in other or origin == target):
            found.append(f"{job.strategy} on {job.dataset} starts from {source}")
    detail = (
        "; ".join(dict.fromkeys(found)) or "No strategy starts from a dataset known to share images with its target."
    )
    return Guard("No known overlap between pretraining and test data", not found, detail)


def _shared_patients(study: StudyConfig, indexes: dict[str, pd.DataFrame], plan: Plan) -> Guard:
    """The same pseudonym under one key is the same patient, whatever the dataset."""
    found = {}
    for job, source in _sources(study, plan):
        train = indexes[source].loc[indexes[source]["split"] == "train", "patient_id"]
        test = indexes[job.dataset].loc[indexes[job.dataset]["split"] != "train", "patient_id"]
        count = len(set(train) & set(test))
        if count:
            found[f"{job.strategy} on {job.dataset}"] = count
    detail = "; ".join(f"{cell}: {count} patients" for cell, count in found.items())
    return Guard(
        "No test or validation patient was trained on in a stage",
        not found,
        detail or "Pseudonyms of stages' training splits and of test and validation splits do not meet.",
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
    early, opened = [], 0
    for job in done:
        accesses = read_test_accesses(job.folder)
        opened += len(accesses)
        if accesses:
            result = json.loads((job.folder / "result.json").read_bytes())
            if any(access["time"] < result["time"] for access in accesses):
                early.append(job.name)
    detail = f"{opened} openings of a test split, each after its training had ended and its step was chosen."
    return Guard("Test splits are opened after the step is chosen", not early, ", ".join(early) or detail)


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


def _projection_alone(study: StudyConfig, indexes: dict[str, pd.DataFrame], done: Sequence[Job]) -> Iterator[Guard]:
    """How well the projection (PA, AP) alone predicts each finding: a known shortcut (Zech et al. 2018)."""
    for name in study.target_names():
        predicted = [
            json.loads((job.folder / "result.json").read_bytes())["findings"] for job in done if job.dataset == name
        ]
        areas = _projection_areas(indexes[name], list(dict.fromkeys(itertools.chain(*predicted))))
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


def _projection_areas(index: pd.DataFrame, findings: Sequence[str]) -> dict[str, float]:
    """Return the test AUROC of each finding's rate per projection in training; one-class findings are left out."""
    train, test = index[index["split"] == "train"], index[index["split"] == "test"]
    areas = {}
    for finding in findings:
        column = finding_column(finding)
        seen = train[train[column].isin([0, 1])]
        known = test[test[column].isin([0, 1])]
        rate = seen.groupby("projection")[column].mean()
        scores = known["projection"].map(rate).astype(float).fillna(float(seen[column].astype(float).mean()))
        area = auroc(known[column].astype(float).to_numpy(), scores.to_numpy())
        if not math.isnan(area):
            areas[finding] = area
    return areas


def _sources(study: StudyConfig, plan: Plan) -> Iterator[tuple[Job, str]]:
    """Yield every cell with every dataset that a stage behind it learned from."""
    names = {str(study.shards_of(name)): name for name in study.datasets}
    stages = {stage.identity: stage for stage in plan.stages}
    for job in plan.cells:
        for stage in _ancestors(job, stages):
            folders = stage.tree["shards"]
            for folder in folders if isinstance(folders, list) else [folders]:
                yield job, names[folder]


def _ancestors(job: Job, stages: dict[Identity, Job]) -> Iterator[Job]:
    for identity in job.needs:
        yield stages[identity]
        yield from _ancestors(stages[identity], stages)
