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
    site_picture,
    study_findings,
    write_ds_store,
    write_index_html,
)
from cxrdist.phantom.layouts.dicom_file import pixel_dataset, save_dicom, stored_values
from cxrdist.phantom.people import Draw, Key

CODE = 3
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
    for patient in range(order.patients):
        key = Key(order.seed, CODE, patient)
        rng = key.lasting(Draw.TABLE)
        part = "test" if patient in held_out else "train"
        name = rng.bytes(16).hex()
        facts = {
            "part": part,
            "name": name,
            "inverse": bool(rng.random() < 0.18),
            "compressed": bool(rng.random() < 0.35),
            "bits": 12 if rng.random() < 0.75 else 14,
            "window": bool(rng.random() < 0.98),
        }
        findings = study_findings(key, 0, order, sicker=1.0)
        items.append(Item(f"{part}/{name}.dicom", key, "PA", findings, facts))
    return sorted(items, key=lambda item: item.path)


def write_image(item: Item, order: Order, path: Path) -> None:
    """Draw one DICOM file with the tags that the authors' white list leaves, and no others."""
    rng = item.key.passing(Draw.TABLE)
    beam = Beam(
        photons=float(rng.uniform(3e6, 7e6)), scatter=float(rng.uniform(0.2, 0.35)), gamma=float(rng.uniform(0.9, 1.15))
    )
    rows = round(order.size * (1.0 if rng.random() < 0.4 else 1.2))
    grey = site_picture(item, beam, (rows, order.size), age_mean=52)
    if rng.random() < 0.8:
        stamp(grey, "R", (float(rng.uniform(0.05, 0.1)), float(rng.uniform(0.03, 0.1))), 0.05)
    bits = int(item.facts["bits"])
    low, high = rng.uniform(0.0, 0.06), rng.uniform(0.9, 1.0)
    stored = stored_values(grey, bits, inverse=bool(item.facts["inverse"]), low=low, high=high)
    save_dicom(_dicom(item, stored, bits, 370.0 / order.size), path)


def _dicom(item: Item, stored: np.ndarray, bits: int, spacing_mm: float) -> Dataset:
    patient = patient_of(item, age_mean=52)
    ds = pixel_dataset(
        stored,
        bits,
        inverse=bool(item.facts["inverse"]),
        uid="2.25." + str(int(str(item.facts["name"]), 16)),
        syntax="jpeg2000" if item.facts["compressed"] else "explicit",
    )
    ds.PatientSex = patient.sex
    ds.PatientAge = "000Y" if item.key.patient % 17 == 3 else f"{patient.age:03d}Y"
    ds.PixelSpacing = [f"{spacing_mm:.4f}"] * 2
    ds.RescaleIntercept, ds.RescaleSlope = "0", "1"
    if item.facts["window"]:
        ds.WindowCenter, ds.WindowWidth = str(1 << (bits - 1)), str(1 << bits)
    return ds


def write_tables(items: Sequence[Item], order: Order, out: Path) -> None:
    """Write both label tables: three readers' votes per training image, one consensus per test image."""
    folder = out / "annotations"
    folder.mkdir(exist_ok=True)
    lines = [",".join(["image_id", "rad_id", *LABELS])]
    train = [item for item in items if item.facts["part"] == "train"]
    split_vote = next((item for item in train if _can_split(item)), None) if order.traps else None
    for item in train:
        rng = item.key.passing(Draw.TABLE, 2)
        readers = np.sort(rng.permutation(READERS)[:3]) + 1
        votes = _split_votes(item) if item is split_vote else [_vote(item, rng) for _ in range(3)]
        lines += [
            _line(str(item.facts["name"]), vote, f"R{reader}") for reader, vote in zip(readers, votes, strict=True)
        ]
    (folder / "image_labels_train.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    header = ",".join(["image_id", *LABELS]).replace("Other diseases", "Other disease")
    lines = [header]
    lines += [_line(str(item.facts["name"]), item.labels) for item in items if item.facts["part"] == "test"]
    (folder / "image_labels_test.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    if order.traps:
        write_ds_store(out / "train")
        write_index_html(out / "train")


def _line(name: str, labels: set[str], reader: str | None = None) -> str:
    cells = ["1" if finding in labels else "0" for finding in LABELS.values()]
    return ",".join([name, *([reader] if reader else []), *cells])


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
