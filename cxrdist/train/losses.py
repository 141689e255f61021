"""Losses over many findings at once, each known or masked.  Shapes: B images, K findings.

All are of one form, ``y * positive(z) + (1 - y) * negative(z)`` of a logit z and a target y: linear in the target, so
that a soft one (a share of readers, mixup, smoothing) is the same mean of the losses of yes and no.
"""

import numpy as np
import torch
from torch import nn
from torch.nn.functional import logsigmoid, softplus

from cxrdist.train.loss_config import LossConfig

TINY = 1e-8
"""Smallest base of a power: at 0 the derivative of a power below 1 is infinite."""


SMALLEST_MARGIN = 1e-6
"""Below it float32 takes a probability of nearly 1 less the margin for 1, whose loss is infinite."""


class MultiLabelLoss(nn.Module):
    """The loss of one training: a scalar from logits (B, K) and targets (B, K) in [0, 1], NaN masked."""

    pos_weight: torch.Tensor

    def __init__(self, config: LossConfig, *, pos_weight: np.ndarray, known_share: float) -> None:
        """Fix the weights of positives (K,) and the share of training targets that is not masked."""
        super().__init__()
        self.config = config
        self.known_share = known_share
        self.register_buffer("pos_weight", torch.from_numpy(pos_weight.astype(np.float32)), persistent=False)

    def forward(self, logits_BK: torch.Tensor, targets_BK: torch.Tensor) -> torch.Tensor:
        """Return the loss, a scalar.

        The sum over known targets is divided by B K times the share known in the whole training set, not by the number
        known in this batch: so the mean over ranks and micro-batches is the loss of the global batch, however divided.
        """
        known_BK = ~torch.isnan(targets_BK)
        losses_BK = multilabel_losses(self.config, logits_BK, targets_BK, self.pos_weight)
        return (losses_BK * known_BK).sum() / (known_BK.numel() * self.known_share)


def multilabel_losses(
    config: LossConfig,
    logits_BK: torch.Tensor,
    targets_BK: torch.Tensor,
    pos_weight_K: torch.Tensor,
) -> torch.Tensor:
    """Return the loss of each logit, float32 (B, K); what stands at a masked target (NaN) is finite and meaningless."""
    logits = logits_BK.float()
    targets = torch.nan_to_num(targets_BK) * (1 - config.label_smoothing) + config.label_smoothing / 2
    if config.name == "asymmetric":
        positive = focused(logits, config.gamma_positive)
        negative = shifted(logits, config.gamma_negative, config.margin)
    else:
        gamma = config.gamma if config.name == "focal" else 0.0
        positive, negative = focused(logits, gamma), focused(-logits, gamma)
    return pos_weight_K * targets * positive + (1 - targets) * negative


def focused(logits: torch.Tensor, gamma: float) -> torch.Tensor:
    """Return ``(1 - p)^gamma * -log(p)`` of p = sigmoid(logits), without overflow; plain cross-entropy at gamma 0."""
    loss = softplus(-logits)
    return loss * (gamma * logsigmoid(-logits)).exp() if gamma else loss


def shifted(logits: torch.Tensor, gamma: float, margin: float) -> torch.Tensor:
    """Return ``p_m^gamma * -log(1 - p_m)`` with ``p_m = max(sigmoid(logits) - margin, 0)`` (Ridnik et al., eq. 5)."""
    if margin < SMALLEST_MARGIN:
        return focused(-logits, gamma)
    p = (torch.sigmoid(logits) - margin).clamp(min=0)
    return p.clamp(min=TINY) ** gamma * -torch.log1p(-p)


def balanced_weights(targets: np.ndarray) -> np.ndarray:
    """Return negatives / positives per finding, shape (K,), over known targets (N, K); 1 where there is no positive."""
    positives = (targets == 1).sum(axis=0)
    negatives = (targets == 0).sum(axis=0)
    return np.where(positives > 0, negatives / np.maximum(positives, 1), 1.0)
