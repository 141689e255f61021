"""SimCLR (Chen et al. 2020, "A Simple Framework for Contrastive Learning of Visual Representations").

Shapes: B images of this rank, N of all, E width of the embedding.
"""

import torch
from lightly.models.modules.heads import SimCLRProjectionHead
from torch.nn import functional

from cxrdist.data.loader import Batch
from cxrdist.models.build import RadiographModel
from cxrdist.pretrain.gathering import gather, rank
from cxrdist.pretrain.methods import SimclrConfig
from cxrdist.pretrain.paired import PairedTask, cosines, direction
from cxrdist.pretrain.task import embedding_width


class SimclrTask(PairedTask):
    """Find the other crop of the same image among the crops of all images of the global batch."""

    def __init__(self, model: RadiographModel, config: SimclrConfig, *, fresh: bool) -> None:
        """Put the projection head on `model`."""
        super().__init__(model, SimCLRProjectionHead(embedding_width(model), config.hidden_width, config.width))
        self.temperature = config.temperature

    def loss(self, batch: Batch) -> torch.Tensor:
        """Return NT-Xent of this rank's crops among those of all ranks."""
        return nt_xent(self.embed(batch["image"].flatten(0, 1)), self.temperature)


def nt_xent(embedding_2BE: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return the mean of l(i, j) of equation 1, whose rows 2k and 2k + 1 are the crops of one image, as of algorithm 1.

    The other 2N - 2 crops of all ranks are the negatives.
    """
    own = direction(embedding_2BE)
    logits = cosines(own, gather(own)) / temperature
    among_own = torch.arange(len(own), device=own.device)
    among_all = among_own + rank() * len(own)
    logits = logits.masked_fill(among_all[:, None] == torch.arange(logits.shape[1], device=own.device), -torch.inf)
    return functional.cross_entropy(logits, among_all - among_own + (among_own ^ 1))
