"""Whether a trial fits on the cluster at all."""

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
    places = 0
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for machine in machines:
        places += int(
            1e-6  # 0.3 / 0.1 is below 3
            + min(
                machine.get(kind, 0.0) / amount
                for kind, amount in (("CPU", resources.cpus_per_worker), ("GPU", resources.gpus_per_worker))
                if amount
            )
        )
    if places < resources.workers:
        has = ", ".join(f"{one.get('CPU', 0):g} CPUs and {one.get('GPU', 0):g} GPUs" for one in machines[:4])
        raise UserError(
            f"A trial must fit on the cluster, got {resources.workers} workers of {resources.cpus_per_worker:g} CPUs "
            f"and {resources.gpus_per_worker:g} GPUs for {len(machines)} machine{'s' * (len(machines) != 1)} ({has}). "
            "Lower `resources` in the study, or set `resources.autoscaling` if the cluster grows on demand."
        )
