"""Tubes and lines whose tips lie right, doubtfully or wrong: their ways in cm, and how they look.

`ETT` ends in the windpipe, `NGT` in the stomach, `CVC` before the right atrium, `Swan Ganz` in a pulmonary artery.
What counts as right follows Tang et al. 2021, "CLiP, catheter and line position dataset" (Sci Data 8:285).
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from cxrdist.phantom.canvas import curve
from cxrdist.phantom.devices import tube
from cxrdist.phantom.people import Exam
from cxrdist.phantom.scene import Scene
from cxrdist.phantom.shapes import Shape

Kind = Literal["ETT", "NGT", "CVC", "Swan Ganz"]
Place = Literal["Normal", "Borderline", "Abnormal", "Incompletely Imaged", "Present"]

PLACES: dict[Kind, tuple[Place, ...]] = {
    "ETT": ("Normal", "Borderline", "Abnormal"),
    "NGT": ("Normal", "Borderline", "Abnormal", "Incompletely Imaged"),
    "CVC": ("Normal", "Borderline", "Abnormal"),
    "Swan Ganz": ("Present",),
}
FAR_CM = 60.0
"""A depth below every picture's lower edge."""


@dataclass(frozen=True)
class Line:
    """One tube or line of an exam."""

    kind: Kind
    place: Place
    way: np.ndarray
    """(N, 2) points from where it enters to its tip, cm."""


def draw_way(kind: Kind, place: Place, exam: Exam, shape: Shape, rng: np.random.Generator) -> Line:
    """Return a line of `kind` whose tip lies at `place`."""
    carina = np.array((0.25 + shape.tracheal_shift, 8.0 * exam.patient.chest_height))
    match kind:
        case "ETT":
            way = _breathing_tube(place, carina, rng)
        case "NGT":
            way = _stomach_tube(place, carina, shape, rng)
        case "CVC":
            way = _central_line(place, carina, rng)
        case "Swan Ganz":
            way = _pulmonary_line(carina, shape, rng)
    return Line(kind, place, curve(np.array(way)))


def add_lines(scene: Scene, lines: list[Line], strength: float) -> None:
    """Draw `lines` into the scene; `strength` as of a finding."""
    metal = scene.frame.zeros()
    for line in lines:
        match line.kind:
            case "ETT":
                metal += tube(scene, line.way, 1.0, 1.3)
            case "NGT":
                metal += tube(scene, line.way, 0.55, 1.4)
            case "CVC":
                metal += 2.4 * scene.frame.stroke(line.way, 0.24)
            case "Swan Ganz":
                metal += 2.2 * scene.frame.stroke(line.way, 0.28)
    scene.metal += np.float32(0.35 + 0.65 * min(strength, 1.0)) * metal


def _breathing_tube(place: Place, carina: np.ndarray, rng: np.random.Generator) -> list[tuple[float, float]]:
    """Right: 3 to 5.5 cm above the carina.  Doubtful: 1 to 2.  Wrong: in the right main bronchus, or in the neck."""
    x, y = carina
    start = [(0.3, -14.0), (0.1, -9.0)]
    if place == "Abnormal" and rng.random() < 0.7:
        deep = rng.uniform(0.45, 0.95)  # share of the right main bronchus
        return [*start, (0.1, -2.0), (x, y - 2.5), (x - 0.25, y - 0.2), (x - 3.0 * deep - 0.2, y + 3.0 * deep)]
    above = {"Normal": (3.0, 5.5), "Borderline": (1.0, 2.0), "Abnormal": (11.0, 12.5)}[place]
    tip = y - rng.uniform(*above)
    return [*start, (0.1, min(-4.5, tip - 1.5)), (0.15 + 0.5 * (x - 0.15) * (tip > 0), tip)]


def _stomach_tube(
    place: Place, carina: np.ndarray, shape: Shape, rng: np.random.Generator
) -> list[tuple[float, float]]:
    """Right: well below the left dome.  Doubtful: just below it.  Wrong: in the gullet or in a bronchus."""
    dome, (x, y) = shape.domes[1], carina
    down = [(0.6, -14.0), (0.5, -6.0), (0.5 + 0.5 * x, 1.0)]
    gullet = [(0.7 + 0.6 * x, y + 1.5), (0.9, 16.0)]
    match place:
        case "Abnormal" if rng.random() < 0.5:
            end = rng.uniform(4.0, 7.5)
            return [*down, (x - 0.1, y - 1.0), (x - 2.4, y + 2.6), (x - 3.2, y + 4.0), (x - 4.6, y + 4.0 + 0.8 * end)]
        case "Abnormal":
            return [*down, (0.7 + 0.6 * x, y - 1.0), (0.75 + 0.5 * x, rng.uniform(y + 1.0, dome - 4.5))]
        case "Borderline":
            return [*down, *gullet, (1.6, dome - 0.8), (2.8, dome + rng.uniform(0.8, 1.8))]
        case "Incompletely Imaged":
            return [*down, *gullet, (1.9, dome + 1.5), (3.2, dome + 6.0), (3.0, dome + 14.0), (2.4, FAR_CM)]
        case _:
            bend = [(2.2, dome + 2.0), (4.6, dome + 4.2)]
            return [*down, *gullet, *bend, (rng.uniform(6.5, 8.5), dome + rng.uniform(4.2, 5.2))]


def _central_line(place: Place, carina: np.ndarray, rng: np.random.Generator) -> list[tuple[float, float]]:
    """Right: from the carina to 3 cm below.  Doubtful: 3 cm above, or in the atrium.  Wrong: up the neck, or across."""
    x, y = carina
    jugular = rng.random() < 0.6
    if place == "Abnormal":
        if rng.random() < 0.5:  # from the left subclavian vein up the left side of the neck
            return [(13.0, -3.0), (9.0, -0.8), (5.6, 0.2), (4.4, -1.8), (4.6, -4.5), (4.9, rng.uniform(-8.0, -6.5))]
        across = rng.uniform(-9.5, -7.5)  # past the upper vena cava into the right subclavian vein
        return [(13.0, -3.0), (9.0, -0.6), (4.5, 1.2), (0.5, 3.0), (-2.4, 3.2), (-5.0, 0.9), (across, -0.4)]
    start = (
        [(-5.6, -9.0), (-4.4, -3.0), (-3.2, 1.0)] if jugular else [(13.0, -3.0), (8.5, -0.3), (4.0, 1.4), (-0.5, 3.2)]
    )
    if place == "Borderline":
        tip = rng.uniform(y - 3.6, y - 2.4) if rng.random() < 0.5 else rng.uniform(y + 7.0, y + 8.5)
    else:
        tip = rng.uniform(y + 0.3, y + 3.0)
    middle = (-2.8 + 0.5 * x, min(0.5 * (3.2 + tip) + 0.8, tip - 0.4))
    return [*start, middle, (-2.5 + 0.5 * x, tip)]


def _pulmonary_line(carina: np.ndarray, shape: Shape, rng: np.random.Generator) -> list[tuple[float, float]]:
    """Down the upper vena cava, through the right heart in a loop, and out into a pulmonary artery."""
    y = float(carina[1])
    floor = min(shape.domes) - rng.uniform(1.4, 2.2)
    down = [(-5.6, -9.0), (-4.4, -3.0), (-3.2, 1.0), (-2.7, y), (-2.9, y + 6.0), (-1.6, floor - 0.6)]
    loop = [(1.2, floor), (3.2, floor - 2.2), (3.0, y + 5.0), (1.9, y + 2.6)]
    if rng.random() < 0.75:
        return [*down, *loop, (-0.6, y + 2.0), (-rng.uniform(4.6, 6.2), y + 3.2)]
    return [*down, *loop, (2.6, y + 1.4), (rng.uniform(3.6, 4.8), y + 1.9)]
