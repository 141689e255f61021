"""Which backbone and which weights, as configuration."""

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator

from cxrdist.config import Config

Weights = Annotated[str, BeforeValidator(lambda value: str(value) if isinstance(value, Path) else value)]
Channel = Annotated[float, Field(ge=0, le=1)]
Spread = Annotated[float, Field(gt=0, le=1)]


class ModelConfig(Config):
    """Which backbone, and where its initial weights come from."""

    backbone: str = "vit_small_patch16_224"
    """A timm model name."""

    args: dict[str, Any] = {}
    """Further arguments of that timm model (depth, embed_dim ...)."""

    weights: Weights | None = None
    """Initial weights: a weight file (`.safetensors`, `.pth`, `.bin` ...), a timm or transformers model folder, a run
    folder, or ``timm:NAME.TAG`` from the Hugging Face cache; null is random."""

    mean: tuple[Channel, Channel, Channel] | None = None
    """Means of the channels, grey levels in [0, 1], that are taken off images; null follows the weights.  For files
    that do not say: MoCo-CXR and MedAug 0.502, CXR-RePaiR-CLIP and CheXzero 0.398, each three times."""

    std: tuple[Spread, Spread, Spread] | None = None
    """Standard deviations to divide by, with `mean`: 0.0856 and 0.3272 there."""

    drop_path: float = Field(default=0.0, ge=0, lt=1)
    """Rate of stochastic depth in training (Huang et al. 2016)."""

    @model_validator(mode="after")
    def _both_constants(self) -> Self:
        if (self.mean is None) != (self.std is None):
            raise ValueError("`mean` and `std` must be set together, got one of them")
        return self
