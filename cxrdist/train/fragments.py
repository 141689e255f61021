"""What of the weights and the optimizer's state lies on this rank, under every ZeRO stage, as live views.

A checkpoint, a running mean and a comparison need to know no more of DeepSpeed than `Fragment`: a piece of one
parameter, by its name in the task and its place in the flattened parameter.  So what one division wrote, any other
can read.  Stage 0 holds every parameter whole on every rank; 1 and 2 cut a flat buffer of all parameters of a group
into equal parts, one a rank; 3 cuts every parameter into equal parts, the last of which is padded.
"""

import copy
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed

from cxrdist.train.stepping import loss_scaler_of

WEIGHT = "weight"
"""The kind of a fragment's fp32 master weights; the other kinds are named as the optimizer names its state."""

STEP = "step"
"""torch's name for the optimizer's count of steps, whose shape says nothing about the parameter."""


@dataclass(frozen=True)
class Fragment:
    """A piece of one parameter that lies on this rank."""

    name: str
    """Of the parameter in the task (`task.named_parameters()`)."""
    shape: tuple[int, ...]
    """Of the whole parameter."""
    start: int
    """Where the piece begins in the flattened parameter."""
    tensors: dict[str, torch.Tensor]
    """1-D live views of one length: `WEIGHT` and each state that has a number per weight (``exp_avg`` ...)."""
    shared: bool
    """Whether every rank holds the same piece."""

    @property
    def stop(self) -> int:
        """Where the piece ends in the flattened parameter."""
        return self.start + next(iter(self.tensors.values())).numel()


Read = Callable[[str, str, int, int], torch.Tensor]
"""From a parameter's name, a kind, a start and a stop in the flattened parameter to a 1-D tensor on the CPU."""


def fragments(engine: Any) -> list[Fragment]:
    """Return this rank's fragments, in a fixed order, without padding; frozen parameters have their weight only.

    State that the optimizer would make at its first step is made here, as zeros, so that every checkpoint has it.
    """
    _make_state(engine)
    return [
        Fragment(place.name, place.shape, place.start, {WEIGHT: place.weight, **place.state(engine)}, place.shared)
        for place in _places(engine)
    ]


def weights(engine: Any) -> list[Fragment]:
    """Return this rank's fragments with their weights only."""
    return [Fragment(p.name, p.shape, p.start, {WEIGHT: p.weight}, p.shared) for p in _places(engine)]


def trainable(engine: Any) -> set[str]:
    """Return the names of the parameters that the optimizer steps."""
    return {name for name, parameter in engine.module.named_parameters() if parameter.requires_grad}


def scalars(engine: Any) -> dict[str, float]:
    """Return the optimizer's state that is one number for all: its step, and with fp16 the loss scaler's."""
    optimizer = _torch_optimizer(engine)
    steps = [state[STEP] for state in optimizer.state.values() if STEP in state]
    steps += [group[STEP] for group in optimizer.param_groups if STEP in group]  # LAMB counts by group
    found = {STEP: max((float(step) for step in steps), default=0.0)}
    scaler = loss_scaler_of(engine)
    return found if scaler is None else found | scaler.state()


def restore(engine: Any, read: Read, scalars: dict[str, float]) -> None:
    """Fill the weights and the optimizer's state of `engine`, used or fresh, from `read`; every rank must call it."""
    _make_state(engine)
    for fragment in fragments(engine):
        for kind, tensor in fragment.tensors.items():
            tensor.copy_(read(fragment.name, kind, fragment.start, fragment.stop))
    optimizer = _torch_optimizer(engine)
    for counting in [*optimizer.state.values(), *optimizer.param_groups]:
        if STEP in counting:
            _set_step(counting, scalars.get(STEP, 0.0))
    scaler = loss_scaler_of(engine)
    if scaler is not None:
        scaler.restore(scalars)
    publish(engine)


@torch.no_grad()
def publish(engine: Any) -> None:
    """Make the weights that every rank computes with equal to the masters, after these were written to.

    Every rank must call it together.
    """
    stage, zero = engine.zero_optimization_stage(), engine.optimizer
    if stage in (1, 2):
        zero.update_lp_params()
    elif stage == 3:
        # As DeepSpeed does around a step: what is gathered is old, and small parameters stay gathered all the time.
        zero._partition_all_parameters()
        for group in range(len(zero.fp16_groups)):
            zero._reassign_or_swap_out_partitioned_parameters(group)
        if zero.persistent_parameters:
            zero.persistent_parameters[0].all_gather(zero.persistent_parameters)


@torch.no_grad()
def live_weights(engine: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every parameter's name and whole fp32 value on the CPU, one after the other.

    Every rank must take them together.
    """
    divided = engine.zero_optimization_stage() == 3
    for name, parameter in engine.module.named_parameters():
        if not divided:
            yield name, parameter.detach().float().cpu().clone()
            continue
        # Not DeepSpeed's own gathering, which goes through bfloat16 under autocast.
        part = parameter.ds_tensor.detach().to(engine.device).reshape(-1).contiguous()
        whole = part.new_empty(part.numel() * torch.distributed.get_world_size())
        torch.distributed.all_gather_into_tensor(whole, part)
        yield name, whole[: parameter.ds_numel].view(parameter.ds_shape).float().cpu().clone()


@dataclass(frozen=True)
class _Place:
    """Where a fragment lies: at `offset` in `flat`, which the optimizer takes for one parameter; None is frozen."""

    name: str
    shape: tuple[int, ...]
    start: int
    weight: torch.Tensor
    shared: bool
    flat: torch.Tensor | None
    offset: int = 0

    def state(self, engine: Any) -> dict[str, torch.Tensor]:
        if self.flat is None:
            return {}
        return {
            kind: value.detach().view(-1).narrow(0, self.offset, self.weight.numel())
            for kind, value in _torch_optimizer(engine).state[self.flat].items()
            if _per_weight(kind, value, self.flat)
        }


def _places(engine: Any) -> list[_Place]:
    stage = engine.zero_optimization_stage()
    found = [
        _PLACE_OF[stage](engine.optimizer, name, parameter) for name, parameter in engine.module.named_parameters()
    ]
    return [place for place in found if place is not None and place.weight.numel()]


def _whole(_: Any, name: str, parameter: torch.Tensor) -> _Place:
    """Return the place of a parameter that every rank holds."""
    flat = parameter if parameter.requires_grad else None
    return _Place(name, tuple(parameter.shape), 0, parameter.detach().view(-1), True, flat)


def _in_a_flat_group(zero: Any, name: str, parameter: Any) -> _Place | None:
    """Return the place under stages 1 and 2, or None where all of the parameter lies on other ranks."""
    if not parameter.requires_grad:
        return _whole(zero, name, parameter)
    mapping = parameter._hp_mapping
    if mapping is None:
        return None
    flat = zero.single_partition_of_fp32_groups[mapping.param_group_index]
    begin, length = mapping.hp_fragment_address.start, mapping.hp_fragment_address.numel
    weight = flat.detach().narrow(0, begin, length)
    return _Place(name, tuple(parameter.shape), mapping.lp_fragment_address.start, weight, False, flat, begin)


def _divided(zero: Any, name: str, parameter: Any) -> _Place:
    """Return the place under stage 3; a last part may be shorter than the others or empty."""
    part = parameter.ds_tensor.ds_numel
    start = torch.distributed.get_rank() * part
    length = max(0, min(part, parameter.ds_numel - start))
    shape = tuple(parameter.ds_shape)
    if not parameter.requires_grad:
        return _Place(name, shape, start, parameter.ds_tensor.detach().view(-1).narrow(0, 0, length), False, None)
    group, begin, _ = zero.grad_position[zero.get_param_id(parameter)]
    flat = zero.fp32_partitioned_groups_flat[group]
    return _Place(name, shape, start, flat.detach().narrow(0, begin, length), False, flat, begin)


_PLACE_OF: dict[int, Callable[[Any, str, Any], _Place | None]] = {
    0: _whole,
    1: _in_a_flat_group,
    2: _in_a_flat_group,
    3: _divided,
}


def _torch_optimizer(engine: Any) -> torch.optim.Optimizer:
    """Return our own optimizer, which DeepSpeed wraps from stage 1 on."""
    optimizer: torch.optim.Optimizer = (
        engine.optimizer if engine.zero_optimization_stage() == 0 else (engine.optimizer.optimizer)
    )
    return optimizer


def _flats(engine: Any) -> list[torch.Tensor]:
    """Return what the optimizer takes for its parameters."""
    stage, optimizer = engine.zero_optimization_stage(), engine.optimizer
    if stage == 0:
        return [parameter for group in optimizer.param_groups for parameter in group["params"]]
    flats: list[torch.Tensor] = (
        optimizer.fp32_partitioned_groups_flat if stage == 3 else optimizer.single_partition_of_fp32_groups
    )
    return flats


def _per_weight(kind: str, value: Any, parameter: torch.Tensor) -> bool:
    return kind != STEP and isinstance(value, torch.Tensor) and value.shape == parameter.shape


def _make_state(engine: Any) -> None:
    """Give every parameter the state that it would have from the optimizer's first step on, in zeros."""
    optimizer = _torch_optimizer(engine)
    stateless = [flat for flat in _flats(engine) if not optimizer.state.get(flat)]
    if not stateless:
        return
    example, group = _first_state(optimizer, stateless[0])
    for flat in stateless:
        state = {}
        for kind, value in example.items():
            if not isinstance(value, torch.Tensor):
                state[kind] = value
            elif value.shape == _EXAMPLE_SHAPE and kind != STEP:
                state[kind] = torch.zeros_like(flat, requires_grad=False)
            else:
                state[kind] = value.clone()
        if STEP in state:
            _set_step(state, 0.0)
        optimizer.state[flat] = state
    if STEP in group:
        for other in optimizer.param_groups:
            if STEP not in other:
                other[STEP] = copy.deepcopy(group[STEP])
                _set_step(other, 0.0)


_EXAMPLE_SHAPE = (2, 3)


def _first_state(optimizer: torch.optim.Optimizer, like: torch.Tensor) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return state and group of a parameter beside the model's that has made one step.

    So the optimizer itself says what it keeps, of which type and on which device.
    """
    example = torch.nn.Parameter(torch.zeros(_EXAMPLE_SHAPE, device=like.device))
    example.grad = torch.zeros_like(example)
    group = {key: copy.deepcopy(value) for key, value in optimizer.param_groups[0].items() if key != "params"}
    group["params"] = [example]
    groups, state = optimizer.param_groups, optimizer.state
    optimizer.param_groups, optimizer.state = [group], defaultdict(dict)
    try:
        optimizer.step()
        return dict(optimizer.state[example]), group
    finally:
        optimizer.param_groups, optimizer.state = groups, state


def _set_step(counting: dict[str, Any], step: float) -> None:
    if isinstance(counting[STEP], torch.Tensor):
        counting[STEP].fill_(step)
    else:
        counting[STEP] = type(counting[STEP])(step)
