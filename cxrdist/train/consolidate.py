"""A whole model out of a checkpoint that many ranks wrote, and its comparison with the model that was trained."""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import nn

from cxrdist.errors import UserError
from cxrdist.models.bits import same_bits
from cxrdist.train.fragments import WEIGHT, live_weights

BUFFER = "buffer"
"""The kind of a model's saved buffers."""


class WholeTensors(Protocol):
    """What is read of a checkpoint: see `cxrdist.train.pieces.Reader`."""

    def names(self, kind: str) -> list[str]:
        """Return the names that have a tensor of `kind`."""

    def full(self, name: str, kind: str) -> torch.Tensor:
        """Return a whole tensor, in its shape."""


def consolidate(reader: WholeTensors, kind: str = WEIGHT) -> dict[str, torch.Tensor]:
    """Return every parameter, as `WEIGHT` or as the running mean's kind, and every saved buffer, by name.

    A frozen parameter has no running mean beside its weight, and is its weight under either kind.
    """
    moving = set(reader.names(kind))
    return {name: reader.full(name, kind if name in moving else WEIGHT) for name in reader.names(WEIGHT)} | {
        name: reader.full(name, BUFFER) for name in reader.names(BUFFER)
    }


@torch.no_grad()
def fill(task: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write `tensors` into the parameters and saved buffers of `task`, a whole one outside the engine.

    A module that the task knows by two names has one, as in `task.named_parameters()`; `load_state_dict` asks for
    both.

    Raises:
        UserError: If names or shapes are not the task's.
    """
    own = {**dict(task.named_parameters()), **saved_buffers(task)}
    wrong = sorted(own.keys() ^ tensors.keys()) or [
        name for name in own if tuple(own[name].shape) != tuple(tensors[name].shape)
    ]
    if wrong:
        raise UserError(
            f"A checkpoint must hold the tensors of the model, got a difference in {', '.join(wrong[:3])}"
            f"{' ...' if len(wrong) > 3 else ''}. Is it a checkpoint of another model?"
        )
    for name, tensor in own.items():
        tensor.copy_(tensors[name])


def saved_buffers(task: nn.Module) -> dict[str, torch.Tensor]:
    """Return the buffers of `task` that its state has, by name; the others are constants."""
    saved = task.state_dict(keep_vars=True)
    return {name: buffer for name, buffer in task.named_buffers() if name in saved}


def compare_with_live(engine: Any, tensors: Mapping[str, torch.Tensor] | None) -> list[str]:
    """Return the names whose tensor is not, bit by bit, the one that `engine` computes with.

    Every rank must call it together, and one whole parameter at a time is gathered; a rank with None for `tensors`
    takes part and finds nothing.  A name that either side lacks differs.
    """
    different: list[str] = []
    live: set[str] = set()
    for name, weight in live_weights(engine):
        live.add(name)
        if tensors is not None and not same_bits(weight, tensors.get(name)):
            different.append(name)
    if tensors is None:
        return []
    for name, buffer in saved_buffers(engine.module).items():
        live.add(name)
        if not same_bits(buffer.cpu(), tensors.get(name)):
            different.append(name)
    return different + sorted(tensors.keys() - live)
