"""What every pretraining method is to the loop: a module with a loss, a result, and a view of its features.

Shapes: B images, V large crops, L small crops, S and s their sides, D width of the features, E of the embedding.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from cxrdist.data.loader import Batch
from cxrdist.models.build import RadiographModel


@dataclass(frozen=True)
class Look:
    """What a network makes of images, to be watched."""

    features: torch.Tensor
    """Of the result's backbone (B, D): what a probe or a fine-tuning begins with."""
    embedding: torch.Tensor | None = None
    """Of the trained network's head (B, E), where the method compares images by it."""
    target: torch.Tensor | None = None
    """Of the teacher's head (B, E), where there is one."""
    prototypes: torch.Tensor | None = None
    """Probabilities of the teacher's prototypes (B, P), where there are any."""
    patches: torch.Tensor | None = None
    """Of the result's backbone before pooling (B, H, W, D), where it has such a grid."""


class PretrainTask(nn.Module):
    """One method.  In training ``task(batch)["loss"]``; in evaluation ``task(batch)["look"]`` of unchanged images.

    Buffers that are saved (queues, centres) must be changed in place, and be the same on every rank: see `agreed`.
    """

    model: RadiographModel
    """What is trained; its backbone has the layer-wise learning rates."""

    agreed: tuple[str, ...] = ()
    """Saved buffers, or modules of them, that change in `at_step` and `after_step` alone, to the same on every rank:
    the loop neither averages them over the ranks nor takes a copy for a step that fails."""

    @property
    def result(self) -> RadiographModel:
        """Return the model that the run is for: what is trained, or its teacher."""
        return self.model

    def loss(self, batch: Batch) -> torch.Tensor:
        """Return the loss of a micro-batch, a scalar, such that the mean over ranks is that of all."""
        raise NotImplementedError

    def look(self, images_B1SS: torch.Tensor) -> Look:
        """Return what the networks make of unchanged images, in evaluation mode, without gradients."""
        features, patches = grid_features(self.result, images_B1SS)
        return Look(features=features, patches=patches)

    def at_step(self, step: int, steps: int, optimizer: Any) -> None:
        """Make ready for optimizer step `step` of `steps`: schedules are functions of the step alone."""

    def after_step(self, step: int, steps: int) -> None:
        """Follow the optimizer step `step` of `steps`, which was made: teachers move here."""

    def forward(self, batch: Batch) -> dict[str, Any]:
        """Return ``{"loss"}`` in training mode, ``{"look"}`` in evaluation mode.

        Both through the engine's own module: under ZeRO 3 the ranks exchange the weights there.
        """
        return {"loss": self.loss(batch)} if self.training else {"look": self.look(batch["image"])}


def pooled_features(model: RadiographModel, images_B1SS: torch.Tensor) -> torch.Tensor:
    """Return what the classifier of `model` would see (B, D): the class token or the mean, as the network has it."""
    net = model.net
    features: torch.Tensor = net.forward_head(net.forward_features(model.normalise(images_B1SS)), pre_logits=True)
    return features


def grid_features(model: RadiographModel, images_B1SS: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return `pooled_features` and the last feature map (B, H, W, D), None where the network has no such grid."""
    net = model.net
    features = net.forward_features(model.normalise(images_B1SS))
    return net.forward_head(features, pre_logits=True), grid_of(net, features)


def grid_of(net: Any, features: torch.Tensor) -> torch.Tensor | None:
    """Return what ``net.forward_features`` gave as a map (B, H, W, D), None where it is no such grid."""
    if features.ndim == 4:  # CNNs have channels first; the windowed transformers of timm have them last
        last = features.shape[-1] == net.num_features and features.shape[1] != net.num_features
        return features if last else features.permute(0, 2, 3, 1)
    patches = features[:, getattr(net, "num_prefix_tokens", 0) :]
    side = round(patches.shape[1] ** 0.5)
    return patches.unflatten(1, (side, side)) if side * side == patches.shape[1] else None


def embedding_width(model: RadiographModel) -> int:
    """Return D, the width of `pooled_features`: some networks have a layer after the pooling."""
    return int(getattr(model.net, "head_hidden_size", None) or model.net.num_features)


def without_classifier(model: RadiographModel) -> None:
    """Freeze the classifier, which takes no part: it would only enter the optimizer and the norm of the gradient."""
    for parameter in model.net.get_classifier().parameters():
        parameter.requires_grad_(False)
