"""One pretraining as a file."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from cxrdist.config import Config
from cxrdist.data.config import AugmentConfig, InputConfig
from cxrdist.models.config import ModelConfig
from cxrdist.train.config import OptimConfig, TrainConfig

# Defaults stand on fields of classes of their own, not in the values of `PretrainConfig`: setting one name of a section
# would else give all its other names the defaults of fine-tuning.


class MaeConfig(Config):
    """What the masked autoencoder masks and how it decodes."""

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


class PretrainAugment(AugmentConfig):
    """Random changes of a training image; a wide range of scales and little else, as in the paper."""

    rotate: float = Field(default=5.0, ge=0, le=180)
    """Largest rotation, degrees, either way."""

    shift: float = Field(default=0.1, ge=0, le=0.5)
    """Largest shift along each axis, as a share of the side."""

    zoom: tuple[float, float] = (1.0, 1.6)
    """Range of the scale factor; above 1 crops, below 1 shows a black border."""


class PretrainInput(InputConfig):
    """How packed images become the backbone's input."""

    augment: PretrainAugment = PretrainAugment()
    """Random changes of every image."""


class PretrainOptim(OptimConfig):
    """AdamW (Loshchilov & Hutter 2019) and its schedule."""

    betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates of the two running means, each in [0, 1)."""


class PretrainConfig(Config):
    """Pretrain a backbone on the training splits of shard folders, labels unread."""

    shards: list[Path] = Field(min_length=1)
    """Packed datasets; their training splits are joined."""

    method: MaeConfig = MaeConfig()
    input: PretrainInput = PretrainInput()
    model: ModelConfig = ModelConfig()
    optim: PretrainOptim = PretrainOptim()
    train: TrainConfig = TrainConfig()
    seed: int = Field(default=0, ge=0)
