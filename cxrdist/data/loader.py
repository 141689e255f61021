"""Batches as tensors.  Shapes: B images in a micro-batch, K findings, S input side."""

import gc
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from cxrdist.data.config import InputConfig
from cxrdist.data.order import Batching, iter_positions, rank_share, sample_at
from cxrdist.data.samples import Samples
from cxrdist.data.signals import heed_only_the_parent
from cxrdist.data.transforms import augment, fit
from cxrdist.errors import UserError
from cxrdist.seeds import Purpose, derive, stream
from cxrdist.world import World

Batch = dict[str, torch.Tensor]
"""``image`` (B, 1, S, S) uint8 or float32 in [0, 1]; ``target`` (B, K) float32, NaN masked; ``sample`` (B,) int64;
in training also ``seed`` (B,) int64, one per image and epoch, for random choices of the task.  Where several
crops are compared, ``image`` (B, 2, 1, S, S), and ``local`` (B, L, 1, s, s) if there are small ones."""
READ_BY_VALUE = ("sample", "seed")
"""What of a batch is read as numbers: it stays on the host, since reading it from a device waits for all its work."""


def on_device(batch: Batch, device: torch.device) -> Batch:
    """Return `batch` on `device`, copied while the host goes on where its memory is pinned, but for `READ_BY_VALUE`."""
    return {
        name: value if name in READ_BY_VALUE else value.to(device, non_blocking=True) for name, value in batch.items()
    }


class Images(Protocol):
    """Items by number: of the training stream's position, or of the sample."""

    @property
    def samples(self) -> Samples:
        """Return where the images come from."""

    @property
    def config(self) -> InputConfig:
        """Return how they are read."""

    def __getitem__(self, number: int, /) -> Batch:
        """Return one item, without the axis of the batch."""


class TrainingImages(Dataset[Batch]):
    """Images by position in the training stream; the same position gives the same tensor anywhere."""

    def __init__(self, samples: Samples, targets: np.ndarray, config: InputConfig, seed: int) -> None:
        self.samples, self.targets, self.config, self.seed = samples, targets, config, seed

    def __getitem__(self, position: int) -> Batch:
        epoch, sample = sample_at(position, len(self.samples), self.seed)
        image = fit(self.samples.image(sample), self.config.image_size, self.config.fit)
        image = augment(image, self.config.augment, stream(self.seed, Purpose.AUGMENT, epoch, sample))
        item = _item(image, self.targets[sample], sample)
        item["seed"] = torch.tensor(derive(self.seed, Purpose.MASK, epoch, sample))
        return item


class EvaluationImages(Dataset[Batch]):
    """Images by sample number, unchanged."""

    def __init__(self, samples: Samples, targets: np.ndarray, config: InputConfig) -> None:
        self.samples, self.targets, self.config = samples, targets, config

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, sample: int) -> Batch:
        image = fit(self.samples.image(sample), self.config.image_size, self.config.fit)
        return _item(image, self.targets[sample], sample)


def training_batches(
    images: Images, batching: Batching, world: World, *, start_step: int, stop_step: int
) -> Generator[Batch, None, None]:
    """Yield this rank's micro-batches from `start_step` (included) to `stop_step` (excluded), in order."""
    steps = _MicroBatches(batching, world, start_step, stop_step)
    yield from _load(images, steps)


def evaluation_batches(images: EvaluationImages, batch_size: int, world: World) -> Generator[Batch, None, None]:
    """Yield this rank's share of the samples, each once; over all ranks every sample exactly once.

    Every rank gets as many batches, since under ZeRO 3 a forward pass is one of all ranks together: one that has no
    sample left gets sample 0 alone, with ``padding`` in its batch.
    """
    share = rank_share(len(images), world).tolist()
    batches = [share[start : start + batch_size] for start in range(0, len(share), batch_size)]
    yield from _load(images, batches)
    most = -(-len(rank_share(len(images), World(0, world.world_size))) // batch_size)
    for _ in range(most - len(batches)):
        yield default_collate([images[0]]) | {"padding": torch.tensor(True)}


@dataclass(frozen=True)
class _MicroBatches:
    """One rank's micro-batches of stream positions, as the batch sampler that `DataLoader` asks for."""

    batching: Batching
    world: World
    start_step: int
    stop_step: int

    def __iter__(self) -> Iterator[list[int]]:
        return iter_positions(self.batching, self.world, start_step=self.start_step, stop_step=self.stop_step)

    def __len__(self) -> int:
        return max(0, self.stop_step - self.start_step) * self.batching.accumulation


def as_tensor(pixels: np.ndarray) -> torch.Tensor:
    """Return uint8 as it is, and uint16, which networks do not take, as float32 in [0, 1]."""
    if pixels.dtype != np.uint8:
        pixels = pixels.astype(np.float32) / np.iinfo(pixels.dtype).max
    return torch.from_numpy(np.ascontiguousarray(pixels))


def _load(images: Images, positions: Any) -> Generator[Batch, None, None]:
    images.samples.prepare()
    loader = DataLoader(_Careful(images), batch_sampler=positions, collate_fn=_collate, **_reading(images.config))
    for batch in loader:
        if isinstance(batch, UserError):
            raise batch
        yield batch


class _Careful(Dataset[Any]):
    """Hands errors over as values: raised in a worker, PyTorch would wrap their sentence in a traceback."""

    def __init__(self, images: Images) -> None:
        self.images = images

    def __getitem__(self, position: int) -> Batch | UserError:
        try:
            return self.images[position]
        except UserError as error:
            return error


def _collate(items: list[Any]) -> Any:
    return next((item for item in items if isinstance(item, UserError)), None) or default_collate(_on_one_scale(items))


def _on_one_scale(items: list[Batch]) -> list[Batch]:
    """Return the items with one type of pixels: 8 bits, stacked with 16, would become floats from 0 to 255."""
    if len({item["image"].dtype for item in items}) == 1:
        return items
    return [
        {name: value / 255 if value.dtype == torch.uint8 else value for name, value in item.items()} for item in items
    ]


def _reading(config: InputConfig) -> dict[str, Any]:
    options: dict[str, Any] = {"num_workers": config.workers, "pin_memory": torch.cuda.is_available()}
    if config.workers:
        options |= {"worker_init_fn": _start_worker, "prefetch_factor": 4, "multiprocessing_context": "fork"}
    return options


def _start_worker(worker: int) -> None:
    heed_only_the_parent()
    # What the training process leaves as garbage (an engine of an earlier run, its process group) is not to be
    # finalised here: it would wait for threads that a forked process does not have.
    gc.freeze()
    # The workers are the parallelism; OpenCV's own threads would only take turns with them.
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def _item(image: np.ndarray, target: np.ndarray, sample: int) -> Batch:
    return {
        "image": as_tensor(image)[None],
        "target": torch.from_numpy(target),
        "sample": torch.tensor(sample),
    }
