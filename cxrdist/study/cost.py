"""What a study would cost: images, operations and GPU-hours of each job, before anything is started.

Operations are counted as `cxrdist plan` counts them, on fake tensors: no weight file is read.  Jobs whose networks and
methods have the same shapes are counted once.
"""

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from cxrdist.datasets.shard_format import read_manifest
from cxrdist.errors import UsageError
from cxrdist.finetune.config import FinetuneConfig, ProtocolConfig
from cxrdist.finetune.parts import build_task as build_tuning
from cxrdist.pretrain.build import build_task as build_pretraining
from cxrdist.pretrain.build import example_batch
from cxrdist.pretrain.config import PretrainConfig
from cxrdist.study.external import others_of
from cxrdist.study.jobs import Job
from cxrdist.train.engine import checkpoint_activations
from cxrdist.train.flops import flops_per_image
from cxrdist.train.task import BuildTask, MakeBatch
from cxrdist.train.throughput import PEAKS, peak_flops

FINDINGS = 14
"""How many every fine-tuning is counted with: a head is a millionth of a network."""
SHAPE = ("model.backbone", "model.args", "input.image_size", "train.activation_checkpointing")
"""Parts of a configuration that operations depend on, for every job; `_shape` adds the method's."""
NO_TRAINING = "knn"
STILL = ("probe", NO_TRAINING)
"""Protocols that need no gradient of the backbone: their training pass is a forward pass."""
PASSES = {"lora": 2}
"""How much more a fine-tuning's training pass is than a forward pass, where the backbone has a gradient and it is not
about 3 times as much: what an evaluation takes is worked out from it."""


@dataclass(frozen=True)
class JobCost:
    """What one job takes, at most: with `train.early_stopping` it may end sooner."""

    name: str
    kind: str
    method: str
    """Of a pretraining its method, of a fine-tuning its protocol."""
    backbone: str
    image_size: int
    steps: int
    images: int
    """Training images over all steps, with repetition."""
    evaluated: int
    """Images that are looked at without training: validations, the test split, neighbours, the looks of a
    pretraining; a projection that is left out counts too."""
    flops_per_image: float | None
    """Forward and, if it is trained, backward; None where operations cannot be counted, as in the next two."""
    flops: float | None
    gpu_hours: float | None

    def tree(self) -> dict[str, Any]:
        """Return it as JSON-ready values."""
        return asdict(self)


def study_cost(jobs: Sequence[Job], *, gpu: str, mfu: float) -> list[JobCost]:
    """Return the cost of each job on GPUs called `gpu` of whose peak rate a share `mfu` is reached.

    Raises:
        UsageError: If the GPU's peak is not known for a job's precision, or a configuration cannot be built.
    """
    if not 0 < mfu <= 1:
        raise UsageError(f"`--mfu` must be in (0, 1], got {mfu}. 0.4 is usual.")
    known: dict[str, Passes | None] = {}
    return [_cost(job, known, gpu=gpu, mfu=mfu) for job in jobs]


def _cost(job: Job, known: dict[str, "Passes | None"], *, gpu: str, mfu: float) -> JobCost:
    precision = job.tree["train"]["precision"]
    peak = peak_flops(gpu, precision)
    if peak is None:
        raise UsageError(f"`--gpu` must be one of {', '.join(PEAKS)} that computes in {precision}, got {gpu!r}.")
    config: FinetuneConfig | PretrainConfig
    if job.method == "external":
        config = FinetuneConfig.build({name: job.tree[name] for name in FinetuneConfig.model_fields}, where=job.name)
        method, steps, evaluated = str(job.method), 0, _asked(job)
    elif job.method == "pretrain":
        config = PretrainConfig.build(job.tree, where=job.name)
        method, steps, evaluated = str(config.method.name), config.train.steps, _looked_at(config)
    else:
        config = FinetuneConfig.build(job.tree, where=job.name)
        method = config.protocol.name
        steps = 0 if method == NO_TRAINING else config.train.steps
        evaluated = _evaluated(config, tested=job.kind == "cell")
    try:
        passes = _counted(config, known)
    except UsageError as error:
        raise UsageError(f"{error} [in {job.name}]") from None
    images = steps * config.train.global_batch_size
    per_image = None if passes is None else passes.training
    flops = None if passes is None else passes.training * images + passes.looking * evaluated
    return JobCost(
        name=job.name,
        kind=job.kind,
        method=method,
        backbone=job.tree["model"]["backbone"],
        image_size=job.tree["input"]["image_size"],
        steps=steps,
        images=images,
        evaluated=evaluated,
        flops_per_image=per_image if steps else 0.0,
        flops=flops,
        gpu_hours=None if flops is None else flops / (mfu * peak) / 3600,
    )


def short_of_images(jobs: Sequence[Job]) -> list[str]:
    """Return a sentence for each number of training images that a dataset has not, as its manifest counts them."""
    asked: dict[tuple[int, int, str], list[str]] = {}
    for job in jobs:
        wanted = job.tree.get("train_images")
        if job.method != "train" or wanted is None:
            continue
        folders = FinetuneConfig.build(job.tree, where=job.name).folders
        there = sum(read_manifest(folder).splits.get("train", 0) for folder in folders)
        if wanted > there:
            asked.setdefault((wanted, there, " + ".join(folder.name for folder in folders)), []).append(job.name)
    return [
        f"`train_images`={wanted:,} is more than the {there:,} training images of {dataset} (for {names[0]}"
        f"{f' and {len(names) - 1} more' if len(names) > 1 else ''}). Lower it, or set it to null for all."
        for (wanted, there, dataset), names in asked.items()
    ]


def _evaluated(config: FinetuneConfig, *, tested: bool) -> int:
    """Return how many images a fine-tuning looks at without training."""
    counts = Counter[str]()
    for folder in config.folders:
        counts.update(read_manifest(folder).splits)
    validations = math.ceil(config.train.steps / config.train.evaluate_every) + 1
    if config.protocol.name == NO_TRAINING:
        validations, neighbours = 2, config.train_images or counts["train"]
    else:
        neighbours = 0
    return validations * counts["val"] + tested * counts["test"] + neighbours


def _asked(job: Job) -> int:
    """Return how many images of other datasets the model of a cell looks at."""
    folders = (folder for other in others_of(job).values() for folder in other.shards)
    return sum(read_manifest(folder).splits.get("test", 0) for folder in folders)


def _looked_at(config: PretrainConfig) -> int:
    """Return how many images a pretraining is watched on: at its first step, whenever it is due, and at its last."""
    watch = config.watch
    counts = Counter[str]()
    for folder in watch.folders or config.shards:
        counts.update(read_manifest(folder).splits)
    splits = ["train"] if not watch.folders else ["train", "val"] if watch.probes else ["val"]
    looks = math.ceil(config.train.steps / config.train.evaluate_every) + 1
    return looks * sum(min(watch.images, counts[split]) for split in splits)


@dataclass(frozen=True)
class Passes:
    """Operations over one image."""

    training: float
    looking: float
    """Without training."""


def _counted(config: FinetuneConfig | PretrainConfig, known: dict[str, Passes | None]) -> Passes | None:
    """Return the operations over one image; counted once for each shape."""
    shape = json.dumps(_shape(config), sort_keys=True)
    if shape not in known:
        known[shape] = _count(config)
    return known[shape]


def _shape(config: FinetuneConfig | PretrainConfig) -> dict[str, Any]:
    tree = config.tree()
    shape = {name: tree[name.partition(".")[0]][name.partition(".")[2]] for name in SHAPE}
    if isinstance(config, FinetuneConfig):
        if config.protocol.name in STILL:
            return {name: shape[name] for name in SHAPE[:3]} | {"protocol": "still"}
        return shape | {"protocol": tree["protocol"], "loss": tree["loss"]["name"], "mixup": config.mixup > 0}
    shape |= {"method": tree["method"], "fresh": config.model.weights is None}
    return shape | ({"shards": tree["shards"]} if config.method.name == "supervised" else {})


class _Looking(nn.Module):
    """A pretraining's look in the place of its step: a forward pass in evaluation mode."""

    def __init__(self, task: nn.Module) -> None:
        super().__init__()
        self.task = task
        self.nothing = nn.Parameter(torch.zeros(()))

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        self.task.eval()
        with torch.no_grad():
            self.task(batch)
        return {"loss": self.nothing.clone()}


def _count(config: FinetuneConfig | PretrainConfig) -> Passes | None:
    build: BuildTask
    example: MakeBatch
    still = isinstance(config, FinetuneConfig) and config.protocol.name in STILL
    if isinstance(config, PretrainConfig):
        build, example = partial(build_pretraining, config), partial(example_batch, config)
    else:
        if still:  # neighbours stand in the place of a head
            config = config.model_copy(update={"protocol": ProtocolConfig(name="probe"), "mixup": 0.0})
        build = partial(build_tuning, config, pos_weight=np.ones(FINDINGS), known_share=1.0)
        example = partial(_tuning_batch, config.input.image_size)

    def as_it_runs(*, told: bool = False, loaded: bool = True) -> nn.Module:
        task = build(told=told, loaded=loaded)
        if config.train.activation_checkpointing and not still:
            checkpoint_activations(task)
        return task

    training = flops_per_image(as_it_runs, example, "fp32")
    if isinstance(config, PretrainConfig):
        images = partial(_tuning_batch, config.input.image_size)
        looking = flops_per_image(lambda **about: _Looking(build(**about)), images, "fp32")
        return None if training is None or looking is None else Passes(training, looking)
    if training is None:
        return None
    passes = 1 if still else PASSES.get(config.protocol.name, 3) + config.train.activation_checkpointing
    return Passes(training, training / passes)


def _tuning_batch(size: int, images: int) -> dict[str, torch.Tensor]:
    return {
        "image": torch.empty(images, 1, size, size, dtype=torch.uint8, device="meta"),
        "target": torch.empty(images, FINDINGS, device="meta"),
        "sample": torch.arange(images),
        "seed": torch.arange(images),
    }
