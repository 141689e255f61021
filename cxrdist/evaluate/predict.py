"""Predictions over a split, each sample exactly once.  Shapes: N samples, K findings, B batch."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch

from cxrdist.data.loader import Batch, EvaluationImages, evaluation_batches, on_device
from cxrdist.models.precision import AUTOCAST
from cxrdist.stats.auroc import auroc
from cxrdist.world import World

ALONE = World()

Gather = Callable[[Any], list[Any]]
"""From this rank's piece to the pieces of all ranks, by rank."""


def alone(piece: Any) -> list[Any]:
    """Gather in a world of one."""
    return [piece]


@torch.no_grad()
def predict_logits(
    forward: Callable[[Batch], torch.Tensor],
    images: EvaluationImages,
    *,
    batch_size: int,
    device: torch.device,
    world: World = ALONE,
    gather: Gather = alone,
    precision: str = "fp32",
    before_each: Callable[[], object] = lambda: None,
) -> np.ndarray:
    """Return logits (N, K) float32 of every sample, on every rank, in the order of the samples.

    `forward` goes from a batch on `device` to logits (B, K); every rank calls it equally often.  With a `precision` of
    bf16 or fp16 it computes in autocast.  What `before_each` raises, before a batch, ends the prediction.
    """
    autocast = nullcontext() if precision == "fp32" else torch.autocast(device.type, AUTOCAST[precision])
    samples: list[np.ndarray] = []
    logits: list[np.ndarray] = []
    for batch in evaluation_batches(images, batch_size, world):
        before_each()
        with autocast:
            output = forward(on_device(batch, device))
        if "padding" in batch:
            continue
        samples.append(batch["sample"].numpy())
        logits.append(output.float().cpu().numpy())
    piece = (np.concatenate(samples), np.concatenate(logits)) if samples else None
    pieces = [part for part in gather(piece) if part is not None]
    result = np.empty((len(images), pieces[0][1].shape[1]), np.float32)
    for rows, values in pieces:
        result[rows] = values
    return result


def validation_values(logits: np.ndarray, targets: np.ndarray, findings: Sequence[str]) -> dict[str, Any]:
    """Return loss, AUROC per finding and their mean over the findings with both values; NaN targets are masked.

    Without any such finding the mean is None, as an AUROC that is not defined is.
    """
    known = ~np.isnan(targets)
    signed = np.where(targets > 0, -logits, logits)
    loss = float(np.logaddexp(0, signed.astype(np.float64))[known].mean())
    areas = {
        name: auroc(targets[known[:, k], k], logits[known[:, k], k].astype(np.float64))
        for k, name in enumerate(findings)
    }
    defined = [area for area in areas.values() if not np.isnan(area)]
    return {
        "loss": loss,
        "auroc_macro": float(np.mean(defined)) if defined else None,
        "auroc": {name: None if np.isnan(area) else float(area) for name, area in areas.items()},
    }


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Return probabilities, float64, without overflow."""
    return np.asarray(np.exp(-np.logaddexp(0, -logits.astype(np.float64))))
