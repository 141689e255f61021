"""How fast a run goes and what of the hardware it uses, between two lines of the log."""

import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed

from cxrdist.train.config import Precision

GIB = 2**30


class Peak(NamedTuple):
    """Dense matrix rate of one device, TFLOP/s, products of the type summed in fp32; None where it has no such unit."""

    bf16: float | None
    fp16: float
    tf32: float | None
    fp32: float


PEAKS: dict[str, Peak] = {
    # Makers' data sheets, without the factor two that they print for sparse matrices.  The first name of which every
    # word stands in the device's is taken, so that "H100 PCIe" comes before "H100".
    "GB200": Peak(2500, 2500, 1250, 80),
    "B200": Peak(2250, 2250, 1100, 75),
    "H200 NVL": Peak(835.5, 835.5, 417.5, 60),
    "H200": Peak(989.4, 989.4, 494.7, 66.9),
    "GH200": Peak(989.4, 989.4, 494.7, 66.9),
    "H100 NVL": Peak(835.5, 835.5, 417.5, 60),
    "H100 PCIe": Peak(756, 756, 378, 51),
    "H100": Peak(989.4, 989.4, 494.7, 66.9),
    "H800 PCIe": Peak(756, 756, 378, 51),
    "H800": Peak(989.4, 989.4, 494.7, 66.9),
    "H20": Peak(148, 148, 74, 44),
    "A100": Peak(312, 312, 156, 19.5),
    "A800": Peak(312, 312, 156, 19.5),
    "A30": Peak(165, 165, 82, 10.3),
    "A40": Peak(149.7, 149.7, 74.8, 37.4),
    "A10G": Peak(70, 70, 35, 35),
    "A10": Peak(125, 125, 62.5, 31.2),
    "L40S": Peak(362.05, 362.05, 183, 91.6),
    "L40": Peak(181.05, 181.05, 90.5, 90.5),
    "L4": Peak(121, 121, 60, 30.3),
    "RTX 6000 Ada": Peak(364.2, 364.2, 182.1, 91.1),
    "RTX A6000": Peak(154.8, 154.8, 77.4, 38.7),
    "RTX A5000": Peak(111.1, 111.1, 55.6, 27.8),
    "RTX A4000": Peak(76.7, 76.7, 38.3, 19.2),
    # GeForce sums products of 16 bits in fp32 at half the rate of the chip's professional boards.
    "RTX 5090": Peak(209.5, 209.5, 104.8, 104.8),
    "RTX 4090": Peak(165.2, 165.2, 82.6, 82.6),
    "RTX 3090": Peak(71, 71, 35.6, 35.6),
    "V100S": Peak(None, 130, None, 16.4),
    "V100 PCIE": Peak(None, 112, None, 14),
    "V100": Peak(None, 125, None, 15.7),
    "T4": Peak(None, 65, None, 8.1),
    "MI300X": Peak(1307.4, 1307.4, 653.7, 163.4),
}


def peak_flops(name: str, precision: Precision, *, tf32: bool = False) -> float | None:
    """Return the dense peak of the device called `name`, FLOP/s, or None where it is not known.

    Args:
        name: As `torch.cuda.get_device_name` says it: ``NVIDIA H100 80GB HBM3``.
        precision: Of the matrix products.
        tf32: Whether products of fp32 may be rounded to TF32 (`torch.get_float32_matmul_precision`).
    """
    words = name.lower().replace("-", " ").split()
    if "laptop" in words or "mig" in words:  # slower chips, or a part of one, under the name of the whole
        return None
    for device, peak in PEAKS.items():
        if all(word in words for word in device.lower().split()):
            rate = {"bf16": peak.bf16, "fp16": peak.fp16, "fp32": peak.tf32 if tf32 else peak.fp32}[precision]
            return rate * 1e12 if rate else None
    return None


class Throughput:
    """Seconds and images of the optimizer steps since the last line; validations and checkpoints do not count."""

    def __init__(
        self,
        *,
        global_batch_size: int,
        accumulation: int,
        world_size: int,
        device: torch.device,
        precision: Precision,
        flops_per_image: float | None = None,
    ) -> None:
        """Count steps of `global_batch_size` images; `flops_per_image` is of a forward and a backward pass."""
        self.global_batch_size, self.accumulation, self.world_size = global_batch_size, accumulation, world_size
        self.device = device
        self.flops_per_image = flops_per_image
        self.peak: float | None = None
        if device.type == "cuda":
            tf32 = torch.get_float32_matmul_precision() != "highest"
            self.peak = peak_flops(torch.cuda.get_device_name(device), precision, tf32=tf32)
            # What the choice of a micro-batch tried is none of the run's.
            torch.cuda.reset_peak_memory_stats(device)
        self.busy_s = self.waited_s = 0.0
        self.steps = 0

    @contextmanager
    def step(self) -> Iterator[None]:
        """Count the block as one optimizer step: it ends with reading the loss, so the device has done its work."""
        started = time.monotonic()
        yield
        self.busy_s += time.monotonic() - started
        self.steps += 1

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the block, inside a step, as waiting for data."""
        started = time.monotonic()
        yield
        self.waited_s += time.monotonic() - started

    def values(self) -> dict[str, float]:
        """Return the values of a line, and begin the next.  Every rank calls it together.

        ``samples_per_sec`` images of all ranks; ``data_wait`` share of the time spent waiting for data, of the slowest
        rank; ``micro_step_s`` seconds per micro-batch without that; ``device_peak_gib`` (largest allocation so far)
        and ``host_peak_gib`` (resident) of the largest rank; ``mfu`` share of the devices' peak, where it is known.
        """
        busy = max(self.busy_s, 1e-9)
        device_peak = torch.cuda.max_memory_allocated(self.device) / GIB if self.device.type == "cuda" else 0.0
        wait, device_peak, host_peak = self._largest([self.waited_s / busy, device_peak, host_peak_bytes() / GIB])
        speed = self.steps * self.global_batch_size / busy
        micro_steps = max(1, self.steps * self.accumulation)
        values = {
            "samples_per_sec": round(speed, 2),
            "data_wait": round(wait, 4),
            "micro_step_s": round((busy - self.waited_s) / micro_steps, 6),
            "host_peak_gib": round(host_peak, 3),
        }
        if self.device.type == "cuda":
            values["device_peak_gib"] = round(device_peak, 3)
        if self.peak is not None and self.flops_per_image is not None:
            values["mfu"] = round(speed * self.flops_per_image / (self.world_size * self.peak), 4)
        self.busy_s = self.waited_s = 0.0
        self.steps = 0
        return values

    def _largest(self, numbers: list[float]) -> list[float]:
        # Ranks wait for each other in every step: one slow disk is everyone's, but only its own rank's `data_wait`.
        if self.world_size == 1:
            return numbers
        largest = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(largest, op=torch.distributed.ReduceOp.MAX)
        return [float(number) for number in largest.tolist()]


def host_peak_bytes() -> int:
    """Return the largest resident size of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def note(values: Mapping[str, Any]) -> str:
    """Return the values of a line in a few words, for the progress; what is not known is left out."""
    known = {name: value for name, value in values.items() if value is not None}
    memory = known.get("device_peak_gib", known.get("host_peak_gib"))
    parts = [
        f"loss {known['loss']:.4f}" if "loss" in known else "",
        f"{_three_digits(known['samples_per_sec'])} img/s" if "samples_per_sec" in known else "",
        f"MFU {100 * known['mfu']:.0f} %" if "mfu" in known else "",
        f"wait {100 * known['data_wait']:.0f} %" if "data_wait" in known else "",
        f"grad {known['grad_norm']:.2g}" if "grad_norm" in known else "",
        f"{memory:.1f} GiB" if memory is not None else "",
    ]
    return ", ".join(part for part in parts if part)


def _three_digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
