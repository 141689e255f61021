"""Nearest neighbours instead of training: no step, no gradient, only the backbone's features of the training images."""

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from cxrdist.errors import UsageError
from cxrdist.finetune.config import KnnConfig
from cxrdist.models.build import RadiographModel
from cxrdist.models.head import set_classifier
from cxrdist.models.knn import KnnHead


def fit_knn(
    model: RadiographModel,
    targets: np.ndarray,
    config: KnnConfig,
    features_of: Callable[[RadiographModel], np.ndarray],
) -> None:
    """Give `model` a head that asks the nearest training images.

    Args:
        model: Changed in place; left in evaluation mode.
        targets: Of the training images (M, K), in [0, 1], NaN masked.
        config: How neighbours vote.
        features_of: From the model without its head to its outputs (M, D) for the training images, unchanged ones
            (`cxrdist.data.loader.EvaluationImages`), in the order of `targets`.

    Raises:
        UsageError: If there are fewer training images than neighbours to ask.
    """
    if len(targets) < config.k:
        raise UsageError(
            f"`protocol.knn.k` must be at most the number of training images, got {config.k} for {len(targets)}."
        )
    device = model.mean.device
    set_classifier(model.net, nn.Identity())
    features = torch.from_numpy(features_of(model.eval()))
    head = KnnHead(features, torch.from_numpy(targets), k=config.k, temperature=config.temperature)
    set_classifier(model.net, head.to(device))
    model.eval()
