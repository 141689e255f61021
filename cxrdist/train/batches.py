"""Where a run's images come from, and how its global batches are divided among the ranks."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import nn
from torch.utils.data import default_collate

from cxrdist.data.loader import Batch, TrainingImages, training_batches
from cxrdist.data.order import Batching
from cxrdist.train.config import OptimConfig, TrainConfig
from cxrdist.train.engine import gather
from cxrdist.train.microbatch import choose_micro_batch
from cxrdist.train.run_folder import STARTS, RunFolder, read_lines
from cxrdist.world import World


class BuildTask(Protocol):
    """Makes a task (``task(batch)["loss"]``) with its initial weights, the same at every call."""

    def __call__(self, *, told: bool = False) -> nn.Module:
        """Return the task; what a user should know of its weights is logged if `told`."""


@dataclass(frozen=True)
class Source:
    """Where a run's images come from."""

    batches_from: Callable[[Batching, int], Generator[Batch, None, None]]
    """From the division of batches and a first step to this rank's micro-batches."""
    keys: Callable[[np.ndarray], Sequence[str]]
    """From numbers of samples to their keys, for a batch that must be looked at."""
    example: Callable[[int], Batch]
    """To a batch of so many images, to measure a step by."""
    multiple_of: int = 1
    """What a micro-batch must be a multiple of, where it is chosen."""
    check: Callable[[Batching], None] = lambda batching: None
    """Refuses a division that the task cannot have, with a `UsageError`."""


def training_source(images: TrainingImages, world: World, *, steps: int) -> Source:
    """Return the source of `images` for a run of `steps` steps."""

    def batches_from(batching: Batching, step: int) -> Generator[Batch, None, None]:
        return training_batches(images, batching, world, start_step=step, stop_step=steps)

    def keys(numbers: np.ndarray) -> list[str]:
        return list(images.samples.table["key"].iloc[numbers])

    return Source(batches_from, keys, partial(_repeated, images))


def plan_batches(
    build_task: BuildTask,
    source: Source,
    *,
    train: TrainConfig,
    optim: OptimConfig,
    folder: RunFolder,
    world: World,
    device: torch.device,
) -> Batching:
    """Return the division for `world`; ``micro_batch_size: auto`` is chosen once for a number of ranks.

    What a start of the run with as many ranks has chosen is taken again: another size would round otherwise.

    Raises:
        UsageError: If the global batch cannot be divided so.
        UserError: If no micro-batch fits.
    """
    size = train.micro_batch_size
    if size == "auto":
        earlier = gather(_chosen_before(folder, world) if world.is_main else None)[0]
        size = earlier or choose_micro_batch(
            build_task,
            source.example,
            train=train,
            optim=optim,
            world=world,
            device=device,
            gather=gather,
            multiple_of=source.multiple_of,
        )
    batching = Batching.plan(
        global_batch_size=train.global_batch_size, micro_batch_size=size, world_size=world.world_size
    )
    source.check(batching)
    return batching


def _repeated(images: TrainingImages, count: int) -> Batch:
    batch: Batch = default_collate([images[0]] * count)
    return batch


def _chosen_before(folder: RunFolder, world: World) -> int | None:
    sizes = [
        start.get("micro_batch_size")
        for start in read_lines(folder.path / STARTS)
        if start["world_size"] == world.world_size
    ]
    return sizes[-1] if sizes else None
