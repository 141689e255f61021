"""VinDr-CXR: DICOM without patient ids, all PA; three readers per training image, a consensus for the test part."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset

from cxrdist.phantom.acquisition import Beam, stamp
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
from cxrdist.phantom.layouts.dicom_file import add_whole_window, pixel_dataset, save_dicom, stored_values
from cxrdist.phantom.layouts.files import write_csv, write_ds_store, write_index_html
from cxrdist.phantom.people import Draw

CODE = 3
AGE_MEAN = 52.0
LABELS = {
    "Aortic enlargement": "aortic_enlargement",
    "Atelectasis": "atelectasis",
    "Calcification": "calcification",
    "Cardiomegaly": "cardiomegaly",
    "Clavicle fracture": "clavicle_fracture",
    "Consolidation": "consolidation",
    "Edema": "edema",
    "Emphysema": "emphysema",
    "Enlarged PA": "enlarged_pulmonary_artery",
    "ILD": "interstitial_lung_disease",
    "Infiltration": "infiltration",
    "Lung Opacity": "lung_opacity",
    "Lung cavity": "lung_cavity",
    "Lung cyst": "lung_cyst",
    "Mediastinal shift": "mediastinal_shift",
    "Nodule/Mass": "nodule_or_mass",
    "Pleural effusion": "effusion",
    "Pleural thickening": "pleural_thickening",
    "Pneumothorax": "pneumothorax",
    "Pulmonary fibrosis": "fibrosis",
    "Rib fracture": "rib_fracture",
    "Other lesion": "other_lesion",
    "COPD": "copd",
    "Lung tumor": "lung_tumor",
    "Pneumonia": "pneumonia",
    "Tuberculosis": "tuberculosis",
    "Other diseases": "other_disease",
    "No finding": "no_finding",
}
"""The 28 columns.  `Other lesion` and `Other diseases` are never drawn: always 0."""

PREVALENCE = {
    **{"aortic_enlargement": 0.18, "atelectasis": 0.08, "calcification": 0.07, "cardiomegaly": 0.2},
    **{"clavicle_fracture": 0.02, "consolidation": 0.1, "edema": 0.03, "emphysema": 0.04},
    **{"enlarged_pulmonary_artery": 0.04, "interstitial_lung_disease": 0.06, "infiltration": 0.1, "lung_cavity": 0.03},
    **{"lung_cyst": 0.02, "mediastinal_shift": 0.04, "nodule": 0.09, "mass": 0.06, "effusion": 0.16},
    **{"pleural_thickening": 0.12, "pneumothorax": 0.08, "fibrosis": 0.1, "rib_fracture": 0.03, "pneumonia": 0.09},
    **{"tuberculosis": 0.06},
}
READERS = 17


def plan(order: Order) -> list[Item]:
    """Return the images: one per patient, for the data set names no patient."""
    held_out = held_out_patients(order, CODE)
    items = []
    for key, rng in patients_of(order, CODE):
        part = "test" if key.patient in held_out else "train"
        name = rng.bytes(16).hex()
        facts = {
            "part": part,
            "name": name,
            "inverse": rng.random() < 0.18,
            "compressed": rng.random() < 0.35,
            "bits": 12 if rng.random() < 0.75 else 14,
            "window": rng.random() < 0.98,
        }
        findings = study_findings(key, 0, order, sicker=1.0)
        items.append(Item(f"{part}/{name}.dicom", key, "PA", findings, facts))
    return sorted(items, key=lambda item: item.path)


def write_image(item: Item, order: Order, path: Path) -> None:
    """Draw one DICOM file."""
    rng = item.key.passing(Draw.TABLE)
    beam = Beam(photons=rng.uniform(3e6, 7e6), scatter=rng.uniform(0.2, 0.35), gamma=rng.uniform(0.9, 1.15))
    rows = round(order.size * (1.0 if rng.random() < 0.4 else 1.2))
    grey = site_picture(item, beam, (rows, order.size), age_mean=AGE_MEAN)
    if rng.random() < 0.8:
        stamp(grey, "R", (rng.uniform(0.05, 0.1), rng.uniform(0.03, 0.1)), 0.05)
    low, high = rng.uniform(0.0, 0.06), rng.uniform(0.9, 1.0)
    stored = stored_values(grey, item.facts["bits"], inverse=item.facts["inverse"], low=low, high=high)
    patient = patient_of(item, age_mean=AGE_MEAN)
    ds = white_listed(item, stored, patient.sex, f"{patient.age:03d}Y", 370.0 / order.size)
    if item.facts["window"]:
        add_whole_window(ds, item.facts["bits"])
    save_dicom(ds, path)


def white_listed(item: Item, stored: np.ndarray, sex: str, age: str, spacing_mm: float) -> Dataset:
    """Return one image with the tags that the authors' white list leaves, but for a window, and no others.

    Args:
        item: Its facts tell `bits`, `inverse`, `compressed` and `name`.
        stored: (H, W) values.
        sex: As the header has it.
        age: An age string (PS3.5, VR AS); some patients' is not known.
        spacing_mm: Of the pixels.
    """
    ds = pixel_dataset(
        stored,
        item.facts["bits"],
        inverse=item.facts["inverse"],
        uid=f"2.25.{int(item.facts['name'], 16)}",
        syntax="jpeg2000" if item.facts["compressed"] else "explicit",
    )
    ds.PatientSex, ds.PatientAge = sex, "000Y" if item.key.patient % 17 == 3 else age
    ds.PixelSpacing = [f"{spacing_mm:.4f}"] * 2
    ds.RescaleIntercept, ds.RescaleSlope = "0", "1"
    return ds


def write_tables(items: Sequence[Item], order: Order, out: Path) -> None:
    """Write both label tables: three readers' votes per training image, one consensus per test image."""
    folder = out / "annotations"
    rows: list[list[object]] = []
    train = [item for item in items if item.facts["part"] == "train"]
    split_vote = next((item for item in train if _can_split(item)), None) if order.traps else None
    for item in train:
        rng = item.key.passing(Draw.TABLE, 2)
        readers = np.sort(rng.permutation(READERS)[:3]) + 1
        votes = _split_votes(item) if item is split_vote else [_vote(item, rng) for _ in range(3)]
        rows += [[item.facts["name"], f"R{reader}", *_cells(vote)] for reader, vote in zip(readers, votes, strict=True)]
    write_csv(folder / "image_labels_train.csv", ["image_id", "rad_id", *LABELS], rows)
    header = ["image_id", *("Other disease" if name == "Other diseases" else name for name in LABELS)]
    test = [[item.facts["name"], *_cells(item.labels)] for item in items if item.facts["part"] == "test"]
    write_csv(folder / "image_labels_test.csv", header, test)
    if order.traps:
        write_ds_store(out / "train")
        write_index_html(out / "train")


def _cells(labels: set[str]) -> list[int]:
    return [int(finding in labels) for finding in LABELS.values()]


def _shown(item: Item) -> set[str]:
    return item.labels & set(LABELS.values())


def _can_split(item: Item) -> bool:
    return len(_shown(item) - {"no_finding", "lung_opacity"}) >= 3


def _split_votes(item: Item) -> list[set[str]]:
    """Three readers who see one different thing each: abnormal, yet no finding has a majority."""
    return [{name} for name in sorted(_shown(item) - {"no_finding", "lung_opacity"})[:3]]


def _vote(item: Item, rng: np.random.Generator) -> set[str]:
    """One reader misses some of what is there, seldom sees what is not, and never mixes a finding with "No finding"."""
    miss, invent = rng.random(len(LABELS)), rng.random(len(LABELS))
    shown = _shown(item)
    seen = {name for name, p in zip(LABELS.values(), miss, strict=True) if name in shown and p > 0.08}
    seen |= {
        name for name, p in zip(LABELS.values(), invent, strict=True) if p < 0.002 and not name.startswith("other")
    }
    seen.discard("no_finding")
    return seen or {"no_finding"}


LAYOUT = Layout("vindr_cxr", CODE, 512, PREVALENCE, 0.45, 0.25, plan, write_image, write_tables)
