"""Shenzhen and Montgomery, the NLM's tuberculosis sets: PNG named by label, a small text beside each, lung masks.

The texts are as irregular as the real ones: typing errors, no blank before the age, months and days, no unit, a sex O.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from cxrdist.phantom.acquisition import Beam, stamp
from cxrdist.phantom.draw import draw_exam_picture, frame_of
from cxrdist.phantom.layouts.base import Item, Layout, Order, exam_of, study_findings
from cxrdist.phantom.layouts.files import eight_bit, write_picture
from cxrdist.phantom.people import Draw, Exam, Key, draw_child
from cxrdist.phantom.shapes import affected_sides, frontal_shape

SHENZHEN_CODE, MONTGOMERY_CODE = 10, 11
SHENZHEN_ROOT, MONTGOMERY_ROOT = "ChinaSet_AllFiles", "MontgomerySet"
TUBERCULOSIS = "tuberculosis"
ZONES = {-1: "right", 1: "left"}
MODES = {0: "L", 1: "L", 2: "L", 3: "RGB", 4: "L", 5: "P", 6: "L"}
"""How Shenzhen's PNGs are coded, by their number modulo 7: grey, colour, or a palette."""


def plan_shenzhen(order: Order) -> list[Item]:
    """Return one image per patient, those without tuberculosis first: numbers and labels go together."""
    items = []
    for number, (key, findings) in enumerate(_normal_first(order, SHENZHEN_CODE), 1):
        child = number % 9 == 2 or key.lasting(Draw.TABLE).random() < 0.03
        months = (2 if number % 2 else 16) if order.traps and child and TUBERCULOSIS not in findings else None
        facts = {"number": number, "mode": MODES[number % 7] if order.traps else "L", "months": months}
        name = f"CHNCXR_{number:04d}_{int(TUBERCULOSIS in findings)}.png"
        items.append(Item(f"{SHENZHEN_ROOT}/CXR_png/{name}", key, "PA", findings, facts))
    return items


def plan_montgomery(order: Order) -> list[Item]:
    """Return one image per patient, numbers with gaps; with traps, one patient with tuberculosis has a second image."""
    items: list[Item] = []
    again = order.traps
    for rank, (key, findings) in enumerate(_normal_first(order, MONTGOMERY_CODE), 1):
        number, ill = rank + rank // 4, TUBERCULOSIS in findings
        items.append(_montgomery_item(key, number, findings, None))
        if again and ill:
            # The real set says so in its text alone: a split by file name would leak.
            items.append(
                _montgomery_item(key.of_image(1), 2 * order.patients + number, findings, f"MCUCXR_{number:04d}_1")
            )
            again = False
    return sorted(items, key=lambda item: item.facts["number"])


def _montgomery_item(key: Key, number: int, findings: dict[str, float], same_as: str | None) -> Item:
    name = f"MCUCXR_{number:04d}_{int(TUBERCULOSIS in findings)}.png"
    facts = {"number": number, "same_as": same_as}
    return Item(f"{MONTGOMERY_ROOT}/CXR_png/{name}", key, "PA", findings, facts)


def _normal_first(order: Order, code: int) -> list[tuple[Key, dict[str, float]]]:
    keys = [Key(order.seed, code, patient) for patient in range(order.patients)]
    drawn = [(key, study_findings(key, 0, order, sicker=1.0)) for key in keys]
    return sorted(drawn, key=lambda pair: TUBERCULOSIS in pair[1])


def shenzhen_exam(item: Item) -> Exam:
    """Return the exam of an item; a few are small children."""
    months = item.facts["months"]
    return exam_of(item, age_mean=38, patient=None if months is None else draw_child(item.key, months))


def montgomery_exam(item: Item) -> Exam:
    """Return the exam of an item."""
    return exam_of(item, age_mean=42)


def montgomery_shape(item: Item, order: Order) -> tuple[int, int]:
    """Return rows and columns of an image: the long side is 1.217 of the short one, lying or upright."""
    long = round(order.size * 4892 / 4020)
    return (order.size, long) if item.key.passing(Draw.TABLE, 1).random() < 0.7 else (long, order.size)


def write_shenzhen_image(item: Item, order: Order, path: Path) -> None:
    """Draw one PNG: grey, colour, or a palette whose indices run against the brightness."""
    rng = item.key.passing(Draw.TABLE)
    beam = Beam(photons=rng.uniform(2e6, 5e6), scatter=rng.uniform(0.25, 0.4))
    wide = round(order.size * rng.uniform(1.0, 1.1))
    shape = (order.size, wide) if rng.random() < 0.6 else (wide, order.size)
    grey = draw_exam_picture(shenzhen_exam(item), beam, shape=shape)
    if rng.random() < 0.6:
        stamp(grey, "R", (rng.uniform(0.05, 0.1), rng.uniform(0.03, 0.1)), 0.05)
    pixels = eight_bit(grey)
    mode = item.facts["mode"]
    if mode == "P":
        picture = Image.fromarray(255 - pixels, "P")
        picture.putpalette([255 - level for level in range(256) for _ in range(3)])
        picture.save(path, "PNG", compress_level=3)
        return
    if mode == "RGB":
        pixels = np.dstack([pixels] * 3)
    write_picture(path, pixels)


def write_montgomery_image(item: Item, order: Order, path: Path) -> None:
    """Draw one PNG and the masks of its two lungs; a left mask is the patient's left, on the image's right."""
    rng = item.key.passing(Draw.TABLE)
    beam = Beam(photons=rng.uniform(3e6, 6e6), scatter=rng.uniform(0.2, 0.35))
    shape, exam = montgomery_shape(item, order), montgomery_exam(item)
    grey = draw_exam_picture(exam, beam, shape=shape)
    write_picture(path, eight_bit(grey))
    frame, lungs = frame_of(exam, shape), frontal_shape(exam).lungs
    for folder, lung in zip(("rightMask", "leftMask"), lungs, strict=True):
        target = path.parents[1] / "ManualMask" / folder / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        mask = np.where(frame.mask8(lung) > 127, 255, 0).astype(np.uint8)
        write_picture(target, mask)


def write_shenzhen_texts(items: Sequence[Item], order: Order, out: Path) -> None:
    """Write the clinical readings; one text is missing."""
    root = out / SHENZHEN_ROOT
    (root / "ClinicalReadings").mkdir()
    for item in items:
        if order.traps and item.facts["number"] == 6:
            continue
        lines = [_who(item, shenzhen_exam(item), irregular=order.traps), *_reading(shenzhen_exam(item))]
        text = root / "ClinicalReadings" / Path(item.path).with_suffix(".txt").name
        text.write_bytes("\r\n".join(lines).encode())
    if order.traps:
        _thumbnails(root / "CXR_png")


def write_montgomery_texts(items: Sequence[Item], order: Order, out: Path) -> None:
    """Write the clinical readings: sex, age and finding on lines of their own."""
    root = out / MONTGOMERY_ROOT
    (root / "ClinicalReadings").mkdir()
    for item in items:
        exam, same = montgomery_exam(item), item.facts["same_as"]
        sex = "O" if order.traps and item.facts["number"] == 3 else exam.patient.sex
        reading = [f"NO REPORT (same pt as {same})"] if same else _reading(exam)
        lines = [f"Patient's Sex: {sex} ", f"Patient's Age: {exam.patient.age:03d}Y", *reading]
        text = root / "ClinicalReadings" / Path(item.path).with_suffix(".txt").name
        text.write_text("\n".join(lines) + "\n", encoding="utf-8")
    if order.traps:
        _thumbnails(root / "CXR_png")


def _who(item: Item, exam: Exam, *, irregular: bool) -> str:
    sex, age, number = {"F": "female", "M": "male"}[exam.patient.sex], exam.patient.age, item.facts["number"]
    months = item.facts["months"]
    if months is not None:
        return f"{sex} {months}month" if months > 2 else f"{sex} {30 * months + 4}days"
    forms = {
        3: f"{sex}{age}yrs",
        4: f"{sex.capitalize()}, {age}yrs",
        5: f"{sex} , {age}yrs  \t",
        7: f"{'femal' if sex == 'female' else 'Male'} {age}yrs",
        8: f"{sex} {age}",
    }
    return forms.get(number % 10, f"{sex} {age}yrs") if irregular else f"{sex} {age}yrs"


def _reading(exam: Exam) -> list[str]:
    """Return what a reader would write: where the tuberculosis is, then everything else."""
    lines = []
    if TUBERCULOSIS in exam.findings:
        sides = affected_sides(exam, TUBERCULOSIS, both=0.35)
        where = "bilateral" if len(sides) == 2 else f"{ZONES[sides[0]]} upper"
        lines.append(f"{where} secondary PTB with cavitation")
    lines += [name.replace("_", " ") for name in exam.findings if name != TUBERCULOSIS]
    return lines or ["normal"]


def _thumbnails(folder: Path) -> None:
    """Write what Windows leaves in a folder of pictures: the first bytes of a compound file."""
    (folder / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(504))


SHENZHEN = Layout(
    "shenzhen",
    SHENZHEN_CODE,
    512,
    {TUBERCULOSIS: 0.51},
    0.0,
    0.0,
    plan_shenzhen,
    write_shenzhen_image,
    write_shenzhen_texts,
)
MONTGOMERY = Layout(
    "montgomery",
    MONTGOMERY_CODE,
    512,
    {TUBERCULOSIS: 0.42},
    0.0,
    0.0,
    plan_montgomery,
    write_montgomery_image,
    write_montgomery_texts,
)
