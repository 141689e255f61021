"""The 14 columns of CheXpert's report labeller, which CheXpert, MIMIC-CXR-JPG and BRAX share: 1.0, 0.0, -1.0, blank."""

from collections.abc import Iterable

import numpy as np

LABELS = {
    "No Finding": "no_finding",
    "Enlarged Cardiomediastinum": "enlarged_cardiomediastinum",
    "Cardiomegaly": "cardiomegaly",
    "Lung Opacity": "lung_opacity",
    "Lung Lesion": "lung_lesion",
    "Edema": "edema",
    "Consolidation": "consolidation",
    "Pneumonia": "pneumonia",
    "Atelectasis": "atelectasis",
    "Pneumothorax": "pneumothorax",
    "Pleural Effusion": "effusion",
    "Pleural Other": "pleural_other",
    "Fracture": "fracture",
    "Support Devices": "support_devices",
}
"""Columns in CheXpert's order, with the canonical finding that each stands for."""

NEGATED = {
    # Of the studies without a finding, the share whose report says so: 0 over (0 + blank) in the real train.csv.
    **dict.fromkeys(LABELS, 0.06),
    **{"Pneumothorax": 0.28, "Pleural Effusion": 0.28, "Edema": 0.13, "Consolidation": 0.16, "Cardiomegaly": 0.06},
}
UNCERTAIN = {"Atelectasis": 0.3, "Consolidation": 0.2, "Pneumonia": 0.25, "Edema": 0.12, "Cardiomegaly": 0.12}
"""Of the studies with a finding, the share whose report hedges; 0.06 for the others."""


def label_cells(
    columns: Iterable[str], labels: set[str], rng: np.random.Generator, *, consensus: bool = False
) -> list[str]:
    """Return a study's cell for each of `columns`, as a report labeller leaves it.

    Args:
        columns: Keys of `LABELS`; a labeller hedges and denies by its own luck, so the order takes part.
        labels: What is to be seen, canonical names.
        rng: The study's stream.
        consensus: Radiologists looked at the image instead: neither uncertain nor blank.
    """
    return [_cell(column, LABELS[column] in labels, labels, rng.random(2), consensus) for column in columns]


def _cell(column: str, present: bool, labels: set[str], draws: np.ndarray, consensus: bool) -> str:
    if consensus:
        return "1.0" if present else "0.0"
    if column == "No Finding":
        return "1.0" if present else ""
    if present:
        return "-1.0" if draws[0] < UNCERTAIN.get(column, 0.06) else "1.0"
    share = NEGATED[column] * (1.8 if "no_finding" in labels else 1.0)
    if draws[1] < 0.012:
        return "-1.0"
    return "0.0" if draws[0] < share else ""
