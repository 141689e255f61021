"""UKA-CXR, a hospital's own data: one CSV, images in a folder per subset; grades 1 to 4, by side where there are two.

Bedside radiographs of intensive care, read with a form that has a grade for everything: 1 none, 2 questionable, 3 and 4
present.  Codes above 4 say that something could not be judged.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from cxrdist.phantom.acquisition import Beam, stamp
from cxrdist.phantom.layouts.base import (
    Item,
    Layout,
    Order,
    exam_of,
    patient_of,
    patients_of,
    site_picture,
    study_findings,
    three_parts,
)
from cxrdist.phantom.layouts.files import eight_bit, write_csv, write_ds_store, write_picture
from cxrdist.phantom.people import Draw, Exam
from cxrdist.phantom.shapes import affected_sides

CODE = 6
TABLE = "uka_master_list.csv"
SIDED = ("pleural_effusion", "pneumonic_infiltrates", "atelectasis", "pneumothorax", "disturbances")
HEADER = (
    *("image_id", "patient_id", "subset", "split", "age", "gender", "cardiomegaly", "congestion"),
    *(f"{name}_{side}" for name in SIDED for side in ("right", "left")),
    "healthy",
)
PREVALENCE = {
    **{"cardiomegaly": 0.4, "edema": 0.3, "effusion": 0.35, "pneumonia": 0.25, "atelectasis": 0.3},
    **{"pneumothorax": 0.06, "support_devices": 0.7},
}
SUBSETS = ("subset_2009_2012", "subset_2013_2016", "subset_2017_2020")
SPLITS = {"train": "train", "validate": "valid", "test": "test"}
AGE_MEAN = 65.0

NOT_JUDGED = (5, 9)
"""Codes that are no grade."""


def plan(order: Order) -> list[Item]:
    """Return the images in the table's order: several bedside radiographs of each patient, a day or so apart."""
    parts = three_parts(order, CODE, validating=10)
    items = []
    for key, rng in patients_of(order, CODE):
        for image in range(1 + int(rng.geometric(0.5)) % 6):
            subset = SUBSETS[int(rng.integers(0, len(SUBSETS)))]
            named = f"{20_000_000 + (key.patient * 16 + image) * 37 + 11:d}"
            facts = {"part": parts[key.patient], "image_id": named, "subset": subset, "image": image}
            findings = study_findings(key, image, order, sicker=1.0)
            path = f"images/{subset}/{named}.jpg"
            item = Item(path, key.of_image(image), "AP", findings, facts)
            items.append(replace(item, seen=_sides_of(item)))
    return items


def _sides_of(item: Item) -> frozenset[str]:
    """Return the findings of one side, such as ``effusion_left``, that an image shows."""
    exam = exam_of(item, age_mean=AGE_MEAN)
    names = {"pleural_effusion": "effusion", "pneumonic_infiltrates": "pneumonia"}
    return frozenset(
        f"{names.get(name, name)}_{'right' if side < 0 else 'left'}"
        for name in SIDED
        for side, strength in _strength_by_side(exam, name).items()
        if strength
    )


def write_image(item: Item, order: Order, path: Path) -> None:
    """Draw one JPEG."""
    rng = item.key.passing(Draw.TABLE)
    beam = Beam(photons=rng.uniform(1.0e6, 2.0e6), scatter=rng.uniform(0.55, 0.85), gamma=rng.uniform(0.85, 1))
    wide = round(order.size * (1.22 if rng.random() < 0.7 else 1.0))
    grey = site_picture(item, beam, (order.size, wide), age_mean=AGE_MEAN)
    if rng.random() < 0.6:
        stamp(grey, "R", (rng.uniform(0.03, 0.08), rng.uniform(0.03, 0.1)), 0.05)
    write_picture(path, eight_bit(grey))


def write_tables(items: Sequence[Item], order: Order, out: Path) -> None:
    """Write the master list.  Traps: codes above 4, of an image's congestion and of sides that nobody could judge."""
    train = [k for k, item in enumerate(items) if item.facts["part"] == "train"]
    planted = {train[k]: column for k, column in ((1, "congestion"), (4, "atelectasis_left")) if k < len(train)}
    rows = []
    for k, item in enumerate(items):
        row = row_of(item)
        if order.traps and k in planted:
            row[planted[k]] = NOT_JUDGED[k % 2]
        rows.append([row[column] for column in HEADER])
    write_csv(out / TABLE, HEADER, rows)
    if order.traps:
        write_ds_store(out / "images")
        (out / "images" / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")


def row_of(item: Item) -> dict[str, object]:
    """Return an image's cells by column."""
    patient = patient_of(item, age_mean=AGE_MEAN)
    exam = exam_of(item, age_mean=AGE_MEAN)
    rng = item.key.passing(Draw.TABLE, 1)
    row: dict[str, object] = {"image_id": item.facts["image_id"], "patient_id": f"{item.key.patient + 1:06d}"}
    row |= {"subset": item.facts["subset"], "split": SPLITS[item.facts["part"]], "age": patient.age}
    row |= {"gender": int(patient.sex == "F")}
    # What the picture calls an edema begins with congested vessels.
    for column, finding in (("cardiomegaly", "cardiomegaly"), ("congestion", "edema")):
        row[column] = _grade(item.findings.get(finding, 0.0), rng)
    for name in SIDED:
        strength = _strength_by_side(exam, name)
        for side, column in ((-1, f"{name}_right"), (1, f"{name}_left")):
            row[column] = _grade(strength[side], rng)
    row["healthy"] = int("no_finding" in item.labels)
    return row


_BOTH = {"effusion": 0.3, "pneumonia": 0.4, "atelectasis": 0.35, "pneumothorax": 0.0, "consolidation": 0.0}
"""Chance of two sides, as the drawing of each finding has it."""

_SHOWN = {
    "pleural_effusion": ("effusion",),
    "pneumonic_infiltrates": ("pneumonia", "consolidation", "infiltration"),
    "atelectasis": ("atelectasis",),
    "pneumothorax": ("pneumothorax",),
    "disturbances": (),
}


def _strength_by_side(exam: Exam, name: str) -> dict[int, float]:
    found = {-1: 0.0, 1: 0.0}
    for finding in _SHOWN[name]:
        if finding in exam.findings:
            sides = [-1, 1] if finding == "infiltration" else affected_sides(exam, finding, both=_BOTH[finding])
            for side in sides:
                found[side] = max(found[side], exam.findings[finding])
    return found


def _grade(strength: float, rng: np.random.Generator) -> int:
    luck = rng.random()
    if strength > 0:
        return 4 if strength > 0.6 else 3
    return 2 if luck < 0.12 else 1


LAYOUT = Layout("uka_cxr", CODE, 512, PREVALENCE, 0.15, 0.2, plan, write_image, write_tables)
