"""How the global batches of a run are divided among its ranks."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.data import default_collate

from cxrdist.data.loader import Batch
from cxrdist.data.order import Batching
from cxrdist.train.config import OptimConfig, TrainConfig
from cxrdist.train.engine import gather
from cxrdist.train.loop import BuildTask
from cxrdist.train.microbatch import choose_micro_batch
from cxrdist.train.run_folder import STARTS, RunFolder, read_lines
from cxrdist.world import World


def plan_batches(
    build_task: BuildTask,
    example: Callable[[int], Batch],
    *,
    train: TrainConfig,
    optim: OptimConfig,
    folder: RunFolder,
    world: World,
    device: torch.device,
    multiple_of: int = 1,
) -> Batching:
    """Return the division for `world`; ``micro_batch_size: auto`` is chosen once for a number of ranks.

    What a start of the run with as many ranks has chosen is taken again: another size would round otherwise.

    Args:
        build_task: Makes the task, if it has to be tried.
        example: Makes a batch of so many images.
        train: The global batch and the micro-batch.
        optim: The optimizer.
        folder: Of the run.
        world: This process among the ranks.
        device: Of this rank.
        multiple_of: What a micro-batch that is chosen must be a multiple of.

    Raises:
        UsageError: If the global batch cannot be divided so.
        UserError: If no micro-batch fits.
    """
    size = train.micro_batch_size
    if size == "auto":
        earlier = gather(_chosen_before(folder, world) if world.is_main else None)[0]
        size = earlier or choose_micro_batch(
            build_task,
            example,
            train=train,
            optim=optim,
            world=world,
            device=device,
            gather=gather,
            multiple_of=multiple_of,
        )
    return Batching.plan(global_batch_size=train.global_batch_size, micro_batch_size=size, world_size=world.world_size)


def example_of(images: Any) -> Callable[[int], Batch]:
    """Return what makes a batch of so many images: of the first image of a data set, as the loader gives it."""
    item = images[0]
    return lambda count: default_collate([item] * count)


def _chosen_before(folder: RunFolder, world: World) -> int | None:
    sizes = [
        start.get("micro_batch_size")
        for start in read_lines(folder.path / STARTS)
        if start["world_size"] == world.world_size
    ]
    return sizes[-1] if sizes else None
