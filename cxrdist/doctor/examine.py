"""All that is looked at on one machine."""

from collections.abc import Iterator

from cxrdist.doctor import folders, machine, network, programs
from cxrdist.doctor.apart import look_apart
from cxrdist.doctor.finding import Finding, look

PROBES = {**machine.PROBES, **folders.PROBES, **network.PROBES, **programs.PROBES}
"""What this process looks at itself."""
APART = ("torch", "GPUs", "deepspeed", "timm", "ray", "other libraries", "DICOM decoders", "weights")
"""Probes of `libraries`, which this process does not load."""


def examine_machine() -> Iterator[Finding]:
    """Yield what is found about this machine, as it is found; some 15 s, most of it spent loading libraries."""
    for name, probe in PROBES.items():
        yield from look(name, probe)
    yield from look_apart(APART)
