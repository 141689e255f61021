"""One fine-tuning from its configuration to a model folder and the validation's predictions.

Only the training and the validation split are read here.  The test split is opened by `open_test`, a step of its own
that takes a finished run and chooses nothing.
"""

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from cxrdist.data.loader import EvaluationImages, TrainingImages, training_batches
from cxrdist.data.order import Batching
from cxrdist.data.samples import Samples, choose_findings, count_samples, read_samples
from cxrdist.datasets.shard_format import read_manifest
from cxrdist.errors import UserError
from cxrdist.evaluate.predict import predict_logits, sigmoid, validation_values
from cxrdist.finetune.config import FinetuneConfig
from cxrdist.finetune.losses import MultiLabelLoss
from cxrdist.finetune.mixup import check_mixup, mixed_known_share
from cxrdist.finetune.protocols import begin_protocol, end_protocol
from cxrdist.finetune.task import FinetuneTask, balanced_weights
from cxrdist.log import get_logger
from cxrdist.models.build import build_model
from cxrdist.models.folder import load_model, save_model
from cxrdist.models.weights import load_weights
from cxrdist.stats.predictions import Predictions, write_predictions
from cxrdist.train.engine import gather, process_group
from cxrdist.train.loop import Outcome, Source, train
from cxrdist.train.run_folder import Resume, RunFolder, record_test_access, write_json
from cxrdist.train.start import start
from cxrdist.world import World

log = get_logger(__name__)


def finetune(config: FinetuneConfig, out: Path, *, world: World, resume: Resume | None = None) -> Outcome | None:
    """Train to the end and write `out`; return None if `out` holds this run finished already.

    Raises:
        UsageError, UserError: For what the user can mend.
        Interrupted: After a stop signal, resumable.
    """
    folder = RunFolder(out)
    config = config.resolved()
    if world.world_size == 1:
        # Before the engine is imported, so that a wrong folder is refused at once.
        folder.check(config, resume=resume, shards=[config.shards])
    with (
        process_group(world) as device,
        start(folder, config, resume=resume, world=world, shards=[config.shards], seed=config.seed) as begun,
    ):
        return _train(config, folder, world, device) if begun else None


def _train(config: FinetuneConfig, folder: RunFolder, world: World, device: torch.device) -> Outcome:
    train_samples, val_samples = (
        read_samples([config.shards], split, projection=config.input.projection) for split in ("train", "val")
    )
    if world.is_main and not count_samples(config.shards, "test", projection=config.input.projection):
        log.warning(
            "The test split has no image of projection %r, so this run cannot be tested [in %s].",
            config.input.projection,
            config.shards.name,
        )
    if config.train_images is not None:
        train_samples = train_samples.draw(config.train_images, config.seed)
    val_policy = config.evaluation_policy()
    findings = config.findings or own_findings(
        config, choose_findings(train_samples, val_samples, config.labels, val_policy)
    )
    if not findings:
        raise UserError(
            "A training split must have a finding with both values, in validation too, got none "
            f"[in {config.shards.name}]. Pack more images or name `findings`."
        )
    targets = train_samples.training_targets(findings, config.labels)
    loss = _build_loss(config, train_samples, findings, targets)
    images = TrainingImages(train_samples, targets, config.input, config.seed)
    val_images = EvaluationImages(val_samples, val_samples.targets(findings, val_policy), config.input)

    def build_task() -> FinetuneTask:
        model = build_model(
            config.model, num_classes=len(findings), image_size=config.input.image_size, seed=config.seed
        )
        if config.model.weights is not None:
            load_weights(model, config.model.weights)
        begin_protocol(model.net, config.protocol, seed=config.seed)
        return FinetuneTask(model, loss=loss, protocol=config.protocol, mixup_alpha=config.mixup)

    def logits_of(module: nn.Module, before_each: Callable[[], None] = lambda: None) -> np.ndarray:
        return predict_logits(
            # Through the whole task: under ZeRO 3 its forward pass is where the ranks exchange the weights.
            lambda batch: module(batch)["logits"],
            val_images,
            batch_size=evaluation_batch_size(config, world),
            device=device,
            world=world,
            gather=gather,
            precision=config.train.precision,
            before_each=before_each,
        )

    def validate(module: nn.Module, before_each: Callable[[], None]) -> dict[str, Any]:
        return validation_values(logits_of(module, before_each), val_images.targets, findings)

    batching = plan_batches(config, world)
    outcome, trained = train(
        build_task,
        config=config.train,
        optim=config.optim,
        batching=batching,
        seed=config.seed,
        source=Source(
            lambda batching, step: training_batches(
                images, batching, world, start_step=step, stop_step=config.train.steps
            ),
            lambda numbers: train_samples.table["key"].iloc[numbers].tolist(),
        ),
        validate=validate,
        folder=folder,
        world=world,
        device=device,
    )
    task = cast(FinetuneTask, trained)
    end_protocol(task.model.net)
    task.eval()
    logits = logits_of(task)
    if world.is_main:
        _write_split(folder, "val", val_samples, findings, val_images.targets, logits)
        facts = {
            "kind": "finetune",
            "image_size": config.input.image_size,
            "fit": config.input.fit,
            "chosen_step": outcome.chosen_step,
        }
        save_model(task.model, folder.model, backbone=config.model.backbone, findings=findings, facts=facts)
        write_json(
            folder.result,
            asdict(outcome) | {"time": round(time.time(), 3), "findings": findings, "train_images": len(train_samples)},
        )
    return outcome


def open_test(out: Path, *, split: str = "test") -> Path:
    """Predict the test split with the finished run in `out`; return the predictions file.

    This is the only place that reads a test split.  It needs a finished run, whose step is chosen and fixed.

    Raises:
        UserError: If the run is not finished.
    """
    folder = RunFolder(out)
    if not folder.finished:
        raise UserError(
            f"The test split is opened after training only, got an unfinished run [{out.name}]. Finish it first."
        )
    config = FinetuneConfig.read(folder.config)
    record_test_access(out, {"split": split})
    model, findings, _ = load_model(folder.model)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    samples = read_samples([config.shards], split, projection=config.input.projection)
    images = EvaluationImages(samples, samples.targets(findings, config.evaluation_policy()), config.input)
    model.to(device)
    logits = predict_logits(
        lambda batch: model(batch["image"]),
        images,
        batch_size=evaluation_batch_size(config, World()),
        device=device,
        precision=config.train.precision,
    )
    return _write_split(folder, split, samples, findings, images.targets, logits)


def plan_batches(config: FinetuneConfig, world: World) -> Batching:
    """Return how each global batch is divided among `world`.

    Raises:
        UsageError: If it cannot be.
    """
    size = config.train.micro_batch_size
    batching = Batching.plan(
        global_batch_size=config.train.global_batch_size,
        micro_batch_size=size if isinstance(size, int) else None,
        world_size=world.world_size,
    )
    if config.mixup:
        check_mixup(batching)
    return batching


def evaluation_batch_size(config: FinetuneConfig, world: World) -> int:
    """Return the images per forward pass of an evaluation; without gradients there is room for more of them."""
    size = config.train.micro_batch_size
    return 2 * (size if isinstance(size, int) else min(64, config.train.global_batch_size // world.world_size))


def own_findings(config: FinetuneConfig, findings: list[str]) -> list[str]:
    """Return `findings` without those that are made of others: a mean over all would count these twice."""
    made_of_others = read_manifest(config.shards).derived
    derived = [name for name in findings if name in made_of_others]
    if derived:
        log.info(
            "Left out, because they are made of other findings: %s. Name `findings` to have them.", ", ".join(derived)
        )
    return [name for name in findings if name not in derived]


def _build_loss(config: FinetuneConfig, samples: Samples, findings: list[str], targets: np.ndarray) -> MultiLabelLoss:
    unknown = [name for name, none in zip(findings, np.isnan(targets).all(axis=0), strict=True) if none]
    if unknown:
        raise UserError(
            f"A finding must have a label in the training images, got none of {', '.join(unknown)} "
            f"[in {config.shards.name}]. Take it out of `findings` or change `labels`."
        )
    balanced = config.class_weights == "balanced"
    weights = balanced_weights(samples.targets(findings, config.labels)) if balanced else np.ones(len(findings))
    known = mixed_known_share(targets) if config.mixup else float((~np.isnan(targets)).mean())
    return MultiLabelLoss(config.loss, pos_weight=weights, known_share=known)


def _write_split(
    folder: RunFolder, split: str, samples: Samples, findings: list[str], targets: np.ndarray, logits: np.ndarray
) -> Path:
    path = folder.predictions / f"{split}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    table = samples.table
    predictions = Predictions(
        image_id=table["image_id"].to_numpy(dtype=object),
        patient_id=table["patient_id"].to_numpy(dtype=object),
        findings=tuple(findings),
        targets=targets.astype(np.float64),
        scores=sigmoid(logits),
        extra={name: table[name].to_numpy() for name in ("sex", "age", "projection")},
    )
    write_predictions(path, predictions)
    return path
