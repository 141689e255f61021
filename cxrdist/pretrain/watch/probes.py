"""What simple classifiers make of features.  Shapes: M images that teach, N that are told, D features, K findings."""

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from cxrdist.models.knn import knn_predict
from cxrdist.stats.auroc import auroc

NEIGHBOURS = 20
TEMPERATURE = 0.07
"""Of the neighbours' weights; both of Caron et al. 2021, DINO."""


def knn_scores(bank_MD: np.ndarray, targets_MK: np.ndarray, features_ND: np.ndarray) -> np.ndarray:
    """Return probabilities (N, K) from the 20 nearest of the bank, of all where it has fewer; NaN targets unknown."""
    bank, targets, features = (torch.from_numpy(part).float() for part in (bank_MD, targets_MK, features_ND))
    return knn_predict(bank, targets, features, min(NEIGHBOURS, len(bank)), TEMPERATURE).numpy()


def linear_scores(bank_MD: np.ndarray, targets_MK: np.ndarray, features_ND: np.ndarray) -> np.ndarray:
    """Return logits (N, K) of one logistic regression per finding, fitted to the images where its target is known.

    The features are standardised by the bank, and ``C = 1 / D``: the logits of a weight drawn from the Gaussian prior
    that this stands for have a variance of 1 over the bank, whatever the width.  So nothing is chosen by the labels.
    A finding with one value only has logits 0.
    """
    scaler = StandardScaler().fit(bank_MD)
    bank, features = scaler.transform(bank_MD), scaler.transform(features_ND)
    logits = np.zeros((len(features), targets_MK.shape[1]))
    for finding, targets in enumerate(targets_MK.T):
        known = ~np.isnan(targets)
        if len(np.unique(targets[known])) == 2:
            probe = LogisticRegression(C=1 / bank.shape[1], max_iter=1000)
            logits[:, finding] = probe.fit(bank[known], targets[known]).decision_function(features)
    return logits


def macro_auroc(targets_NK: np.ndarray, scores_NK: np.ndarray) -> float | None:
    """Return the mean AUROC over the findings with both values; None without any."""
    areas = [
        auroc(targets[~np.isnan(targets)], scores[~np.isnan(targets)].astype(np.float64))
        for targets, scores in zip(targets_NK.T, scores_NK.T, strict=True)
    ]
    defined = [area for area in areas if not np.isnan(area)]
    return float(np.mean(defined)) if defined else None
