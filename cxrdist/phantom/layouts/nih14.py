"""NIH ChestX-ray14: square 8-bit PNG, `A|B` label strings, a bracketed header with commas, official list files."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from cxrdist.phantom.acquisition import Beam, collimate, stamp
from cxrdist.phantom.layouts.base import (
    Item,
    Layout,
    Order,
    held_out_patients,
    patient_of,
    site_picture,
    study_findings,
    write_ds_store,
    write_index_html,
)
from cxrdist.phantom.people import Draw, Key

CODE = 2
HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)
"""Eleven columns: the brackets hold commas."""

LABELS = {
    "Atelectasis": "atelectasis",
    "Cardiomegaly": "cardiomegaly",
    "Consolidation": "consolidation",
    "Edema": "edema",
    "Effusion": "effusion",
    "Emphysema": "emphysema",
    "Fibrosis": "fibrosis",
    "Hernia": "hernia",
    "Infiltration": "infiltration",
    "Mass": "mass",
    "Nodule": "nodule",
    "Pleural_Thickening": "pleural_thickening",
    "Pneumonia": "pneumonia",
    "Pneumothorax": "pneumothorax",
}
"""Tokens in alphabetical order, as the label strings list them."""

PREVALENCE = {
    **{"atelectasis": 0.15, "cardiomegaly": 0.2, "consolidation": 0.13, "edema": 0.08, "effusion": 0.19},
    **{"emphysema": 0.08, "fibrosis": 0.07, "hernia": 0.03, "infiltration": 0.16, "mass": 0.1, "nodule": 0.13},
    **{"pleural_thickening": 0.09, "pneumonia": 0.07, "pneumothorax": 0.12, "support_devices": 0.12},
}
"""Devices are drawn but, as in the real data set, not labelled."""


def plan(order: Order) -> list[Item]:
    """Return the images: one to twelve per patient, sorted by name."""
    held_out = held_out_patients(order, CODE)
    items = []
    for patient in range(order.patients):
        key = Key(order.seed, CODE, patient)
        rng = key.lasting(Draw.TABLE)
        count = min(int(rng.geometric(0.55)), 12)
        bed = bool(rng.random() < 0.4)
        for image in range(count):
            now_bed = bed if rng.random() < 0.8 else not bed
            findings = study_findings(key, image, order, sicker=1.2 if now_bed else 0.85)
            facts = {"test": patient in held_out, "follow_up": image, "rgba": bool(rng.random() < 0.03)}
            path = f"images/{patient + 1:08d}_{image:03d}.png"
            items.append(Item(path, Key(order.seed, CODE, patient, image), "AP" if now_bed else "PA", findings, facts))
    return items


def write_image(item: Item, order: Order, path: Path) -> None:
    """Draw one PNG."""
    rng = item.key.passing(Draw.TABLE)
    bed = item.projection == "AP"
    beam = Beam(
        photons=float(rng.uniform(1.2e6, 2.5e6) if bed else rng.uniform(3e6, 6e6)),
        scatter=float(rng.uniform(0.5, 0.75) if bed else rng.uniform(0.25, 0.4)),
        gamma=float(rng.uniform(0.8, 1.05)),
    )
    grey = site_picture(item, beam, (order.size, order.size))
    low, high = rng.uniform(0.0, 0.1), rng.uniform(0.86, 1.0)
    grey = (low + (high - low) * grey).astype(np.float32)
    if rng.random() < 0.4:
        edge = [int(order.size * share) for share in rng.uniform(0, 0.05, 4) * (rng.random(4) < 0.6)]
        grey = collimate(grey, (edge[0], edge[1], edge[2], edge[3]), 0.0)
    if rng.random() < 0.7:
        stamp(grey, "L", (float(rng.uniform(0.86, 0.91)), float(rng.uniform(0.03, 0.12))), 0.055)
    pixels = np.rint(grey * 255).astype(np.uint8)
    if item.facts["rgba"]:
        alpha = np.full_like(pixels, 255)
        pixels = np.dstack([pixels, pixels, pixels, alpha])
    cv2.imwrite(str(path), pixels, [cv2.IMWRITE_PNG_COMPRESSION, 3])


def write_tables(items: Sequence[Item], order: Order, out: Path) -> None:
    """Write the table of entries and the two official lists; there is no list for validation."""
    lines = [HEADER, *(_line(item, order) for item in items)]
    (out / "Data_Entry_2017_v2020.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for name, test in (("train_val_list.txt", False), ("test_list.txt", True)):
        names = [Path(item.path).name for item in items if item.facts["test"] == test]
        (out / name).write_text("\n".join(names) + "\n", encoding="utf-8")
    if order.traps:
        write_ds_store(out / "images")
        write_index_html(out / "images")


def _line(item: Item, order: Order) -> str:
    patient = patient_of(item)
    labels = item.labels
    tokens = "|".join(token for token, name in LABELS.items() if name in labels) or "No Finding"
    rng = item.key.passing(Draw.TABLE, 1)
    columns, rows, spacing = [(2500, 2048, 0.168), (2048, 2500, 0.168), (2992, 2991, 0.143), (3056, 2544, 0.139)][
        int(rng.integers(0, 4))
    ]
    age = min(patient.age + int(item.facts["follow_up"]) // 3, 95)
    cells = [
        Path(item.path).name,
        tokens,
        item.facts["follow_up"],
        item.key.patient + 1,
        age,
        patient.sex,
        item.projection,
    ]
    return ",".join(str(cell) for cell in [*cells, columns, rows, spacing, spacing])


LAYOUT = Layout("nih14", CODE, 512, PREVALENCE, 0.4, 0.25, plan, write_image, write_tables)
