"""RANZCR CLiP: JPEG by study UID, a column per kind of line and place of its tip, an unlabelled test folder.

The images are a hospital's from beds, so they show diseases too, which the table says nothing of.
"""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from cxrdist.phantom.acquisition import Beam, collimate, stamp
from cxrdist.phantom.draw import draw_exam_picture, frame_of
from cxrdist.phantom.layouts.base import Item, Layout, Order, held_out_patients, patient_of, patients_of, study_findings
from cxrdist.phantom.layouts.dicom_file import new_uid
from cxrdist.phantom.layouts.files import eight_bit, write_csv, write_ds_store, write_picture
from cxrdist.phantom.lines import PLACES, Kind, Line, Place, add_lines, draw_way
from cxrdist.phantom.people import Draw, Exam, Key, draw_exam
from cxrdist.phantom.shapes import frontal_shape

CODE = 16
COLUMNS = (
    *("ETT - Abnormal", "ETT - Borderline", "ETT - Normal"),
    *("NGT - Abnormal", "NGT - Borderline", "NGT - Incompletely Imaged", "NGT - Normal"),
    *("CVC - Abnormal", "CVC - Borderline", "CVC - Normal", "Swan Ganz Catheter Present"),
)
SHARES: Mapping[Kind, float] = {"ETT": 0.28, "NGT": 0.36, "CVC": 0.8, "Swan Ganz": 0.04}
"""Share of the images with a line of each kind, among those with any; as in the real training table."""
WHERE: Mapping[Kind, tuple[float, ...]] = {
    "ETT": (0.72, 0.2, 0.08),
    "NGT": (0.5, 0.1, 0.08, 0.32),
    "CVC": (0.63, 0.27, 0.1),
    "Swan Ganz": (1.0,),
}
"""Shares of the places, in the order of `PLACES`; the rare ones come more often than in reality."""
PREVALENCE = {
    **{"support_devices": 0.93, "cardiomegaly": 0.2, "effusion": 0.22, "edema": 0.12, "consolidation": 0.14},
    **{"atelectasis": 0.18, "pneumothorax": 0.05, "infiltration": 0.12},
}


def plan(order: Order) -> list[Item]:
    """Return the images: one to four per patient; `support_devices` decides which have lines."""
    held_out = held_out_patients(order, CODE)
    items = []
    for key, rng in patients_of(order, CODE):
        part, number = "test" if key.patient in held_out else "train", rng.bytes(5).hex()[:9]
        for image in range(int(rng.choice([1, 2, 3, 4], p=[0.5, 0.25, 0.15, 0.1]))):
            findings = study_findings(key, image, order, sicker=1.0)
            name = new_uid(rng)
            here = key.of_image(image)
            lines = _lines(here, findings)
            facts = {"part": part, "uid": name, "patient_id": number, "lines": lines}
            seen = frozenset(finding_of(kind, place) for kind, place in lines)
            items.append(Item(f"{part}/{name}.jpg", here, "AP", findings, facts, seen))
    return items


def _lines(key: Key, findings: Mapping[str, float]) -> list[tuple[Kind, Place]]:
    if "support_devices" not in findings:
        return []
    rng = key.passing(Draw.DEVICE)
    chances, places = rng.random((2, 5))
    kinds = [kind for kind, chance in zip(SHARES, chances, strict=False) if chance < SHARES[kind]]
    kinds = kinds or ["CVC"]
    if "CVC" in kinds and chances[4] < 0.12:
        kinds.append("CVC")  # a second one, perhaps with its tip elsewhere: two columns of a kind can be 1
    found = []
    for kind, luck in zip(kinds, places, strict=False):
        steps = np.cumsum(WHERE[kind])
        found.append((kind, PLACES[kind][min(int(np.searchsorted(steps, luck)), len(steps) - 1)]))
    return found


def column_of(kind: Kind, place: Place) -> str:
    """Return the column of the table for a line and its place."""
    return "Swan Ganz Catheter Present" if kind == "Swan Ganz" else f"{kind} - {place}"


def finding_of(kind: Kind, place: Place) -> str:
    """Return the canonical name of a line at a place."""
    return "swan_ganz_catheter" if kind == "Swan Ganz" else f"{kind}_{place}".lower().replace(" ", "_")


def exam_of(item: Item) -> Exam:
    """Return the exam of an item; its lines are drawn apart, for the table says where their tips lie."""
    others = {name: strength for name, strength in item.findings.items() if name != "support_devices"}
    return draw_exam(item.key, patient_of(item, age_mean=62), "AP", others)


def lines_of(item: Item) -> list[Line]:
    """Return the lines of an item with their ways."""
    exam, rng = exam_of(item), item.key.passing(Draw.DEVICE, 1)
    shape = frontal_shape(exam)
    return [draw_way(kind, place, exam, shape, rng) for kind, place in item.facts["lines"]]


def picture_shape(item: Item, order: Order) -> tuple[int, int]:
    """Return rows and columns of an image."""
    rng = item.key.passing(Draw.TABLE, 1)
    wide = round(order.size * rng.uniform(1.0, 1.25))
    return (order.size, wide) if rng.random() < 0.75 else (wide, order.size)


def write_image(item: Item, order: Order, path: Path) -> None:
    """Draw one JPEG."""
    rng = item.key.passing(Draw.TABLE)
    beam = Beam(photons=rng.uniform(1e6, 2.5e6), scatter=rng.uniform(0.5, 0.8))
    strength = item.findings.get("support_devices", 0.0)
    extra = partial(add_lines, lines=lines_of(item), strength=strength)
    grey = draw_exam_picture(exam_of(item), beam, shape=picture_shape(item, order), extra=extra)
    if rng.random() < 0.3:
        grey = collimate(grey, rng.uniform(0, 0.03, 4))
    if rng.random() < 0.6:
        stamp(grey, "L", (rng.uniform(0.86, 0.91), rng.uniform(0.03, 0.1)), 0.05)
    write_picture(path, eight_bit(grey))


def write_tables(items: Sequence[Item], order: Order, out: Path) -> None:
    """Write the training table, the drawn ways of some of its images' lines, and an empty answer for the test part."""
    train = [item for item in items if item.facts["part"] == "train"]
    test = [item for item in items if item.facts["part"] == "test"]
    write_csv(out / "train.csv", ["StudyInstanceUID", *COLUMNS, "PatientID"], [_row(item) for item in train])
    ways = [row for item in train if item.key.passing(Draw.TABLE, 2).random() < 0.6 for row in _ways(item, order)]
    write_csv(out / "train_annotations.csv", ["StudyInstanceUID", "label", "data"], ways)
    blank = [[item.facts["uid"], *[0] * len(COLUMNS)] for item in test]
    write_csv(out / "sample_submission.csv", ["StudyInstanceUID", *COLUMNS], blank)
    if order.traps:
        write_ds_store(out / "train")
        for part in ("train", "test"):  # the same images once more, as records for TensorFlow: not for us
            folder = out / f"{part}_tfrecords"
            folder.mkdir(exist_ok=True)
            (folder / "00-1878.tfrec").write_bytes(bytes(64))


def _row(item: Item) -> list[object]:
    there = {column_of(kind, place) for kind, place in item.facts["lines"]}
    return [item.facts["uid"], *(int(column in there) for column in COLUMNS), item.facts["patient_id"]]


def _ways(item: Item, order: Order) -> list[list[object]]:
    """Return a row per line: the points of its way that lie in the picture, pixels."""
    rows, columns = picture_shape(item, order)
    frame = frame_of(exam_of(item), (rows, columns))
    found: list[list[object]] = []
    for line in lines_of(item):
        points = np.rint(frame.pixels(line.way)).astype(int)
        inside = points[((points >= 0) & (points < (columns, rows))).all(axis=1)]
        found.append([item.facts["uid"], column_of(line.kind, line.place), json.dumps(inside.tolist())])
    return found


LAYOUT = Layout("ranzcr_clip", CODE, 512, PREVALENCE, 0.05, 0.12, plan, write_image, write_tables)
