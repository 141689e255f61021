"""Nearest neighbours as the head of a network (Caron et al. 2021, DINO; after Wu et al. 2018).

Shapes: N images to predict, M images of the bank, D features, K findings, k neighbours.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.functional import normalize

from cxrdist.models.head import classifier_name, set_classifier

EPSILON = 1e-4
"""Probabilities are kept so far from 0 and 1: all neighbours of one mind would else be an infinite logit."""

CHUNK_VALUES = 2**26
"""Similarities computed at once (256 MiB); chunks bound the memory and change nothing but rounding."""


class KnnHead(nn.Module):
    """From features to logits by the nearest images of a bank; all of it in buffers, so that a model folder is whole.

    The folder then holds features and labels of every training image: it is shared as these may be shared.
    """

    bank: torch.Tensor
    targets: torch.Tensor
    k: torch.Tensor
    temperature: torch.Tensor

    def __init__(self, bank_MD: torch.Tensor, targets_MK: torch.Tensor, *, k: int, temperature: float) -> None:
        """Keep the bank; `targets_MK` in [0, 1], NaN where unknown.

        Raises:
            ValueError: If the bank has fewer than `k` images.
        """
        super().__init__()
        if len(bank_MD) < k:
            raise ValueError(f"The bank must hold at least `k`={k} images, got {len(bank_MD)}.")
        # Contiguous copies: what is written to a file must own its memory.
        self.register_buffer("bank", normalize(bank_MD.float(), dim=1).contiguous())
        self.register_buffer("targets", targets_MK.float().contiguous())
        self.register_buffer("k", torch.tensor(k))
        self.register_buffer("temperature", torch.tensor(float(temperature), dtype=torch.float64))

    def forward(self, features_ND: torch.Tensor) -> torch.Tensor:
        """Return logits (N, K) float32, in full precision under autocast too."""
        with torch.autocast(features_ND.device.type, enabled=False):
            p_NK = knn_predict(
                self.bank, self.targets, features_ND.float(), int(self.k), float(self.temperature), chunk=None
            )
        return torch.logit(p_NK, eps=EPSILON)


def knn_predict(
    features_train: torch.Tensor,
    targets_train: torch.Tensor,
    features: torch.Tensor,
    k: int,
    temperature: float,
    *,
    chunk: int | None = None,
) -> torch.Tensor:
    """Return probabilities (N, K) of `features` (N, D) from the bank (M, D) with its targets (M, K), NaN unknown.

    Each of the k nearest by cosine s weighs exp(s / temperature); a finding's probability is the weight of its
    positive neighbours over that of the neighbours where it is known.  Where it is known of none, it is the share of
    positives in the whole bank, and 1/2 where that is not known either.  Targets between 0 and 1 count in part.

    Args:
        features_train: The bank (M, D), not yet normalised.
        targets_train: Its targets (M, K), in [0, 1], NaN unknown.
        features: Of the images to predict (N, D), on the same device.
        k: Neighbours, at most M.
        temperature: Of the weights, in units of the cosine.
        chunk: Rows of `features` at once; None is what `CHUNK_VALUES` allows.
    """
    bank = normalize(features_train, dim=1)
    known = ~torch.isnan(targets_train)
    positive = torch.nan_to_num(targets_train)
    prior = torch.where(known.any(dim=0), positive.sum(dim=0) / known.sum(dim=0).clamp(min=1), 0.5)
    rows = chunk or max(1, CHUNK_VALUES // max(len(bank), k * targets_train.shape[1]))
    predicted = []
    for part in features.split(rows):
        similar, nearest = (normalize(part, dim=1) @ bank.T).topk(k, dim=1)
        known_rkK = known[nearest]
        # As a softmax over the known: exp(1 / temperature) itself is soon no float32.  Rows of -inf alone give NaN.
        logits = torch.where(known_rkK, (similar / temperature).unsqueeze(2), -torch.inf)
        share = (logits.softmax(dim=1) * positive[nearest]).sum(dim=1)
        predicted.append(torch.where(known_rkK.any(dim=1), share, prior))
    return torch.cat(predicted) if predicted else features.new_empty(0, targets_train.shape[1])


def restore_knn(net: Any, tensors: Mapping[str, torch.Tensor]) -> None:
    """Give `net` the kind of head that its saved `tensors` have, so that these can be loaded strictly."""
    name = classifier_name(net)
    if f"{name}.bank" in tensors:
        k, temperature = int(tensors[f"{name}.k"]), float(tensors[f"{name}.temperature"])
        head = KnnHead(tensors[f"{name}.bank"], tensors[f"{name}.targets"], k=k, temperature=temperature)
        set_classifier(net, head)
