"""Kermany's children: JPEG in folders by class, kinds of pneumonia in the names, numbers that restart in test."""

import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cxrdist.phantom.acquisition import Beam, collimate, stamp
from cxrdist.phantom.draw import draw_exam_picture
from cxrdist.phantom.layouts.base import Item, Layout, Order, exam_of, held_out_patients, patients_of, study_findings
from cxrdist.phantom.layouts.files import eight_bit, write_ds_store, write_picture
from cxrdist.phantom.people import Draw, draw_child

CODE = 12
ROOT = "chest_xray"
PREVALENCE = {"bacterial_pneumonia": 0.47, "viral_pneumonia": 0.45}
"""The two exclude each other: about 47 % bacterial, 24 % viral, as in the real training folder."""


def plan(order: Order) -> list[Item]:
    """Return the images: one to four per child with pneumonia, one or two of the others."""
    held_out = held_out_patients(order, CODE)
    numbers: Counter[tuple[Any, ...]] = Counter()
    items: list[Item] = []
    for key, rng in patients_of(order, CODE):
        findings = study_findings(key, 0, order, sicker=1.0)
        ill = bool({"bacterial_pneumonia", "viral_pneumonia", "pneumonia"} & findings.keys())
        pool, group = "test" if key.patient in held_out else "train", "PNEUMONIA" if ill else "NORMAL"
        numbers[pool, group] += 1
        number = numbers[pool, group]
        # Kaggle's validation folder holds sixteen images of the training pool: here two children of each class.
        part = "val" if pool == "train" and number in (2, 3) else pool
        count = int(rng.choice([1, 2, 3, 4], p=[0.6, 0.25, 0.1, 0.05])) if ill else 1 + int(rng.random() < 0.15)
        months = int(rng.integers(12, 72))
        for image in range(count):
            kind = "virus" if "viral_pneumonia" in findings else "bacteria"
            numbers[pool, kind] += 1
            if ill:
                name = f"person{number}_{kind}_{numbers[pool, kind]}"
            else:
                name = f"{'' if number % 3 else 'NORMAL2-'}IM-{number:04d}-0001{f'-{image:04d}' if image else ''}"
            facts = {"part": part, "months": months, "colour": order.traps and len(items) % 9 == 4}
            path = f"{ROOT}/{part}/{group}/{name}.jpeg"
            items.append(Item(path, key.of_image(image), "AP", findings, facts))
    return items


def write_image(item: Item, order: Order, path: Path) -> None:
    """Draw one JPEG: a lying picture, collimated to the child; some in colour without being coloured."""
    rng = item.key.passing(Draw.TABLE)
    # A child is thinner: less attenuation, less scatter.
    beam = Beam(
        photons=rng.uniform(1e6, 2.5e6),
        scatter=rng.uniform(0.25, 0.45),
        attenuation=rng.uniform(0.11, 0.14),
        gamma=rng.uniform(0.85, 1.1),
    )
    exam = exam_of(item, patient=draw_child(item.key, item.facts["months"]))
    shape = (order.size, round(order.size * rng.uniform(1.15, 1.5)))
    grey = draw_exam_picture(exam, beam, shape=shape)
    if rng.random() < 0.5:
        grey = collimate(grey, rng.uniform(0, 0.06, 4))
    if rng.random() < 0.7:
        stamp(grey, "R", (rng.uniform(0.04, 0.12), rng.uniform(0.03, 0.12)), 0.06)
    pixels = eight_bit(grey)
    if item.facts["colour"]:
        pixels = np.dstack([pixels] * 3)
    write_picture(path, pixels)


def write_tables(items: Sequence[Item], order: Order, out: Path) -> None:
    """Write no table, for there is none; as traps, the copy inside the copy and what a Mac puts into an archive."""
    root = out / ROOT
    for part in ("train", "val", "test"):
        for group in ("NORMAL", "PNEUMONIA"):
            (root / part / group).mkdir(parents=True, exist_ok=True)
    if not order.traps:
        return
    for item in items:
        inner = Path(item.path).relative_to(ROOT)
        (root / ROOT / inner).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / inner, root / ROOT / inner)
        fork = root / "__MACOSX" / inner.with_name(f"._{inner.name}")
        fork.parent.mkdir(parents=True, exist_ok=True)
        fork.write_bytes(b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        ")
    for folder in (root, root / "train", root / ROOT / "train" / "NORMAL"):
        folder.mkdir(parents=True, exist_ok=True)
        write_ds_store(folder)


LAYOUT = Layout("kermany", CODE, 320, PREVALENCE, 0.0, 0.2, plan, write_image, write_tables)
