"""Initial weights into a backbone: find the network in a file, give its parts their names and shapes, say what fits."""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from cxrdist.errors import UserError
from cxrdist.log import get_logger
from cxrdist.models.build import RadiographModel
from cxrdist.models.keymaps import Found, networks
from cxrdist.models.pretrained import Constants, Source, read_source
from cxrdist.models.reading import Weights, read_weights
from cxrdist.models.resample import fitted

__all__ = ["LoadReport", "load_weights", "read_weights"]

log = get_logger(__name__)

ENOUGH = 0.9
"""Share of the backbone's parameters that a file must fill; below it the file is of another architecture."""


@dataclass(frozen=True)
class LoadReport:
    """Which names of a weight file met which of the backbone."""

    source: str
    """What the file was found to be: ``official DINOv2, teacher branch``."""
    matched: list[str]
    missing: list[str]
    """In the backbone, not in the file: left at their random values.  The head is not counted."""
    unexpected: list[str]
    """In the file's network, not in the backbone: unused."""
    misshapen: list[str]
    """In both, with another shape: left at their random values."""
    resampled: list[str] = field(default_factory=list)
    """Of the matched, those whose shape in the file was another."""
    changed: list[str] = field(default_factory=list)
    """What else was done to fit the file to the backbone, in words."""
    constants: Constants | None = None
    """The means and deviations of images that the weights were trained with, where they are known."""


def load_weights(model: RadiographModel | nn.Module, weights: str | Path, *, told: bool = True) -> LoadReport:
    """Fill the backbone of `model` from a file, a folder or ``timm:NAME``; its head keeps its random values.

    A `RadiographModel` also takes over the constants that the weights' images were normalised with, where they are
    known and `model.mean` and `model.std` do not say otherwise.  What is left over on either side is logged by name,
    if `told`: a run that builds its model again says it once.

    Raises:
        UserError: If there are no such weights, or if fewer than 90 % of the backbone's parameters are filled.
    """
    net = cast(nn.Module, model.net) if isinstance(model, RadiographModel) else model
    source = read_source(weights)
    found, *others = networks(source.weights, net)
    tensors, resampled, changed = fitted(found.weights, net)
    report = _report(source, found, tensors, net, resampled, changed)
    wanted = net.state_dict()
    filled = sum(wanted[name].numel() for name in report.matched)
    total = sum(value.numel() for name, value in wanted.items() if not _is_head(name, net))
    if filled < ENOUGH * total:
        examples = ", ".join((report.misshapen + report.missing)[:3])
        raise UserError(
            f"A weight file must fill at least {ENOUGH:.0%} of the backbone, got {filled / total:.0%} "
            f"from {source.name!r} (not filled: {examples} ...). "
            f"Check `model.backbone` and `model.args` against the file{_looks(found)}."
        )
    spoilt = [name for name in report.matched if not bool(torch.isfinite(tensors[name]).all())]
    if spoilt:
        raise UserError(
            f"A weight file must hold finite numbers, got others in {', '.join(spoilt[:3])} [in {source.name}]. "
            "Take a file of an earlier step, or fetch it again."
        )
    net.load_state_dict({name: tensors[name] for name in report.matched}, strict=False)
    if isinstance(model, RadiographModel):
        _set_constants(model, report.constants)
    if told:
        _log(source, report, [one for one in others if one.layout is found.layout])
        if isinstance(model, RadiographModel):
            _log_constants(source, found, model, report.constants)
    return report


def _report(
    source: Source, found: Found, tensors: Weights, net: nn.Module, resampled: list[str], changed: list[str]
) -> LoadReport:
    wanted = {name: value for name, value in net.state_dict().items() if not _is_head(name, net)}
    matched = [name for name, value in wanted.items() if name in tensors and tensors[name].shape == value.shape]
    return LoadReport(
        source=found.says,
        matched=matched,
        missing=[name for name in wanted if name not in tensors],
        unexpected=[name for name in tensors if name not in wanted and not _is_head(name, net)],
        misshapen=[name for name in wanted if name in tensors and name not in matched],
        resampled=[name for name in resampled if name in matched],
        changed=changed,
        constants=source.constants or found.constants,
    )


def _set_constants(model: RadiographModel, constants: Constants | None) -> None:
    if constants is not None and not model.fixed_constants:
        model.mean.copy_(torch.tensor(constants.mean).view_as(model.mean))
        model.std.copy_(torch.tensor(constants.std).view_as(model.std))


def _log_constants(source: Source, found: Found, model: RadiographModel, constants: Constants | None) -> None:
    known = "" if constants is None or model.fixed_constants else f" ({constants.says})"
    mean, std = (", ".join(f"{value:.4g}" for value in part.flatten()) for part in (model.mean, model.std))
    log.info("Images are normalised with mean %s and deviation %s%s.", mean, std, known)
    if found.hint and source.constants is None and not model.fixed_constants:
        log.info("Weights from %s: %s.", source.name, found.hint)


def _log(source: Source, report: LoadReport, others: list[Found]) -> None:
    also = sorted({one.branch or one.prefix.strip(".") or "another" for one in others})
    left = f"; not taken: {', '.join(also)}" if also else ""
    log.info("Weights from %s: %d tensors (%s%s).", source.name, len(report.matched), report.source, left)
    for level, what, names in (
        (logging.INFO, "resampled", report.resampled),
        (logging.WARNING, "left random", report.missing + report.misshapen),
        (logging.INFO, "not used", report.unexpected),
    ):
        if names:
            log.log(level, "Weights from %s: %d %s: %s.", source.name, len(names), what, ", ".join(names))
    for change in report.changed:
        log.info("Weights from %s: %s.", source.name, change)
    # A projection head more is no matter; a part more of a block that is used changes what the block computes.
    filled = {name.rpartition(".")[0].split(".")[0] for name in report.matched} - {""}
    if any(name.split(".")[0] in filled for name in report.unexpected):
        log.warning(
            "Weights from %s: their network has parts that the backbone has not, and computes something else.",
            source.name,
        )


def _looks(found: Found) -> str:
    return "" if not found.method and not found.layout.anchors else f", which looks like {found.says}"


def _is_head(name: str, net: nn.Module) -> bool:
    classifier = cast(dict[str, Any], net.pretrained_cfg).get("classifier") or ()
    heads = (classifier,) if isinstance(classifier, str) else classifier
    return any(name.startswith(f"{head}.") for head in heads)
