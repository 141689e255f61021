"""What a rank needs in memory, before anything is started.

What DeepSpeed 0.19 holds for fp32 weights under `torch_autocast`, read from its code (``runtime/zero``) and measured.
P is the bytes of the weights, a *share* what one rank has of something that is divided among all.

- Stage 0: the weights, their gradients and the optimizer's states, each whole.  A copy of up to 2 GB of gradients
  while they are summed over the ranks.
- Stage 1 and 2: the weights whole, in flat groups of which the parameters are views; an fp32 share of each group, which
  the optimizer steps, *beside* them although they are fp32 themselves; its states.  In a backward pass gradients go
  through buckets into a share of them.  In a step there is one more copy of a group's gradients.
- Stage 3: a share of the weights; a second one as masters (where it could be the same tensor, a comparison of a device
  with its name fails); a share of the gradients and the buckets, for good; the optimizer's states.  Whole weights are
  gathered as they are used, and released when the limits of the configuration are met.  With one rank they are views.
- Offload: masters, gradients and states are in the host's memory, in stages 1 and 2 with one buffer more.

Everything is in bytes, per rank.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from cxrdist.data.order import Batching
from cxrdist.train.config import OptimConfig, TrainConfig
from cxrdist.train.deepspeed_config import deepspeed_config
from cxrdist.train.dryrun import OptimizerProfile, PassProfile, profile_optimizer

MIB, GIB = 2**20, 2**30
FP32 = 4

HOST_LIBRARIES = 90 * MIB
"""Code and tables that the engine and the first steps bring into a CPU process (measured, torch 2.15)."""

GPU_CONTEXT = 1.0 * GIB
"""CUDA context, NCCL and loaded kernels: outside of PyTorch's allocator, and so not in its peak."""

GPU_USABLE = 0.95
"""Share of the rest of a GPU's memory that tensors can fill before the gaps between them are in the way."""

ALL_REDUCE = 500_000_000 * FP32
"""Bytes of gradients that stage 0 sums at once."""

PREFETCHED = 4
"""Batches per reading process that are made ahead, see `cxrdist.data.loader`."""


@dataclass(frozen=True)
class Memory:
    """What one place, the device or the host, holds for one rank."""

    weights: int = 0
    """As the model computes with them, buffers included."""
    masters: int = 0
    """fp32 pieces that the optimizer steps beside these."""
    optimizer: int = 0
    """The optimizer's states."""
    ema: int = 0
    gradients: int = 0
    """Those that are held the whole time; others are in `backward` and `step`."""
    buckets: int = 0
    """Buffers for the traffic between ranks that are held the whole time."""
    snapshot: int = 0
    """Copy of what a checkpoint writes in the background."""
    loader: int = 0
    """The batch, and on the host those that are read ahead."""
    libraries: int = 0
    building: int = 0
    """Peak while the engine is made, in place of the rest."""
    backward: int = 0
    """Peak of a forward and a backward pass beside all that: activations, gradients, gathered weights."""
    step: int = 0
    """Peak of the optimizer's step beside all that, in place of `backward`."""

    @property
    def held(self) -> int:
        """What is held the whole time."""
        return (
            self.weights + self.masters + self.optimizer + self.ema + self.gradients + self.buckets + self.snapshot
            + self.loader + self.libraries
        )  # fmt: skip

    @property
    def total(self) -> int:
        """The peak."""
        return max(self.held + max(self.backward, self.step), self.libraries + self.building)


@dataclass(frozen=True)
class RankMemory:
    """What one rank needs, and how much of it would be saved."""

    device: Memory
    host: Memory
    checkpoint: int
    """Bytes of a checkpoint of all ranks together on the disk."""

    @property
    def on_cpu(self) -> int:
        """The peak where the device is the host: resident memory of the training process beside its libraries."""
        both = (self.device, self.host)
        peak = max(sum(m.backward for m in both), sum(m.step for m in both))
        return max(sum(m.held for m in both) + peak, sum(m.libraries + m.building for m in both))


@dataclass(frozen=True)
class Sizes:
    """Bytes of a task's weights."""

    weights: int
    trained: int
    buffers: int
    largest: int
    """Of its largest parameter."""

    @classmethod
    def of(cls, task: nn.Module) -> "Sizes":
        """Return the sizes of `task`, which may be on the device "meta"."""
        parameters = list(task.parameters())
        return cls(
            weights=sum(p.nbytes for p in parameters),
            trained=sum(p.nbytes for p in parameters if p.requires_grad),
            buffers=sum(b.nbytes for b in task.buffers()),
            largest=max(p.nbytes for p in parameters),
        )


def plan_memory(
    task: nn.Module,
    passed: PassProfile,
    *,
    train: TrainConfig,
    optim: OptimConfig,
    world_size: int,
    workers: int = 0,
    on_gpu: bool = False,
    optimizer: OptimizerProfile | None = None,
) -> RankMemory:
    """Return what one of `world_size` ranks needs.

    Args:
        task: For its parameters; meta or fake.
        passed: Profile of a micro-batch of the run, under its precision and with or without checkpointing as in it.
        train: Stage, offload, batch, mean of the weights, checkpoints.  Its micro-batch is taken from `passed`.
        optim: The optimizer.
        world_size: Ranks.
        workers: Reading processes per rank.
        on_gpu: Whether there is a device with memory of its own.
        optimizer: What `profile_step` returns, where it is known already.

    Raises:
        UsageError: As `deepspeed_config` and `Batching.plan`.
    """
    batching = Batching.plan(
        global_batch_size=train.global_batch_size, micro_batch_size=passed.images, world_size=world_size
    )
    sizes = Sizes.of(task)
    stage = train.zero_stage
    optimizer = optimizer or profile_step(task, train=train, optim=optim, world_size=world_size, on_gpu=on_gpu)
    zero = _Zero(
        sizes, optimizer, passed, batching, world_size, train, on_gpu, deepspeed_config(train, optim, batching)
    )
    device, host = zero.whole() if stage == 0 else zero.divided() if stage < 3 else zero.gathered()
    states = optimizer.states // world_size if stage == 0 else optimizer.states
    ema = sizes.trained if train.ema_decay is not None else 0
    saved = sizes.weights // world_size + states + ema // world_size
    if train.offload != "none" and on_gpu:
        host["ema"] = zero.share(ema)
    else:
        device["ema"] = ema if stage == 0 else zero.share(ema)
    host |= {
        # Rank 0 has the buffers of all: a queue of negatives can be as large as a network.
        "snapshot": saved + sizes.buffers if train.checkpoint_in_background else 0,
        "loader": (PREFETCHED * workers + 1) * passed.batch,
        "libraries": HOST_LIBRARIES,
        "building": sizes.weights + sizes.buffers if on_gpu else 0,
    }
    device["loader"] = passed.batch
    device["weights"] = device.get("weights", 0) + sizes.buffers
    return RankMemory(Memory(**device), Memory(**host), checkpoint=saved * world_size + sizes.buffers)


def profile_step(
    task: nn.Module, *, train: TrainConfig, optim: OptimConfig, world_size: int, on_gpu: bool
) -> OptimizerProfile:
    """Return the profile of the optimizer under the run's stage and offload; it does not depend on the batch."""
    partitions = world_size if train.zero_stage else None
    return profile_optimizer(task, optim, partitions=partitions, on_gpu=on_gpu and train.offload == "none")


@dataclass(frozen=True)
class _Zero:
    """One ZeRO stage's parts; each method returns (on the device, on the host) by the names of `Memory`."""

    sizes: Sizes
    optimizer: OptimizerProfile
    passed: PassProfile
    batching: Batching
    world_size: int
    train: TrainConfig
    on_gpu: bool
    deepspeed: Mapping[str, Any]

    def share(self, size: int) -> int:
        return -(-size // self.world_size)

    def option(self, name: str, default: int) -> int:
        return int(self.deepspeed["zero_optimization"].get(name, default))

    @property
    def accumulates(self) -> bool:
        return self.batching.accumulation > 1

    def bucket_bytes(self, element: int = FP32) -> int:
        """Bytes of all buckets; on the CPU pages are only there once they are written."""
        zero, autocast = self.deepspeed["zero_optimization"], self.deepspeed["torch_autocast"]
        elements = self.option("reduce_bucket_size", 500_000_000)
        kinds = 2 if autocast["enabled"] and autocast.get("lower_precision_safe_modules") != [] else 1
        buffers = 2 if zero.get("overlap_comm") and self.train.zero_stage < 3 else 1
        size = kinds * buffers * elements * element
        return size if self.on_gpu else min(size, self.sizes.trained)

    def whole(self) -> tuple[dict[str, int], dict[str, int]]:
        """Stage 0."""
        trained = self.sizes.trained
        summed = trained + (min(trained, ALL_REDUCE) if self.world_size > 1 else 0)
        return {
            "weights": self.sizes.weights,
            "optimizer": self.optimizer.states,
            "backward": max(self.passed.peak(lambda there: trained if self.accumulates else there), summed),
            "step": trained + self.optimizer.scratch,
            "building": self.sizes.weights,
        }, {}

    def divided(self) -> tuple[dict[str, int], dict[str, int]]:
        """Stages 1 and 2."""
        trained, share = self.sizes.trained, self.share(self.sizes.trained)
        buckets = self.bucket_bytes()
        offload = self.train.offload != "none"

        def gradients(there: int) -> int:
            if self.accumulates and self.train.zero_stage == 1:
                return trained + (buckets if self.on_gpu else 0) + (0 if offload else self.share(there))
            in_buckets = buckets if self.on_gpu else min(there, buckets)
            return (
                in_buckets + (0 if offload else self.share(there)) + (share if self.accumulates and not offload else 0)
            )

        building = self.sizes.weights + trained
        stepped = {
            "masters": share,
            "optimizer": self.optimizer.states,
            "step": share + self.optimizer.largest_group + self.optimizer.scratch,
        }
        device = {
            "weights": self.sizes.weights,
            "backward": max(self.passed.peak(gradients), gradients(trained)),
            "building": building,
        }
        if not offload:
            return device | stepped, {}
        device["buckets"] = self.sizes.largest
        held = share * (2 if self.accumulates else 1)
        return device, stepped | {
            "gradients": held,
            "buckets": share + self.sizes.largest,
            "step": self.optimizer.scratch,
        }

    def gathered(self) -> tuple[dict[str, int], dict[str, int]]:
        """Stage 3."""
        trained, share = self.sizes.trained, self.share(self.sizes.trained)
        low = self.train.precision == "bf16"
        buckets = self.bucket_bytes(3 if low else FP32)  # one of each type
        gathered = reduced = 0
        if self.world_size > 1:
            live = self.option("stage3_max_live_parameters", 1_000_000_000) * FP32
            ahead = self.option("stage3_prefetch_bucket_size", 50_000_000) * (2 if low else FP32)
            gathered = min(self.sizes.weights, live) + min(self.sizes.weights // (2 if low else 1), ahead)
            reduced = min(trained, buckets)  # a copy in the order of the ranks
        device = {
            "weights": self.share(self.sizes.weights),
            "buckets": buckets,
            "backward": max(self.passed.peak(lambda there: 0) + gathered, gathered + reduced),
            "building": self.sizes.weights + self.share(self.sizes.weights),
        }
        stepped = {
            "masters": share,
            "gradients": share,
            "optimizer": self.optimizer.states,
            "step": self.optimizer.largest_group + self.optimizer.scratch,
        }
        if self.train.offload == "none":
            return device | stepped, {}
        host = stepped | {"gradients": 2 * share, "step": self.optimizer.scratch}
        if self.train.offload == "parameters":
            host["weights"] = device.pop("weights")
        return device, host


def usable_gpu_memory(memory: float) -> int:
    """Return how many bytes of tensors a GPU of `memory` bytes takes."""
    return int(GPU_USABLE * (memory - GPU_CONTEXT))
