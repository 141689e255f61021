"""Weights that something else than the optimizer moves, such as a teacher's, under every ZeRO stage.

Up to stage 2 every rank has all weights, and a parameter is the tensor itself.  Under stage 3 a rank keeps a part of
each, and small parameters lie gathered on every rank between the steps: what is gathered is a copy.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch


def own_parts(parameters: Iterable[torch.nn.Parameter]) -> list[torch.Tensor]:
    """Return what this rank keeps of each of `parameters`, live; parameters of one shape are divided alike.

    After they were written to, `gather_again` makes them what the ranks compute with.
    """
    return [getattr(parameter, "ds_tensor", parameter).detach() for parameter in parameters]


def gather_again(parameters: Sequence[torch.nn.Parameter]) -> None:
    """Replace what lies gathered of `parameters` by what their parts are now; all ranks must call it together."""
    divided: list[Any] = [one for one in parameters if hasattr(one, "ds_tensor")]
    # Which are gathered is the same on all ranks: those that are smaller than a limit, from one step to the next.
    gathered = [one for one in divided if one.ds_status.name == "AVAILABLE"]
    if gathered:
        gathered[0].partition(gathered)  # drops the copies
        gathered[0].all_gather(gathered)
