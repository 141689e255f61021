"""The largest micro-batch that memory holds, within a fixed global batch: ``train.micro_batch_size: auto``."""

import gc
from collections.abc import Callable
from typing import Any

import torch

from cxrdist.data.loader import on_device
from cxrdist.data.order import Batching
from cxrdist.errors import UsageError, UserError
from cxrdist.log import get_logger
from cxrdist.models.precision import AUTOCAST
from cxrdist.train.config import OptimConfig, TrainConfig
from cxrdist.train.dryrun import at_size, by_itself, imagine, profile_ends, profile_pass
from cxrdist.train.engine import checkpoint_activations
from cxrdist.train.host_memory import available_host_memory
from cxrdist.train.memory import GIB, plan_memory, profile_step
from cxrdist.train.task import BuildTask, MakeBatch
from cxrdist.world import World

log = get_logger(__name__)

HOST_SPARED = 0.85
"""Share of the host's available memory that is taken: the estimate is within 15 %."""

DEVICE_SPARED = 0.95
"""Share of a GPU's free memory that is taken: the gaps between tensors are not usable."""


def choose_micro_batch(
    build_task: BuildTask,
    make_batch: MakeBatch,
    *,
    train: TrainConfig,
    optim: OptimConfig,
    world: World,
    device: torch.device,
    gather: Callable[[Any], list[Any]],
    multiple_of: int = 1,
) -> int:
    """Return the largest micro-batch size that every rank's memory holds; all ranks must call it, and get the same.

    On a GPU it is tried: a forward and a backward pass of real size beside a block as large as what weights, masters
    and optimizer of the run's ZeRO stage will take.  On the CPU, where too much ends the process, it is estimated.

    Args:
        build_task: Makes the task as the run will; it is made on `device` for the trial and given back.
        make_batch: Makes a batch of so many images, in the types and shapes that the loader gives.
        train: The global batch, precision, stage, offload, checkpointing.
        optim: The optimizer.
        world: This process among the ranks.
        device: Of this rank.
        gather: From a value to every rank's, as `cxrdist.train.engine.gather`.
        multiple_of: What it must be a multiple of: 2 where images are mixed in pairs.

    Raises:
        UsageError: If the global batch cannot be divided so.
        UserError: If not even the smallest fits.
    """
    sizes = candidates(train.global_batch_size, world.world_size, multiple_of)
    try:
        if device.type == "cuda":
            size = _largest_on_gpu(build_task, make_batch, sizes, train, optim, world, device)
        else:
            size = _largest_on_cpu(build_task, make_batch, sizes, train, optim, world)
        problem = None
    except UserError as error:
        size, problem = 0, error
    everywhere = gather(size)
    if problem is not None:
        raise problem
    smallest = min(everywhere)
    if not smallest:
        raise UserError(
            f"A micro-batch of {sizes[-1]} must fit into every rank's memory, got too little on rank "
            f"{everywhere.index(0)} ({'GPU' if device.type == 'cuda' else 'host'}). Set "
            "`train.activation_checkpointing`, a higher `train.zero_stage` or `train.offload`; `cxrdist plan` says "
            "what each needs."
        )
    if world.is_main:
        accumulation = train.global_batch_size // world.world_size // smallest
        log.info("Micro-batch: %d images per rank, %d of them per step (largest that fits).", smallest, accumulation)
    return smallest


def candidates(global_batch_size: int, world_size: int, multiple_of: int = 1) -> list[int]:
    """Return the sizes that a micro-batch can have, largest first.

    Raises:
        UsageError: If there is none.
    """
    share = Batching.plan(
        global_batch_size=global_batch_size, micro_batch_size=None, world_size=world_size
    ).micro_batch_size
    sizes = [size for size in range(share, 0, -1) if share % size == 0 and size % multiple_of == 0]
    if not sizes:
        raise UsageError(
            f"A rank's share of `global_batch_size` must be a multiple of {multiple_of}, got {share} images "
            f"({global_batch_size} / {world_size} ranks)."
        )
    return sizes


def _largest_on_cpu(
    build_task: BuildTask,
    make_batch: MakeBatch,
    sizes: list[int],
    train: TrainConfig,
    optim: OptimConfig,
    world: World,
) -> int:
    room = HOST_SPARED * available_host_memory() / world.local_world_size
    task = imagine(build_task)
    if train.activation_checkpointing:
        checkpoint_activations(task)
    small, large = profile_ends(task, make_batch, sizes[0], precision=train.precision)
    stepped = profile_step(task, train=train, optim=optim, world_size=world.world_size, on_gpu=False)

    def fits(size: int) -> bool:
        passed = at_size(small, large, size)
        plan = plan_memory(task, passed, train=train, optim=optim, world_size=world.world_size, optimizer=stepped)
        needed = plan.on_cpu
        log.debug("A micro-batch of %d needs %.2f GiB of %.2f.", size, needed / GIB, room / GIB)
        return needed <= room

    return next((size for size in sizes if fits(size)), 0)


def _largest_on_gpu(
    build_task: BuildTask,
    make_batch: MakeBatch,
    sizes: list[int],
    train: TrainConfig,
    optim: OptimConfig,
    world: World,
    device: torch.device,
) -> int:
    imagined = imagine(build_task)
    if train.activation_checkpointing:
        checkpoint_activations(imagined)
    smallest = profile_pass(imagined, make_batch, sizes[-1], precision=train.precision)
    plan = plan_memory(imagined, smallest, train=train, optim=optim, world_size=world.world_size, on_gpu=True).device
    free, _ = torch.cuda.mem_get_info(device)
    room = int(DEVICE_SPARED * (free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)))
    task = build_task(loaded=False).to(device)
    if train.activation_checkpointing:
        checkpoint_activations(task)
    # The trial has weights of its own and, while it lasts, gradients; the rest of the engine is a block of its size.
    weights = sum(parameter.nbytes for parameter in task.parameters())
    rest = max(plan.held + max(plan.backward - smallest.peak(int), plan.step - smallest.activations, 0) - weights, 0)
    whole = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, (room + torch.cuda.memory_reserved(device)) / whole), device)
    try:
        for size in sizes:
            try:
                _pass(task, make_batch(size), train, device, beside=rest)
            except torch.cuda.OutOfMemoryError:
                log.debug("A micro-batch of %d does not fit.", size)
            else:
                return size
            finally:
                task.zero_grad(set_to_none=True)
                gc.collect()
                torch.cuda.empty_cache()
        return 0
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
        del task
        gc.collect()
        torch.cuda.empty_cache()


def _pass(task: torch.nn.Module, batch: Any, train: TrainConfig, device: torch.device, *, beside: int) -> None:
    """Forward and backward once, beside a block of `beside` bytes."""
    block = torch.empty(beside, dtype=torch.uint8, device=device)
    task.train()
    batch = on_device(batch, device)
    with by_itself():  # a rank whose memory ends here goes on to the next size: the others must not wait for it
        with torch.autocast(device.type, dtype=AUTOCAST[train.precision], enabled=train.precision != "fp32"):
            loss = task(batch)["loss"]
        loss.backward()
    del block
