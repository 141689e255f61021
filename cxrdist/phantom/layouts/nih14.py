"""NIH ChestX-ray14: square 8-bit PNG, `A|B` label strings, a bracketed header with commas, official list files."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cxrdist.phantom.acquisition import Beam, collimate, stamp
from cxrdist.phantom.layouts.base import (
    Item,
    Layout,
    Order,
    held_out_patients,
    patient_of,
    patients_of,
    site_picture,
    study_findings,
)
from cxrdist.phantom.layouts.files import eight_bit, write_csv, write_ds_store, write_index_html, write_picture
from cxrdist.phantom.people import Draw

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
DETECTORS = ((2500, 2048, 0.168), (2048, 2500, 0.168), (2992, 2991, 0.143), (3056, 2544, 0.139))
"""Columns, rows and spacing (mm) that the table tells of the original images."""


def plan(order: Order) -> list[Item]:
    """Return the images: one to twelve per patient, sorted by name."""
    held_out = held_out_patients(order, CODE)
    items = []
    for key, rng in patients_of(order, CODE):
        count = min(int(rng.geometric(0.55)), 12)
        bed = rng.random() < 0.4
        for image in range(count):
            now_bed = bed if rng.random() < 0.8 else not bed
            findings = study_findings(key, image, order, sicker=1.2 if now_bed else 0.85)
            facts = {"test": key.patient in held_out, "follow_up": image, "rgba": rng.random() < 0.03}
            path = f"images/{key.patient + 1:08d}_{image:03d}.png"
            items.append(Item(path, key.of_image(image), "AP" if now_bed else "PA", findings, facts))
    return items


def write_image(item: Item, order: Order, path: Path) -> None:
    """Draw one PNG."""
    rng = item.key.passing(Draw.TABLE)
    grey = site_picture(item, draw_beam(rng, bed=item.projection == "AP"), (order.size, order.size))
    low, high = rng.uniform(0.0, 0.1), rng.uniform(0.86, 1.0)
    grey = (low + (high - low) * grey).astype(np.float32)
    if rng.random() < 0.4:
        grey = collimate(grey, rng.uniform(0, 0.05, 4) * (rng.random(4) < 0.6))
    if rng.random() < 0.7:
        stamp(grey, "L", (rng.uniform(0.86, 0.91), rng.uniform(0.03, 0.12)), 0.055)
    pixels = eight_bit(grey)
    if item.facts["rgba"]:
        alpha = np.full_like(pixels, 255)
        pixels = np.dstack([pixels, pixels, pixels, alpha])
    write_picture(path, pixels)


def draw_beam(rng: np.random.Generator, *, bed: bool) -> Beam:
    """Return an exposure of the hospital behind this set, from which other sets took their images."""
    return Beam(
        photons=rng.uniform(1.2e6, 2.5e6) if bed else rng.uniform(3e6, 6e6),
        scatter=rng.uniform(0.5, 0.75) if bed else rng.uniform(0.25, 0.4),
        gamma=rng.uniform(0.8, 1.05),
    )


def write_tables(items: Sequence[Item], order: Order, out: Path) -> None:
    """Write the table of entries and the two official lists; there is no list for validation."""
    write_csv(out / "Data_Entry_2017_v2020.csv", HEADER.split(","), [_row(item) for item in items])
    for name, test in (("train_val_list.txt", False), ("test_list.txt", True)):
        names = [Path(item.path).name for item in items if item.facts["test"] == test]
        (out / name).write_text("\n".join(names) + "\n", encoding="utf-8")
    if order.traps:
        write_ds_store(out / "images")
        write_index_html(out / "images")


def _row(item: Item) -> list[object]:
    patient = patient_of(item)
    labels = item.labels
    tokens = "|".join(token for token, name in LABELS.items() if name in labels) or "No Finding"
    rng = item.key.passing(Draw.TABLE, 1)
    columns, rows, spacing = DETECTORS[int(rng.integers(0, len(DETECTORS)))]
    follow_up = item.facts["follow_up"]
    age = min(patient.age + follow_up // 3, 95)
    named = [Path(item.path).name, tokens, follow_up, item.key.patient + 1, age, patient.sex, item.projection]
    return [*named, columns, rows, spacing, spacing]


LAYOUT = Layout("nih14", CODE, 512, PREVALENCE, 0.4, 0.25, plan, write_image, write_tables)
