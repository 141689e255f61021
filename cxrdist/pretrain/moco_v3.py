"""MoCo v3 (Chen et al. 2021, "An Empirical Study of Training Self-Supervised Vision Transformers").

Shapes: B images of this rank, N of all, E width of the embedding.
"""

import math

import torch
from lightly.models.utils import initialize_2d_sine_cosine_positional_embedding
from timm.layers import PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn import functional

from cxrdist.data.loader import Batch
from cxrdist.models.build import RadiographModel
from cxrdist.pretrain.batchnorm import join_batch_norm
from cxrdist.pretrain.gathering import gather_values, rank
from cxrdist.pretrain.methods import MocoV3Config
from cxrdist.pretrain.paired import TaughtTask, cosines, direction
from cxrdist.pretrain.projection import moco_v3_head
from cxrdist.pretrain.task import embedding_width
from cxrdist.pretrain.teacher import half_cosine


class MocoV3Task(TaughtTask):
    """Predict the teacher's embedding of the other crop, among its embeddings of all images of the global batch."""

    def __init__(self, model: RadiographModel, config: MocoV3Config, *, fresh: bool) -> None:
        """Put heads on `model`; a `fresh` vision transformer gets the paper's initialisation."""
        patches = getattr(getattr(model.net, "patch_embed", None), "proj", None)
        if fresh and isinstance(model.net, VisionTransformer):
            _initialise(model.net)
        if config.fixed_patches and patches is not None:
            patches.requires_grad_(False)
        hidden, width, is_cnn = config.hidden_width, config.width, patches is None

        def build_head() -> nn.Module:
            return moco_v3_head(embedding_width(model), hidden, width, layers=2 if is_cnn else 3)

        super().__init__(model, build_head)
        self.predict = moco_v3_head(width, hidden, width, layers=2, last_norm=not is_cnn)
        join_batch_norm(self.predict)
        self.config = config

    def loss(self, batch: Batch) -> torch.Tensor:
        """Return the sum of both directions' losses (algorithm 1); each crop is normalised with its like."""
        first, second = batch["image"].unbind(1)
        queries = self.predict(self.embed(first)), self.predict(self.embed(second))
        keys = self.target(first), self.target(second)
        temperature = self.config.temperature
        return contrast(queries[0], keys[1], temperature) + contrast(queries[1], keys[0], temperature)

    def momentum(self, step: int, steps: int) -> float:
        """Return the momentum, which rises to 1 by a half cosine (the authors' code)."""
        return half_cosine(self.config.momentum, 1.0, step, steps)


def contrast(queries_BE: torch.Tensor, keys_BE: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return ``ctr`` of algorithm 1: InfoNCE of each query with its own key among the keys of all ranks.

    The factor ``2 temperature`` makes the gradient less dependent on the temperature.
    """
    queries, keys = direction(queries_BE), direction(keys_BE)
    logits = cosines(queries, gather_values(keys)) / temperature
    own = torch.arange(len(queries), device=queries.device) + rank() * len(queries)
    return 2 * temperature * functional.cross_entropy(logits, own)


def _initialise(vit: VisionTransformer) -> None:
    """Give `vit` the authors' weights: uniform, patch projection, query, key and value each by its own widths (Glorot &
    Bengio 2010); biases zero; fixed sine-cosine positions.
    """
    vit.init_weights("moco")  # leaves out the patch projection
    if isinstance(vit.patch_embed, PatchEmbed):
        projection = vit.patch_embed.proj
        bound = math.sqrt(6 / (projection.weight[0].numel() + vit.embed_dim))
        nn.init.uniform_(projection.weight, -bound, bound)
        if projection.bias is not None:
            nn.init.zeros_(projection.bias)
    positions = vit.pos_embed
    if positions is not None:
        prefix = positions.shape[1] - vit.patch_embed.num_patches
        initialize_2d_sine_cosine_positional_embedding(positions, num_prefix_tokens=prefix)
