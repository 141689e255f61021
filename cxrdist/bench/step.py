"""A training step of ours beside one of a bare PyTorch loop: same model, batches, type, optimizer and clipping.

Both sides take turns in one process, in blocks of a few steps: the loop that trains (`cxrdist.train.loop.train`,
whole, with its log and its guards) asks for its batches from a generator, and the generator makes the bare loop's steps
between two blocks.  So a busy neighbour, a warm processor or a slow clock meets both.

Shapes: B images in a batch, K findings, S input side.
"""

import copy
import tempfile
import time
from collections.abc import Generator, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from cxrdist.bench.machine import describe_machine, matmul_rate, synchronise
from cxrdist.data.loader import Batch, on_device
from cxrdist.data.order import Batching
from cxrdist.models.build import RadiographModel, build_model
from cxrdist.models.config import ModelConfig
from cxrdist.models.precision import AUTOCAST
from cxrdist.train.batches import Source
from cxrdist.train.config import OptimConfig, Precision, TrainConfig
from cxrdist.train.engine import process_group
from cxrdist.train.flops import flops_per_image
from cxrdist.train.loop import train
from cxrdist.train.optim import build_optimizer, lr_at
from cxrdist.train.run_folder import RunFolder
from cxrdist.world import World

FINDINGS = 14
DIFFERENT_BATCHES = 4
WARM_UP_STEPS = 3
"""Steps of each side before the first that counts: memory is taken, kernels are chosen and compiled."""


@dataclass(frozen=True)
class StepOptions:
    """What is measured."""

    model: ModelConfig
    image_size: int = 224
    batch: int = 8
    precision: Precision = "fp32"
    steps: int = 20
    """Measured steps of each side."""
    block: int = 1
    """Steps of one side before the other's turn; on a GPU several, or the bare loop could not run ahead of it."""
    compile: bool = False
    activation_checkpointing: bool = False
    seed: int = 0

    @property
    def rounds(self) -> int:
        """Turns of each side, rounded up."""
        return -(-self.steps // self.block)


@dataclass(frozen=True)
class Side:
    """One way of making a step."""

    name: str
    step_s: float
    """Median over its blocks, seconds per step."""
    images_per_s: float
    flops_share: float | None
    """FLOP/s of the model as a share of the measured matrix rate (MFU), work done again not counted."""


@dataclass(frozen=True)
class StepResult:
    """The outcome of `bench step`."""

    ours: Side
    bare: Side
    ratio: float
    """Median over rounds of our time / the bare loop's; 1.03 is 3 % slower."""
    ratio_quartiles: tuple[float, float]
    ratio_interval: tuple[float, float]
    """95 % bootstrap interval of the median."""
    ratio_processor: float | None
    """The same of the processor's time over all threads, which busy neighbours hardly change; None on a GPU."""
    rounds: int
    block: int
    weight_difference: float
    """Largest difference of a weight between the sides after the same steps, as a share of the largest weight."""
    flops_per_image: float | None
    matmul_flops: float
    """Measured rate of a large matrix product in the type of the step, FLOP/s."""
    machine: dict[str, Any]


def bench_step(options: StepOptions) -> StepResult:
    """Measure both sides on this machine's device.

    Raises:
        UsageError: If timm does not know the backbone or refuses its arguments.
        Interrupted: After a stop signal.
    """
    with process_group(World()) as device:
        task = build_task(options)
        bare = BareLoop(copy.deepcopy(task), options, device)
        turns = _Turns(options, task, bare, device)
        flops = flops_per_image(partial(_build, options, task), turns.example, options.precision)
        _train_ours(task, options, turns, device)
        rate = matmul_rate(device, AUTOCAST[options.precision])
        ours_s, ours_processor_s = np.array(turns.ours_s).T
        bare_s, bare_processor_s = np.array(turns.bare_s).T
        ratios = ours_s / bare_s
        low, high = (float(value) for value in np.quantile(ratios, [0.25, 0.75]))

        def side(name: str, seconds: np.ndarray) -> Side:
            step_s = float(np.median(seconds)) / options.block
            speed = options.batch / step_s
            return Side(name, step_s, speed, speed * flops / rate if flops else None)

        return StepResult(
            ours=side("cxrdist", ours_s),
            bare=side("bare PyTorch", bare_s),
            ratio=float(np.median(ratios)),
            ratio_quartiles=(low, high),
            ratio_interval=_median_interval(ratios),
            ratio_processor=float(np.median(ours_processor_s / bare_processor_s)) if device.type == "cpu" else None,
            rounds=len(ratios),
            block=options.block,
            weight_difference=turns.weight_difference,
            flops_per_image=flops,
            matmul_flops=rate,
            machine=describe_machine(device),
        )


class Task(nn.Module):
    """A model and the mean cross-entropy of its findings."""

    def __init__(self, model: RadiographModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Return ``{"loss"}``, a scalar."""
        logits_BK = self.model(batch["image"]).float()
        return {"loss": nn.functional.binary_cross_entropy_with_logits(logits_BK, batch["target"])}


class BareLoop:
    """What a person would write: autocast, backward, clip, AdamW.  The loss is not read."""

    def __init__(self, task: Task, options: StepOptions, device: torch.device) -> None:
        self.task = task.to(device).train()
        self.options, self.device = options, device
        self.optim, self.train = _optim(), _train_config(options)
        self.optimizer = build_optimizer(self.optim, self.task)
        self.forward: Any = torch.compile(self.task) if options.compile else self.task
        self.parameters = [parameter for parameter in self.task.parameters() if parameter.requires_grad]
        self.scaler = torch.amp.GradScaler(device.type) if options.precision == "fp16" else None
        if options.activation_checkpointing:
            self.task.model.net.set_grad_checkpointing(True)
        self.steps = 0

    def step(self, batch: Batch) -> None:
        """Make one step."""
        lr = lr_at(self.optim, self.steps, self.train.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        moved = on_device(batch, self.device)
        dtype = AUTOCAST[self.options.precision]
        with nullcontext() if dtype == torch.float32 else torch.autocast(self.device.type, dtype):
            loss = self.forward(moved)["loss"]
        if self.scaler is None:
            loss.backward()
            nn.utils.clip_grad_norm_(self.parameters, self.optim.clip)
            self.optimizer.step()
        else:
            self.scaler.scale(loss).backward()
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.parameters, self.optim.clip)
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.steps += 1


class _Measured(BaseException):
    """All rounds are made: no error, and for nobody on the way to handle."""


class _Turns:
    """Hands batches to our loop, makes the bare loop's steps in between, and takes the time of both."""

    def __init__(self, options: StepOptions, task: Task, bare: BareLoop, device: torch.device) -> None:
        self.options, self.task, self.bare, self.device = options, task, bare, device
        self.batches = _make_batches(options, pinned=device.type == "cuda")
        self.ours_s: list[tuple[float, float]] = []
        """Of each block: seconds, and seconds of the processor."""
        self.bare_s: list[tuple[float, float]] = []
        self.weight_difference = 0.0

    def __call__(self, batching: Batching, start_step: int) -> Generator[Batch, None, None]:
        for_ours, for_bare = cycle(self.batches), cycle(self.batches)
        yield from islice(for_ours, WARM_UP_STEPS)
        self._bare_block(islice(for_bare, WARM_UP_STEPS))
        for number in range(self.options.rounds):
            # The first of a round may find the processor in another state than the second: they change places.
            if number % 2:
                self.bare_s.append(self._bare_block(islice(for_bare, self.options.block)))
            started = self._now()
            # Our loop asks for the batch after a step when it has done with it: so here the block is over.
            yield from islice(for_ours, self.options.block)
            self.ours_s.append(_passed(started, self._now()))
            if number % 2 == 0:
                self.bare_s.append(self._bare_block(islice(for_bare, self.options.block)))
        self.weight_difference = _weight_difference(self.task, self.bare.task)
        raise _Measured

    def example(self, images: int) -> Batch:
        """Return a batch of so many images."""
        return {name: value[:1].repeat_interleave(images, dim=0) for name, value in self.batches[0].items()}

    def _bare_block(self, batches: Iterator[Batch]) -> tuple[float, float]:
        started = self._now()
        for batch in batches:
            self.bare.step(batch)
        return _passed(started, self._now())

    def _now(self) -> tuple[float, float]:
        synchronise(self.device)
        return time.perf_counter(), time.process_time()


def _passed(start: tuple[float, float], end: tuple[float, float]) -> tuple[float, float]:
    return end[0] - start[0], end[1] - start[1]


def _train_ours(task: Task, options: StepOptions, turns: _Turns, device: torch.device) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "bench"
        folder.mkdir()
        try:
            train(
                partial(_build, options, task),
                config=_train_config(options),
                optim=_optim(),
                seed=options.seed,
                source=Source(turns, lambda numbers: [str(number) for number in numbers], turns.example),
                validate=None,
                folder=RunFolder(folder),
                world=World(),
                device=device,
            )
        except _Measured:
            # Left by the exception, the loop writes no checkpoint: nothing of a large model goes to the disk.
            return
        raise AssertionError("the loop ended before its batches did")


def _train_config(options: StepOptions) -> TrainConfig:
    steps = WARM_UP_STEPS + options.rounds * options.block
    beyond = steps + 1  # the last step is never made: it would write a checkpoint
    return TrainConfig(
        steps=beyond,
        global_batch_size=options.batch,
        precision=options.precision,
        compile=options.compile,
        activation_checkpointing=options.activation_checkpointing,
        evaluate_every=beyond,
        checkpoint_every=beyond,
    )


def _optim() -> OptimConfig:
    return OptimConfig(lr=1e-4, warmup=0.0, schedule="constant")


def build_task(options: StepOptions) -> Task:
    """Return the task that both sides begin with."""
    return Task(build_model(options.model, num_classes=FINDINGS, image_size=options.image_size, seed=options.seed))


def _build(options: StepOptions, task: Task, *, told: bool = False, loaded: bool = True) -> Task:
    """Return `task` where the loop builds what it trains, which it tells of; its shapes anew where it only counts."""
    if told:
        return task
    return copy.deepcopy(task) if loaded else build_task(options)


def _make_batches(options: StepOptions, *, pinned: bool) -> list[Batch]:
    generator = torch.Generator().manual_seed(options.seed)
    shape = (options.batch, 1, options.image_size, options.image_size)
    batches = []
    for number in range(DIFFERENT_BATCHES):
        batch = {
            "image": torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8),
            "target": torch.randint(0, 2, (options.batch, FINDINGS), generator=generator).float(),
            "sample": torch.arange(options.batch) + number * options.batch,
            "seed": torch.arange(options.batch) + number * options.batch,
        }
        batches.append({name: value.pin_memory() for name, value in batch.items()} if pinned else batch)
    return batches


@torch.no_grad()
def _weight_difference(one: nn.Module, other: nn.Module) -> float:
    pairs = list(zip(one.parameters(), other.parameters(), strict=True))
    largest = max(float(right.abs().max()) for _, right in pairs)
    return max(float((left.float() - right.float()).abs().max()) for left, right in pairs) / largest


def _median_interval(values: np.ndarray, *, redraws: int = 2000) -> tuple[float, float]:
    rng = np.random.default_rng(0)
    medians = np.median(rng.choice(values, (redraws, len(values))), axis=1)
    low, high = np.quantile(medians, [0.025, 0.975])
    return float(low), float(high)
