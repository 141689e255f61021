"""Where a run's images come from, and how its global batches are divided among the ranks."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch.utils.data import default_collate

from cxrdist.data.loader import Batch, Images, training_batches
from cxrdist.data.order import Batching
from cxrdist.errors import UsageError, UserError
from cxrdist.train.config import OptimConfig, TrainConfig
from cxrdist.train.dryrun import imagine, profile_pass
from cxrdist.train.engine import gather
from cxrdist.train.microbatch import choose_micro_batch
from cxrdist.train.run_folder import STARTS, RunFolder, read_lines
from cxrdist.train.task import BuildTask
from cxrdist.world import World

ALIKE = ("global_batch_size", "zero_stage", "offload", "activation_checkpointing", "precision")
"""What a micro-batch that fits depends on, beside the ranks; starts record it."""


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


def training_source(images: Images, world: World, *, steps: int) -> Source:
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

    What a start of the same run with as many ranks and the same engine has chosen is taken again: another size would
    round otherwise.

    Raises:
        UsageError: If the global batch cannot be divided so.
        UserError: If no micro-batch fits.
    """
    size = train.micro_batch_size
    if size == "auto":
        earlier = gather(_chosen_before(folder, train, world) if world.is_main else None)[0]
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


def _repeated(images: Images, count: int) -> Batch:
    batch: Batch = default_collate([images[0]] * count)
    return batch


def _chosen_before(folder: RunFolder, train: TrainConfig, world: World) -> int | None:
    """Return the micro-batch of the last start of this run that was alike; None without one.

    A run that ended before its first checkpoint is none: another may have taken its folder, and begins at step 0.
    """
    if not folder.begun:
        return None
    starts = read_lines(folder.path / STARTS)
    first = max((number for number, start in enumerate(starts) if start["step"] == 0), default=0)
    alike = {"world_size": world.world_size, **{name: getattr(train, name) for name in ALIKE}}
    sizes = [
        start.get("micro_batch_size")
        for start in starts[first:]
        if all(start.get(name) == value for name, value in alike.items())
    ]
    return sizes[-1] if sizes else None


def refusal(build_task: BuildTask, example: Callable[[int], Batch], size: int, error: Exception) -> UsageError | None:
    """Return a sentence if `error` is what the network says to every micro-batch of `size` images, None if it is not.

    Some networks cannot compute images so small, or batch norm a single one; they say so in the forward pass only.
    """
    if isinstance(error, UserError):  # a sentence already
        return None
    try:
        profile_pass(imagine(build_task), example, size, precision="fp32")
    except type(error) as again:
        if str(again) != str(error):
            return None
        said = " ".join(str(error).split()).rstrip(".")
        return UsageError(
            f"The backbone must be able to train on micro-batches of {size} images, got {said!r}. Change "
            "`input.image_size`, `train.micro_batch_size` or `model.backbone`."
        )
    except Exception:  # another reason than that of the run
        return None
    return None
