"""Whether a trial fits on the cluster at all."""

from collections.abc import Mapping

from cxrdist.errors import UserError
from cxrdist.study.config import Resources


def check_room(resources: Resources) -> None:
    """Make sure that one trial fits on the connected cluster: Ray would wait for ever, and say nothing.

    Raises:
        UserError: If it does not fit.
    """
    import ray  # noqa: PLC0415

    if resources.autoscaling:
        return
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if sum(places(machine, resources) for machine in machines) < resources.workers:
        has = ", ".join(f"{one.get('CPU', 0):g} CPUs and {one.get('GPU', 0):g} GPUs" for one in machines[:4])
        raise UserError(
            f"A trial must fit on the cluster, got {resources.workers} workers of {resources.cpus_per_worker:g} CPUs "
            f"and {resources.gpus_per_worker:g} GPUs for {len(machines)} machine{'s' * (len(machines) != 1)} ({has}). "
            "Lower `resources` in the study, or set `resources.autoscaling` if the cluster grows on demand."
        )


def places(machine: Mapping[str, float], resources: Resources) -> int:
    """Return for how many workers at once a machine of so many ``CPU`` and ``GPU`` has room."""
    amounts = {"CPU": resources.cpus_per_worker, "GPU": resources.gpus_per_worker}
    # 0.3 / 0.1 is below 3
    return int(1e-6 + min(machine.get(kind, 0.0) / amount for kind, amount in amounts.items() if amount))
