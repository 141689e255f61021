"""A training step without memory and without arithmetic: what its tensors would take, and its operations.

The forward and the backward pass run on fake tensors (`torch._subclasses.FakeTensorMode`): every operator is asked only
for the shape of its result.  A mode below them notes when a storage comes and when it goes, so views, autocast's cached
weights, what autograd saves and what checkpointing computes again are counted as they are.
"""

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import FlopCounterMode

from cxrdist.data.loader import READ_BY_VALUE
from cxrdist.models.precision import AUTOCAST
from cxrdist.train.config import OptimConfig, Precision
from cxrdist.train.optim import build_optimizer
from cxrdist.train.task import BuildTask, MakeBatch

PROFILED = 2
"""Images of the smallest profile."""

COLLECTED = 40
"""Times that a profile of a pass collects garbage: about once in each block of a large network."""


@dataclass(frozen=True)
class PassProfile:
    """What a forward and a backward pass over one micro-batch take beside weights, in bytes."""

    images: int
    batch: int
    """Of the batch itself."""
    curve: tuple[tuple[int, int], ...]
    """(gradients there, most that everything else takes while they are there), in the order of the backward pass."""
    flops: int
    """Floating point operations per image, forward and backward; what checkpointing computes again is counted."""

    @property
    def activations(self) -> int:
        """The most that all but weights and gradients take."""
        return max(taken for _, taken in self.curve)

    def peak(self, cost: Callable[[int], int]) -> int:
        """Return the peak where `cost` says what the engine takes for so many bytes of gradients."""
        return max(taken + cost(gradients) for gradients, taken in self.curve)


@dataclass(frozen=True)
class OptimizerProfile:
    """What an optimizer takes beside weights and gradients, in bytes, where it steps one group after the other."""

    states: int
    """Held from the first step on."""
    scratch: int
    """Taken for a moment in a step."""
    largest_group: int
    """Bytes of the weights of the largest group that is stepped at once."""


def imagine(build_task: BuildTask) -> nn.Module:
    """Return the task that `build_task` builds, on the device "meta": shapes and no memory.

    No file of weights is read: a checkpoint of a large network is gigabytes, on every rank, for nothing.
    """
    with torch.device("meta"):
        return build_task(loaded=False)


@contextmanager
def by_itself() -> Iterator[None]:
    """Let this process compute as if it were in no process group: in a trial the ranks are not at the same place."""
    members = torch.distributed.distributed_c10d.GroupMember
    group, members.WORLD = members.WORLD, None
    try:
        yield
    finally:
        members.WORLD = group


def profile_pass(
    task: nn.Module, make_batch: MakeBatch, images: int, *, precision: Precision, device: str = "cpu"
) -> PassProfile:
    """Return the profile of one pass of `task`, a task of `imagine`, over `images` images under autocast.

    Args:
        task: It is left with fake weights on `device`, which only another profile can use.
        make_batch: Called outside of the fake tensors' mode.  The pass itself knows no other rank.
        images: Images in the micro-batch.
        precision: fp32 computes without autocast.
        device: Whose operators and autocast rules are taken.  Other than "cpu" must be there.
    """
    batch = dict(make_batch(images))
    # Numbers of samples and seeds of their random choices are read by value: they stay real.
    with by_itself(), FakeTensorMode(allow_non_fake_inputs=True):
        _replace(task, device)
        parameters = [parameter for parameter in task.parameters() if parameter.requires_grad]
        fake = {
            name: value if name in READ_BY_VALUE else torch.empty(value.shape, dtype=value.dtype, device=device)
            for name, value in batch.items()
        }
        memory = _Memory()
        for tensor in (*task.parameters(), *task.buffers(), *fake.values()):
            memory.pass_over(tensor)

        counted = 0

        def count(parameter: torch.Tensor) -> None:
            nonlocal counted
            counted += 1
            # Fake tensors that checkpointing makes again hang in circles, which real ones do not.
            if counted % max(1, len(parameters) // COLLECTED) == 0:
                gc.collect()
            assert parameter.grad is not None
            memory.gradient(parameter.grad)

        hooks = [parameter.register_post_accumulate_grad_hook(count) for parameter in parameters]
        task.train()
        gc.collect()
        gc.freeze()  # so that collecting looks at what is made from here on only
        try:
            with memory, FlopCounterMode(display=False) as counter:
                with torch.autocast(device, dtype=AUTOCAST[precision], enabled=precision != "fp32"):
                    loss = task(fake)["loss"]
                loss.backward()
        finally:
            gc.unfreeze()
        for hook in hooks:
            hook.remove()
        for parameter in parameters:
            parameter.grad = None
    taken = sum(value.nbytes for value in batch.values())
    return PassProfile(images, taken, tuple(memory.curve()), counter.get_total_flops() // images)


def profile_ends(
    task: nn.Module, make_batch: MakeBatch, largest: int, *, precision: Precision
) -> tuple[PassProfile, PassProfile]:
    """Return the profiles of a pass over two images (a task may mix pairs) and over `largest`, for `at_size`.

    They cost the same.  The peak is a maximum of lines, so between the two sizes the line through both is never too
    low; beyond them it can be, where at one size weights have the peak and at the other activations.
    """
    one = make_batch(1)

    def repeated(images: int) -> dict[str, torch.Tensor]:  # one image, so that no memory is taken for many
        return {name: value.expand(images, *value.shape[1:]) for name, value in one.items()}

    small = profile_pass(task, repeated, PROFILED, precision=precision)
    return small, profile_pass(task, repeated, max(largest, 2 * PROFILED), precision=precision)


def at_size(small: PassProfile, large: PassProfile, images: int) -> PassProfile:
    """Return the profile of a pass over `images` images from those of two other numbers: tensors are linear in it.

    Raises:
        ValueError: If the two are not of the same task and precision.
    """

    def line(low: int, high: int) -> int:
        return max(0, low + (high - low) * (images - small.images) // (large.images - small.images))

    if [there for there, _ in small.curve] != [there for there, _ in large.curve]:
        raise ValueError("Two profiles must be of the same task.")
    pairs = zip(small.curve, large.curve, strict=True)
    curve = tuple((there, line(low, high)) for (there, low), (_, high) in pairs)
    return PassProfile(images, line(small.batch, large.batch), curve, large.flops)


def profile_optimizer(
    task: nn.Module, optim: OptimConfig, *, partitions: int | None, on_gpu: bool = False
) -> OptimizerProfile:
    """Return the profile of the optimizer of `task` (its weights may be meta or fake).

    Args:
        task: Its parameters' shapes, and which of them are trained, are what matters.
        optim: Which optimizer.
        partitions: Ranks among which each group is divided as one flat piece (ZeRO 1 to 3); None steps the parameters
            themselves, whole (stage 0).
        on_gpu: Take the implementation for CUDA, over many tensors at once, where the optimizer is not fused.
    """
    shapes = {id(p): nn.Parameter(torch.empty(p.shape, device="meta"), p.requires_grad) for p in task.parameters()}
    optimizer = build_optimizer(optim, task)
    fused = any(group.get("fused") for group in optimizer.param_groups)  # a kernel that needs no scratch
    groups = []
    for group in optimizer.param_groups:
        if partitions is None:
            group["params"] = [shapes[id(parameter)] for parameter in group["params"]]
        else:
            numel = -(-sum(parameter.numel() for parameter in group["params"]) // partitions)
            group["params"] = [nn.Parameter(torch.empty(numel, device="meta"))]
        if "fused" in group:
            group["fused"] = False  # it has no shapes to ask for
        if on_gpu and not fused and "foreach" in group:
            group["foreach"] = True
        groups.append(group)
    at_once = [groups] if partitions is None else [[group] for group in groups]
    memory = _Memory()
    for group in groups:
        for parameter in group["params"]:
            parameter.grad = torch.empty_like(parameter)
            memory.pass_over(parameter)
            memory.pass_over(parameter.grad)
    with memory:
        for stepped in at_once:
            optimizer.param_groups = stepped
            optimizer.step()  # makes the states
        states = memory.live
        memory.most = states
        for stepped in at_once:
            optimizer.param_groups = stepped
            optimizer.step()
    largest = max((sum(p.nbytes for g in stepped for p in g["params"]) for stepped in at_once), default=0)
    return OptimizerProfile(states, 0 if fused else memory.most - states, largest)


class _Memory(TorchDispatchMode):
    """Bytes of the storages that live now, by what comes out of operators; gradients are counted apart."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.most = self.gradients = 0
        self._sizes: dict[int, int] = {}
        self._gradients: set[int] = set()
        self._curve: dict[int, int] = {}

    def pass_over(self, tensor: torch.Tensor) -> None:
        """Do not count the storage of `tensor`."""
        self._sizes[tensor.untyped_storage()._cdata] = 0

    def gradient(self, tensor: torch.Tensor) -> None:
        """Count the storage of `tensor` as a gradient from now on."""
        key = tensor.untyped_storage()._cdata
        if key in self._sizes and key not in self._gradients:
            self._gradients.add(key)
            self.gradients += self._sizes[key]
            self._note()

    def curve(self) -> Iterator[tuple[int, int]]:
        """Yield (gradients, most of all else), by rising gradients."""
        yield from sorted(self._curve.items())

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, torch.Tensor):
                self._hold(tensor)
        return result

    def _hold(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        self.live += self._sizes[key]
        weakref.finalize(storage, self._release, key)
        self._note()

    def _release(self, key: int) -> None:
        size = self._sizes.pop(key, 0)
        self.live -= size
        if key in self._gradients:
            self._gradients.remove(key)
            self.gradients -= size

    def _note(self) -> None:
        self.most = max(self.most, self.live)
        self._curve[self.gradients] = max(self._curve.get(self.gradients, 0), self.live - self.gradients)


def _replace(task: nn.Module, device: str) -> None:
    """Give `task` fake weights and buffers on `device`; what was tied stays tied."""
    made: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def fake(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in made:
            empty = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
            replaced = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
            made[id(tensor)] = (tensor, replaced)  # the first as well, so that its `id` is not given anew
        return made[id(tensor)][1]

    for module in task.modules():
        tables: list[dict[str, Any]] = [module._parameters, module._buffers]
        for tensors in tables:
            for name, tensor in tensors.items():
                if tensor is not None:
                    tensors[name] = fake(tensor)
