"""The machine that a measurement was made on, as far as the processor goes."""

import os
import platform
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any


def describe_processor(libraries: Iterable[str]) -> dict[str, Any]:
    """Return versions of Python and `libraries`, processor, cores, and how busy they were: ratios are noisy then."""
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in libraries},
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
