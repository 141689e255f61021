"""DINO (Caron et al. 2021, "Emerging Properties in Self-Supervised Vision Transformers").

Shapes: B images, V crops of each, of which the first two are large, D width of the features, K prototypes.

The teacher, a running mean of the student, sees the two large crops; the student, which sees all, must give each crop
the teacher's prototypes for every other crop of the image (equation 3).  `result` is the teacher, as in the paper's
evaluations.

Continuing from weights (`model.weights`): student and teacher both begin with them, nothing is initialised anew, and
only the heads are random.  Random heads send gradients without meaning into a trained network, and a teacher that
follows fast takes them over before the heads have learned: the usual way to collapse.  A recipe that starts gently, for
continuing on chest radiographs as RAD-DINO does (Perez-Garcia et al. 2025, from DINOv2's ViT-B)::

    optim: {lr: 5.0e-5, betas: [0.9, 0.999], warmup: 0.1, layer_decay: 0.9, weight_decay: 0.04, clip: 3.0}
    method: {momentum: 0.996, centering: sinkhorn, freeze_prototypes: 0.03, temperature_warmup: 0.3}

Its numbers begin with DINOv2's public configurations (facebookresearch/dinov2).  `ssl_default_config.yaml`, 100 epochs
from scratch, has the layer-wise decay of 0.9, clipping at 3, weight decay from 0.04, a warm-up of 10 epochs, a
temperature that rises from 0.04 to 0.07 in 30, prototypes frozen for 1, and rates that go with the square root of the
batch.  `train/vitl14.yaml`, for far more images, has Sinkhorn-Knopp, a rate of 0.0002 for 1024 images (beside 0.004), a
layer-wise decay of 1.0 and a teacher's momentum of 0.994 (beside 0.992).  The rate above is for a global batch of 256,
half of the latter's; prototypes are frozen longer and the teacher follows more slowly than in either.  What `watch`
says of spread and of used prototypes tells in the first looks whether that is gentle enough.

From scratch the loss stays near the logarithm of K at first, and embeddings draw together before they spread.  A run of
a few hundred steps leaves that only with few prototypes (64 for a toy), a teacher that stays sharp
(``teacher_temperature: 0.04``) and follows fast (``momentum: 0.98``).
"""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any, Self

import torch
from torch import nn

from cxrdist.data.loader import Batch
from cxrdist.models.build import RadiographModel
from cxrdist.pretrain.batchnorm import join_batch_norm
from cxrdist.pretrain.centering import Centre, sinkhorn
from cxrdist.pretrain.dense import check_small_crops
from cxrdist.pretrain.heads import DinoHead
from cxrdist.pretrain.methods import DinoConfig
from cxrdist.pretrain.task import (
    Look,
    PretrainTask,
    embedding_width,
    grid_features,
    pooled_features,
    without_classifier,
)
from cxrdist.pretrain.teacher import follow, half_cosine, only_norms_learn, ramp, twin

LARGE = 2


class DinoTask(PretrainTask):
    """Student and teacher, each a backbone and a head."""

    agreed = ("centre", "patch_centre", "temperature")

    temperature: torch.Tensor
    """Of the teacher, at this step; saved, so that a look after a resume is the same."""

    def __init__(self, model: RadiographModel, config: DinoConfig, *, fresh: bool) -> None:
        """Wrap `model`, the student; its classifier takes no part.

        Raises:
            UsageError: If small crops are no multiple of a transformer's patch.
        """
        super().__init__()
        check_small_crops(model, config.local_crops)
        without_classifier(model)
        join_batch_norm(model)
        self.model = model
        self.config = config
        self.teacher = copy.deepcopy(model).requires_grad_(False)
        only_norms_learn(self.teacher)
        build = self.head_of(embedding_width(model))
        self.head = build()
        self.teacher_head = twin(build, self.head)
        self.centre = self.new_centre()
        first = config.first_teacher_temperature if config.temperature_warmup else config.teacher_temperature
        self.register_buffer("temperature", torch.tensor(first))

    @property
    def result(self) -> RadiographModel:
        """Return the teacher."""
        return self.teacher

    def head_of(self, width: int) -> Callable[[], DinoHead]:
        """Return what makes a head for features of `width`."""
        c = self.config
        return partial(DinoHead, width, hidden=c.hidden_width, bottleneck=c.bottleneck, prototypes=c.prototypes)

    def new_centre(self) -> Centre | None:
        """Return a running mean for the logits of one head, None where Sinkhorn-Knopp does without."""
        c = self.config
        return Centre(c.prototypes, momentum=c.center_momentum) if c.centering == "mean" else None

    def loss(self, batch: Batch) -> torch.Tensor:
        """Return the mean cross-entropy of a student's crop and a teacher's, a scalar."""
        large = crops(batch["image"])
        with torch.no_grad():
            taught = self.teacher_head(pooled_features(self.teacher, large))
        target_2BK = self.assign(taught, self.centre).unflatten(0, (LARGE, -1))
        pooled = [pooled_features(self.model, large), *self.of_small_crops(batch)]
        logits_VBK = self.head(torch.cat(pooled)).unflatten(0, (-1, len(batch["image"])))
        return crop_loss(target_2BK, logits_VBK, temperature=self.config.student_temperature)

    def of_small_crops(self, batch: Batch) -> list[torch.Tensor]:
        """Return the student's features ((V - 2) B, D) of the small crops, in a list that is empty without them."""
        return [pooled_features(self.model, crops(batch["local"]))] if "local" in batch else []

    def assign(self, logits_nK: torch.Tensor, centre: Centre | None) -> torch.Tensor:
        """Return the teacher's probabilities (n, K) of rows that are learned from."""
        if centre is None:
            return sinkhorn(logits_nK, temperature=self.temperature)
        centre.note(logits_nK)
        return centre.probabilities(logits_nK, temperature=self.temperature)

    def look(self, images_B1SS: torch.Tensor) -> Look:
        """Return what the networks make of unchanged images; embeddings are the rows that prototypes are compared with.

        Prototypes are without Sinkhorn-Knopp, which would give even equal images different ones.
        """
        features, patches = grid_features(self.teacher, images_B1SS)
        target = self.teacher_head.rows(features)
        logits = self.teacher_head.prototypes(target)
        if self.centre is None:
            prototypes = (logits / self.temperature).softmax(dim=1)
        else:
            prototypes = self.centre.probabilities(logits, temperature=self.temperature)
        embedding = self.head.rows(pooled_features(self.model, images_B1SS))
        return Look(features=features, embedding=embedding, target=target, prototypes=prototypes, patches=patches)

    def at_step(self, step: int, steps: int, optimizer: Any) -> None:
        """Set the teacher's temperature, and hold the student's prototypes or let them go."""
        c = self.config
        self.temperature.fill_(
            ramp(c.first_teacher_temperature, c.teacher_temperature, step, c.temperature_warmup * steps)
        )
        for _, student in self.pairs():
            if isinstance(student, DinoHead):
                student.prototypes.held = step < c.freeze_prototypes * steps
        for centre in self.centres():
            centre.forget()  # what a step has left that was not made

    def after_step(self, step: int, steps: int) -> None:
        """Let the teacher follow, its momentum on a half cosine up to 1, and move the centres."""
        momentum = half_cosine(self.config.momentum, 1.0, step, steps)
        for teacher, student in self.pairs():
            follow(teacher, student, momentum)
        for centre in self.centres():
            centre.move()

    def pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        """Return every network of the teacher with the student's."""
        return [(self.teacher, self.model), (self.teacher_head, self.head)]

    def centres(self) -> list[Centre]:
        """Return the running means."""
        return [module for module in self.children() if isinstance(module, Centre)]

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all but the teacher, which drops nothing."""
        super().train(mode)
        only_norms_learn(self.teacher)
        return self


def crops(images_BV1SS: torch.Tensor) -> torch.Tensor:
    """Return the crops of a batch as (V B, 1, S, S), crop by crop."""
    return images_BV1SS.transpose(0, 1).flatten(0, 1)


def crop_loss(target_2BK: torch.Tensor, logits_VBK: torch.Tensor, *, temperature: float) -> torch.Tensor:
    """Return the mean over images and pairs of different crops of the cross-entropy (equation 3 of the paper).

    Written as ``logsumexp(s) - <t, s>``, whose gradient needs no second table of (V, B, K) logarithms; in DINOv2 it is
    the same mean in two parts.

    Args:
        target_2BK: The teacher's probabilities of the large crops, the first two of V.
        logits_VBK: The student's.
        temperature: The student's.
    """
    with torch.autocast(logits_VBK.device.type, enabled=False):
        scaled = logits_VBK.float() / temperature
        entropy_2V = scaled.logsumexp(dim=2).mean(dim=1) - torch.einsum("tbk,vbk->tv", target_2BK, scaled) / len(
            scaled[0]
        )
        same = entropy_2V[0, 0] + entropy_2V[1, 1]
        return (entropy_2V.sum() - same) / (entropy_2V.numel() - LARGE)
