"""Model folders: `config.json` + `model.safetensors`, as timm and the Hugging Face hub read them, and our facts."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from cxrdist.errors import UserError
from cxrdist.models.build import RadiographModel, build_model
from cxrdist.models.config import ModelConfig
from cxrdist.models.knn import restore_knn
from cxrdist.models.weights import read_weights

FACTS = "cxrdist"
"""Key of our own facts in `config.json`; timm passes over it."""


def save_model(
    model: RadiographModel, folder: Path, *, backbone: str, findings: Sequence[str], facts: dict[str, Any]
) -> None:
    """Write `model` so that ``timm.create_model("local-dir:FOLDER")`` loads it; `facts` must be JSON-ready."""
    net = model.net
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.detach().cpu().contiguous() for name, value in net.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    side = facts["image_size"]
    shown = {name: net.pretrained_cfg.get(name) for name in ("first_conv", "classifier", "interpolation", "crop_pct")}
    config = {
        "architecture": backbone.split(".", maxsplit=1)[0],
        "num_classes": len(findings),
        "num_features": net.num_features,
        "label_names": list(findings),
        "model_args": {name: value for name, value in net.model_args.items() if name != "drop_path_rate"},
        "pretrained_cfg": {
            **shown,
            "input_size": [3, side, side],
            "mean": model.mean.flatten().tolist(),
            "std": model.std.flatten().tolist(),
            "num_classes": len(findings),
        },
        FACTS: facts,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load_model(folder: Path) -> tuple[RadiographModel, list[str], dict[str, Any]]:
    """Return (model in evaluation mode, its findings, our facts) from a model folder or the run folder around it.

    Raises:
        UserError: If the folder holds no model written by `save_model`.
    """
    if (folder / "model" / "config.json").is_file():
        folder = folder / "model"
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        facts = config[FACTS]
    except (OSError, ValueError, KeyError):
        raise UserError(
            f"A model folder must hold `config.json` and `model.safetensors` of ours, got {folder.name!r}. "
            "Name a run folder whose training has ended, or its `model` folder."
        ) from None
    findings = [str(name) for name in config.get("label_names", [])]
    described = ModelConfig(backbone=config["architecture"], args=config["model_args"])
    model = build_model(described, num_classes=len(findings), image_size=facts["image_size"], seed=0)
    tensors = read_weights(folder / "model.safetensors")
    restore_knn(model.net, tensors)
    model.net.load_state_dict(tensors, strict=True)
    model.mean.copy_(torch.tensor(config["pretrained_cfg"]["mean"]).view_as(model.mean))
    model.std.copy_(torch.tensor(config["pretrained_cfg"]["std"]).view_as(model.std))
    return model.eval(), findings, facts
