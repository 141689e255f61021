"""Weights by name or path: timm's pretrained names from the Hugging Face cache, files and folders of this machine.

Nothing is ever fetched.  What a folder's own files say of the images that its weights expect is read along.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import constants, try_to_load_from_cache

from cxrdist.errors import UsageError, UserError, nearest
from cxrdist.models.locate import FOLDER_FILES, TIMM, is_timm_name, weight_files
from cxrdist.models.reading import Weights, read_weights


@dataclass(frozen=True)
class Constants:
    """Means and standard deviations of the channels that weights were trained with; grey levels in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    says: str
    """Where they are from, for the log."""


@dataclass(frozen=True)
class Source:
    """Tensors by the names in their file, and what the files beside it say of them."""

    name: str
    """What to call it in the log and in errors: no folder of the user's."""
    weights: Weights
    constants: Constants | None


def read_source(weights: str | Path) -> Source:
    """Return the tensors of a file, a model or run folder, or ``timm:NAME``.

    Raises:
        UserError: If there is nothing there that can be read safely, or nothing of that name in the cache.
    """
    if is_timm_name(weights):
        return _from_cache(str(weights))
    path = Path(weights)
    return Source(path.name, read_weights(path), _folder_constants(weight_files(path)[0]))


def _from_cache(weights: str) -> Source:
    name = weights.removeprefix(TIMM)
    architecture = name.split(".")[0]
    try:
        facts = timm.get_pretrained_cfg(name, allow_unregistered=False)
    except (RuntimeError, ValueError):
        known = timm.is_model(architecture)
        near = nearest(name, timm.list_pretrained()) if known else nearest(architecture, timm.list_models())
        raise UsageError(
            f"`model.weights` must name weights that timm knows after {TIMM!r}, got {weights!r}.{near}"
        ) from None
    file = _cached_file(facts)
    if file is None:
        raise _not_cached(weights, facts)
    says = f"timm's facts about {name}"
    return Source(name, read_weights(file), Constants(tuple(facts.mean), tuple(facts.std), says))


def _cached_file(facts: Any) -> Path | None:
    """Return the file of weights that timm would have loaded, from the hub's cache or from that of `torch.hub`."""
    if facts.hf_hub_id:
        repository, _, revision = facts.hf_hub_id.partition("@")
        names = (facts.hf_hub_filename,) if facts.hf_hub_filename else ("model.safetensors", "pytorch_model.bin")
        for name in names:
            safe = f"{name.rpartition('.')[0]}.safetensors"
            for wanted in dict.fromkeys((safe.replace("pytorch_model", "model"), safe, name)):
                found = try_to_load_from_cache(repository, wanted, revision=revision or None)
                if isinstance(found, str):
                    return Path(found)
    if facts.url and not facts.custom_load:
        file = Path(torch.hub.get_dir()) / "checkpoints" / Path(str(facts.url)).name
        return file if file.is_file() else None
    return None


def _not_cached(weights: str, facts: Any) -> UserError:
    where = constants.HF_HUB_CACHE
    if not facts.hf_hub_id:
        return UserError(
            f"`model.weights` must name weights in the Hugging Face hub, got {weights!r}, which timm has from "
            "elsewhere. Name a local file."
        )
    return UserError(
        f"`model.weights` must be in the Hugging Face cache, got {weights!r} without {facts.hf_hub_id!r} in {where!r}. "
        f"Where there is a network, run `hf download {facts.hf_hub_id}`; copy the cache here, and let HF_HOME name its "
        "folder."
    )


def _folder_constants(file: Path) -> Constants | None:
    """Return the constants in the configuration files beside `file`, if it is one of a model folder."""
    if file.name not in FOLDER_FILES and not (file.parent / "model.safetensors.index.json").is_file():
        return None
    for name, parts in (
        ("config.json", ("pretrained_cfg",)),
        ("config.json", ()),
        ("preprocessor_config.json", ()),
        ("open_clip_config.json", ("preprocess_cfg",)),
    ):
        tree = _json(file.parent / name)
        for part in parts:
            inner = tree.get(part)
            tree = inner if isinstance(inner, dict) else {}
        mean, std = (_channels(tree.get(key, tree.get(f"image_{key}"))) for key in ("mean", "std"))
        if mean and std and min(std) > 0:
            return Constants(mean, std, f"`{name}` beside them")
    return None


def _json(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        return {}
    except ValueError:
        raise UserError(
            f"A model folder's `{path.name}` says how images are normalised and must be JSON, got another text "
            f"[in {path.parent.name}]. Copy the folder again, or name the weight file in a folder of its own."
        ) from None
    return tree if isinstance(tree, dict) else {}


def _channels(values: Any) -> tuple[float, ...] | None:
    """Return three numbers, one for each channel, or None."""
    if not isinstance(values, list) or len(values) not in (1, 3):
        return None
    if not all(isinstance(value, int | float) for value in values):
        return None
    return tuple(float(value) for value in (values * 3)[:3])
