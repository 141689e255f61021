"""Where a model comes from, without anything that names a person, a place or a machine."""

import json
from pathlib import Path
from typing import Any

from cxrdist.config import read_yaml
from cxrdist.errors import UserError

FACTS = ("kind", "image_size", "fit", "chosen_step")
"""Of our own facts in a model folder, those that leave with the model."""

SETTINGS = {
    "method": ("method", "name"),
    "optimizer": ("optim", "name"),
    "learning rate": ("optim", "lr"),
    "weight decay": ("optim", "weight_decay"),
    "steps": ("train", "steps"),
    "global batch size": ("train", "global_batch_size"),
    "precision": ("train", "precision"),
    "seed": ("seed",),
}
"""Of a run's configuration, what is told; paths are not."""

LIBRARIES = ("torch", "timm", "deepspeed")


def known_facts(facts: dict[str, Any]) -> dict[str, Any]:
    """Return the facts of a model folder that may leave with the model."""
    return {name: facts[name] for name in FACTS if name in facts}


def read_provenance(run: Path) -> dict[str, Any]:
    """Return what is known of the training in a run folder; empty where there is none.

    Shards are told by the name of their folder and the hash of their manifest, weights by the name of their file.
    """
    environment, result = _read_json(run / "environment.json"), _read_json(run / "result.json")
    config = _read_config(run / "config.yaml")
    told: dict[str, Any] = {name: _at(config, path) for name, path in SETTINGS.items()}
    weights = _at(config, ("model", "weights"))
    told["initial weights"] = Path(weights).name if isinstance(weights, str) else ("random" if config else None)
    told["chosen step"] = result.get("chosen_step")
    told["training images"] = result.get("train_images")
    told["validation macro AUROC"] = result.get("score")
    told["cxrdist"] = environment.get("cxrdist")
    told["revision"] = environment.get("git_revision")
    libraries = environment.get("libraries") or {}
    told |= {name: libraries.get(name) for name in LIBRARIES}
    provenance: dict[str, Any] = {name: value for name, value in told.items() if isinstance(value, int | float | str)}
    shards = environment.get("shard_manifests")
    if isinstance(shards, list) and shards:
        provenance["shards"] = [{"name": Path(one["name"]).name, "sha256": one["sha256"]} for one in shards]
    return provenance


def _at(tree: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        tree = tree.get(name) if isinstance(tree, dict) else None
    return tree


def _read_json(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return tree if isinstance(tree, dict) else {}


def _read_config(path: Path) -> dict[str, Any]:
    try:
        return dict(read_yaml(path)) if path.is_file() else {}
    except UserError:
        return {}
