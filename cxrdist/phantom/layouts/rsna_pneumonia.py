"""RSNA Pneumonia, stage 2: a row per box, a class per image in a second table, 8-bit JPEG in DICOM, unlabelled test."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from pydicom import config
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

from cxrdist.phantom.acquisition import stamp
from cxrdist.phantom.layouts.base import (
    Item,
    Layout,
    Order,
    exam_of,
    held_out_patients,
    patient_of,
    patients_of,
    site_picture,
    study_findings,
)
from cxrdist.phantom.layouts.dicom_file import SECONDARY_CAPTURE, new_uid, pixel_dataset, save_dicom, stored_values
from cxrdist.phantom.layouts.files import write_csv, write_ds_store, write_index_html
from cxrdist.phantom.layouts.nih14 import draw_beam
from cxrdist.phantom.people import Draw
from cxrdist.phantom.regions import air_left, boxes

CODE = 7
PREVALENCE = {
    **{"pneumonia": 0.3, "cardiomegaly": 0.12, "effusion": 0.1, "pneumothorax": 0.05, "emphysema": 0.06},
    **{"pleural_thickening": 0.06, "support_devices": 0.25},
}
OPACITY = ("pneumonia", "consolidation", "infiltration", "bacterial_pneumonia", "viral_pneumonia")
"""Opacities of the lung that may be pneumonia: what the readers drew boxes around."""


def plan(order: Order) -> list[Item]:
    """Return the images, sorted by path: one per patient, for the data set names no patient."""
    test = held_out_patients(order, CODE)
    items = []
    for key, rng in patients_of(order, CODE):
        part = "test" if key.patient in test else "train"
        named = image_name(rng)
        bed = rng.random() < 0.45
        facts = {
            "part": part,
            "name": named,
            "old": rng.random() < 0.002,
            "at": rng.uniform(0.03, 0.1, 2).tolist(),
        }
        findings = study_findings(key, 0, order, sicker=1.3 if bed else 0.8)
        items.append(Item(f"stage_2_{part}_images/{named}.dcm", key, "AP" if bed else "PA", findings, facts))
    items.sort(key=lambda item: item.path)
    if order.traps:
        train = [k for k, item in enumerate(items) if item.facts["part"] == "train"]
        middle = train[len(train) // 2]
        items[middle] = replace(items[middle], facts={**items[middle].facts, "old": True})
    return items


def image_name(rng: np.random.Generator) -> str:
    """Return a random name of the kind that the competition gave its images."""
    word = rng.bytes(16).hex()
    return "-".join((word[:8], word[8:12], "4" + word[13:16], "a" + word[17:20], word[20:]))


def write_image(item: Item, order: Order, path: Path) -> None:
    """Draw one DICOM file."""
    rng = item.key.passing(Draw.TABLE, 1)
    age = 148 if item.facts["old"] else patient_of(item).age
    save_dicom(draw_nih_dicom(item, order, item.facts["name"], age, [new_uid(rng) for _ in range(3)]), path)


def draw_nih_dicom(item: Item, order: Order, named: str, age: int, uids: Sequence[str]) -> Dataset:
    """Return one image as two competitions got it from ChestX-ray14: square, 8 bit, JPEG in DICOM, a secondary capture.

    Args:
        item: PA or AP.
        order: Gives the side, pixels.
        named: Patient's id, which is the image's.
        age: Years.
        uids: Of the study, the series and the image.
    """
    rng = item.key.passing(Draw.TABLE)
    grey = site_picture(item, draw_beam(rng, bed=item.projection == "AP"), (order.size, order.size))
    if rng.random() < 0.7:
        stamp(grey, "L", (rng.uniform(0.86, 0.91), rng.uniform(0.03, 0.12)), 0.055)
    stored = stored_values(grey, 8, inverse=False, low=rng.uniform(0, 0.08), high=rng.uniform(0.88, 1.0))
    ds = pixel_dataset(stored, 8, inverse=False, uid=uids[2], sop_class=SECONDARY_CAPTURE, syntax="jpeg")
    ds.SOPClassUID = SECONDARY_CAPTURE
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SOPInstanceUID = uids
    ds.PatientID = ds.PatientName = named
    # No unit behind the number, against the rules of the type (PS3.5 6.2).
    ds.add(DataElement("PatientAge", "AS", str(age), validation_mode=config.IGNORE))
    ds.StudyDate, ds.StudyTime, ds.AccessionNumber, ds.ReferringPhysicianName = "19010101", "000000.00", "", ""
    ds.Modality, ds.ConversionType, ds.SeriesDescription = "CR", "WSD", f"view: {item.projection}"
    ds.PatientBirthDate, ds.PatientSex, ds.BodyPartExamined = "", patient_of(item).sex, "CHEST"
    ds.ViewPosition, ds.PatientOrientation = item.projection, ""
    ds.StudyID, ds.SeriesNumber, ds.InstanceNumber = "", 1, 1
    ds.PixelSpacing = [str(rng.choice([0.139, 0.143, 0.168, 0.171]))] * 2
    ds.LossyImageCompressionMethod = "ISO_10918_1"
    return ds


def write_tables(items: Sequence[Item], order: Order, out: Path) -> None:
    """Write a row per box, the class of each of those rows again, and what else the competition's folder holds."""
    labels, classes = [], []
    for item in items:
        if item.facts["part"] != "train":
            continue
        named = item.facts["name"]
        found = opacity_boxes(item, order)
        labels += [[named, *map(float, box), 1] for box in found] or [[named, "", "", "", "", 0]]
        clear = "Normal" if "no_finding" in item.labels else "No Lung Opacity / Not Normal"
        classes += [[named, "Lung Opacity" if found else clear]] * max(len(found), 1)
    write_csv(out / "stage_2_train_labels.csv", ["patientId", "x", "y", "width", "height", "Target"], labels)
    write_csv(out / "stage_2_detailed_class_info.csv", ["patientId", "class"], classes)
    guess = [[item.facts["name"], "0.5 0 0 100 100"] for item in items if item.facts["part"] == "test"]
    write_csv(out / "stage_2_sample_submission.csv", ["patientId", "PredictionString"], guess)
    (out / "GCP Credits Request Link - RSNA.txt").write_text("No link.\n", encoding="utf-8")
    if order.traps:
        write_ds_store(out)
        write_index_html(out / "stage_2_train_images")


def opacity_boxes(item: Item, order: Order) -> list[tuple[int, int, int, int]]:
    """Return the boxes around an image's opacities, at most four; empty without one."""
    if not set(OPACITY) & set(item.findings):
        return []
    air = air_left(exam_of(item), OPACITY, (order.size, order.size))
    lowest = float(air.min())
    return boxes(air < 1 - 0.4 * (1 - lowest))[:4]


LAYOUT = Layout("rsna_pneumonia", CODE, 512, PREVALENCE, 0.35, 0.12, plan, write_image, write_tables)
