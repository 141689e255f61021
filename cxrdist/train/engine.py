"""DeepSpeed's engine around a task.  All that DeepSpeed is told comes from `deepspeed_config`."""

import datetime
import gc
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed
from torch import nn

from cxrdist.data.order import Batching
from cxrdist.errors import UserError
from cxrdist.train.config import OptimConfig, TrainConfig
from cxrdist.train.optim import build_optimizer
from cxrdist.world import World

TIMEOUT_S = 1800
"""How long a collective may wait for a rank, for example while rank 0 writes predictions."""


def deepspeed_config(train: TrainConfig, optim: OptimConfig, batching: Batching) -> dict[str, Any]:
    """Return DeepSpeed's configuration for a run.

    The optimizer is ours (`build_optimizer`) and the schedule a function of the step, so neither stands here.
    """
    return {
        "train_batch_size": batching.global_batch_size,
        "train_micro_batch_size_per_gpu": batching.micro_batch_size,
        "gradient_accumulation_steps": batching.accumulation,
        "gradient_clipping": optim.clip,
        "zero_optimization": {"stage": train.zero_stage},
        "torch_autocast": {"enabled": train.precision == "bf16", "dtype": "bfloat16"},
        # DeepSpeed would exchange a torch optimizer for its own, which is compiled at the first start.
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }


@contextmanager
def process_group(world: World) -> Iterator[torch.device]:
    """Join the ranks of `world` for the block and yield this rank's device.

    One rank alone needs no launcher and opens no port.  The environment is left as it was.

    Raises:
        UserError: If the launcher did not say where rank 0 is.
    """
    if world.world_size > 1 and ("MASTER_ADDR" not in os.environ or "MASTER_PORT" not in os.environ):
        raise UserError(
            f"MASTER_ADDR and MASTER_PORT must say where rank 0 is, got none for {world.world_size} ranks. "
            "Start with `torchrun` or `deepspeed`, or export both in the batch script."
        )
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", world.local_rank)
        torch.cuda.set_device(device)
    timeout = datetime.timedelta(seconds=TIMEOUT_S)
    backend = "nccl" if device.type == "cuda" else "gloo"
    with _environment(
        RANK=str(world.rank),
        WORLD_SIZE=str(world.world_size),
        LOCAL_RANK=str(world.local_rank),
        DS_ACCELERATOR=_accelerator(),
    ):
        deepspeed = _import_deepspeed()
        torch.distributed.init_process_group(
            backend,
            # Two runs that look for a free port on one machine at once can find the same.
            store=torch.distributed.HashStore() if world.world_size == 1 else None,  # type: ignore[attr-defined]
            rank=world.rank,
            world_size=world.world_size,
            timeout=timeout,
        )
        try:
            deepspeed.init_distributed(backend, auto_mpi_discovery=False, verbose=False, timeout=timeout)
            yield device
        finally:
            # DeepSpeed keeps handles of its own; a second run in the same process must not find them.
            deepspeed.comm.destroy_process_group()
            deepspeed.comm.comm.cdb = None
            # The engine is full of circles; a process that trains again (a study's worker) must not carry it along.
            gc.collect()


def build_engine(
    task: nn.Module, *, train: TrainConfig, optim: OptimConfig, batching: Batching, device: torch.device
) -> Any:
    """Return DeepSpeed's engine around `task`, on `device`."""
    deepspeed = _import_deepspeed()
    task.to(device)
    config = deepspeed_config(train, optim, batching)
    engine, *_ = deepspeed.initialize(
        model=task, optimizer=build_optimizer(optim, task), config=config, dist_init_required=False
    )
    return engine


def mean_over_ranks(value: float, device: torch.device) -> float:
    """Return the mean of every rank's `value`; all ranks must call it together."""
    world_size = torch.distributed.get_world_size()
    if world_size == 1:
        return value
    total = torch.tensor(value, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(total)
    return float(total.item()) / world_size


def agree_on_buffers(module: nn.Module) -> None:
    """Give every rank the mean of all ranks' saved buffers, integers those of rank 0; all ranks must call it together.

    Batch norm counts its running statistics over a rank's own images: without this, each rank would validate another
    model, and a checkpoint would be rank 0's.  The statistics are linear in the batches', so it does not matter how
    often it is called.
    """
    world_size = torch.distributed.get_world_size()
    if world_size == 1:
        return
    saved = module.state_dict()
    for name, buffer in module.named_buffers():
        if name not in saved:  # a constant
            continue
        if buffer.is_floating_point():
            total = buffer.double()
            torch.distributed.all_reduce(total)
            buffer.copy_(total / world_size)
        else:
            torch.distributed.broadcast(buffer, src=0)


def describe_device(device: torch.device) -> str:
    """Return the device in words."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def gather(piece: Any) -> list[Any]:
    """Return every rank's `piece`, by rank, on every rank."""
    pieces: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(pieces, piece)
    return pieces


def _import_deepspeed() -> Any:
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    import deepspeed  # noqa: PLC0415 - looks for accelerators when imported
    import deepspeed.ops  # noqa: PLC0415

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    if not torch.cuda.is_available():
        # Between CPU ranks DeepSpeed would compile a shared-memory all-reduce at the first start, which needs a
        # compiler and 20 s.  Gloo does the same work; with no operation listed as compatible nothing is compiled.
        deepspeed.ops.__compatible_ops__ = {}
    return deepspeed


def _accelerator() -> str:
    return os.environ.get("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Set environment variables for the block; DeepSpeed reads them, a later run in this process must not."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
