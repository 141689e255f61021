"""The methods of pretraining as configuration; light, so that plans need no torch.

Sizes and temperatures are the papers'; what differs for radiographs says so.  `steps` below are shares of the run:
papers count epochs of ImageNet, which mean nothing for another number of images.
"""

from collections.abc import Iterable
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from cxrdist.config import Config
from cxrdist.data.config import CropConfig, LocalCropsConfig, Positives
from cxrdist.findings import LabelPolicy


class MaeConfig(Config):
    """Masked autoencoder (He et al. 2022): vision transformers."""

    name: Literal["mae"] = "mae"

    mask_ratio: float = Field(default=0.75, gt=0, lt=1)
    """Share of the patches that the encoder does not see."""

    decoder_width: int = Field(default=512, gt=0)
    decoder_depth: int = Field(default=8, gt=0)
    decoder_heads: int = Field(default=16, gt=0)

    normalise_patches: bool = True
    """Predict each patch less its own mean and divided by its own deviation (section 4.1 of the paper)."""

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.decoder_width % 4:  # the sine-cosine positions have four parts
            raise ValueError(f"must have a `decoder_width` that is a multiple of 4, got {self.decoder_width}.")
        if self.decoder_width % self.decoder_heads:
            raise ValueError(
                f"must have a number of `decoder_heads` that divides `decoder_width`, got {self.decoder_heads} heads "
                f"for a width of {self.decoder_width}."
            )
        return self


class SimmimConfig(Config):
    """SimMIM (Xie et al. 2022): vision transformers, and CNNs by masking pixels."""

    name: Literal["simmim"] = "simmim"

    mask_ratio: float = Field(default=0.6, gt=0, lt=1)
    """Share of the image that is masked."""

    mask_patch: int = Field(default=32, gt=0)
    """Side of the masked squares, pixels; a multiple of the backbone's patch or stride."""


class CoupledConfig(Config):
    """What all methods have whose loss compares the images of a batch with each other, over all ranks."""

    crops: CropConfig = CropConfig()
    """The two large crops of each image."""

    accumulate: bool = False
    """Compare within each micro-batch (of all ranks), where a step has several: another loss than that of the whole
    global batch.  Off refuses a run whose global batch is not computed at once."""


class ContrastiveConfig(CoupledConfig):
    """What methods on pairs of crops have."""

    positives: Positives = "image"
    """Where the second crop is taken from: the same image, or another image of the same ``study`` or ``patient`` where
    there is one (Vu et al. 2021, MedAug)."""

    hidden_width: int = Field(default=2048, gt=0)
    """Of the projection head."""

    width: int = Field(default=128, gt=0)
    """Of what is compared."""


class SimclrConfig(ContrastiveConfig):
    """SimCLR (Chen et al. 2020)."""

    name: Literal["simclr"] = "simclr"
    temperature: float = Field(default=0.1, gt=0)


class MocoV2Config(ContrastiveConfig):
    """MoCo v2 (He et al. 2020; Chen et al. 2020): a queue of earlier keys as negatives."""

    name: Literal["moco_v2"] = "moco_v2"
    temperature: float = Field(default=0.2, gt=0)
    momentum: float = Field(default=0.999, ge=0, lt=1)
    """Of the key encoder."""

    queue: int = Field(default=65536, gt=0)
    """Keys kept; a global batch at least."""


class MocoV3Config(ContrastiveConfig):
    """MoCo v3 (Chen et al. 2021): negatives of the batch, a predictor, for vision transformers and CNNs."""

    name: Literal["moco_v3"] = "moco_v3"
    hidden_width: int = Field(default=4096, gt=0)
    width: int = Field(default=256, gt=0)
    temperature: float = Field(default=0.2, gt=0)
    momentum: float = Field(default=0.99, ge=0, lt=1)
    """Of the key encoder at the first step; it rises to 1 by a half cosine."""

    fixed_patches: bool = True
    """Leave the random patch projection of a vision transformer untrained (section 4.2 of the paper); loaded weights
    are left as they are as well."""


class ByolConfig(ContrastiveConfig):
    """BYOL (Grill et al. 2020): no negatives."""

    name: Literal["byol"] = "byol"
    hidden_width: int = Field(default=4096, gt=0)
    width: int = Field(default=256, gt=0)
    momentum: float = Field(default=0.996, ge=0, lt=1)
    """Of the target network at the first step; it rises to 1 by a half cosine."""


class SwavConfig(CoupledConfig):
    """SwAV (Caron et al. 2020): one crop's cluster from another, with small crops."""

    name: Literal["swav"] = "swav"
    hidden_width: int = Field(default=2048, gt=0)
    width: int = Field(default=128, gt=0)
    prototypes: int = Field(default=3000, gt=1)
    temperature: float = Field(default=0.1, gt=0)
    local_crops: LocalCropsConfig = LocalCropsConfig(count=6)
    sinkhorn_iterations: int = Field(default=3, gt=0)
    sinkhorn_epsilon: float = Field(default=0.05, gt=0)
    freeze_prototypes: float = Field(default=0.01, ge=0, lt=1)
    """Share of the steps in which the prototypes are not trained."""


class DinoConfig(CoupledConfig):
    """DINO (Caron et al. 2021): self-distillation with a teacher that is a running mean of the student."""

    name: Literal["dino"] = "dino"
    local_crops: LocalCropsConfig = LocalCropsConfig()
    hidden_width: int = Field(default=2048, gt=0)
    bottleneck: int = Field(default=256, gt=0)
    """Width before the prototypes."""

    prototypes: int = Field(default=65536, gt=1)
    student_temperature: float = Field(default=0.1, gt=0)
    teacher_temperature: float = Field(default=0.07, gt=0)
    first_teacher_temperature: float = Field(default=0.04, gt=0)
    """At the first step; it rises linearly to `teacher_temperature`."""

    temperature_warmup: float = Field(default=0.3, ge=0, le=1)
    """Share of the steps in which it rises."""

    momentum: float = Field(default=0.996, ge=0, lt=1)
    """Of the teacher at the first step; it rises to 1 by a half cosine."""

    centering: Literal["mean", "sinkhorn"] = "mean"
    """How the teacher is kept from giving all images one prototype: by a running mean, or by Sinkhorn-Knopp over the
    batch (Caron et al. 2020)."""

    center_momentum: float = Field(default=0.9, ge=0, lt=1)
    """Of the running mean."""

    freeze_prototypes: float = Field(default=0.01, ge=0, lt=1)
    """Share of the steps in which the student's prototypes are not trained."""

    @model_validator(mode="after")
    def _used(self) -> Self:
        if self.centering != "mean":
            _refuse_set(self, ["center_momentum"], "`centering` 'sinkhorn'")
        if not self.temperature_warmup:
            _refuse_set(self, ["first_teacher_temperature"], "`temperature_warmup` 0")
        return self


class Dinov2Config(DinoConfig):
    """DINOv2 (Oquab et al. 2024): DINO on the image, iBOT on masked patches (Zhou et al. 2022), and KoLeo
    (Sablayrolles et al. 2019), which spreads the features of a batch.
    """

    name: Literal["dinov2"] = "dinov2"  # type: ignore[assignment]  # the options are DINO's, the name is not
    momentum: float = Field(default=0.992, ge=0, lt=1)
    centering: Literal["mean", "sinkhorn"] = "sinkhorn"
    ibot_weight: float = Field(default=1.0, ge=0)
    """0 masks nothing."""

    koleo_weight: float = Field(default=0.1, ge=0)
    """Of the sum over both large crops, each among the images of a rank and micro-batch."""

    mask_ratio: tuple[float, float] = (0.1, 0.5)
    """Range of the share of patches masked in a large crop that is."""

    mask_share: float = Field(default=0.5, ge=0, le=1)
    """Share of the large crops of a rank and micro-batch that are masked, one at least; 0 masks nothing."""

    shared_head: bool = False
    """Whether the patches use the head of the image."""

    @field_validator("mask_ratio")
    @classmethod
    def _range(cls, ratio: tuple[float, float]) -> tuple[float, float]:
        if not 0 < ratio[0] <= ratio[1] < 1:
            raise ValueError(f"must be two shares in rising order, between 0 and 1, got {list(ratio)}.")
        return ratio

    @model_validator(mode="after")
    def _masks(self) -> Self:
        if not self.ibot_weight:
            _refuse_set(self, ["mask_ratio", "mask_share", "shared_head"], "`ibot_weight` 0")
        if not self.mask_share:
            _refuse_set(self, ["mask_ratio", "shared_head"], "`mask_share` 0")
        return self


class SupervisedConfig(Config):
    """Supervised, on several datasets at once: one head each, a backbone for all (Ma et al. 2023, Ark, its start)."""

    name: Literal["supervised"] = "supervised"

    labels: LabelPolicy = LabelPolicy()
    """What becomes of uncertain and not-mentioned labels; what is not set is each dataset's own default."""

    class_weights: Literal["balanced", "none"] = "balanced"
    """``balanced`` weighs positives by negatives / positives, per dataset and finding."""


Method = Annotated[
    MaeConfig
    | SimmimConfig
    | SimclrConfig
    | MocoV2Config
    | MocoV3Config
    | ByolConfig
    | SwavConfig
    | DinoConfig
    | Dinov2Config
    | SupervisedConfig,
    Field(discriminator="name"),
]


def _refuse_set(config: Config, names: Iterable[str], beside: str) -> None:
    """Refuse any of `names` that is set in `config` to something other than its default: it would do nothing."""
    fields = type(config).model_fields
    given = sorted(
        name for name in config.model_fields_set & set(names) if getattr(config, name) != fields[name].default
    )
    if given:
        raise ValueError(f"must not set {', '.join(given)} with {beside}, which does not use it. Leave it out.")
