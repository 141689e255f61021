"""BYOL (Grill et al. 2020, "Bootstrap Your Own Latent").

Shapes: B images of this rank, E width of the embedding.
"""

import torch
from lightly.models.modules.heads import BYOLPredictionHead, BYOLProjectionHead
from torch import nn

from cxrdist.data.loader import Batch
from cxrdist.models.build import RadiographModel
from cxrdist.pretrain.batchnorm import join_batch_norm
from cxrdist.pretrain.methods import ByolConfig
from cxrdist.pretrain.paired import TaughtTask, direction
from cxrdist.pretrain.task import embedding_width
from cxrdist.pretrain.teacher import half_cosine


class ByolTask(TaughtTask):
    """Predict the teacher's (target network's) embedding of the other crop."""

    def __init__(self, model: RadiographModel, config: ByolConfig, *, fresh: bool) -> None:
        """Put heads on `model`."""
        hidden, width = config.hidden_width, config.width

        def build_head() -> nn.Module:
            return BYOLProjectionHead(embedding_width(model), hidden, width)

        super().__init__(model, build_head)
        self.predict = BYOLPredictionHead(width, hidden, width)
        join_batch_norm(self.predict)
        self.config = config

    def loss(self, batch: Batch) -> torch.Tensor:
        """Return the loss in both directions (section 3.1); each crop is normalised with its like."""
        first, second = batch["image"].unbind(1)
        predictions = self.predict(self.embed(first)), self.predict(self.embed(second))
        targets = self.target(first), self.target(second)
        return distance(predictions[0], targets[1]) + distance(predictions[1], targets[0])

    def momentum(self, step: int, steps: int) -> float:
        """Return the momentum, which rises to 1 by a half cosine (section 3.3)."""
        return half_cosine(self.config.momentum, 1.0, step, steps)


def distance(predictions_BE: torch.Tensor, targets_BE: torch.Tensor) -> torch.Tensor:
    """Return the mean squared distance of the directions (equation 2), in [0, 4]."""
    return (direction(predictions_BE) - direction(targets_BE)).square().sum(dim=1).mean()
