"""The machine that a measurement was made on, and the most that its matrix unit gives."""

import statistics
import time
from typing import Any

import torch

from cxrdist.bench.processor import describe_processor

LIBRARIES = ("torch", "timm", "deepspeed")
GPU_SIDE, CPU_SIDE = 8192, 2048
"""Sides of the squares multiplied; large enough that nothing but the multiplication takes time."""
RATE_S = 1.0
"""For how long the rate is measured, seconds."""


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Return versions, processor, threads, device, and how busy the machine was: ratios on a busy one are noisy."""
    facts = describe_processor(LIBRARIES) | {"threads": torch.get_num_threads(), "device": device.type}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {
            "device": properties.name,
            "device_memory_gib": round(properties.total_memory / 2**30, 1),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "tf32": torch.get_float32_matmul_precision() != "highest",
        }
    return facts


def matmul_rate(device: torch.device, dtype: torch.dtype, *, side: int | None = None) -> float:
    """Return the measured rate of a square matrix product, FLOP/s: the median over about a second.

    A device's data sheet names a rate that its power does not allow for long; this is what a model could reach.
    """
    side = side or (GPU_SIDE if device.type == "cuda" else CPU_SIDE)
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    for _ in range(2):
        left @ right
    times: list[float] = []
    synchronise(device)
    until = time.perf_counter() + RATE_S
    while time.perf_counter() < until or len(times) < 3:
        started = time.perf_counter()
        left @ right
        synchronise(device)
        times.append(time.perf_counter() - started)
    return 2 * side**3 / statistics.median(times)


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was given; a CPU has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
