"""Whether a trial fits on the cluster, and with how many workers."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from cxrdist.errors import UserError
from cxrdist.study.resources import Resources, TrialResources

LOOK_EVERY_S = 1.0
"""How old the list of machines may be: it is asked for many times a second."""


class Room:
    """The machines of the connected cluster."""

    def __init__(self) -> None:
        self._machines: list[Mapping[str, float]] = []
        self._looked = -LOOK_EVERY_S

    def workers(self, resources: TrialResources) -> int:
        """Return how many workers of one trial the cluster has room for when nothing else runs, at most all of them."""
        if time.monotonic() - self._looked >= LOOK_EVERY_S:
            self._machines, self._looked = alive(), time.monotonic()
        return min(resources.workers, sum(places(machine, resources) for machine in self._machines))

    def refusal(self, resources: TrialResources) -> str:
        """Return the sentence for a trial that does not fit."""
        return no_room(resources, self._machines)


def alive() -> list[Mapping[str, float]]:
    """Return what each living machine of the connected cluster has, used or not."""
    import ray  # noqa: PLC0415

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def check_room(resources: Resources, trials: Sequence[TrialResources]) -> None:
    """Make sure that one trial at least fits on the connected cluster: Ray would wait for ever, and say nothing.

    Raises:
        UserError: If none does.
    """
    room = Room()
    if not resources.autoscaling and all(room.workers(one) < one.fewest for one in trials):
        raise UserError(room.refusal(trials[0]))


WAY_OUT = "Lower `resources` in the study, or set `resources.autoscaling` if the cluster grows on demand."


def no_room(
    resources: TrialResources,
    machines: Sequence[Mapping[str, Any]],
    *,
    subject: str = "A trial",
    way_out: str = WAY_OUT,
) -> str:
    """Return the sentence for a trial, or another `subject`, that does not fit on `machines`."""
    has = ", ".join(f"{one.get('CPU', 0):g} CPUs and {one.get('GPU', 0):g} GPUs" for one in machines[:4])
    return (
        f"{subject} must fit on the cluster, got {resources.fewest} workers of {resources.cpus_per_worker:g} CPUs "
        f"and {resources.gpus_per_worker:g} GPUs for {len(machines)} machine{'s' * (len(machines) != 1)} ({has}). "
        f"{way_out}"
    )


def places(machine: Mapping[str, float], resources: TrialResources) -> int:
    """Return for how many workers at once a machine of so many ``CPU`` and ``GPU`` has room."""
    amounts = {"CPU": resources.cpus_per_worker, "GPU": resources.gpus_per_worker}
    # 0.3 / 0.1 is below 3
    return int(1e-6 + min(machine.get(kind, 0.0) / amount for kind, amount in amounts.items() if amount))
