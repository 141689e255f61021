"""What a run trains, before it is built."""

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import nn


class BuildTask(Protocol):
    """Makes a task (``task(batch)["loss"]``) with its initial weights, the same at every call."""

    def __call__(self, *, told: bool = False, loaded: bool = True) -> nn.Module:
        """Return the task.

        Args:
            told: Whether what a user should know of its weights is logged.
            loaded: Whether its initial weights are read; without them it has the same shapes.
        """


MakeBatch = Callable[[int], Mapping[str, torch.Tensor]]
"""From a number of images to a batch of real shapes and types; its values do not matter."""
