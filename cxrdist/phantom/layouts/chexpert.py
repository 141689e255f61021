"""CheXpert-v1.0-small: histogram-equalised JPEG, frontals and laterals, labels 1.0 / 0.0 / -1.0 / blank per study."""

from collections.abc import Sequence
from pathlib import Path

from cxrdist.phantom.acquisition import Beam, collimate, equalise, stamp
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
from cxrdist.phantom.layouts.chex14 import LABELS, label_cells
from cxrdist.phantom.layouts.files import eight_bit, write_csv, write_ds_store, write_index_html, write_picture
from cxrdist.phantom.people import Draw, Projection

CODE = 1
AGE_MEAN = 61.0
ROOT = "CheXpert-v1.0-small"
HEADER = ["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *LABELS]

PREVALENCE = {
    **{"cardiomegaly": 0.24, "effusion": 0.22, "edema": 0.14, "pneumothorax": 0.12, "consolidation": 0.14},
    **{"atelectasis": 0.16, "pneumonia": 0.09, "nodule": 0.06, "mass": 0.05, "pleural_thickening": 0.04},
    **{"rib_fracture": 0.03, "clavicle_fracture": 0.02, "enlarged_cardiomediastinum": 0.06, "support_devices": 0.3},
    **{"emphysema": 0.05, "fibrosis": 0.04},
}


def plan(order: Order) -> list[Item]:
    """Return the images in the order of the tables: one to three studies per patient, some with a lateral."""
    held_out = held_out_patients(order, CODE)
    items = []
    for part in ("train", "valid"):
        for key, rng in patients_of(order, CODE):
            if (key.patient in held_out) != (part == "valid"):
                continue
            studies = 1 if part == "valid" else int(rng.choice([1, 2, 3], p=[0.62, 0.26, 0.12]))
            image = 0
            for study in range(studies):
                bed = rng.random() < 0.72
                findings = study_findings(key, study, order, sicker=1.2 if bed else 0.75)
                folder = f"{ROOT}/{part}/patient{key.patient + 1:05d}/study{study + 1}"
                frontal: Projection = "AP" if bed else "PA"
                facts = {"part": part, "study": study, "shown": "LL" if rng.random() < 0.01 else frontal}
                items.append(Item(f"{folder}/view1_frontal.jpg", key.of_image(image), frontal, findings, facts))
                image += 1
                if rng.random() < (0.08 if bed else 0.45):
                    facts = {"part": part, "study": study, "shown": ""}
                    items.append(Item(f"{folder}/view2_lateral.jpg", key.of_image(image), "lateral", findings, facts))
                    image += 1
    return items


def write_image(item: Item, order: Order, path: Path) -> None:
    """Draw one JPEG."""
    rng = item.key.passing(Draw.TABLE)
    bed = item.projection == "AP"
    beam = Beam(
        photons=rng.uniform(1.0e6, 2.5e6) if bed else rng.uniform(2.5e6, 5e6),
        scatter=rng.uniform(0.5, 0.8) if bed else rng.uniform(0.25, 0.4),
    )
    long = round(order.size * 390 / 320)
    shape = (order.size, long) if rng.random() < 0.6 else (long, order.size)
    grey = site_picture(item, beam, shape, age_mean=AGE_MEAN)
    if rng.random() < 0.35:
        grey = collimate(grey, rng.uniform(0, 0.035, 4))
    grey = equalise(grey)
    if item.projection != "lateral" and rng.random() < 0.75:
        stamp(grey, "L", (rng.uniform(0.86, 0.92), rng.uniform(0.03, 0.1)), 0.06, 0.97)
        if bed and rng.random() < 0.5:
            stamp(grey, "PORTABLE", (0.03, rng.uniform(0.03, 0.08)), 0.035, 0.97)
    write_picture(path, eight_bit(grey))


def write_tables(items: Sequence[Item], order: Order, out: Path) -> None:
    """Write train.csv (labels as a report labeller leaves them) and valid.csv (a consensus, without blanks)."""
    root = out / ROOT
    for part in ("train", "valid"):
        rows = [_row(item, order, consensus=part == "valid") for item in items if item.facts["part"] == part]
        write_csv(root / f"{part}.csv", HEADER, rows)
    if order.traps:
        write_ds_store(root)
        write_index_html(root / "train")


def _row(item: Item, order: Order, *, consensus: bool) -> list[object]:
    patient = patient_of(item, age_mean=AGE_MEAN)
    number = item.key.patient
    sex = "Unknown" if order.traps and number == 2 else {"F": "Female", "M": "Male"}[patient.sex]
    age = 0 if order.traps and number == 4 else min(patient.age, 90)
    side = "Lateral" if item.projection == "lateral" else "Frontal"
    # The labels are the study's: both its projections draw from the study's stream.
    rng = item.key.lasting(Draw.TABLE, 100 + item.facts["study"])
    cells = label_cells(LABELS, item.labels, rng, consensus=consensus)
    return [item.path, sex, age, side, item.facts["shown"], *cells]


LAYOUT = Layout("chexpert", CODE, 320, PREVALENCE, 0.3, 0.28, plan, write_image, write_tables)
