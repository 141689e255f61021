"""Checks of rigor that need the shards, the plan or the ledger; the report adds those that need predictions only."""

import contextlib
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
from cxrdist.report import Guard, row_name
from cxrdist.stats.auroc import auroc
from cxrdist.study.config import StudyConfig
from cxrdist.study.jobs import Identity, Job
from cxrdist.study.plan import Plan
from cxrdist.train.run_folder import flatten, read_test_accesses

FREE = ("model.weights", "shards", "seed", "findings", "input.workers")
"""What may differ between the strategies of one dataset."""


SHORTCUT_AUROC = 0.65
"""From here on the projection alone is a rival of the models that a reader must know of."""


def check_study(study: StudyConfig, plan: Plan, done: Sequence[Job]) -> list[Guard]:
    """Return the guards of a study, failed ones included: a report shows what is, not what should be.

    `done` are its finished cells, whose run folders are read.
    """
    indexes = {name: pd.concat([read_index(one) for one in study.folders_of(name)]) for name in study.datasets}
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
    found: dict[str, list[str]] = {}
    for rows, jobs in _rows(plan).items():
        for name in ("model.backbone", "model.args.patch_size", "model.args.img_size", "input.image_size"):
            values = {job.strategy: flatten(job.tree).get(name) for job in jobs}
            if len(set(values.values())) > 1:
                shown = ", ".join(f"{strategy}: {value}" for strategy, value in values.items())
                sentence = f"`{name}` differs between strategies ({shown}); weights are not all that is compared."
                found.setdefault(sentence, []).append(rows)
        keys: dict[tuple[str, ...], list[str]] = {}
        for strategy in dict.fromkeys(job.strategy for job in jobs):
            keys.setdefault(tuple(job.key for job in jobs if job.strategy == strategy), []).append(strategy)
        for names in keys.values():
            if len(names) > 1:
                sentence = f"{', '.join(names)} have the same configuration and the same start; they compare nothing."
                found.setdefault(sentence, []).append(rows)
    return [f"{'; '.join(rows)}: {sentence}" for sentence, rows in found.items()]


def _rows(plan: Plan) -> dict[str, list[Job]]:
    """Return the cells that are compared with each other: those of a dataset and variant, by what a report calls it."""
    rows: dict[str, list[Job]] = {}
    for job in plan.cells:
        rows.setdefault(row_name(job.dataset, job.variant), []).append(job)
    return rows


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
    known = {name: packed_from(study, name) for name in study.datasets}
    found = []
    for job, _, source in _sources(study, plan):
        (targets, overlaps), (origins, other) = known[job.dataset], known[source]
        if source != job.dataset and (origins & (overlaps | targets) or targets & other):
            found.append(f"{job.strategy} on {job.dataset} starts from {source}")
    detail = (
        "; ".join(dict.fromkeys(found)) or "No strategy starts from a dataset known to share images with its target."
    )
    return Guard("No known overlap between pretraining and test data", not found, detail)


def packed_from(study: StudyConfig, name: str) -> tuple[set[str], set[str]]:
    """Return which datasets the shard folders of `name` hold, and those known to share images with them."""
    datasets = {read_manifest(folder).dataset for folder in study.folders_of(name)}
    overlaps: set[str] = set()
    for dataset in datasets:
        with contextlib.suppress(UsageError):  # packed with a fact file of the user's own, which need not be here
            overlaps |= set(read_facts(dataset).overlaps)
    return datasets, overlaps


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
        for stage in ancestors(job, stages)
        if reads_labels(stage) and set(folders_read(stage)) & set(folders_read(job))
    ]
    detail = (
        "; ".join(dict.fromkeys(found)) or "Supervised stages read other datasets than the cells that start from them."
    )
    return Guard("No strategy was pretrained on the labels of its own target", not found, detail)


def _test_after_choice(done: Sequence[Job]) -> Guard:
    """Every finished cell has opened its test split, so one without a record of it proves nothing."""
    wrong, opened = [], 0
    for job in done:
        # Those of other datasets are told by a guard of their own.
        accesses = [one for one in read_test_accesses(job.folder) if "dataset" not in one]
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
    for rows, jobs in _rows(plan).items():
        trees = [flatten(job.tree) for job in jobs]
        names = {name for tree in trees for name in tree}
        different += [
            f"{rows}: {name}"
            for name in sorted(names)
            if name not in FREE and len({repr(tree.get(name)) for tree in trees}) > 1
        ]
    variants = " and variant" if any(job.variant for job in plan.cells) else ""
    detail = (
        ", ".join(different)
        or f"Same steps, batches, seeds, sample order and optimizer for all strategies of a dataset{variants}."
    )
    return Guard("Every strategy has the same recipe and budget", not different, detail)


def _projection_alone(study: StudyConfig, done: Sequence[Job]) -> Iterator[Guard]:
    """How well the projection (PA, AP) alone predicts each finding: a known shortcut (Zech et al. 2018).

    Told once per dataset, and again for variants of other images or other labels.
    """
    for name in study.target_names():
        told: dict[str, list[Job]] = {}
        for job in (job for job in done if job.dataset == name):
            seen = (job.tree["input"]["projection"], job.tree["labels"], job.tree["eval_labels"])
            told.setdefault(repr(seen), []).append(job)
        for cells in told.values():
            variants = ", ".join(dict.fromkeys(job.variant for job in cells))
            guard = _projection_guard(row_name(name, variants if len(told) > 1 else ""), cells)
            if guard is not None:
                yield guard


def _projection_guard(name: str, cells: Sequence[Job]) -> Guard | None:
    predicted = [json.loads((job.folder / "result.json").read_bytes())["findings"] for job in cells]
    config = FinetuneConfig.build(cells[0].tree, where=cells[0].name)
    areas = _projection_areas(config, list(dict.fromkeys(itertools.chain(*predicted))))
    if not areas:
        return None
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
    return Guard(f"Projection alone says little about the findings of {name}", passed, seen + meaning)


def _projection_areas(config: FinetuneConfig, findings: Sequence[str]) -> dict[str, float]:
    """Return the test AUROC of each finding's rate per projection in training; one-class findings are left out.

    Images and targets are those of a cell with `config`: its projections, its policy of training and of test.
    """
    train, test = (
        read_samples(config.folders, split, projection=config.input.projection) for split in ("train", "test")
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
    names = {str(folder): name for name in study.datasets for folder in study.folders_of(name)}
    stages = {stage.identity: stage for stage in plan.stages}
    for job in plan.cells:
        for stage in ancestors(job, stages):
            for source in dict.fromkeys(names[folder] for folder in folders_read(stage)):
                yield job, stage, source


def folders_read(job: Job) -> list[str]:
    """Return the shard folders that a job reads."""
    shards = job.tree["shards"]
    return shards if isinstance(shards, list) else [shards]


def reads_labels(stage: Job) -> bool:
    """Whether a stage learns from labels."""
    return stage.method == "train" or stage.tree["method"]["name"] == "supervised"


def ancestors(job: Job, stages: dict[Identity, Job]) -> Iterator[Job]:
    """Yield the stages that a cell starts from, and those that these start from."""
    for identity in job.needs:
        yield stages[identity]
        yield from ancestors(stages[identity], stages)
