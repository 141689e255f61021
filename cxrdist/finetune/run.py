"""One fine-tuning from its configuration to a model folder and the validation's predictions.

Only the training and the validation split are read here.  The test split is opened by `open_test`, that of another
dataset by `open_other_test`: steps of their own that take a finished run and choose nothing.
"""

import json
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from cxrdist.data.loader import Batch, EvaluationImages, TrainingImages
from cxrdist.data.samples import Samples, read_samples
from cxrdist.errors import UserError
from cxrdist.evaluate.predict import Gather, alone, predict_logits, sigmoid, validation_values
from cxrdist.finetune.config import FinetuneConfig
from cxrdist.finetune.knn import fit_knn
from cxrdist.finetune.mixup import check_mixup
from cxrdist.finetune.parts import Parts, read_parts
from cxrdist.finetune.protocols import end_protocol
from cxrdist.finetune.task import FinetuneTask
from cxrdist.log import get_logger
from cxrdist.models.folder import load_model, save_model
from cxrdist.stats.predictions import Predictions, write_predictions
from cxrdist.train.batches import training_source
from cxrdist.train.engine import gather, process_group
from cxrdist.train.loop import SCORE, Outcome, train
from cxrdist.train.metrics import MetricsLog
from cxrdist.train.optim import check_optimizer
from cxrdist.train.replay import Replay, replay_newest
from cxrdist.train.run_folder import Resume, RunFolder, record_test_access, write_json
from cxrdist.train.start import start
from cxrdist.train.trackers import check_trackers
from cxrdist.world import World

log = get_logger(__name__)

ALONE = World()


def finetune(config: FinetuneConfig, out: Path, *, world: World, resume: Resume | None = None) -> Outcome | None:
    """Train to the end and write `out`; return None if `out` holds this run finished already.

    Raises:
        UsageError, UserError: For what the user can mend.
        Interrupted: After a stop signal, resumable.
    """
    folder = RunFolder(out)
    config = config.resolved()
    check_optimizer(config.optim, config.train.zero_stage)
    check_trackers(config.train.trackers)
    if world.world_size == 1:
        # Before the engine is imported, so that a wrong folder is refused at once.
        folder.check(config, resume=resume, shards=config.folders)
    with (
        process_group(world, hang_after=config.train.hang_after) as device,
        start(folder, config, resume=resume, world=world, shards=config.folders, seed=config.seed) as begun,
    ):
        return _train(config, folder, world, device) if begun else None


def _train(config: FinetuneConfig, folder: RunFolder, world: World, device: torch.device) -> Outcome:
    parts = read_parts(config, told=world.is_main)
    val_images = EvaluationImages(parts.val, parts.val_targets, config.input)

    def logits_of(task: nn.Module, size: int, before_each: Callable[[], None] = lambda: None) -> np.ndarray:
        # Through the whole task: under ZeRO 3 its forward pass is where the ranks exchange the weights.
        return _predict(
            lambda batch: task(batch)["logits"],
            val_images,
            config,
            device,
            size=size,
            world=world,
            before_each=before_each,
        )

    def validate(task: nn.Module, size: int, before_each: Callable[[], None] = lambda: None) -> dict[str, Any]:
        return validation_values(logits_of(task, size, before_each), val_images.targets, parts.findings)

    if config.protocol.name == "knn":
        task = _ask_neighbours(parts, world, device)
        values = validate(task, _given_size(config, world))
        outcome = Outcome(0, 0, values[SCORE], _given_size(config, world))
        with closing(MetricsLog(folder, step=0, enabled=world.is_main, trackers=config.train.trackers)) as metrics:
            metrics.write(0, "val", values)
    else:
        images = TrainingImages(parts.train, parts.targets, config.input, config.seed)
        source = training_source(images, world, steps=config.train.last_step)
        if config.mixup:
            source = replace(source, multiple_of=2, check=check_mixup)
        outcome, trained = train(
            parts.build_task,
            config=config.train,
            optim=config.optim,
            seed=config.seed,
            source=source,
            validate=validate,
            folder=folder,
            world=world,
            device=device,
        )
        task = cast(FinetuneTask, trained)
        end_protocol(task.model.net)
    logits = logits_of(task.eval(), outcome.micro_batch_size)
    if world.is_main:
        val = folder.predictions / "val.parquet"
        _write_split(val, parts.val, parts.findings, val_images.targets, logits)
        facts = {
            "kind": "finetune",
            "image_size": config.input.image_size,
            "fit": config.input.fit,
            "chosen_step": outcome.chosen_step,
        }
        save_model(task.model, folder.model, backbone=config.model.backbone, findings=parts.findings, facts=facts)
        more = {"time": round(time.time(), 3), "findings": parts.findings, "train_images": len(parts.train)}
        write_json(folder.result, asdict(outcome) | more)
    return outcome


def _ask_neighbours(parts: Parts, world: World, device: torch.device) -> FinetuneTask:
    """Return the task with the training images' features as its head; nothing is trained."""
    task = parts.build_task(told=world.is_main).to(device)
    size = _given_size(parts.config, world)
    unchanged = EvaluationImages(parts.train, parts.targets, parts.config.input)

    def features_of(model: nn.Module) -> np.ndarray:
        return _predict(lambda batch: model(batch["image"]), unchanged, parts.config, device, size=size, world=world)

    fit_knn(task.model, parts.targets, parts.config.protocol.knn, features_of)
    return task


def open_test(out: Path, *, split: str = "test") -> Path:
    """Predict the test split with the finished run in `out`; return the predictions file.

    With `open_other_test` the only place that reads a test split.  It needs a finished run, whose step is chosen and
    fixed.

    Raises:
        UserError: If the run is not finished.
    """
    folder = _finished(out)
    config = FinetuneConfig.read(folder.config)
    record_test_access(out, {"split": split})
    model, findings, _ = load_model(folder.model)
    samples = read_samples(config.folders, split, projection=config.input.projection)
    images = EvaluationImages(samples, samples.targets(findings, config.evaluation_policy()), config.input)
    logits = _predict_finished(folder, model, config, images)
    return _write_split(folder.predictions / f"{split}.parquet", samples, findings, images.targets, logits)


def open_other_test(out: Path, other: FinetuneConfig, path: Path, *, dataset: str, only: Sequence[str] = ()) -> int:
    """Predict the test split of another dataset with the finished run in `out`; return how many images it has.

    Args:
        out: The run, of a dataset that it is not asked about here.
        other: A run on the other dataset: which of its images take part, and what becomes of its labels.  How an image
            becomes input is the run's own.
        path: The predictions file, of the findings `only` (those of the run that the other dataset has).
        dataset: What the record of openings calls the other dataset.
        only: Findings of the run; none is all.

    Raises:
        UserError: If the run is not finished, or the other dataset lacks a finding or has no such images.
    """
    folder = _finished(out)
    config, other = FinetuneConfig.read(folder.config), other.resolved()
    record_test_access(out, {"split": "test", "dataset": dataset})
    model, known, _ = load_model(folder.model)
    findings = [name for name in known if not only or name in only]
    samples = read_samples(other.folders, "test", projection=other.input.projection)
    images = EvaluationImages(samples, samples.targets(findings, other.evaluation_policy()), config.input)
    logits = _predict_finished(folder, model, config, images)[:, [known.index(name) for name in findings]]
    _write_split(path, samples, findings, images.targets, logits)
    return len(samples)


def _finished(out: Path) -> RunFolder:
    folder = RunFolder(out)
    if not folder.finished:
        raise UserError(
            f"The test split is opened after training only, got an unfinished run [{out.name}]. Finish it first."
        )
    return folder


def _predict_finished(
    folder: RunFolder, model: nn.Module, config: FinetuneConfig, images: EvaluationImages
) -> np.ndarray:
    """Return the logits of a finished run's model, on this process's device."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)
    size = json.loads(folder.result.read_text(encoding="utf-8")).get("micro_batch_size", _given_size(config, ALONE))
    return _predict(lambda batch: model(batch["image"]), images, config, device, size=size)


def replay_bad_batch(out: Path) -> list[Replay]:
    """Make the step again that stopped the run in `out`, and return where its first value that is not finite is.

    Raises:
        UserError: If no run was stopped there by such a step.
    """
    config = FinetuneConfig.read(RunFolder(out).config)
    return replay_newest(out, read_parts(config, told=False).build_task, steps=config.train.steps)


def _given_size(config: FinetuneConfig, world: World) -> int:
    """Return the micro-batch that the configuration gives, for what is not trained; 64 where it leaves that open."""
    size = config.train.micro_batch_size
    return size if isinstance(size, int) else min(64, max(1, config.train.global_batch_size // world.world_size))


def _predict(
    forward: Callable[[Batch], torch.Tensor],
    images: EvaluationImages,
    config: FinetuneConfig,
    device: torch.device,
    *,
    size: int,
    world: World = ALONE,
    before_each: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """Return the logits of all `images`; `size` is a micro-batch that fits with gradients: without, two of them do."""
    together: Gather = gather if world.world_size > 1 else alone
    return predict_logits(
        forward,
        images,
        batch_size=2 * size,
        device=device,
        world=world,
        gather=together,
        precision=config.train.precision,
        before_each=before_each,
    )


def _write_split(path: Path, samples: Samples, findings: list[str], targets: np.ndarray, logits: np.ndarray) -> Path:
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
