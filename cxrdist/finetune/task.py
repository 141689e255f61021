"""Model and loss of a fine-tuning.  Shapes: B images, K findings."""

from typing import Any, Self

import torch
from torch import nn

from cxrdist.data.loader import Batch
from cxrdist.finetune.config import ProtocolConfig
from cxrdist.finetune.mixup import mixup
from cxrdist.finetune.protocols import set_phase, still_backbone
from cxrdist.models.build import RadiographModel
from cxrdist.train.losses import MultiLabelLoss

FULL = ProtocolConfig()


class FinetuneTask(nn.Module):
    """A model with its loss, and what of it is trained when."""

    head_only = False
    """Whether ``head_then_full`` is in its first phase."""

    def __init__(
        self,
        model: RadiographModel,
        *,
        loss: MultiLabelLoss,
        protocol: ProtocolConfig = FULL,
        mixup_alpha: float = 0.0,
    ) -> None:
        """Wrap `model`, to which `begin_protocol` has been applied; `mixup_alpha` 0 mixes nothing."""
        super().__init__()
        self.model = model
        self.loss = loss
        self.protocol = protocol
        self.head_first = protocol.name == "head_then_full"
        self.mixup_alpha = mixup_alpha

    def train(self, mode: bool = True) -> Self:
        """Go into training mode, the parts that are not trained excepted."""
        super().train(mode)
        if mode:
            still_backbone(self.model.net, self.protocol, head_only=self.head_only)
        return self

    def at_step(self, step: int, steps: int, optimizer: Any) -> None:
        """Make ready for optimizer step `step` of `steps`; the loop calls it before each."""
        if self.head_first:
            set_phase(self, optimizer, step, steps)

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Return ``{"loss"}``, a scalar, and ``{"logits"}``, (B, K)."""
        images_B1SS, targets_BK = batch["image"], batch["target"]
        if self.training and self.mixup_alpha:
            images_B1SS, targets_BK = mixup(images_B1SS, targets_BK, batch["seed"], self.mixup_alpha)
        logits_BK = self.model(images_B1SS).float()
        return {"loss": self.loss(logits_BK, targets_BK), "logits": logits_BK}
