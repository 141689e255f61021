"""The frontal chest as maps of what the beam crosses, cm of water: body, air in its place, vessels, bones, devices."""

from dataclasses import dataclass

import numpy as np

from cxrdist.phantom.canvas import Frame, band, curve, ellipse
from cxrdist.phantom.people import Draw, Exam
from cxrdist.phantom.shapes import Shape, frontal_shape
from cxrdist.phantom.skeleton import frontal_bones
from cxrdist.phantom.vessels import vessels

AERATION = 0.74
"""Share of the lung's thickness that is air."""


@dataclass
class Scene:
    """One exposure before the X-rays; findings and devices change the maps in place.  All maps are (H, W) float32."""

    frame: Frame
    exam: Exam
    shape: Shape
    body: np.ndarray
    air: np.ndarray
    """Water that air replaces, >= 0."""
    markings: np.ndarray
    """Vessels within the lungs."""
    tissue: np.ndarray
    """Whatever else adds (or, in airways, takes away)."""
    bones: np.ndarray
    metal: np.ndarray
    lungs: dict[int, np.ndarray]
    """Coverage of the right (-1) and the left (+1) lung."""
    x: np.ndarray
    y: np.ndarray
    """cm coordinates of the pixels."""

    @property
    def lung(self) -> np.ndarray:
        """Coverage of both lungs."""
        return self.lungs[-1] + self.lungs[1]

    def fill(self, mask: np.ndarray, share: float) -> None:
        """Replace `share` of the lung's air under `mask` (coverage) by water, and drown the vessels there."""
        keep = 1 - mask * np.float32(min(share, 1.0))
        self.air *= keep
        self.markings *= keep

    def place(self, rng: np.random.Generator, side: int, low: float = 0.15, high: float = 0.85) -> tuple[float, float]:
        """Return a point inside the lung of `side`, between two shares of its height (0 apex, 1 dome)."""
        return self.shape.place(rng, side, low, high)

    def water(self) -> np.ndarray:
        """Return the water-equivalent thickness (cm) that the beam crosses."""
        return np.maximum(self.body - self.air + self.markings * self.lung + self.tissue + self.bones, 0) + self.metal


def frontal_scene(frame: Frame, exam: Exam) -> Scene:
    """Return the healthy chest of `exam` with the outlines its findings gave it."""
    patient, shape = exam.patient, frontal_shape(exam)
    thick = 20.5 + 2.6 * patient.habitus
    body = thick * frame.dome(frame.mask8(shape.body), 9.5, 2.4)
    x, y = frame.grid
    thin = 0.78 + 0.22 / (1 + np.exp(np.clip((5 - y) / 2.5, -30, 30)))  # shoulders and neck are thinner
    body *= thin
    for arm in shape.arms:
        body = np.maximum(body, (7.5 + patient.habitus) * frame.dome(frame.mask8(arm), 3.0))
    masks = {side: frame.mask8(outline) for side, outline in zip((-1, 1), shape.lungs, strict=True)}
    air = frame.zeros()
    for mask in masks.values():
        air += (14.2 + 0.5 * patient.habitus) * np.float32(AERATION) * frame.dome(mask, 5.4, 2.6)
    air *= thin
    heart = 9.0 * frame.dome(frame.mask8(shape.heart), 4.2)
    knob = 4.0 * frame.dome(frame.mask8(shape.aorta), 1.5)
    air = np.maximum(air - np.float32(0.8) * np.maximum(heart, knob), 0)
    rng = exam.key.lasting(Draw.VESSELS, 9)
    lungs = {side: mask.astype(np.float32) / 255 for side, mask in masks.items()}
    markings = vessels(frame, exam, shape) * np.float32(2.1 * patient.markings)
    fine = 0.16 * frame.cloud(rng, 0.55) + 0.16 * frame.cloud(rng, 1.1)
    markings += np.maximum(fine + 0.12, 0)
    markings *= np.minimum(air / np.float32(6), 1)  # few vessels lie before or behind the heart
    tissue = 0.3 * frame.cloud(rng, 4.0) * np.minimum(body / 10, 1)
    _soft_parts(frame, exam, shape, tissue, rng)
    return Scene(
        frame, exam, shape, body, air, markings, tissue, frontal_bones(frame, exam, shape), frame.zeros(), lungs, x, y
    )


def _soft_parts(frame: Frame, exam: Exam, shape: Shape, tissue: np.ndarray, rng: np.random.Generator) -> None:
    shift, h = shape.tracheal_shift, exam.patient.chest_height
    # Airways: trachea to the carina, main bronchi; the right one is steeper.
    trachea = curve(np.array([(0.0, -9), (0.1 + 0.4 * shift, 0), (0.2 + shift, 4.5), (0.25 + shift, 8.2 * h)]))
    tissue -= 2.3 * frame.blur(frame.mask(band(trachea, 0.85)), 0.14)
    carina = (0.25 + shift, 8.0 * h)
    for side, reach in ((-1, (-3.0, 3.0)), (1, (4.1, 2.5))):
        end = (carina[0] + reach[0], carina[1] + reach[1])
        bronchus = curve(
            np.array([carina, ((carina[0] + end[0]) / 2 + 0.1 * side, (carina[1] + end[1]) / 2 - 0.1), end])
        )
        tissue -= 0.9 * frame.blur(frame.mask(band(bronchus, np.linspace(0.62, 0.45, len(bronchus)))), 0.12)
    # Hila: the left lies higher; pulmonary arteries with soft outlines.
    large = rng.uniform(0.82, 1.12) + 0.75 * exam.findings.get("enlarged_pulmonary_artery", 0.0)
    for side, centre in ((-1, (-4.0 + shift, 10.7 * h)), (1, (4.3 + shift, 9.8 * h))):
        hilum = frame.ball(centre, (1.25 * large, 1.9 * large), 0.35 * side)
        lower = frame.ball((centre[0] + 0.4 * side, centre[1] + 1.9), (0.75 * large, 1.9 * large), -0.3 * side)
        tissue += frame.blur(1.9 * large * hilum + 1.6 * large * lower, 0.22)
    # The descending aorta's edge left of the spine.
    radius = exam.patient.aorta + 0.5 * exam.findings.get("aortic_enlargement", 0.0)
    bow = max(radius - 1.4, 0) * 1.5
    down = curve(np.array([(1.3 + shift, 5.0), (1.9 + shift + bow, 11), (1.7 + bow, 17), (0.8, 25)]))
    tissue += 0.9 * frame.blur(frame.mask(band(down, radius * 0.85)), 0.12)
    # Abdomen: the gas bubble of the stomach under the left dome, some bowel gas.
    dome = shape.domes[1]
    width, height = rng.uniform(1.6, 3.3), rng.uniform(0.8, 1.7)
    if rng.random() < 0.75:
        bubble = frame.ball((rng.uniform(4.5, 7.5), dome + 1.5 + height), (width, height), rng.uniform(-0.3, 0.3))
        tissue -= 5.0 * frame.blur(bubble, 0.2)
    for _ in range(3):
        spot = (rng.uniform(2, 12), dome + rng.uniform(5.5, 9))
        tissue -= 2.2 * frame.blur(
            frame.ball(spot, (rng.uniform(0.8, 2.0), rng.uniform(0.7, 1.2)), rng.uniform(-1, 1)), 0.2
        )
    if exam.patient.sex == "F" and exam.patient.age >= 12:
        _breasts(frame, exam, tissue, rng)
    # Sternocleidomastoid and the skin fold over the clavicles.
    for side in (-1, 1):
        neck = curve(np.array([(5.2 * side, -8), (3.4 * side, -2.5), (2.0 * side, 2.2)]))
        tissue += 0.5 * frame.blur(frame.mask(band(neck, 0.9)), 0.3)


def _breasts(frame: Frame, exam: Exam, tissue: np.ndarray, rng: np.random.Generator) -> None:
    size = float(np.clip(1 + 0.3 * exam.patient.habitus + 0.15 * rng.standard_normal(), 0.55, 1.5))
    sag = 1.5 * max(exam.patient.age - 35, 0) / 40
    for side in (-1, 1):
        centre = (side * 8.6 * exam.patient.chest_width + 0.5 * exam.turn, 15.8 + sag + rng.normal(0, 0.3))
        outline = ellipse(centre, (5.6 * size**0.5, 5.2 * size**0.5), 0.12 * side)
        # Fuller below: the crease at the lower edge is sharp, the upper edge fades.
        fall = 1 / (1 + np.exp(-(frame.grid[1] - np.float32(centre[1] - 0.5)) / 1.6))
        tissue += frame.blur(np.float32(1.9 * size) * frame.dome(frame.mask8(outline), 3.2) * fall, 0.12)
