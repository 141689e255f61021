"""SIIM-ACR Pneumothorax: DICOM in folders of UIDs; masks as run lengths, each run counted from the end of the last."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from cxrdist.phantom.layouts.base import (
    Item,
    Layout,
    Order,
    exam_of,
    held_out_patients,
    patient_of,
    patients_of,
    study_findings,
)
from cxrdist.phantom.layouts.dicom_file import new_uid, save_dicom
from cxrdist.phantom.layouts.files import write_csv, write_ds_store
from cxrdist.phantom.layouts.rsna_pneumonia import draw_nih_dicom, image_name
from cxrdist.phantom.people import Draw, Key, Projection
from cxrdist.phantom.regions import air_left

CODE = 8
PREVALENCE = {
    **{"pneumothorax": 0.28, "support_devices": 0.25, "effusion": 0.1, "cardiomegaly": 0.1, "atelectasis": 0.06},
    **{"emphysema": 0.06, "nodule": 0.04},
}


def plan(order: Order) -> list[Item]:
    """Return the images, sorted by path: one per patient, for every file's patient id is another."""
    test = held_out_patients(order, CODE)
    items = []
    for key, rng in patients_of(order, CODE):
        part = "test" if key.patient in test else "train"
        bed = rng.random() < 0.4
        findings = study_findings(key, 0, order, sicker=1.2 if bed else 0.9)
        items.append(_item(key, "AP" if bed else "PA", findings, part, rng))
    if order.traps:
        items += _planted(items)
    return sorted(items, key=lambda item: item.path)


def _item(key: Key, projection: Projection, findings: dict[str, float], part: str, rng: np.random.Generator) -> Item:
    study, series, instance = (new_uid(rng) for _ in range(3))
    facts = {"part": part, "uids": (study, series, instance), "name": image_name(rng), "kind": ""}
    path = f"dicom-images-{part}/{study}/{series}/{instance}.dcm"
    return Item(path, key, projection, findings, facts)


def _planted(items: list[Item]) -> list[Item]:
    """Return a second copy of one pneumothorax, of which the mask was drawn again; and take one image's row away."""
    train = sorted((item for item in items if item.facts["part"] == "train"), key=lambda item: item.path)
    clear = [item for item in train if "pneumothorax" not in item.findings]
    if clear:
        place = items.index(clear[len(clear) // 2])
        items[place] = replace(items[place], facts={**items[place].facts, "kind": "no row"})
    model = next((item for item in train if "pneumothorax" in item.findings), None)
    if model is None:
        return []
    twin = _item(model.key, model.projection, dict(model.findings), "train", model.key.lasting(Draw.TABLE, 2))
    return [replace(twin, facts={**twin.facts, "kind": "twin"})]


def write_image(item: Item, order: Order, path: Path) -> None:
    """Draw one DICOM file."""
    save_dicom(draw_nih_dicom(item, order, item.facts["name"], patient_of(item).age, item.facts["uids"]), path)


def write_tables(items: Sequence[Item], order: Order, out: Path) -> None:
    """Write the masks of the first stage's training images, and those of all its images, which came out later.

    Traps: a blank before a column's name and before some codes; several masks of one image; an image without a row.
    """
    rows: dict[str, list[list[str]]] = {"train": [], "test": []}
    for k, item in enumerate(items):
        if item.facts["kind"] == "no row":
            continue
        codes = [run_lengths(mask) for mask in masks_of(item, order)] or [" -1" if k % 3 else "-1"]
        rows[item.facts["part"]] += [[item.facts["uids"][2], code] for code in codes]
    write_csv(out / "train-rle.csv", ["ImageId", " EncodedPixels"], rows["train"])
    write_csv(out / "stage_2_train.csv", ["ImageId", "EncodedPixels"], rows["train"] + rows["test"])
    guess = [[item.facts["uids"][2], "-1"] for item in items if item.facts["part"] == "test"]
    write_csv(out / "sample_submission.csv", ["ImageId", "EncodedPixels"], guess)
    if order.traps:
        write_ds_store(out / "dicom-images-train")


def masks_of(item: Item, order: Order) -> list[np.ndarray]:
    """Return the masks (H, W bool) of an image's pneumothorax: one, or two of its parts."""
    if "pneumothorax" not in item.findings:
        return []
    air = air_left(exam_of(item), ("pneumothorax",), (order.size, order.size))
    wide = (air > 1 + 0.4 * (float(air.max()) - 1)).astype(np.uint8)
    mask = cv2.morphologyEx(wide, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8)) > 0  # nobody draws hairlines
    mask = mask if mask.any() else wide > 0
    if item.facts["kind"] == "twin":
        mask[1:] &= mask[:-1]  # another reader draws a little less
    rng = item.key.passing(Draw.TABLE, 3)
    rows = np.flatnonzero(mask.any(axis=1))
    if rng.random() > 0.35 or len(rows) < 4:
        return [mask]
    cut = int(rows[len(rows) // 2])
    upper, lower = mask.copy(), mask.copy()
    upper[cut:], lower[: cut - 1] = False, False  # they overlap by a row, as two readers' strokes do
    return [upper, lower]


def run_lengths(mask: np.ndarray) -> str:
    """Return the runs of a mask, column by column: for each the gap since the last run's end, and its length."""
    flat = np.concatenate([[0], mask.T.reshape(-1).astype(np.int8), [0]])
    edges = np.flatnonzero(np.diff(flat))
    starts, ends = edges[::2], edges[1::2]
    gaps = starts - np.concatenate([[0], ends[:-1]])
    return " ".join(map(str, np.stack([gaps, ends - starts], 1).reshape(-1)))


LAYOUT = Layout("siim_ptx", CODE, 512, PREVALENCE, 0.35, 0.12, plan, write_image, write_tables)
