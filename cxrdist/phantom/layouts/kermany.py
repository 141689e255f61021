"""Kermany's children: JPEG in folders by class, kinds of pneumonia in the names, numbers that restart in test."""

import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from cxrdist.phantom.acquisition import Beam, collimate, stamp
from cxrdist.phantom.draw import draw_exam_picture
from cxrdist.phantom.layouts.base import Item, Layout, Order, held_out_patients, study_findings, write_ds_store
from cxrdist.phantom.people import Draw, Key, draw_child, draw_exam

CODE = 12
ROOT = "chest_xray"
PREVALENCE = {"bacterial_pneumonia": 0.47, "viral_pneumonia": 0.45}
"""The two exclude each other: about 47 % bacterial, 24 % viral, as in the real training folder."""


def plan(order: Order) -> list[Item]:
    """Return the images: one to four per child with pneumonia, one or two of the others."""
    held_out = held_out_patients(order, CODE)
    numbers: Counter[tuple[Any, ...]] = Counter()
    items: list[Item] = []
    for patient in range(order.patients):
        key = Key(order.seed, CODE, patient)
        rng = key.lasting(Draw.TABLE)
        findings = study_findings(key, 0, order, sicker=1.0)
        ill = bool({"bacterial_pneumonia", "viral_pneumonia", "pneumonia"} & findings.keys())
        pool, group = "test" if patient in held_out else "train", "PNEUMONIA" if ill else "NORMAL"
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
                name = f"{'NORMAL2-' if number % 3 == 0 else ''}IM-{number:04d}-0001" + (
                    f"-{image:04d}" if image else ""
                )
            facts = {"part": part, "months": months, "colour": order.traps and len(items) % 9 == 4}
            path = f"{ROOT}/{part}/{group}/{name}.jpeg"
            items.append(Item(path, Key(order.seed, CODE, patient, image), "AP", findings, facts))
    return items


def write_image(item: Item, order: Order, path: Path) -> None:
    """Draw one JPEG: a lying picture, collimated to the child; some in colour without being coloured."""
    rng = item.key.passing(Draw.TABLE)
    # A child is thinner: less attenuation, less scatter.
    beam = Beam(
        photons=float(rng.uniform(1e6, 2.5e6)),
        scatter=float(rng.uniform(0.25, 0.45)),
        attenuation=float(rng.uniform(0.11, 0.14)),
        gamma=float(rng.uniform(0.85, 1.1)),
    )
    exam = draw_exam(item.key, draw_child(item.key, int(item.facts["months"])), "AP", dict(item.findings))
    shape = (order.size, round(order.size * rng.uniform(1.15, 1.5)))
    grey = draw_exam_picture(exam, beam, shape=shape)
    if rng.random() < 0.5:
        edge = [int(order.size * share) for share in rng.uniform(0, 0.06, 4)]
        grey = collimate(grey, (edge[0], edge[1], edge[2], edge[3]), 0.0)
    if rng.random() < 0.7:
        stamp(grey, "R", (float(rng.uniform(0.04, 0.12)), float(rng.uniform(0.03, 0.12))), 0.06)
    pixels = np.rint(grey * 255).astype(np.uint8)
    if item.facts["colour"]:
        pixels = np.dstack([pixels] * 3)
    cv2.imwrite(str(path), pixels, [cv2.IMWRITE_JPEG_QUALITY, 92])


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
