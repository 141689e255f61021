"""Which backbone and which weights, as configuration."""

from pathlib import Path
from typing import Any

from pydantic import Field

from cxrdist.config import Config


class ModelConfig(Config):
    """Which backbone, and where its initial weights come from."""

    backbone: str = "vit_small_patch16_224"
    """A timm model name."""

    args: dict[str, Any] = {}
    """Further arguments of that timm model (depth, embed_dim ...)."""

    weights: Path | None = None
    """Initial weights: a `.safetensors` or `.pth` file, a model folder, or a run folder; null is random."""

    drop_path: float = Field(default=0.0, ge=0, lt=1)
    """Rate of stochastic depth in training (Huang et al. 2016)."""
