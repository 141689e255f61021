"""The ways to run something on so many GPUs: memory and largest micro-batch of each stage, operations and time."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from cxrdist.errors import UsageError
from cxrdist.train.config import OptimConfig, TrainConfig
from cxrdist.train.dryrun import PassProfile, at_size, imagine, profile_ends
from cxrdist.train.engine import checkpoint_activations
from cxrdist.train.memory import RankMemory, plan_memory, profile_step, usable_gpu_memory
from cxrdist.train.microbatch import candidates
from cxrdist.train.optim import check_optimizer
from cxrdist.train.task import BuildTask, MakeBatch

ENOUGH = 8
"""Images in a micro-batch from which on more memory is not worth more traffic between the GPUs."""


@dataclass(frozen=True)
class Way:
    """One way to run it."""

    zero_stage: int
    offload: str
    activation_checkpointing: bool
    micro_batch_size: int
    accumulation: int
    largest: int
    """Largest micro-batch that fits, 0 if none does."""
    fits: bool
    """Whether `micro_batch_size` does, which is the file's, or else the largest that fits, or else the smallest."""
    memory: RankMemory
    flops_per_image: int
    images_per_s: float | None
    eta_s: float | None

    def settings(self) -> list[str]:
        """Return what sets this in a run."""
        return [
            f"train.zero_stage={self.zero_stage}",
            f"train.offload={self.offload}",
            f"train.activation_checkpointing={str(self.activation_checkpointing).lower()}",
            f"train.micro_batch_size={self.micro_batch_size}",
        ]

    def tree(self) -> dict[str, Any]:
        """Return it as JSON-ready values, bytes as whole numbers."""
        device, host = self.memory.device, self.memory.host
        totals = {"device_total": device.total, "host_total": host.total}
        return asdict(self) | totals


@dataclass(frozen=True)
class Workload:
    """What is run, as far as its needs go."""

    build_task: BuildTask
    make_batch: MakeBatch
    train: TrainConfig
    optim: OptimConfig
    workers: int
    """Reading processes per rank."""
    multiple_of: int = 1
    """What a micro-batch must be a multiple of: 2 where images are mixed in pairs, a rank's whole share where they are
    compared with each other."""


class Planner:
    """The ways to run one workload on so many GPUs.

    Raises:
        UsageError: If its global batch, or the micro-batch that it sets, cannot be divided so.
    """

    def __init__(self, work: Workload, *, gpus: int, gpu_memory: float, rate: float) -> None:
        """Plan for `gpus` GPUs of `gpu_memory` bytes each, which reach `rate` FLOP/s each."""
        self.work, self.gpus, self.rate = work, gpus, rate
        self.room = usable_gpu_memory(gpu_memory)
        """Bytes of each that can be filled."""
        self.notes: list[str] = []
        """What was left out, and why."""
        self.sizes = candidates(work.train.global_batch_size, gpus, work.multiple_of)
        wanted = work.train.micro_batch_size
        self.wanted = wanted if isinstance(wanted, int) else None
        if self.wanted is not None and self.wanted not in self.sizes:
            raise UsageError(
                f"`train.micro_batch_size` must divide the {self.sizes[0]} images of each rank and step, got "
                f"{self.wanted}. Possible: {', '.join(map(str, reversed(self.sizes)))}."
            )
        self._profiles: dict[bool, tuple[nn.Module, PassProfile, PassProfile]] = {}

    def ways(self) -> Iterator[Way]:
        """Yield every stage as the file has it otherwise; more until something fits: checkpointing, then offload."""
        train = self.work.train
        tried = [(train.activation_checkpointing, train.offload)]
        tried += [(again, offload) for offload in ("none", "optimizer", "parameters") for again in (False, True)]
        fits = False
        for again, offload in dict.fromkeys(tried):
            if fits or (train.activation_checkpointing and not again):
                continue
            if again and not self._can_checkpoint():
                continue
            for stage in range({"none": 0, "optimizer": 1, "parameters": 3}[offload], 4):
                way = self._way(stage, offload, again)
                if way is not None:
                    fits = fits or way.fits
                    yield way

    def _way(self, stage: int, offload: str, again: bool) -> Way | None:
        work = self.work
        train = work.train.model_copy(
            update={"zero_stage": stage, "offload": offload, "activation_checkpointing": again, "compile": False}
        )
        task, small, large = self._profile(again)
        optimizer = profile_step(task, train=train, optim=work.optim, world_size=self.gpus, on_gpu=True)

        def needs(size: int) -> RankMemory:
            return plan_memory(
                task,
                at_size(small, large, size),
                train=train,
                optim=work.optim,
                world_size=self.gpus,
                workers=work.workers,
                on_gpu=True,
                optimizer=optimizer,
            )

        try:
            check_optimizer(work.optim, stage)
            largest = next((size for size in self.sizes if needs(size).device.total <= self.room), 0)
        except UsageError as error:  # the optimizer, or the user's file for DeepSpeed, wants another stage
            self.notes.append(f"Stage {stage} is left out: {error}")
            return None
        size = self.wanted or largest or self.sizes[-1]
        speed = self.gpus * self.rate / large.flops if large.flops else None
        images = train.steps * train.global_batch_size
        return Way(
            stage, offload, again, size, self.sizes[0] // size, largest, 0 < size <= largest, needs(size),
            large.flops, speed, images / speed if speed else None,
        )  # fmt: skip

    def _profile(self, again: bool) -> tuple[nn.Module, PassProfile, PassProfile]:
        if again not in self._profiles:
            task = imagine(self.work.build_task)
            if again:
                checkpoint_activations(task)
            small, large = profile_ends(task, self.work.make_batch, self.sizes[0], precision=self.work.train.precision)
            self._profiles[again] = (task, small, large)
        return self._profiles[again]

    def _can_checkpoint(self) -> bool:
        try:
            self._profile(True)
        except UsageError as error:
            if self.work.train.activation_checkpointing:
                raise
            self.notes.append(str(error))
            return False
        return True


def best_way(ways: list[Way]) -> Way | None:
    """Return the way that costs least traffic and computes least twice, among those with a sensible micro-batch."""
    fitting = [way for way in ways if way.fits]
    easy = [way for way in fitting if way.micro_batch_size >= min(ENOUGH, way.micro_batch_size * way.accumulation)]
    return easy[0] if easy else max(fitting, key=lambda way: way.micro_batch_size, default=None)
