"""MoCo v2 (He et al. 2020, "Momentum Contrast"; Chen et al. 2020, "Improved Baselines with Momentum Contrastive
Learning").

Batch norm is over all ranks, SimCLR's way beside shuffling the images over them (see `cxrdist.pretrain.batchnorm`).

Shapes: B images of this rank, N of all, K keys in the queue, E width of the embedding.
"""

from typing import Any

import torch
from lightly.models.modules.heads import MoCoProjectionHead
from torch import nn
from torch.nn import functional

from cxrdist.data.loader import Batch
from cxrdist.models.build import RadiographModel
from cxrdist.pretrain.gathering import gather_values
from cxrdist.pretrain.methods import MocoV2Config
from cxrdist.pretrain.paired import TaughtTask, cosines, direction
from cxrdist.pretrain.task import embedding_width


class MocoV2Task(TaughtTask):
    """Find the teacher's (key encoder's) embedding of the other crop among those of earlier batches."""

    agreed = ("queue", "oldest")

    queue: torch.Tensor
    """Keys (K, E) of length 1, the same on every rank; random before there are earlier batches."""
    oldest: torch.Tensor
    """Row of the queue that is replaced next."""

    def __init__(self, model: RadiographModel, config: MocoV2Config, *, fresh: bool) -> None:
        """Put the projection head on `model`."""

        def build_head() -> nn.Module:
            return MoCoProjectionHead(embedding_width(model), config.hidden_width, config.width)

        super().__init__(model, build_head)
        self.config = config
        self.register_buffer("queue", direction(torch.randn(config.queue, config.width)))
        self.register_buffer("oldest", torch.zeros((), dtype=torch.int64))
        self.coming: list[torch.Tensor] = []
        """Keys of the micro-batches of the step that is under way."""

    def loss(self, batch: Batch) -> torch.Tensor:
        """Return InfoNCE of the first crops with the second among the queue, which is not changed before `after_step`.

        All micro-batches of a step have the same negatives, so that a global batch may be divided.
        """
        first, second = batch["image"].unbind(1)
        query, key = direction(self.embed(first)), direction(self.target(second))
        self.coming.append(gather_values(key))
        return info_nce(query, key, self.queue, self.config.temperature)

    def at_step(self, step: int, steps: int, optimizer: Any) -> None:
        """Forget keys of a step that was not made."""
        self.coming.clear()

    def after_step(self, step: int, steps: int) -> None:
        """Move the teacher; replace the oldest keys of the queue (algorithm 1 of MoCo)."""
        super().after_step(step, steps)
        self.enqueue(torch.cat(self.coming))
        self.coming.clear()

    @torch.no_grad()
    def enqueue(self, keys_NE: torch.Tensor) -> None:
        """Write `keys_NE` over the oldest, in their order; no value is read by the host."""
        rows = (self.oldest + torch.arange(len(keys_NE), device=self.oldest.device)) % len(self.queue)
        self.queue.index_copy_(0, rows, keys_NE.to(self.queue))
        self.oldest.copy_((self.oldest + len(keys_NE)) % len(self.queue))

    def momentum(self, step: int, steps: int) -> float:
        """Return the momentum, always the same."""
        return self.config.momentum


def info_nce(query_BE: torch.Tensor, key_BE: torch.Tensor, queue_KE: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return equation 1 of MoCo for directions: the own key against those of `queue_KE`."""
    own = (query_BE * key_BE).sum(dim=1, keepdim=True)
    logits = torch.cat([own, cosines(query_BE, queue_KE)], dim=1) / temperature
    return functional.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64, device=logits.device))
