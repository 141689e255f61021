"""One pretraining as a file."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from cxrdist.config import Config
from cxrdist.data.config import AugmentConfig, InputConfig
from cxrdist.models.config import ModelConfig
from cxrdist.train.config import OptimConfig, TrainConfig


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


class PretrainConfig(Config):
    """Pretrain a backbone on the training splits of shard folders, labels unread."""

    shards: list[Path] = Field(min_length=1)
    """Packed datasets; their training splits are joined."""

    method: MaeConfig = MaeConfig()
    input: InputConfig = InputConfig(augment=AugmentConfig(rotate=5.0, zoom=(1.0, 1.6), shift=0.1))
    model: ModelConfig = ModelConfig()
    optim: OptimConfig = OptimConfig(betas=(0.9, 0.95))
    train: TrainConfig = TrainConfig()
    seed: int = Field(default=0, ge=0)
