"""RSNA Pneumonia as it is downloaded."""

import json
from collections.abc import Callable
from pathlib import Path

from tests.trees.files import picture, table

IDS = [f"{number:08x}-36f6-443f-92f9-cad35fa98041" for number in range(6)]
"""Opacity with two boxes, opacity, normal, not normal, normal but not on the disk, test."""


def make_rsna(
    root: Path, *, classes: bool = True, mapping: bool = False, image: Callable[[Path], object] = picture
) -> int:
    """Write a row per box, the classes as often, and unlabelled test images; return how many images there are."""
    home = root / "rsna-pneumonia-detection-challenge"
    boxes = [(0, "264.0", "1"), (0, "562.0", "1"), (1, "323.0", "1"), (2, "", "0"), (3, "", "0"), (4, "", "0")]
    rows = [
        {"patientId": IDS[number]} | dict.fromkeys(["x", "y", "width", "height"], x) | {"Target": target}
        for number, x, target in boxes
    ]
    table(home / "stage_2_train_labels.csv", list(rows[0]), rows)
    words = ["Lung Opacity", "Lung Opacity", "Normal", "No Lung Opacity / Not Normal", "Normal"]
    if classes:
        told = [{"patientId": IDS[number], "class": words[number]} for number, _, _ in boxes]
        table(home / "stage_2_detailed_class_info.csv", ["patientId", "class"], told)
    if mapping:  # the RSNA's own file; the first two images and the fourth are of two patients of the NIH
        nih = ["00000007_000.png", "00000007_003.png", "00000012_000.png", "00000012_001.png"]
        told = [{"subset_img_id": IDS[number], "img_id": name, "orig_labels": ["x"]} for number, name in enumerate(nih)]
        (home / "pneumonia-challenge-dataset-mappings_2018.json").write_text(json.dumps(told))
    for number in range(4):
        path = home / f"stage_2_train_images/{IDS[number]}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        image(path)
    picture(home / f"stage_2_test_images/{IDS[5]}.dcm")
    table(home / "stage_2_sample_submission.csv", ["patientId", "PredictionString"], [{"patientId": IDS[5]}])
    return 5 + 1


TREES = {"rsna_pneumonia": make_rsna, "rsna_pneumonia/mapped": lambda root: make_rsna(root, mapping=True)}
