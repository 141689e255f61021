"""VinDr-PCXR: DICOM of children without patient ids, one reader per image, label names with the source's spelling."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cxrdist.phantom.acquisition import Beam, stamp
from cxrdist.phantom.draw import draw_exam_picture, frame_of
from cxrdist.phantom.layouts.base import Item, Layout, Order, exam_of, held_out_patients, patients_of, study_findings
from cxrdist.phantom.layouts.dicom_file import add_whole_window, save_dicom, stored_values
from cxrdist.phantom.layouts.files import write_csv, write_ds_store, write_index_html
from cxrdist.phantom.layouts.vindr_cxr import white_listed
from cxrdist.phantom.people import Draw, Exam, draw_child
from cxrdist.phantom.shapes import frontal_shape

CODE = 15
LABELS: dict[str, set[str]] = {
    "No finding": set(),
    "Bronchitis": {"infiltration"},
    "Brocho-pneumonia": {"pneumonia"},
    "Other disease": {"cardiomegaly", "pneumothorax", "atelectasis", "edema", "nodule", "fibrosis", "rib_fracture"},
    "Bronchiolitis": {"interstitial_lung_disease"},
    "Situs inversus": {"situs_inversus"},
    "Pneumonia": {"bacterial_pneumonia", "viral_pneumonia", "consolidation"},
    "Pleuro-pneumonia": set(),
    "Diagphramatic hernia": {"hernia"},
    "Tuberculosis": {"tuberculosis"},
    "Congenital emphysema": {"emphysema"},
    "CPAM": {"lung_cyst"},
    "Hyaline membrane disease": set(),
    "Mediastinal tumor": {"enlarged_cardiomediastinum"},
    "Lung tumor": {"mass"},
}
"""The 15 columns in the file's order, with what is drawn for each.  Pneumonia with an effusion is Pleuro-pneumonia;
Hyaline membrane disease is never drawn."""

CANONICAL = {
    "Bronchitis": "bronchitis",
    "Brocho-pneumonia": "bronchopneumonia",
    "Other disease": "other_disease",
    "Bronchiolitis": "bronchiolitis",
    "Situs inversus": "situs_inversus",
    "Pneumonia": "pneumonia",
    "Pleuro-pneumonia": "pleuropneumonia",
    "Diagphramatic hernia": "hernia",
    "Tuberculosis": "tuberculosis",
    "Congenital emphysema": "congenital_emphysema",
    "CPAM": "cpam",
    "Mediastinal tumor": "mediastinal_tumor",
    "Lung tumor": "lung_tumor",
}
"""Canonical names of the columns."""

BOXES = {
    "infiltration": "Bronchial thickening",
    "pneumonia": "Other opacity",
    "interstitial_lung_disease": "Peribronchovascular interstitial opacity",
    "bacterial_pneumonia": "Consolidation",
    "viral_pneumonia": "Reticulonodular opacity",
    "consolidation": "Consolidation",
    "effusion": "Pleural effusion",
    "tuberculosis": "Infiltration",
    "emphysema": "Lung hyperinflation",
    "lung_cyst": "Lung cyst",
    "mass": "Other nodule/mass",
    "enlarged_cardiomediastinum": "Anterior mediastinal mass",
    "hernia": "Intrathoracic digestive structure",
    "cardiomegaly": "Cardiomegaly",
}
"""The finding class of each drawn finding, in the table of boxes."""

PREVALENCE = {
    **{"infiltration": 0.14, "pneumonia": 0.1, "interstitial_lung_disease": 0.09, "bacterial_pneumonia": 0.12},
    **{"effusion": 0.03, "tuberculosis": 0.03, "emphysema": 0.03, "lung_cyst": 0.03, "hernia": 0.02, "mass": 0.03},
    **{"enlarged_cardiomediastinum": 0.03, "cardiomegaly": 0.04},
}


def plan(order: Order) -> list[Item]:
    """Return the images: one per child, for the data set names no patient."""
    held_out = held_out_patients(order, CODE)
    items = []
    for key, rng in patients_of(order, CODE):
        part, name = "test" if key.patient in held_out else "train", rng.bytes(16).hex()
        facts: dict[str, Any] = {
            "part": part,
            "name": name,
            "months": int(rng.integers(0, 120) if rng.random() < 0.6 else rng.integers(0, 30)),
            "inverse": rng.random() < 0.15,
            "compressed": rng.random() < 0.35,
            "bits": int(rng.choice([12, 12, 14, 16])),
            "mirrored": rng.random() < 0.015 or (order.traps and key.patient == 5),
        }
        findings = study_findings(key, 0, order, sicker=1.0)
        told = diseases(findings, mirrored=facts["mirrored"])
        seen = frozenset(CANONICAL[label] for label in told - {"No finding"})
        items.append(Item(f"{part}/{name}.dicom", key, "PA", findings, {**facts, "told": sorted(told)}, seen))
    return sorted(items, key=lambda item: item.path)


def child_exam(item: Item) -> Exam:
    """Return the exam of an item, a child below ten."""
    return exam_of(item, patient=draw_child(item.key, item.facts["months"]))


def picture_shape(item: Item, order: Order) -> tuple[int, int]:
    """Return rows and columns of an image."""
    rows = round(order.size * item.key.passing(Draw.TABLE, 1).uniform(1.0, 1.2))
    return rows, order.size


def diseases(findings: Iterable[str], *, mirrored: bool) -> set[str]:
    """Return the labels of an image, as its one reader gives them."""
    shown = set(findings) | ({"situs_inversus"} if mirrored else set())
    found = {label for label, drawn in LABELS.items() if drawn & shown}
    if "effusion" in shown:
        infected = found & {"Pneumonia", "Brocho-pneumonia"}
        found = (found - infected) | ({"Pleuro-pneumonia"} if infected else {"Other disease"})
    if shown and not found:
        found = {"Other disease"}
    return found or {"No finding"}


def write_image(item: Item, order: Order, path: Path) -> None:
    """Draw one DICOM file."""
    rng = item.key.passing(Draw.TABLE)
    beam = Beam(
        photons=rng.uniform(1.5e6, 4e6),
        scatter=rng.uniform(0.2, 0.35),
        attenuation=rng.uniform(0.11, 0.14),
        gamma=rng.uniform(0.9, 1.15),
    )
    exam = child_exam(item)
    grey = draw_exam_picture(exam, beam, shape=picture_shape(item, order))
    if item.facts["mirrored"]:
        grey = np.ascontiguousarray(grey[:, ::-1])  # before the marker, which stays true
    if rng.random() < 0.8:
        stamp(grey, "R", (rng.uniform(0.05, 0.1), rng.uniform(0.03, 0.1)), 0.05)
    low, high = rng.uniform(0, 0.06), rng.uniform(0.9, 1)
    stored = stored_values(grey, item.facts["bits"], inverse=item.facts["inverse"], low=low, high=high)
    ds = white_listed(item, stored, exam.patient.sex, _age(item.facts["months"]), 250.0 / order.size)
    if rng.random() < 0.97:
        add_whole_window(ds, item.facts["bits"])
    save_dicom(ds, path)


def _age(months: int) -> str:
    """Return an age string in the unit that suits it (PS3.5, VR AS)."""
    if months == 0:
        return "012D"
    return f"{months:03d}M" if months < 24 else f"{months // 12:03d}Y"


def write_tables(items: Sequence[Item], order: Order, out: Path) -> None:
    """Write labels and boxes of both parts; each image has one reader."""
    for part in ("train", "test"):
        mine = [item for item in items if item.facts["part"] == part]
        labels = [
            [item.facts["name"], _reader(item), *(f"{float(name in item.facts['told'])}" for name in LABELS)]
            for item in mine
        ]
        write_csv(out / f"image_labels_{part}.csv", ["image_id", "rad_ID", *LABELS], labels)
        header = ["image_id", "rad_ID", "class_name", "x_min", "y_min", "x_max", "y_max"]
        write_csv(out / f"annotations_{part}.csv", header, [row for item in mine for row in _boxes(item, order)])
    if order.traps:
        write_ds_store(out / "train")
        write_index_html(out / "train")


def _reader(item: Item) -> str:
    return f"R{1 + int(item.key.lasting(Draw.TABLE, 3).integers(0, 3))}"


def _boxes(item: Item, order: Order) -> list[list[object]]:
    """Return a row per finding class: the box around both lungs, in which all of them lie."""
    classes = sorted({BOXES[name] for name in item.findings if name in BOXES})
    start = [item.facts["name"], _reader(item)]
    if not classes:
        label = "No finding" if "No finding" in item.facts["told"] else "Other lesion"
        return [[*start, label, None, None, None, None]]
    rows, columns = picture_shape(item, order)
    exam = child_exam(item)
    corners = frame_of(exam, (rows, columns)).pixels(np.vstack(frontal_shape(exam).lungs))
    left, top = np.clip(corners.min(axis=0), 0, (columns, rows))
    right, bottom = np.clip(corners.max(axis=0), 0, (columns, rows))
    if item.facts["mirrored"]:
        left, right = columns - right, columns - left
    return [[*start, name, *(f"{value:.1f}" for value in (left, top, right, bottom))] for name in classes]


LAYOUT = Layout("vindr_pcxr", CODE, 512, PREVALENCE, 0.4, 0.15, plan, write_image, write_tables)
