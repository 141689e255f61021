"""Model and loss of a fine-tuning.  Shapes: B images, K findings."""

import numpy as np
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from cxrdist.data.loader import Batch
from cxrdist.models.build import RadiographModel


class FinetuneTask(nn.Module):
    """Masked multi-label binary cross-entropy."""

    pos_weight: torch.Tensor

    def __init__(self, model: RadiographModel, *, pos_weight: np.ndarray, known_share: float) -> None:
        """Wrap `model`; `pos_weight` has shape (K,), `known_share` is the share of training targets not masked."""
        super().__init__()
        self.model = model
        self.known_share = known_share
        self.register_buffer("pos_weight", torch.from_numpy(pos_weight.astype(np.float32)), persistent=False)

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Return ``{"loss"}``, a scalar, and ``{"logits"}``, (B, K).

        The sum over known targets is divided by B K times the share known in the whole training set, not by the number
        known in this batch: so the mean over ranks and micro-batches is the loss of the global batch, however divided.
        """
        logits_BK = self.model(batch["image"]).float()
        known_BK = ~torch.isnan(batch["target"])
        losses_BK = binary_cross_entropy_with_logits(
            logits_BK, torch.nan_to_num(batch["target"]), pos_weight=self.pos_weight, reduction="none"
        )
        loss = (losses_BK * known_BK).sum() / (known_BK.numel() * self.known_share)
        return {"loss": loss, "logits": logits_BK}


def balanced_weights(targets: np.ndarray) -> np.ndarray:
    """Return negatives / positives per finding, shape (K,), over known targets (N, K); 1 where there is no positive."""
    positives = (targets == 1).sum(axis=0)
    negatives = (targets == 0).sum(axis=0)
    return np.where(positives > 0, negatives / np.maximum(positives, 1), 1.0)
