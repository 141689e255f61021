"""One pretraining from its configuration to a model folder whose backbone others start from."""

import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import cast

import torch

from cxrdist.data.samples import read_samples
from cxrdist.datasets.shard_format import read_manifest
from cxrdist.models.folder import save_model
from cxrdist.pretrain.build import build_task
from cxrdist.pretrain.config import PretrainConfig
from cxrdist.pretrain.source import source_of
from cxrdist.pretrain.supervision import read_supervision
from cxrdist.pretrain.task import PretrainTask
from cxrdist.pretrain.watch.watcher import Watcher
from cxrdist.train.engine import gather, process_group
from cxrdist.train.loop import Outcome, train
from cxrdist.train.optim import check_optimizer
from cxrdist.train.replay import Replay, replay_newest
from cxrdist.train.run_folder import Resume, RunFolder, write_json
from cxrdist.train.start import start
from cxrdist.train.trackers import check_trackers
from cxrdist.world import World


def pretrain(config: PretrainConfig, out: Path, *, world: World, resume: Resume | None = None) -> Outcome | None:
    """Pretrain to the end and write `out`; return None if `out` holds this run finished already.

    Raises:
        UsageError, UserError: For what the user can mend.
        Interrupted: After a stop signal, resumable.
    """
    folder = RunFolder(out)
    check_optimizer(config.optim, config.train.zero_stage)
    check_trackers(config.train.trackers)
    for shards in [*config.shards, *config.watch.folders]:
        read_manifest(shards)
    if world.world_size == 1:
        # Before the engine is imported, so that a wrong folder is refused at once.
        folder.check(config, resume=resume, shards=config.shards)
    with (
        process_group(world, hang_after=config.train.hang_after) as device,
        start(folder, config, resume=resume, world=world, shards=config.shards, seed=config.seed) as begun,
    ):
        return _train(config, folder, world, device) if begun else None


def _train(config: PretrainConfig, folder: RunFolder, world: World, device: torch.device) -> Outcome:
    samples = read_samples(config.shards, "train", projection=config.input.projection)
    watcher = Watcher(config, samples, folder, world, device, gather)
    supervision = read_supervision(config, samples) if config.method.name == "supervised" else None
    outcome, task = train(
        partial(build_task, config, supervision=supervision),
        config=config.train,
        optim=config.optim,
        seed=config.seed,
        source=source_of(config, samples, world, supervision=supervision),
        validate=watcher.validate,
        validate_first=True,
        judge=watcher.judge,
        folder=folder,
        world=world,
        device=device,
    )
    if world.is_main:
        facts = {"kind": "pretrain", "image_size": config.input.image_size, "fit": config.input.fit}
        save_model(
            cast(PretrainTask, task).result,
            folder.model,
            backbone=config.model.backbone,
            findings=["pretrained"] if supervision is None else supervision.columns,
            facts=facts,
        )
        write_json(folder.result, asdict(outcome) | {"time": round(time.time(), 3), "train_images": len(samples)})
    return outcome


def replay_bad_batch(out: Path) -> list[Replay]:
    """Make the step again that stopped the run in `out`, and return where its first value that is not finite is.

    Raises:
        UserError: If no run was stopped there by such a step.
    """
    config = PretrainConfig.read(RunFolder(out).config)
    return replay_newest(out, partial(build_task, config), steps=config.train.steps)
