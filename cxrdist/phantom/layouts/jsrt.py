"""JSRT: headerless 2048 x 2048 big-endian words of 12 bits, film density (bone = small), tables cut by tabs.

The pictures are drawn at the size asked for and enlarged: a file is 8 MiB whatever the size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from cxrdist.phantom.acquisition import Beam
from cxrdist.phantom.draw import draw_exam_picture, frame_of
from cxrdist.phantom.layouts.base import Item, Layout, Order, patient_of, study_findings
from cxrdist.phantom.people import Draw, Exam, Key, draw_exam
from cxrdist.phantom.scene import Scene
from cxrdist.phantom.shapes import frontal_shape, of_side

CODE = 13
AGE_MEAN = 58.0
SIDE = 2048
SPACING_MM = 0.175
MALIGNANT = ("lung cancer", "lung cancer", "metastasis")
BENIGN = ("granuloma", "tuberculoma", "hamartoma", "inflammatory mass", "cryptococcosis")


@dataclass(frozen=True)
class Nodule:
    """The one nodule of an image, cm."""

    at: tuple[float, float]
    radius: float
    malignant: bool
    rays: np.ndarray
    """Angles of the spicules of a malignant one."""


def plan(order: Order) -> list[Item]:
    """Return one image per patient, those with a nodule first; the two kinds are numbered apart."""
    nodule: list[tuple[Key, dict[str, float]]] = []
    clear: list[tuple[Key, dict[str, float]]] = []
    for patient in range(order.patients):
        key = Key(order.seed, CODE, patient)
        findings = study_findings(key, 0, order, sicker=1.0)
        (nodule if "nodule" in findings else clear).append((key, findings))
    items = []
    for letters, folder, group in (("CLN", "Nodule154images", nodule), ("CNN", "NonNodule93images", clear)):
        for number, (key, findings) in enumerate(group, 1):
            suffix = "img" if order.traps and number == 4 else "IMG"  # the case differs between copies
            path = f"{folder}/JP{letters}{number:03d}.{suffix}"
            items.append(Item(path, key, "PA", findings, {"number": number}))
    return items


def exam_of(item: Item) -> Exam:
    """Return the exam of an item; the nodule is drawn apart, for the table says where it lies."""
    others = {name: strength for name, strength in item.findings.items() if name != "nodule"}
    return draw_exam(item.key, patient_of(item, age_mean=AGE_MEAN), "PA", others)


def nodule_of(item: Item) -> Nodule:
    """Return the nodule of an item that has one."""
    exam, strength = exam_of(item), item.findings["nodule"]
    rng = exam.lesion_rng("nodule")
    at = frontal_shape(exam).place(rng, -1 if rng.random() < 0.5 else 1, 0.15, 0.85)
    radius = float(np.clip(0.35 + 0.75 * strength * rng.uniform(0.6, 1.4), 0.3, 1.7))
    return Nodule(at, radius, rng.random() < 0.65, rng.uniform(0, 2 * np.pi, 7))


def write_image(item: Item, order: Order, path: Path) -> None:
    """Draw one raw file of film densities: the blackened film around the patient has the largest values."""
    rng = item.key.passing(Draw.TABLE)
    beam = Beam(photons=rng.uniform(4e6, 8e6), scatter=rng.uniform(0.2, 0.3), sharpen=0.1)

    def add_nodule(scene: Scene) -> None:
        if "nodule" in item.findings:
            _draw(scene, nodule_of(item), item.findings["nodule"])

    grey = draw_exam_picture(exam_of(item), beam, shape=(order.size, order.size), extra=add_nodule)
    large = cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)
    low, high = rng.uniform(0.02, 0.08), rng.uniform(0.9, 0.98)
    stored = ((high - (high - low) * large) * 4095).astype(">u2")
    path.write_bytes(stored.tobytes())


def _draw(scene: Scene, nodule: Nodule, strength: float) -> None:
    spot = scene.frame.ball(nodule.at, (nodule.radius, nodule.radius))
    shadow = (0.7 + 2.6 * strength) * spot**0.7
    if nodule.malignant:
        for angle in nodule.rays:
            reach = nodule.radius * np.array([[0.8], [1.6]])
            ray = np.array(nodule.at) + reach * np.array((np.cos(angle), np.sin(angle)))
            shadow += (0.2 + 0.5 * strength) * scene.frame.stroke(ray, 0.12)
    scene.tissue += shadow * scene.lung


def write_tables(items: Sequence[Item], order: Order, out: Path) -> None:
    """Write both clinical tables, without a header and with blanks inside words as the real ones; some ages are `?`."""
    folder = out / "Clinical_Information"
    folder.mkdir()
    nodules = [_nodule_line(item, order) for item in items if "nodule" in item.findings]
    clear = [
        "\t".join([_name(item), *_who(item, order), "non-nodule"]) for item in items if "nodule" not in item.findings
    ]
    (folder / "CLNDAT_EN.txt").write_bytes("\r\n".join([*nodules, ""]).encode())
    (folder / "CNNDAT_EN.TXT").write_bytes("\r\n".join([*clear, ""]).encode())


def _nodule_line(item: Item, order: Order) -> str:
    nodule, exam = nodule_of(item), exam_of(item)
    frame = frame_of(exam, (order.size, order.size))
    x, y = (frame.pixels(np.array([nodule.at]))[0] + 0.5) * SIDE / order.size
    size_mm = 2 * nodule.radius * frame.scale * SIDE / order.size * SPACING_MM
    subtlety = int(np.clip(1 + round(4.4 * item.findings["nodule"] - 0.4), 1, 5))
    rng = item.key.passing(Draw.TABLE, 2)
    diagnosis = str(rng.choice(MALIGNANT if nodule.malignant else BENIGN))
    verdict = "malignant" if nodule.malignant else "benign"
    cells = [_name(item), subtlety, round(size_mm), *_who(item, order), round(x), round(y), verdict]
    return "\t".join(str(cell) for cell in [*cells, _lobe(nodule, exam), diagnosis])


def _name(item: Item) -> str:
    return Path(item.path).stem + ".IMG"


def _who(item: Item, order: Order) -> list[str]:
    patient = patient_of(item, age_mean=AGE_MEAN)
    age = "?" if order.traps and item.facts["number"] == 2 else str(patient.age)
    return [age, {"F": "Female", "M": "Male"}[patient.sex]]


def _lobe(nodule: Nodule, exam: Exam) -> str:
    side = -1 if nodule.at[0] < 0 else 1
    depth = nodule.at[1] / of_side(frontal_shape(exam).domes, side)
    if depth < 0.45:
        return "r.upper lobe" if side < 0 else "l.upper lobe"
    if depth < 0.62:
        return "r.middl e lobe" if side < 0 else "l.upper lobe(S5)"  # the blank is the source's
    return "r.lower lobe" if side < 0 else "l.lower lobe"


LAYOUT = Layout("jsrt", CODE, 512, {"nodule": 0.62}, 0.0, 0.0, plan, write_image, write_tables)
