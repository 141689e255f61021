"""Whether another dataset is one that a model has not met: its images, its patients, its labels."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import pandas as pd

from cxrdist.datasets.shard_format import read_index
from cxrdist.report import ExternalFiles, Guard
from cxrdist.study.config import StudyConfig
from cxrdist.study.external import FOLDER, predictions_file, tested
from cxrdist.study.guards import ancestors, folders_read, packed_from, reads_labels
from cxrdist.study.jobs import Identity, Job
from cxrdist.study.plan import Plan
from cxrdist.train.run_folder import read_test_accesses

Met = dict[tuple[str, str, str], list[str]]
"""(strategy, trained, tested) -> sentences."""


def external_files(plan: Plan, done: set[Identity]) -> list[ExternalFiles]:
    """Return a file for each cell and other dataset, there or not; `done` are the jobs that have ended."""
    found = []
    for job in plan.externals:
        for name, tree in job.tree[FOLDER].items():
            told = tested(job, name, tree["key"]) if done.issuperset(job.needs) else None
            path = predictions_file(job, name) if told else job.folder / "unfinished"
            why = told.why if told else ""
            found.append(ExternalFiles(job.strategy, job.dataset, name, job.seed, path, job.variant, why))
    return found


def find_leaks(study: StudyConfig, plan: Plan) -> dict[str, Met]:
    """Return by guard what of a tested dataset a model has learned from, or chosen by.

    A strategy that has only seen unlabelled training images of the tested dataset has met none of its test patients;
    `describe_seen` tells of it.
    """
    known = {name: packed_from(study, name) for name in study.datasets}
    patients = _Patients(study)
    overlaps: Met = {}
    shared: Met = {}
    labels: Met = {}
    pairs = dict.fromkeys((job.strategy, job.dataset, name) for job in plan.externals for name in job.tree[FOLDER])
    behind = {(job.strategy, job.dataset): list(_sources(study, plan, job)) for job in plan.externals}
    for strategy, trained, name in pairs:
        targets, others = known[name]
        met: dict[str, int] = {}
        for source, labelled in [(trained, True), *behind[strategy, trained]]:
            origins, also = known[source]
            if source != name and (origins & (others | targets) or targets & also):
                overlaps.setdefault((strategy, trained, name), []).append(
                    f"{source} is known to share images with {name}"
                )
            if labelled and set(study.folders_of(source)) & set(study.folders_of(name)):
                labels.setdefault((strategy, trained, name), []).append(f"a start has learned from labels of {name}")
            read = patients.of(source, "train")
            if labelled:  # of which it chose its step by the validation split
                read = read | patients.of(source, "val")
            count = len(read & patients.of(name, "test"))
            if count:
                met[source] = count
        for source, count in met.items():
            told = f"{count} test patient{'s' * (count != 1)} of {name} {'are' if count != 1 else 'is'} in {source}"
            shared.setdefault((strategy, trained, name), []).append(told)
    return {"overlap": overlaps, "patients": shared, "labels": labels}


def check_external(plan: Plan, leaks: Mapping[str, Met]) -> list[Guard]:
    """Return the guards of tests on other datasets."""
    names = {
        "overlap": (
            "No known overlap between training data and other datasets tested on",
            "No model was trained, or started, from a dataset known to share images with one that it is tested on.",
        ),
        "patients": (
            "No patient of another dataset tested on was trained on",
            "No pseudonym of another dataset's test split is in what a model or its start was trained on or chosen by.",
        ),
        "labels": (
            "No model has learned from labels of another dataset that it is tested on",
            "Neither its own training nor a supervised stage behind it has read that dataset.",
        ),
    }
    guards = [
        Guard(name, not leaks[kind], "; ".join(_told(leaks[kind])) or good) for kind, (name, good) in names.items()
    ]
    return [*guards, _after_choice(plan)]


def describe_seen(study: StudyConfig, plan: Plan) -> list[str]:
    """Return a sentence for each strategy that saw training images of a tested dataset without their labels."""
    seen: dict[tuple[str, str], None] = {}
    for job in plan.externals:
        for source, labelled in _sources(study, plan, job):
            if not labelled and source in job.tree[FOLDER]:
                seen[job.strategy, source] = None
    by_strategy: dict[str, list[str]] = {}
    for strategy, source in seen:
        by_strategy.setdefault(strategy, []).append(source)
    return [
        f"{strategy} has seen training images of {', '.join(sources)} without labels: as datasets tested on, these are "
        "new to its labels and not to its pretraining."
        for strategy, sources in by_strategy.items()
    ]


def with_marks(files: Sequence[ExternalFiles], leaks: Mapping[str, Met]) -> list[ExternalFiles]:
    """Return `files`, each with what its model has met of the tested dataset."""
    marked = []
    for one in files:
        place = one.strategy, one.trained, one.tested
        told = [text for met in leaks.values() for text in met.get(place, ())]
        marked.append(replace(one, mark="; ".join(dict.fromkeys(told))))
    return marked


class _Patients:
    """The pseudonyms of each split, read once."""

    def __init__(self, study: StudyConfig) -> None:
        self._study = study
        self._read: dict[str, dict[str, frozenset[str]]] = {}

    def of(self, dataset: str, split: str) -> frozenset[str]:
        if dataset not in self._read:
            index = pd.concat([read_index(folder) for folder in self._study.folders_of(dataset)])
            groups = index.groupby("split")["patient_id"]
            self._read[dataset] = {str(name): frozenset(ids) for name, ids in groups}
        return self._read[dataset].get(split, frozenset())


def _sources(study: StudyConfig, plan: Plan, job: Job) -> Iterator[tuple[str, bool]]:
    """Yield the datasets that the stages behind an external job have read, and whether with their labels."""
    names = {str(folder): name for name in study.datasets for folder in study.folders_of(name)}
    cells = {cell.identity: cell for cell in plan.cells}
    stages = {stage.identity: stage for stage in plan.stages}
    for stage in ancestors(cells[job.needs[0]], stages):
        for source in dict.fromkeys(names[folder] for folder in folders_read(stage)):
            yield source, reads_labels(stage)


def _told(met: Met) -> list[str]:
    """Return a sentence per pair and reason, with the strategies that it holds for."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for (strategy, trained, name), sentences in met.items():
        for sentence in dict.fromkeys(sentences):
            found.setdefault((trained, name, sentence), []).append(strategy)
    return [
        f"{trained} → {name} ({', '.join(strategies)}): {sentence}"
        for (trained, name, sentence), strategies in found.items()
    ]


def _after_choice(plan: Plan) -> Guard:
    """Other datasets' test splits are opened by the same record as a cell's own."""
    wrong, opened = [], 0
    for job in plan.externals:
        accesses = [one for one in read_test_accesses(job.folder.parent) if "dataset" in one]
        there = [name for name, tree in job.tree[FOLDER].items() if (t := tested(job, name, tree["key"])) and not t.why]
        if not there:
            continue
        opened += len(accesses)
        chosen = json.loads((job.folder.parent / "result.json").read_bytes())["time"]
        unseen = [name for name in there if name not in {one["dataset"] for one in accesses}]
        if unseen:
            wrong.append(f"{job.name} has predictions of {', '.join(unseen)} and no record of an opening")
        if any(one["time"] < chosen for one in accesses):
            wrong.append(f"{job.name} was opened before")
    detail = f"{opened} openings of other datasets' test splits, each after the model's step was chosen on its own."
    return Guard("Other datasets are opened after the step is chosen", not wrong, "; ".join(wrong) or detail)
