"""What a network would make of an image, by shapes alone: nothing is computed."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from cxrdist.pretrain.task import grid_of

ANY_SIZE = 224
"""Side of the image for a network that takes any."""


@dataclass(frozen=True)
class Ahead:
    """The features before pooling."""

    stride: int | None
    """Pixels between the cells of the map that they are; None if they are none, or one that does not fill the image."""
    beyond: list[nn.Parameter]
    """The parameters that do not enter them: of the classifier, and of what some networks have before it.  What is
    trained on these features alone must freeze them: no gradient would ever come to them."""


def look_ahead(net: Any) -> Ahead:
    """Return what the last features of `net`, of timm, are like."""
    size = net.model_args.get("img_size", ANY_SIZE)
    parameters = [parameter for parameter in net.parameters() if parameter.requires_grad]
    training = net.training
    net.eval()
    with FakeTensorMode(allow_non_fake_inputs=True):
        features = net.forward_features(torch.empty(1, 3, size, size, device=parameters[0].device))
        branches = features if isinstance(features, list | tuple) else [features]
        grid = grid_of(net, features) if isinstance(features, torch.Tensor) else None
        total = sum(branch.sum() for branch in branches) if grid is None else grid.sum()
        gradients = torch.autograd.grad(total, parameters, allow_unused=True)
    net.train(training)
    pairs = zip(parameters, gradients, strict=True)
    return Ahead(_stride(net, size, grid), [parameter for parameter, gradient in pairs if gradient is None])


def _stride(net: Any, size: int, grid: torch.Tensor | None) -> int | None:
    if grid is None:
        return None
    stride = size // grid.shape[1]
    # Where a network does not pad, its map has fewer cells than that, and they are not where their pixels are.
    whole = stride == net.feature_info[-1]["reduction"] and grid.shape[1:3] == (size // stride, size // stride)
    return stride if whole else None
