"""Tests of a finished cell on other datasets: trained on A, asked about the test split of B, over what both annotate.

A job ``<cell>--external`` follows each cell and looks at all of its other datasets.  Each has a file of its own,
``cells/<cell>/external/<B>.parquet``, and beside it ``<B>.json``, which says what was asked and is written last.  So a
dataset that is named later is looked at alone, and nothing is trained again.

What of B takes part and what becomes of its labels is as a cell on B has it; how an image becomes input is A's, whose
model was made for that.  Thresholds and steps were chosen on A's validation split before.
"""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cxrdist.config import Config, Tree
from cxrdist.data.samples import count_samples
from cxrdist.datasets.shard_format import read_manifest
from cxrdist.findings import LabelPolicy
from cxrdist.finetune.config import FinetuneConfig
from cxrdist.train.run_folder import write_json

if TYPE_CHECKING:
    from cxrdist.study.jobs import Job

FOLDER = "external"
KEY_LENGTH = 16


class Other(Config):
    """What is asked of one other dataset."""

    key: str
    """Hash of the cell's key, the manifests of the dataset, and all below but for where it lies."""
    shards: list[Path]
    findings: list[str] = []
    """Those that count, where the dataset's own `set` names any."""
    projection: str
    labels: LabelPolicy
    eval_labels: LabelPolicy | None


@dataclass(frozen=True)
class Tested:
    """What `<B>.json` says."""

    key: str
    findings: tuple[str, ...]
    """Shared by both; none: there are no predictions."""
    why: str
    """Why there are no predictions; empty if there are."""


def ask(cell: "Job", name: str, config: FinetuneConfig, manifests: Sequence[str], *, findings: Sequence[str]) -> Other:
    """Return what `cell` is asked of the dataset `name`.

    Args:
        cell: Of another dataset.
        name: What the study calls the other one.
        config: A cell on that one, with the same strategy and variant.
        manifests: Hash of the manifest of each of its folders.
        findings: Those that its `set` names.
    """
    seen: Tree = {
        "findings": list(findings),
        "projection": config.input.projection,
        "labels": config.labels.tree(),
        "eval_labels": config.eval_labels.tree() if config.eval_labels else None,
    }
    canonical = json.dumps([FOLDER, name, cell.key, list(manifests), seen], sort_keys=True)
    key = hashlib.sha256(canonical.encode()).hexdigest()[:KEY_LENGTH]
    return Other.build({**seen, "key": key, "shards": [str(folder) for folder in config.folders]}, where=cell.name)


def external_job(cell: "Job", others: Mapping[str, Other]) -> "Job":
    """Return the job that looks at `others`, by name, with the model of `cell`."""
    canonical = json.dumps(sorted((name, other.key) for name, other in others.items()))
    # One process predicts; it opens a test split only once, as a cell's own test.
    alone = cell.resources.model_copy(update={"workers": 1, "min_workers": None})
    return replace(
        cell,
        kind="external",
        method="external",
        name=f"{cell.name}--{FOLDER}",
        key=hashlib.sha256(canonical.encode()).hexdigest()[:KEY_LENGTH],
        folder=cell.folder / FOLDER,
        tree={**cell.tree, FOLDER: {name: other.tree() for name, other in others.items()}},
        needs=(cell.identity,),
        resources=alone,
    )


def others_of(job: "Job") -> dict[str, Other]:
    """Return what an external `job` asks, by dataset."""
    return {name: Other.build(tree, where=job.name) for name, tree in job.tree[FOLDER].items()}


def predictions_file(job: "Job", dataset: str) -> Path:
    """Return where the predictions of `dataset` are, or will be."""
    return job.folder / f"{dataset}.parquet"


def tested(job: "Job", dataset: str, key: str) -> Tested | None:
    """Return what came of `dataset`; None if it was not looked at yet, or what is there answers another question."""
    try:
        told = json.loads((job.folder / f"{dataset}.json").read_bytes())
        found = Tested(str(told["key"]), tuple(told["findings"]), str(told["why"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    there = bool(found.why) or predictions_file(job, dataset).is_file()
    return found if found.key == key and there else None


def is_evaluated(job: "Job") -> bool:
    """Whether every other dataset of an external `job` was looked at."""
    return all(tested(job, name, tree["key"]) for name, tree in job.tree[FOLDER].items())


def evaluate_external(job: "Job") -> None:
    """Predict every other dataset of an external `job` that was not looked at yet; in one process.

    Raises:
        UserError: If the cell is not finished, a shard folder cannot be read, or the disk refuses.
    """
    job.folder.mkdir(parents=True, exist_ok=True)
    for name, other in others_of(job).items():
        if tested(job, name, other.key) is None:
            _evaluate(job, name, other)


def _evaluate(job: "Job", dataset: str, other: Other) -> None:
    from cxrdist.finetune.run import open_other_test  # noqa: PLC0415 - torch

    told = job.folder / f"{dataset}.json"
    told.unlink(missing_ok=True)  # before the predictions, which it would speak of
    config = FinetuneConfig.build(
        {
            "shards": [str(folder) for folder in other.shards],
            "labels": other.labels.tree(),
            "eval_labels": other.eval_labels.tree() if other.eval_labels else None,
            "input": {"projection": other.projection},
        },
        where=job.name,
    )
    shared = shared_findings(_findings_of(job), other)
    images = sum(count_samples(one, "test", projection=config.input.projection) for one in other.shards)
    facts: dict[str, Any] = {"key": other.key, "dataset": dataset, "findings": shared, "images": images, "why": ""}
    if not images:
        facts |= {"findings": [], "why": f"no test image of projection {other.projection}"}
    elif not shared:
        facts["why"] = "no finding that both annotate"
    else:
        open_other_test(job.folder.parent, config, predictions_file(job, dataset), dataset=dataset, only=shared)
    write_json(told, facts | {"time": round(time.time(), 3)})


def shared_findings(known: Sequence[str], other: Other) -> list[str]:
    """Return those of a model's findings that the other dataset annotates, and names where it names any."""
    annotated = {name for folder in other.shards for name in read_manifest(folder).findings}
    return [name for name in known if name in annotated and (not other.findings or name in other.findings)]


def _findings_of(job: "Job") -> list[str]:
    """Return the findings of the cell's model."""
    config = json.loads((job.folder.parent / "model" / "config.json").read_bytes())
    return [str(name) for name in config["label_names"]]
