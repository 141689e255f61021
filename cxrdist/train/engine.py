"""DeepSpeed's engine around a task.  All that DeepSpeed is told comes from `deepspeed_config`."""

import datetime
import gc
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from cxrdist.data.order import Batching
from cxrdist.errors import UsageError, UserError
from cxrdist.train.config import OptimConfig, TrainConfig
from cxrdist.train.consolidate import saved_buffers
from cxrdist.train.deepspeed_config import deepspeed_config
from cxrdist.train.meeting import fault_of_name, own_part
from cxrdist.train.optim import build_optimizer
from cxrdist.train.stepping import install
from cxrdist.world import CHOOSE_NETWORK, World, rendezvous

LATER_THAN_WATCHDOG_S = 600
"""How much longer than the watchdog a collective waits for a rank: the watchdog can say which one it is."""


@contextmanager
def process_group(world: World, *, hang_after: float = 1800.0) -> Iterator[torch.device]:
    """Join the ranks of `world` for the block and yield this rank's device.

    One rank alone needs no launcher and opens no port.  The environment is left as it was.  `hang_after` is the
    watchdog's, seconds.

    Raises:
        UserError: If the launcher did not say where rank 0 is, or the ranks do not reach each other.
    """
    meeting = {}
    if world.world_size > 1:
        address, port = rendezvous(world)
        meeting = {"MASTER_ADDR": address, "MASTER_PORT": str(port)}
    device = torch.device("cpu")
    local = _local_device(world)
    if torch.cuda.is_available():
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    timeout = datetime.timedelta(seconds=hang_after + LATER_THAN_WATCHDOG_S)
    backend = "nccl" if device.type == "cuda" else "gloo"
    with _environment(
        RANK=str(world.rank),
        WORLD_SIZE=str(world.world_size),
        LOCAL_RANK=str(local),
        DS_ACCELERATOR=_accelerator(),
        **meeting,
    ):
        deepspeed = _import_deepspeed()
        try:
            torch.distributed.init_process_group(
                backend,
                store=_meet(world, timeout, fault_of_name() if backend == "gloo" else ""),
                rank=world.rank,
                world_size=world.world_size,
                timeout=timeout,
            )
        except RuntimeError as error:  # torch's own, and what gloo's C++ throws
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)[:200].rstrip(".")
            raise UserError(
                f"The ranks must reach each other, got: {reason}. `cxrdist doctor` on each machine says whether its "
                f"name leads to the network; {CHOOSE_NETWORK} names the network."
            ) from None
        try:
            deepspeed.init_distributed(backend, auto_mpi_discovery=False, verbose=False, timeout=timeout)
            yield device
        finally:
            # DeepSpeed keeps handles of its own; a second run in the same process must not find them.
            deepspeed.comm.destroy_process_group()
            deepspeed.comm.comm.cdb = None
            _forget_earlier_engines()
            # The engine is full of circles; a process that trains again (a study's worker) must not carry it along.
            gc.collect()


def _local_device(world: World) -> int:
    """Return the number of this rank's GPU among those that it sees.

    Raises:
        UsageError: If there are more ranks on this machine than GPUs.
    """
    seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if seen == 1:  # schedulers and Ray show each rank its own one
        return 0
    if seen and world.local_rank >= seen:
        raise UsageError(
            f"A machine must have a GPU for each of its ranks, got {seen} GPUs for local rank {world.local_rank}. "
            "Start fewer ranks per machine."
        )
    return world.local_rank


def _meet(world: World, timeout: datetime.timedelta, fault: str) -> Any:
    """Return the store in which the ranks of this start, and no other's, find each other; `fault` as in `own_part`."""
    if world.world_size == 1:  # two runs that look for a free port on one machine at once can find the same
        return torch.distributed.HashStore()  # type: ignore[attr-defined]
    found = torch.distributed.rendezvous(  # type: ignore[attr-defined]
        "env://", world.rank, world.world_size, timeout=timeout
    )
    store, _, _ = next(iter(found))
    store.set_timeout(timeout)
    return own_part(store, rank=world.rank, world_size=world.world_size, timeout=timeout, fault=fault)


def build_engine(
    task: nn.Module, *, train: TrainConfig, optim: OptimConfig, batching: Batching, device: torch.device
) -> Any:
    """Return DeepSpeed's engine around `task`, on `device`; give it back with `release_engine`.

    The names of the task's parameters stay as they are, compiled or not.

    Raises:
        UsageError: If DeepSpeed refuses the user's part of its configuration, or the backbone cannot compute its
            activations again.
    """
    deepspeed = _import_deepspeed()
    _forget_earlier_engines()
    if train.activation_checkpointing:
        checkpoint_activations(task)
    if train.compile:
        _compile(task)
    task.to(device)
    config = deepspeed_config(train, optim, batching)
    if train.deepspeed is not None:
        try:
            deepspeed.DeepSpeedConfig(config)
        except (ValueError, TypeError, AssertionError) as error:
            raise UsageError(
                f"`train.deepspeed` must be what DeepSpeed understands, got {train.deepspeed}: {_one_line(error)}."
            ) from None
    engine, *_ = deepspeed.initialize(
        model=task, optimizer=build_optimizer(optim, task), config=config, dist_init_required=False
    )
    if torch.distributed.get_world_size() == 1 and train.zero_stage == 0:
        # DeepSpeed would copy every gradient to a flat buffer and back, to sum it over one rank.
        engine.enable_backward_allreduce = False
    install(engine, clip=optim.clip, scaled=train.precision == "fp16")
    return engine


def release_engine(engine: Any) -> None:
    """Take DeepSpeed's hooks off the task and free what the engine holds; under ZeRO 3 the task is of no more use."""
    engine.destroy()
    # Hooks and buffers go with these; references in circles with the next collection.
    engine.optimizer = None
    _forget_earlier_engines()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def grad_norm(engine: Any) -> float | None:
    """Return the global norm of the last step's gradient before clipping, infinite where it was not finite.

    None before the first step.
    """
    norm = getattr(engine.optimizer, "_global_grad_norm", None)
    return None if norm is None else float(norm)


def overflowed(engine: Any) -> bool:
    """Return whether the last step was left out because the gradient was not finite."""
    return bool(getattr(engine.optimizer, "overflow", False))


def checkpoint_activations(task: nn.Module) -> None:
    """Let every network in `task` that can compute its blocks again in the backward pass do so.

    timm's and torch's checkpointing restores the random state, so that dropout draws the same masks again.  Running
    statistics of batch norm are counted in the first pass alone.
    """
    able: list[Any] = [module for module in task.modules() if hasattr(module, "set_grad_checkpointing")]
    try:
        for module in able:
            module.set_grad_checkpointing(True)
    except AssertionError:  # timm's word for an architecture that cannot
        able = []
    if not able:
        raise UsageError(
            "`train.activation_checkpointing` needs a backbone that can compute its blocks again, got "
            f"{_backbone(task)}. Set it to false, or choose another `model.backbone`."
        )
    for module in task.modules():
        if isinstance(module, _BatchNorm) and module.track_running_stats:
            module.register_forward_pre_hook(partial(_count_once, module.momentum))


@torch.compiler.disable
def _count_once(momentum: float | None, norm: nn.Module, values: Any) -> None:
    """Let `norm` leave its running statistics as they are in a pass within a backward pass."""
    again = torch._C._current_graph_task_id() != -1
    norm.momentum = 0.0 if again else momentum  # type: ignore[assignment]
    if again and norm.training and isinstance(norm.num_batches_tracked, torch.Tensor):
        norm.num_batches_tracked.sub_(1)  # about to be added


def _compile(task: nn.Module) -> None:
    """Compile the networks of `task` in place, so that the names of their parameters stay.

    A network's blocks as well: a task may call them, or `forward_features`, without the network, and then nothing else
    is compiled.  Of a network without blocks these are its parts that are made of others.
    """
    torch.compiler.reset()  # recompilations are counted per process
    for module in list(task.modules()):
        if hasattr(module, "forward_features"):  # every timm network
            module.compile()
            if not isinstance(getattr(module, "blocks", None), nn.Sequential):
                for part in module.children():
                    if any(part.children()):
                        part.compile()
        blocks = getattr(module, "blocks", None)
        if isinstance(blocks, nn.Sequential):
            blocks.compile()


def _backbone(task: nn.Module) -> str:
    """Return the class of the first timm network in `task`, or of `task`."""
    return next((type(module).__name__ for module in task.modules() if hasattr(module, "forward_features")), "") or (
        type(task).__name__
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")


def mean_over_ranks(value: float, device: torch.device) -> float:
    """Return the mean of every rank's `value`; all ranks must call it together."""
    world_size = torch.distributed.get_world_size()
    if world_size == 1:
        return value
    total = torch.tensor(value, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(total)
    return float(total.item()) / world_size


def forward_buffers(module: nn.Module) -> list[torch.Tensor]:
    """Return the saved buffers of `module` that a forward pass may change, by a rank's own images.

    A task names in ``agreed`` those that it changes between steps alone, to the same on every rank: a queue can be as
    large as a network.
    """
    agreed = tuple(f"{name}." for name in getattr(module, "agreed", ()))
    return [buffer for name, buffer in saved_buffers(module).items() if not f"{name}.".startswith(agreed)]


def agree_on_buffers(module: nn.Module) -> None:
    """Give every rank the mean of all ranks' `forward_buffers`, integers those of rank 0; all must call it together.

    Batch norm counts its running statistics over a rank's own images: without this, each rank would validate another
    model, and a checkpoint would be rank 0's.
    """
    world_size = torch.distributed.get_world_size()
    if world_size == 1:
        return
    buffers = forward_buffers(module)
    floating = [buffer for buffer in buffers if buffer.is_floating_point()]
    if floating:
        total = torch.cat([buffer.double().flatten() for buffer in floating])
        torch.distributed.all_reduce(total)
        parts = (total / world_size).split([buffer.numel() for buffer in floating])
        for buffer, part in zip(floating, parts, strict=True):
            buffer.copy_(part.view_as(buffer))
    for buffer in buffers:
        if not buffer.is_floating_point():
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
    with _without("mlflow"):  # its autotuner, which nobody asks here, would load it: a second and a half of every start
        import deepspeed  # noqa: PLC0415 - looks for accelerators when imported
        import deepspeed.ops  # noqa: PLC0415

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    if not torch.cuda.is_available():
        # Between CPU ranks DeepSpeed would compile a shared-memory all-reduce at the first start, which needs a
        # compiler and 20 s.  Gloo does the same work; with no operation listed as compatible nothing is compiled.
        deepspeed.ops.__compatible_ops__ = {}
    return deepspeed


@contextmanager
def _without(module: str) -> Iterator[None]:
    """Let `module` be as if it were not installed, unless it is loaded already."""
    if module in sys.modules:
        yield
        return
    loaded: dict[str, Any] = sys.modules
    loaded[module] = None  # how Python is told so
    try:
        yield
    finally:
        del loaded[module]


def _forget_earlier_engines() -> None:
    """Undo what DeepSpeed leaves in the process, which would change what the next engine, or none, computes."""
    from deepspeed.runtime import torch_autocast  # noqa: PLC0415
    from deepspeed.runtime.zero import parameter_offload  # noqa: PLC0415
    from deepspeed.runtime.zero.partition_parameters import (  # noqa: PLC0415
        InsertPostInitMethodToModuleSubClasses as Patches,
    )
    from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator  # noqa: PLC0415

    # With these left by an engine in fp16, ZeRO would unscale the gradients of the next engine in fp32.
    torch_autocast.TORCH_AUTOCAST_INITIALIZED = False
    torch_autocast.TORCH_AUTOCAST_DTYPE = None
    # ZeRO 3 puts its own linear function in the place of torch's, and keeps the model in a stack and in a cache of
    # the class.
    nn.functional.linear = getattr(Patches, "linear_bk", nn.functional.linear)
    parameter_offload.FWD_MODULE_STACK.clear()
    cached = vars(PartitionedParameterCoordinator)["_PartitionedParameterCoordinator__params_to_release"]
    for cell in cached.__closure__ or ():
        if hasattr(cell.cell_contents, "cache_clear"):
            cell.cell_contents.cache_clear()


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
