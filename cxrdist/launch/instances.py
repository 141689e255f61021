"""What the GPU machines of AWS and Google Cloud have, as their documentation says; others are taken as they are.

AWS: https://docs.aws.amazon.com/ec2/latest/instancetypes/ac.html
Google Cloud: https://cloud.google.com/compute/docs/accelerator-optimized-machines
"""

import re
from dataclasses import dataclass

_ONE_FOUR_EIGHT = {1: 1, 2: 1, 4: 1, 8: 1, 16: 1, 12: 4, 24: 4, 48: 8}
AWS_GPUS: dict[str, dict[int, int]] = {
    "g4dn": {1: 1, 2: 1, 4: 1, 8: 1, 16: 1, 12: 4},
    "g5": _ONE_FOUR_EIGHT,
    "g6": _ONE_FOUR_EIGHT,
    "g6e": _ONE_FOUR_EIGHT,
    "p3": {2: 1, 8: 4, 16: 8},
    "p3dn": {24: 8},
    "p4d": {24: 8},
    "p4de": {24: 8},
    "p5": {4: 1, 48: 8},
    "p5e": {48: 8},
    "p5en": {48: 8},
    "p6-b200": {48: 8},
}
"""Family -> the number before ``xlarge`` -> GPUs."""
AWS_CPUS_PER_SIZE = 4
"""A machine of these families has four CPUs per ``xlarge``."""
GCP_CPUS: dict[str, dict[int, int]] = {
    "a2-highgpu": {1: 12, 2: 24, 4: 48, 8: 96},
    "a2-megagpu": {16: 96},
    "a2-ultragpu": {1: 12, 2: 24, 4: 48, 8: 96},
    "a3-highgpu": {1: 26, 2: 52, 4: 104, 8: 208},
    "a3-megagpu": {8: 208},
    "a3-ultragpu": {8: 224},
    "a4-highgpu": {8: 224},
}
"""Family -> GPUs, which the name ends with -> CPUs."""
G2_GPUS = {4: 1, 8: 1, 12: 1, 16: 1, 32: 1, 24: 2, 48: 4, 96: 8}
"""CPUs of a ``g2-standard`` machine -> GPUs."""

AWS_DEFAULT = {1: "g5.8xlarge", 4: "g5.12xlarge", 8: "p4d.24xlarge"}
GCP_DEFAULT = {1: "a2-highgpu-1g", 2: "a2-highgpu-2g", 4: "a2-highgpu-4g", 8: "a2-highgpu-8g", 16: "a2-megagpu-16g"}
"""GPUs -> the machine that is taken where none is named."""


@dataclass(frozen=True)
class Machine:
    """What one machine has."""

    cpus: int
    gpus: int


def aws_machine(name: str) -> Machine | None:
    """Return what an instance type of AWS has; None: not known here."""
    found = re.fullmatch(r"([a-z0-9-]+)\.(\d*)xlarge", name)
    if found is None:
        return None
    size = int(found[2] or 1)
    gpus = AWS_GPUS.get(found[1], {}).get(size)
    return None if gpus is None else Machine(AWS_CPUS_PER_SIZE * size, gpus)


def gcp_machine(name: str) -> Machine | None:
    """Return what a machine type of Google Cloud has; None: not known here."""
    if found := re.fullmatch(r"g2-standard-(\d+)", name):
        gpus = G2_GPUS.get(int(found[1]))
        return None if gpus is None else Machine(int(found[1]), gpus)
    found = re.fullmatch(r"([a-z0-9-]+)-(\d+)g", name)
    if found is None:
        return None
    cpus = GCP_CPUS.get(found[1], {}).get(int(found[2]))
    return None if cpus is None else Machine(cpus, int(found[2]))
