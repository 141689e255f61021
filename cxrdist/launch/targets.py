"""Every launcher by its name."""

from collections.abc import Callable
from dataclasses import dataclass

from cxrdist.launch.autoscaler import render_ray_aws, render_ray_gcp, render_ray_local
from cxrdist.launch.hostfile import render_hostfile
from cxrdist.launch.kuberay import render_raycluster, render_rayjob
from cxrdist.launch.request import Kind, Request
from cxrdist.launch.slurm import render_slurm, render_slurm_ray, render_slurm_torchrun
from cxrdist.launch.torchrun import render_torchrun

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
    "slurm": Target(
        render_slurm, ALL, ("setup", "time", "sbatch"), "sbatch: srun for a training, Ray for a study or a sweep"
    ),
    "slurm-torchrun": Target(
        render_slurm_torchrun, TRAININGS, ("setup", "time", "sbatch"), "sbatch: torchrun on each node"
    ),
    "slurm-ray": Target(render_slurm_ray, ALL, ("setup", "time", "sbatch"), "sbatch: a Ray cluster for one job"),
    "hostfile": Target(render_hostfile, TRAININGS, ("setup", "hosts"), "DeepSpeed over ssh, from one of the machines"),
    "torchrun": Target(render_torchrun, TRAININGS, ("setup", "hosts"), "torchrun, typed on each machine"),
    "ray-local": Target(
        render_ray_local, ALL, ("setup", "hosts", "ssh_user", "ssh_key"), "`ray up` on machines of your own"
    ),
    "ray-aws": Target(
        render_ray_aws, ALL, ("setup", "instance", "region", "image", "mount", "nfs", "ssh_user"), "`ray up` on AWS"
    ),
    "ray-gcp": Target(
        render_ray_gcp,
        ALL,
        ("setup", "instance", "region", "project", "image", "mount", "nfs", "ssh_user"),
        "`ray up` on Google Cloud",
    ),
    "rayjob": Target(
        render_rayjob,
        ALL,
        ("image", "claim", "mount", "queue", "time"),
        "a job on Kubernetes with a cluster of its own",
    ),
    "raycluster": Target(
        render_raycluster, ALL, ("image", "claim", "mount", "queue"), "a cluster on Kubernetes that stays"
    ),
}
