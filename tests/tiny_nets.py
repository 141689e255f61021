"""One small network of every family that people fine-tune, at 32 pixels a side."""

from cxrdist.models.build import RadiographModel, build_model
from cxrdist.models.config import ModelConfig

SIZE = 32
TINY_NETS = {
    "vit": ("vit_tiny_patch16_224", {"patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}),
    "dinov2": (
        "vit_small_patch14_reg4_dinov2",
        {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2},
    ),
    "dinov2_swiglu": (
        "vit_giant_patch14_reg4_dinov2",
        {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "mlp_ratio": 2},
    ),
    "dinov3": (
        "vit_small_patch16_dinov3",
        {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2},
    ),
    "eva02": (
        "eva02_tiny_patch14_224",
        {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2},
    ),
    "eva": (
        "eva_large_patch14_196",
        {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2},
    ),
    "beit": ("beit_base_patch16_224", {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {"embed_dim": 16, "depths": [2, 2], "window_size": 4, "num_heads": [2, 2]},
    ),
    "swinv2": (
        "swinv2_tiny_window8_256",
        {"embed_dim": 16, "depths": [1, 2], "window_size": 4, "num_heads": [2, 2]},
    ),
    "convnext": ("convnext_atto", {"depths": [1, 1, 2, 1], "dims": [8, 16, 24, 32]}),
    "resnet": ("resnet10t", {}),
    "densenet": ("densenet121", {"block_config": [2, 2], "growth_rate": 8}),
}
TRANSFORMERS = ("vit", "dinov2", "dinov2_swiglu", "dinov3", "eva02", "eva", "beit", "swin", "swinv2")


def tiny_model(family: str = "vit", *, findings: int = 2, seed: int = 0, drop_path: float = 0.0) -> RadiographModel:
    """Return the radiograph model around the small network of `family`."""
    backbone, args = TINY_NETS[family]
    config = ModelConfig(backbone=backbone, args=args, drop_path=drop_path)
    return build_model(config, num_classes=findings, image_size=SIZE, seed=seed)
