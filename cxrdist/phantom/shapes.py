"""Outlines of a frontal chest, cm: what a patient's build, breath, projection and disease do to lungs, heart and domes.

`side` is -1 for the patient's right (the image's left) and +1 for the left.
"""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from cxrdist.phantom.canvas import curve, ellipse, moved
from cxrdist.phantom.people import Exam

T = TypeVar("T")
WALL = np.array([(4.6, 0.0), (7.7, 1.3), (10.4, 4.6), (12.2, 9.0), (13.3, 13.8), (13.9, 19.0)])
"""Inner side of an average chest wall: half width at a depth below the apex."""


def of_side(pair: tuple[T, T], side: int) -> T:
    """Return what belongs to `side` of a pair (right, left)."""
    return pair[0 if side < 0 else 1]


@dataclass(frozen=True)
class Shape:
    """Outlines of one exposure; every outline is (N, 2) in cm."""

    body: np.ndarray
    arms: tuple[np.ndarray, np.ndarray]
    lungs: tuple[np.ndarray, np.ndarray]
    """Right, left."""
    heart: np.ndarray
    aorta: np.ndarray
    """Knob and arch."""
    domes: tuple[float, float]
    """Height (y) of the diaphragm's right and left dome."""
    angles: tuple[tuple[float, float], tuple[float, float]]
    """Right and left costophrenic angle."""
    wall: np.ndarray
    """(N, 2): half width at a depth, from the apex to the angle, of this patient."""
    heart_width: float
    thorax_width: float
    tracheal_shift: float
    sway: float
    """Shift of what lies in front, from rotation about the long axis."""

    @property
    def cardiothoracic_ratio(self) -> float:
        """Width of the heart's shadow over the inner width of the chest."""
        return self.heart_width / self.thorax_width

    def half_width(self, y: np.ndarray | float) -> np.ndarray:
        """Return the half width of the inner chest at depth `y`."""
        return np.interp(y, self.wall[:, 1], self.wall[:, 0])

    def place(self, rng: np.random.Generator, side: int, low: float, high: float) -> tuple[float, float]:
        """Return a point inside the lung of `side`, between two shares of its height (0 apex, 1 dome)."""
        dome = of_side(self.domes, side)
        y = dome * rng.uniform(low, high)
        wall = float(self.half_width(y))
        inner = 3.4 if y < 11 else 5.2 if side < 0 else 7.0
        x = inner + (wall - 1.2 - inner) * rng.uniform(0.1, 0.95)
        return side * x, float(y)


def heart_ratio(exam: Exam) -> float:
    """Return the true cardiothoracic ratio: above 0.55 with cardiomegaly, below 0.48 without."""
    strength = exam.findings.get("cardiomegaly")
    return exam.patient.heart_ratio if strength is None else 0.551 + 0.08 * strength


def mediastinal_shift(exam: Exam) -> float:
    """Return how far the mediastinum is pushed or pulled, cm; 0 without the finding."""
    strength = exam.findings.get("mediastinal_shift")
    if strength is None:
        return 0.0
    side = 1 if exam.lesion_rng("mediastinal_shift").random() < 0.5 else -1
    if "effusion" in exam.findings:
        side = -int(np.sign(affected_sides(exam, "effusion")[0]))
    return side * (0.8 + 1.7 * strength)


def affected_sides(exam: Exam, finding: str, *, both: float = 0.3) -> list[int]:
    """Return the sides a finding affects, the worse one first; `both` is the chance of two."""
    rng = exam.lesion_rng("side " + finding)
    first = -1 if rng.random() < 0.55 else 1
    return [first, -first] if rng.random() < both else [first]


def frontal_shape(exam: Exam) -> Shape:
    """Return the outlines of a PA or AP exposure."""
    patient, found = exam.patient, exam.findings
    w, h = patient.chest_width, patient.chest_height
    bed = exam.projection == "AP"
    flat = 0.25 + 0.6 * found["emphysema"] if "emphysema" in found else 0.0
    full = 20.9 * h + 1.5 * exam.breath + 1.9 * flat
    lift = {-1: 0.0, 1: 0.0}
    if "atelectasis" in found:
        lift[affected_sides(exam, "atelectasis")[0]] = 0.6 + 1.9 * found["atelectasis"]
    domes = (full - lift[-1], full + patient.right_dome - lift[1])
    wall = WALL * (w * (1 + 0.04 * flat), h)
    shift = mediastinal_shift(exam)
    sway = exam.turn
    lungs, angles = [], []
    for side, dome in zip((-1, 1), domes, strict=True):
        lung, angle = _lung(side, dome, wall, flat, w, shift * 0.8)
        lungs.append(lung)
        angles.append(angle)
    inner = 2 * float(wall[-1, 0])
    magnified = 1.1 if bed else 1.0
    width = heart_ratio(exam) * inner * magnified * (1 - 0.12 * flat)
    heart = _heart(width, max(domes), patient.heart_turn, shift + 0.7 * sway, h)
    swell = found.get("aortic_enlargement", 0.0)
    radius = patient.aorta + (0.45 + 1.0 * swell if "aortic_enlargement" in found else 0.0)
    knob = ellipse((1.55 + 0.5 * radius + 0.4 * sway + shift, 5.7 * h), (radius, radius * 1.15))
    return Shape(
        body=_body(w, patient.habitus),
        arms=(_arm(-1, w, bed), _arm(1, w, bed)),
        lungs=(lungs[0], lungs[1]),
        heart=heart,
        aorta=knob,
        domes=domes,
        angles=(angles[0], angles[1]),
        wall=np.vstack([wall, [(wall[-1, 0] * 0.985, max(domes) + 4.5)]]),
        heart_width=width,
        thorax_width=inner,
        tracheal_shift=shift + 0.5 * sway + 0.4 * max(radius - 1.6, 0.0) * -1,
        sway=sway,
    )


def _lung(
    side: int, dome: float, wall: np.ndarray, flat: float, w: float, shift: float
) -> tuple[np.ndarray, tuple[float, float]]:
    corner = (wall[-1, 0] * 0.985, dome + 3.9 - 2.2 * flat)
    lateral = np.vstack([[(3.0 * w, 0.8)], wall[:-1], wall[-1:], [corner]])
    if corner[1] < wall[-1, 1] + 0.8:  # a high dome ends the lung above the widest part of the chest
        lateral = np.vstack([[(3.0 * w, 0.8)], wall[wall[:, 1] < corner[1] - 1.0], [corner]])
    rise = 1 - 0.75 * flat
    base = np.array([(13.7, 3.9), (12.6, 2.1), (10.6, 0.75), (7.6, 0.0), (5.0, 0.25), (2.2, 1.3)])
    base = base * (w, rise) + (0, dome)
    inner = max(2.15 + side * shift, 0.9)
    base[0], base[-1, 0] = corner, inner
    medial = np.array(
        [(inner, dome + 1.2), (inner, 15.0), (inner, 8.5), (max(2.35 + side * shift * 0.7, 1.2), 4.0), (3.0 * w, 0.8)]
    )
    outline = np.vstack([curve(lateral), curve(base), curve(medial)])
    return outline * (side, 1), (side * corner[0], corner[1])


def _heart(width: float, dome: float, turn: float, shift: float, h: float) -> np.ndarray:
    right, left = 0.345 * width, 0.655 * width
    apex = dome - 0.9 + 0.9 * turn
    slim = 0.08 * turn
    top = 6.3 * h
    reach = apex - top
    outline = np.array(
        [
            (-2.3, top),
            (-2.75, top + 0.25 * reach),
            (-right * 0.86, top + 0.48 * reach),
            (-right, top + 0.72 * reach),
            (-right * 0.86, top + 0.98 * reach),
            (-right * 0.3, apex + 2.2),
            (left * 0.4, apex + 2.4),
            (left * 0.88, apex + 1.3),
            (left, apex - 0.5),
            (left * (0.86 + slim), top + 0.7 * reach),
            (left * (0.62 + slim), top + 0.47 * reach),
            (3.15 + 0.1 * left, top + 0.28 * reach),
            (2.7, top + 0.1 * reach),
        ]
    )
    return curve(moved(outline, shift, 0), closed=True)


def _body(w: float, habitus: float) -> np.ndarray:
    wide = 15.9 * w + 1.1 * (habitus + 0.3)
    half = np.array(
        [
            (5.6 + 0.5 * habitus, -30),
            (5.7 + 0.6 * habitus, -7.5),
            (7.2 + 0.5 * habitus, -5.0),
            (12.5 * w, -3.0),
            (18.5 * w, -1.2),
            (20.5 * w, 2.5),
            (wide + 2.2, 7.0),
            (wide + 0.6, 11.0),
            (wide, 16.0),
            (wide - 0.2, 24.0),
            (wide + 0.2, 60.0),
        ]
    )
    side = curve(half)
    return np.vstack([side, (side * (-1, 1))[::-1]])


def _arm(side: int, w: float, bed: bool) -> np.ndarray:
    out = 0.0 if bed else 2.2  # hands on the hips, elbows forward: arms off the chest
    arm = np.array([(16.5, -0.5), (20.5, -0.6), (22.6 + out, 5), (23.5 + 1.8 * out, 16), (23.5 + 2 * out, 34)])
    inner = np.array([(18.2 + 2 * out, 34), (18.6 + 1.8 * out, 18), (18.2 + out, 9), (15.5, 4)])
    return np.vstack([curve(arm), curve(inner)]) * (side * w, 1)
