"""What the methods on two crops of an image share: a head on the features, and a teacher that follows.

Shapes: B images of this rank, N of all, D width of the features, E of the embedding.
"""

import copy
from collections.abc import Callable
from typing import Self

import torch
from torch import nn
from torch.nn import functional

from cxrdist.models.build import RadiographModel
from cxrdist.pretrain.batchnorm import join_batch_norm
from cxrdist.pretrain.task import Look, PretrainTask, grid_features, pooled_features, without_classifier
from cxrdist.pretrain.teacher import follow, only_norms_learn, twin


class PairedTask(PretrainTask):
    """A network and a projection head; batch norm is over all ranks."""

    def __init__(self, model: RadiographModel, head: nn.Module) -> None:
        """Compare images by what `head` makes of the features of `model`."""
        super().__init__()
        self.model = model
        self.head = head
        without_classifier(model)
        join_batch_norm(self)

    def embed(self, images_B1SS: torch.Tensor) -> torch.Tensor:
        """Return the embedding (B, E)."""
        embedding: torch.Tensor = self.head(pooled_features(self.model, images_B1SS))
        return embedding

    def look(self, images_B1SS: torch.Tensor) -> Look:
        """Return features and embedding."""
        features, patches = grid_features(self.model, images_B1SS)
        return Look(features=features, embedding=self.head(features), patches=patches)


class TaughtTask(PairedTask):
    """A second network and head, a running mean of the first, give the targets; they normalise by their own batches."""

    def __init__(self, model: RadiographModel, build_head: Callable[[], nn.Module]) -> None:
        """Begin with a teacher equal to the trained network; what of `model` is not trained must be frozen already."""
        super().__init__(model, build_head())
        self.teacher = copy.deepcopy(model).requires_grad_(False)
        self.teacher_head = twin(build_head, self.head)
        join_batch_norm(self)
        only_norms_learn(self.teacher)

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all but the teacher, which drops nothing."""
        super().train(mode)
        only_norms_learn(self.teacher)
        return self

    @torch.no_grad()
    def target(self, images_B1SS: torch.Tensor) -> torch.Tensor:
        """Return the teacher's embedding (B, E), without a gradient."""
        embedding: torch.Tensor = self.teacher_head(pooled_features(self.teacher, images_B1SS))
        return embedding

    def momentum(self, step: int, steps: int) -> float:
        """Return the share of itself that the teacher keeps after `step`."""
        raise NotImplementedError

    def after_step(self, step: int, steps: int) -> None:
        """Move the teacher."""
        momentum = self.momentum(step, steps)
        follow(self.teacher, self.model, momentum)
        follow(self.teacher_head, self.head, momentum)

    def look(self, images_B1SS: torch.Tensor) -> Look:
        """Return features, embedding, and the teacher's embedding."""
        seen = super().look(images_B1SS)
        return Look(seen.features, embedding=seen.embedding, target=self.target(images_B1SS), patches=seen.patches)


def direction(embedding_BE: torch.Tensor) -> torch.Tensor:
    """Return `embedding_BE` divided by its length, float32."""
    return functional.normalize(embedding_BE.float(), dim=1)


def cosines(one_BE: torch.Tensor, other_NE: torch.Tensor) -> torch.Tensor:
    """Return the scalar products (B, N) of directions in float32: autocast's 8 bits are divided by a temperature."""
    with torch.autocast(one_BE.device.type, enabled=False):
        return one_BE @ other_NE.T
