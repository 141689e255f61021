"""SwAV (Caron et al. 2020, "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments").

Without the paper's queue of earlier embeddings, which it has for batches smaller than the number of prototypes.

Shapes: B images of this rank, L small crops of each, E width of the embedding, P prototypes.
"""

from typing import Any

import torch
from lightly.models.modules.heads import SwaVProjectionHead

from cxrdist.data.loader import Batch
from cxrdist.models.build import RadiographModel
from cxrdist.pretrain.centering import sinkhorn
from cxrdist.pretrain.dense import check_small_crops
from cxrdist.pretrain.methods import SwavConfig
from cxrdist.pretrain.paired import PairedTask, direction
from cxrdist.pretrain.projection import Prototypes
from cxrdist.pretrain.task import Look, embedding_width


class SwavTask(PairedTask):
    """Predict from each crop the prototypes of each large crop, equally shared among all images of the batch."""

    def __init__(self, model: RadiographModel, config: SwavConfig, *, fresh: bool) -> None:
        """Put the projection head on `model`.

        Raises:
            UsageError: If small crops are no multiple of a transformer's patch.
        """
        check_small_crops(model, config.local_crops)
        super().__init__(model, SwaVProjectionHead(embedding_width(model), config.hidden_width, config.width))
        self.prototypes = Prototypes(config.width, config.prototypes, std=1.0)
        self.config = config

    def loss(self, batch: Batch) -> torch.Tensor:
        """Return the loss of swapped prediction (equation 6); crops of one size are normalised together."""
        scores = self.scores(batch["image"])
        if "local" in batch:
            scores += self.scores(batch["local"])
        config = self.config
        return swapped(
            scores,
            large=2,
            temperature=config.temperature,
            epsilon=config.sinkhorn_epsilon,
            iterations=config.sinkhorn_iterations,
        )

    def scores(self, crops_BV1SS: torch.Tensor) -> list[torch.Tensor]:
        """Return the cosines (B, P) of each crop's embedding with the prototypes."""
        embedding = direction(self.embed(crops_BV1SS.transpose(0, 1).flatten(0, 1)))
        scores: torch.Tensor = self.prototypes(embedding)
        return list(scores.chunk(crops_BV1SS.shape[1]))

    def at_step(self, step: int, steps: int, optimizer: Any) -> None:
        """Hold the prototypes in the first steps (appendix A of the paper: for one epoch)."""
        self.prototypes.held = step < self.config.freeze_prototypes * steps

    def look(self, images_B1SS: torch.Tensor) -> Look:
        """Return features, embedding, and the softmax over prototypes (equation 2)."""
        seen = super().look(images_B1SS)
        assert seen.embedding is not None
        shares = (self.prototypes(direction(seen.embedding)) / self.config.temperature).softmax(dim=1)
        return Look(seen.features, embedding=seen.embedding, prototypes=shares, patches=seen.patches)


def swapped(
    scores_BP: list[torch.Tensor], *, large: int, temperature: float, epsilon: float, iterations: int
) -> torch.Tensor:
    """Return the mean cross entropy between the codes of each of the first `large` crops and the others' softmax.

    Codes give the prototypes equal shares of the crops of all ranks (equations 3 to 5).
    """
    predicted = [(scores / temperature).log_softmax(dim=1) for scores in scores_BP]
    loss = scores_BP[0].new_zeros(())
    for crop, scores in enumerate(scores_BP[:large]):
        codes = sinkhorn(scores.detach(), temperature=epsilon, iterations=iterations)
        others = [other for place, other in enumerate(predicted) if place != crop]
        loss = loss - sum((codes * other).sum(dim=1).mean() for other in others) / len(others)
    return loss / large
