"""Every launcher by its name."""

from collections.abc import Callable
from dataclasses import dataclass

from cxrdist.launch.request import Kind, Request

TRAININGS: tuple[Kind, ...] = ("train", "pretrain")
ALL: tuple[Kind, ...] = ("train", "pretrain", "study", "sweep")


@dataclass(frozen=True)
class Target:
    """One launcher."""

    render: Callable[[Request], str]
    """Returns the file."""
    kinds: tuple[Kind, ...]
    """What it can launch."""
    options: tuple[str, ...]
    """The fields of a request that it has a use for, besides those that all have."""
    says: str
    """What it is, in a line."""


TARGETS: dict[str, Target] = {
    # In the order of launch/README.md.
}
