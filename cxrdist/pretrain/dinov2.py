"""DINOv2 (Oquab et al. 2024, "DINOv2: Learning Robust Visual Features without Supervision").

Shapes: B images, D width of the features, F of the patches, N patches of a large crop, M masked patches of the batch,
K prototypes.

Three losses, section 4 of the paper: DINO between crops; iBOT (Zhou et al. 2022, equation 2), which asks the student
for the teacher's prototypes of patches that it does not see; KoLeo (Sablayrolles et al. 2019), which pushes every image
of the batch away from its nearest neighbour.

Where paper and published code (facebookresearch/dinov2, `ssl_meta_arch.py`) differ, this is the code: KoLeo is the sum
over both large crops, each apart (the paper names the first).  It is over the images of one rank and micro-batch, as
there: beside the masks it is the one part of the loss that changes with the number of ranks.  What differs from the
code: numbers of masked patches are a fixed ladder (see `masks`), running means with ``centering: mean`` move once a
step, the product with the prototypes is float32, and the patch embedding learns at the rate that the layer-wise decay
gives it (there 0.2 of that, `patch_embed_lr_mult`).  Defaults here are those of its large runs (`train/vitl14.yaml`): a
head of its own for patches and Sinkhorn-Knopp, where `ssl_default_config.yaml` has one shared head and running means;
widths, the number of prototypes and the momentum are the latter's.

For continuing from weights see `dino`; with DINOv2's own, the mask token of the files is not read and begins at zero.
"""

import torch
from lightly.loss import KoLeoLoss
from torch import nn

from cxrdist.data.loader import Batch
from cxrdist.errors import UsageError
from cxrdist.models.build import RadiographModel
from cxrdist.pretrain.dense import dense_features, grid_at, mask_token
from cxrdist.pretrain.dino import LARGE, DinoTask, crop_loss, crops
from cxrdist.pretrain.heads import DinoHead
from cxrdist.pretrain.masks import Masks, block_masks
from cxrdist.pretrain.methods import Dinov2Config
from cxrdist.pretrain.task import embedding_width
from cxrdist.pretrain.teacher import twin


class Dinov2Task(DinoTask):
    """DINO's student and teacher, with a head for patches and a token for masked ones."""

    config: Dinov2Config

    def __init__(self, model: RadiographModel, config: Dinov2Config, *, fresh: bool) -> None:
        """Wrap `model`, the student; its classifier takes no part.

        Raises:
            UsageError: If small crops are no multiple of a transformer's patch, or a head cannot be shared.
        """
        super().__init__(model, config, fresh=fresh)
        self.masks_patches = config.ibot_weight > 0 and config.mask_share > 0
        self.patch_head: DinoHead | None = None
        self.teacher_patch_head: DinoHead | None = None
        self.patch_centre = self.mask_token = None
        if not self.masks_patches:
            return
        self.mask_token = mask_token(model)
        self.patch_centre = self.new_centre()
        pooled, patches = embedding_width(model), int(model.net.num_features)
        if not config.shared_head:
            build = self.head_of(patches)
            self.patch_head = build()
            self.teacher_patch_head = twin(build, self.patch_head)
        elif pooled != patches:
            raise UsageError(
                f"`method.shared_head` needs image and patches of one width, got {pooled} and {patches} from "
                f"{type(model.net).__name__}. Set it to false."
            )

    def loss(self, batch: Batch) -> torch.Tensor:
        """Return DINO's loss, plus iBOT's and KoLeo's times their weights, a scalar."""
        c, large = self.config, crops(batch["image"])
        seeds = batch["seed"].tolist()
        target_2BK, taught_BNF = self.teach(large)
        masks = self.masks(seeds, large) if self.masks_patches else None
        pooled, patches = dense_features(
            self.model, large, mask_BN=None if masks is None else masks.mask, token=self.mask_token
        )
        logits = self.head(torch.cat([pooled, *self.of_small_crops(batch)]))
        logits_VBK = logits.unflatten(0, (-1, len(batch["image"])))
        loss = crop_loss(target_2BK, logits_VBK, temperature=c.student_temperature)
        if masks is not None:
            loss = loss + c.ibot_weight * self.ibot(taught_BNF, patches, masks)
        if c.koleo_weight:
            loss = loss + c.koleo_weight * sum(koleo_loss(crop) for crop in pooled.chunk(LARGE))
        return loss

    @torch.no_grad()
    def teach(self, large: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the teacher's probabilities of the large crops (2, B, K) and its patches (2 B, N, F), unmasked."""
        pooled, patches = dense_features(self.teacher, large)
        return self.assign(self.teacher_head(pooled), self.centre).unflatten(0, (LARGE, -1)), patches

    def masks(self, seeds: list[int], large: torch.Tensor) -> Masks:
        """Return the masks of the large crops, made while the device works on the teacher."""
        c, grid = self.config, grid_at(self.model, large.shape[-1])
        return block_masks(seeds, grid, crops=LARGE, ratio=c.mask_ratio, share=c.mask_share).to(large.device)

    def ibot(self, taught_BNF: torch.Tensor, patches_BNF: torch.Tensor, masks: Masks) -> torch.Tensor:
        """Return the cross-entropy of masked patches: their mean in a crop, then the mean over crops, masked or not."""
        teacher = self.teacher_head if self.teacher_patch_head is None else self.teacher_patch_head
        student = self.head if self.patch_head is None else self.patch_head
        with torch.no_grad():
            target_MK = self.assign(teacher(taught_BNF.flatten(0, 1)[masks.index]), self.patch_centre)
        logits_MK = student(patches_BNF.flatten(0, 1)[masks.index])
        return patch_loss(target_MK, logits_MK, masks.weight, temperature=self.config.student_temperature)

    def pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        """Return every network of the teacher with the student's."""
        if self.patch_head is None or self.teacher_patch_head is None:
            return super().pairs()
        return [*super().pairs(), (self.teacher_patch_head, self.patch_head)]


def patch_loss(
    target_MK: torch.Tensor, logits_MK: torch.Tensor, weight_M: torch.Tensor, *, temperature: float
) -> torch.Tensor:
    """Return the sum of the patches' cross-entropies times their weights (equation 2 of Zhou et al. 2022)."""
    with torch.autocast(logits_MK.device.type, enabled=False):
        scaled = logits_MK.float() / temperature
        entropy_M = scaled.logsumexp(dim=1) - (target_MK * scaled).sum(dim=1)
        return (entropy_M * weight_M).sum()


def koleo_loss(features_BD: torch.Tensor) -> torch.Tensor:
    """Return the mean of -log(distance to the nearest other row), rows of length 1 (lightly's, float32).

    Raises:
        UsageError: If there is one row only.
    """
    if len(features_BD) < 2:
        raise UsageError(
            "`method.koleo_weight` needs 2 images per rank and micro-step at least, got 1: it compares images. "
            "Use a larger `train.micro_batch_size`, or set it to 0."
        )
    with torch.autocast(features_BD.device.type, enabled=False):
        loss: torch.Tensor = KoLeoLoss()(features_BD.float())
        return loss
