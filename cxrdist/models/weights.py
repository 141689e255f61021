"""Initial weights from a local file.  Nothing is unpickled: safetensors, or `torch.load(weights_only=True)`."""

import argparse
import pickle
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from cxrdist.errors import UserError
from cxrdist.log import get_logger

log = get_logger(__name__)

Weights = dict[str, torch.Tensor]

WRAPPERS = ("state_dict", "model", "module", "teacher")
"""Names under which training scripts put the weights inside a `.pth` file."""

PREFIXES = ("module.", "model.", "net.", "backbone.")
"""What wrappers put before every name."""

BRANCHES = ("backbone.", "encoder.", "base_encoder.", "encoder_q.", "visual.trunk.")
"""What self-supervised scripts put before the backbone's names alone, beside other networks' (DINO, MoCo, CLIP)."""

ENOUGH = 0.9
"""Share of the backbone's parameters that a file must fill; below it the file is of another architecture."""


@dataclass(frozen=True)
class LoadReport:
    """Which names of a weight file met which of the backbone."""

    matched: list[str]
    missing: list[str]
    """In the backbone, not in the file: left at their random values.  The head is not counted."""
    unexpected: list[str]
    """In the file, not in the backbone: unused."""
    misshapen: list[str]
    """In both, with another shape: left at their random values."""


def read_weights(path: Path) -> Weights:
    """Return the tensors in a weight file, a model folder or a run folder, by name.

    Raises:
        UserError: If there is no such file, or it is not a weight file that can be read safely.
    """
    file = _weight_file(path)
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        # Many scripts save their arguments too; a Namespace holds plain values and runs nothing.
        with torch.serialization.safe_globals([argparse.Namespace]):
            tree = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError, ValueError, LookupError, AttributeError):
        raise _no_weights(file) from None
    for wrapper in WRAPPERS:
        if isinstance(tree, dict) and isinstance(tree.get(wrapper), dict):
            tree = tree[wrapper]
    if not isinstance(tree, dict):
        raise _no_weights(file)
    tensors = {str(name): value for name, value in tree.items() if isinstance(value, torch.Tensor)}
    return _without_prefix(tensors)


def load_weights(net: nn.Module, path: Path) -> LoadReport:
    """Fill the backbone of the timm network `net` from `path`; its head keeps its random values.

    Position embeddings of another grid are resampled by timm's own filter of that architecture.  What is left over
    on either side is logged by name.

    Raises:
        UserError: If fewer than 90 % of the backbone's parameters are filled.
    """
    weights = _branch(read_weights(path), net)
    resample = getattr(sys.modules[type(net).__module__], "checkpoint_filter_fn", None)
    if resample is not None:
        try:
            weights = resample(weights, net)
        except (LookupError, RuntimeError, ValueError, TypeError, AttributeError, AssertionError):
            # The filter expected other names or shapes: what is said below about the names as they are says more.
            log.debug("timm's filter for %s could not read %s.", type(net).__name__, path.name)
    wanted = {name: value for name, value in net.state_dict().items() if not _is_head(name, net)}
    matched = [name for name, value in wanted.items() if name in weights and weights[name].shape == value.shape]
    report = LoadReport(
        matched=matched,
        missing=[name for name in wanted if name not in weights],
        unexpected=[name for name in weights if name not in wanted and not _is_head(name, net)],
        misshapen=[name for name in wanted if name in weights and name not in matched],
    )
    filled = sum(wanted[name].numel() for name in matched)
    total = sum(value.numel() for value in wanted.values())
    if filled < ENOUGH * total:
        examples = ", ".join((report.misshapen + report.missing)[:3])
        raise UserError(
            f"A weight file must fill at least {ENOUGH:.0%} of the backbone, got {filled / total:.0%} "
            f"from {path.name!r} (not filled: {examples} ...). "
            "Check `model.backbone` and `model.args` against the file."
        )
    net.load_state_dict({name: weights[name] for name in matched}, strict=False)
    log.info("Weights from %s: %d tensors.", path.name, len(matched))
    for what, names in (("left random", report.missing + report.misshapen), ("not used", report.unexpected)):
        if names:
            log.info("Weights from %s: %d %s: %s.", path.name, len(names), what, ", ".join(names))
    return report


def _no_weights(file: Path) -> UserError:
    return UserError(
        f"A weight file must hold tensors only (safetensors, or a plain `.pth`), got {file.name!r}. "
        "Convert it with the library that wrote it."
    )


def _branch(weights: Weights, net: nn.Module) -> Weights:
    """Return the part of `weights` whose names are most like those of `net`, their common prefix removed."""
    wanted = net.state_dict().keys()
    parts = [
        {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        for prefix in ("", *BRANCHES)
    ]
    return max(parts, key=lambda part: len(wanted & part.keys()))


def _weight_file(path: Path) -> Path:
    for file in (path, path / "model.safetensors", path / "model" / "model.safetensors"):
        if file.is_file():
            return file
    raise UserError(
        f"`weights` must be a weight file, a model folder or a run folder, got {str(path)!r}. Check the path."
    )


def _without_prefix(weights: Weights) -> Weights:
    for prefix in PREFIXES:
        if weights and all(name.startswith(prefix) for name in weights):
            return _without_prefix({name.removeprefix(prefix): value for name, value in weights.items()})
    return weights


def _is_head(name: str, net: nn.Module) -> bool:
    classifier = cast(dict[str, Any], net.pretrained_cfg).get("classifier") or ()
    heads = (classifier,) if isinstance(classifier, str) else classifier
    return any(name.startswith(f"{head}.") for head in heads)
