"""Findings that add to the scene of a frontal chest; each takes a strength, 0.05 (barely visible) .. 1.1 (obvious).

Cardiomegaly, aortic enlargement, mediastinal shift and fractures are outlines and live in `shapes` and `skeleton`.
"""

from collections.abc import Callable

import numpy as np

from cxrdist.phantom.canvas import band, curve, ellipse
from cxrdist.phantom.scene import AERATION, Scene
from cxrdist.phantom.shapes import affected_sides, of_side

Drawer = Callable[[Scene, float, np.random.Generator], None]


def add_findings(scene: Scene) -> None:
    """Draw all findings of the scene's exam."""
    for name, draw in DRAWERS.items():
        if name in scene.exam.findings:
            draw(scene, scene.exam.findings[name], scene.exam.lesion_rng(name))


def _sigmoid(value: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(value, -30, 30)))


def effusion(scene: Scene, strength: float, rng: np.random.Generator) -> None:
    """Fluid with a meniscus that climbs along the wall; in bed part of it lies behind the lung as a veil."""
    heights = rng.uniform(2.5, 8.5, 2)
    for height, side in zip(heights, affected_sides(scene.exam, "effusion"), strict=False):
        corner = of_side(scene.shape.angles, side)
        bed = scene.exam.projection == "AP"
        level = corner[1] - (1.3 + strength * height) * (0.75 if bed else 1.0)
        wall = scene.shape.half_width(scene.y[:, :1]).astype(np.float32)
        climb = (0.8 + 2.4 * strength) * np.exp(-np.maximum(wall - side * scene.x, 0) / 2.0)
        fluid = _sigmoid((scene.y - (level - climb)) / (0.75 if bed else 0.3)) * scene.lungs[side]
        scene.fill(fluid, 0.35 + 0.7 * strength)
        if bed:
            veil = np.clip((scene.y - 4) / 18, 0, 1) * scene.lungs[side]
            scene.fill(veil, 0.32 * strength)


def pneumothorax(scene: Scene, strength: float, rng: np.random.Generator) -> None:
    """The lung shrinks from the wall towards its hilum: a fine pleural line, and nothing but air beyond it."""
    side = affected_sides(scene.exam, "pneumothorax", both=0)[0]
    frame, outline = scene.frame, of_side(scene.shape.lungs, side)
    hilum = np.array([side * 2.6, 12.0])
    low = of_side(scene.shape.domes, side) - 0.5  # the lung stays on the diaphragm
    depth = (0.07 + 0.33 * strength * rng.uniform(0.6, 1.2)) * np.interp(
        outline[:, 1], [0, 9, low - 4, low], [1.25, 1, 0.6, 0.0]
    )
    shrunken = hilum + (outline - hilum) * (1 - depth[:, None])
    inside = frame.mask(shrunken)
    free = np.maximum(scene.lungs[side] - inside, 0)
    scene.markings *= 1 - free
    scene.air *= 1 + free * np.float32((1 / AERATION - 1) * (0.5 + 0.5 * strength))
    scene.fill(inside * scene.lungs[side], 0.1 * strength)
    keep = side * shrunken[:, 0] > 3.2
    keep &= shrunken[:, 1] < low
    scene.tissue += (0.25 + 0.75 * strength) * frame.blur(frame.stroke(shrunken[keep], 0.16), 0.04)


def nodule(scene: Scene, strength: float, rng: np.random.Generator) -> None:
    """One to three round spots of 0.8 to 2.8 cm."""
    for _ in range(1 + int(rng.integers(0, 3))):
        side = -1 if rng.random() < 0.5 else 1
        radius = 0.5 + 0.6 * strength * rng.uniform(0.6, 1.3)
        spot = scene.frame.ball(scene.place(rng, side), (radius, radius * rng.uniform(0.85, 1.15)))
        scene.tissue += (0.6 + 2.6 * strength) * spot**0.7 * scene.lungs[side]


def mass(scene: Scene, strength: float, rng: np.random.Generator) -> None:
    """One lobulated lump of more than 3 cm."""
    side = -1 if rng.random() < 0.5 else 1
    at = scene.place(rng, side, 0.2, 0.8)
    radius = 1.7 + 1.9 * strength * rng.uniform(0.5, 1.1)
    turn = np.linspace(0, 2 * np.pi, 14, endpoint=False)
    rim = radius * (1 + 0.13 * rng.standard_normal(14))
    outline = curve(np.stack([at[0] + rim * np.cos(turn), at[1] + rim * np.sin(turn)], 1), closed=True)
    lump = scene.frame.dome(scene.frame.mask8(outline), radius * 0.8)
    scene.tissue += (0.9 + 4.6 * strength) * scene.frame.blur(lump, 0.12) * scene.lungs[side]
    for angle in rng.uniform(0, 2 * np.pi, 9):  # spicules
        reach = radius * np.array([0.8, 1.45 + 0.3 * rng.random()])
        ray = np.stack([at[0] + reach * np.cos(angle), at[1] + reach * np.sin(angle)], 1)
        scene.tissue += 0.5 * strength * scene.frame.stroke(ray, 0.13) * scene.lungs[side]


def consolidation(scene: Scene, strength: float, rng: np.random.Generator) -> None:
    """A lobe, or much of it, without air except in its bronchi."""
    side = affected_sides(scene.exam, "consolidation", both=0)[0]
    dome = of_side(scene.shape.domes, side)
    centre = (side * rng.uniform(6.5, 9.5), dome * rng.choice([0.28, 0.6, 0.8]))
    blob = scene.frame.blur(scene.frame.mask(ellipse(centre, (5.2, 4.0), rng.uniform(-0.5, 0.5))), 1.2)
    ragged = _sigmoid((blob - 0.5 + 0.09 * scene.frame.cloud(rng, 1.6)) / 0.14)
    scene.fill(ragged * scene.lungs[side], 0.16 + 0.66 * strength)
    hilum = np.array([side * 4.2, 10.5])
    for spread in (-0.32, -0.1, 0.12, 0.34):
        way = np.array((centre[0] + rng.normal(0, 0.6), centre[1] + spread * 9.0))
        middle = hilum + (way - hilum) * 0.55 + rng.normal(0, 0.4, 2)
        line = curve(np.stack([hilum, middle, way]))
        bronchus = scene.frame.mask(band(line, np.linspace(0.26, 0.12, len(line))))
        scene.tissue -= (0.3 + 0.9 * strength) * scene.frame.blur(bronchus, 0.06) * ragged * scene.lungs[side]


def _patches(scene: Scene, rng: np.random.Generator, side: int, low: float, high: float, count: int) -> np.ndarray:
    patches = scene.frame.zeros()
    for _ in range(count):
        x, y = scene.place(rng, side, low, high)
        width = rng.uniform(1.3, 2.9)
        patches = np.maximum(
            patches, scene.frame.ball((x, y), (width, width * rng.uniform(0.7, 1.2)), rng.uniform(-1, 1))
        )
    rough = 1 + 0.22 * scene.frame.cloud(rng, 1.3)
    return np.clip(scene.frame.blur(patches, 0.6) * rough, 0, 1) * scene.lungs[side]


def pneumonia(scene: Scene, strength: float, rng: np.random.Generator) -> None:
    """Patchy clouds in one or both lower or middle zones."""
    for side in affected_sides(scene.exam, "pneumonia", both=0.4):
        scene.fill(_patches(scene, rng, side, 0.4, 0.97, 5), 0.14 + 0.62 * strength)


def bacterial_pneumonia(scene: Scene, strength: float, rng: np.random.Generator) -> None:
    """One lobe, or much of it, filled and without loss of volume; its bronchi keep their air."""
    consolidation(scene, strength, rng)


def viral_pneumonia(scene: Scene, strength: float, rng: np.random.Generator) -> None:
    """Streaks that fan out from both hila, with a fine net between them; no lobe is filled."""
    frame = scene.frame
    for side, share in zip((-1, 1), rng.uniform(0.8, 1.0, 2), strict=True):
        near = np.exp(-(((side * scene.x - 4.5) / 5.5) ** 2) - ((scene.y - 11.5) / 7.0) ** 2)
        weight = near * scene.lungs[side] * np.float32(share)
        streaks = frame.zeros()
        for angle in rng.normal(np.linspace(-1.1, 1.2, 7), 0.12):
            way, reach = np.array((np.cos(angle), np.sin(angle))), rng.uniform(4.0, 7.5)
            streaks += frame.stroke((np.array((3.0, 10.6)) + way * np.array([[2.4], [reach]])) * (side, 1), 0.3)
        weight *= np.minimum(scene.air / np.float32(6), 1)  # not before or behind the heart
        scene.tissue += (0.3 + 1.9 * strength) * _network(scene, rng, 1.1) * weight
        scene.tissue += (0.15 + 0.7 * strength) * frame.blur(streaks, 0.14) * weight
        scene.fill(weight, 0.06 + 0.3 * strength)


def infiltration(scene: Scene, strength: float, rng: np.random.Generator) -> None:
    """Faint, ill-defined, streaky clouding on both sides."""
    for side in (-1, 1):
        scene.fill(_patches(scene, rng, side, 0.2, 0.95, 6), 0.08 + 0.34 * strength)
    scene.tissue += (0.1 + 0.5 * strength) * _network(scene, rng, 0.8) * scene.lung * _zone(scene, 6, 20)


def edema(scene: Scene, strength: float, rng: np.random.Generator) -> None:
    """Bat's wings around the hila, blurred vessels, and Kerley B lines at the lateral bases."""
    frame = scene.frame
    rough = 1 + 0.13 * frame.cloud(rng, 1.2) + 0.1 * frame.cloud(rng, 3.0)
    size = rng.uniform(0.8, 1.15)
    for side, share in zip((-1, 1), rng.uniform(0.75, 1.0, 2), strict=True):
        dx, dy = (side * scene.x - 5.2) / (4.4 * size), (scene.y - 12.3) / (6.0 * size)
        wing = np.exp(-((dx * dx + dy * dy) ** 1.3)).astype(np.float32)
        scene.fill(np.clip(wing * rough, 0, 1) * scene.lungs[side], share * (0.04 + 0.6 * strength))
        corner = of_side(scene.shape.angles, side)
        for k in range(6):
            y = corner[1] - 2.4 - 0.75 * k
            wall = float(scene.shape.half_width(y))
            line = np.array(
                [(side * (wall - 0.1), y), (side * (wall - rng.uniform(1.2, 2.0)), y + rng.normal(0, 0.12))]
            )
            scene.tissue += (0.15 + 0.6 * strength) * frame.stroke(line, 0.11) * scene.lungs[side]
    soft = frame.blur(scene.markings, 0.22)
    scene.markings += np.float32(min(strength + 0.2, 1)) * (1.25 * soft - scene.markings)


def atelectasis(scene: Scene, strength: float, rng: np.random.Generator) -> None:
    """Plates of collapsed lung above a raised dome."""
    for side in affected_sides(scene.exam, "atelectasis", both=0.35):
        dome = of_side(scene.shape.domes, side)
        for k in range(2 + int(rng.integers(0, 2))):
            y = dome - 0.9 - 1.35 * k + rng.normal(0, 0.25)
            x = rng.uniform(4.6, 6.5)
            long = rng.uniform(3.6, 6.5)
            slope = rng.normal(0.05, 0.16)
            line = np.array([(x, y), (x + long / 2, y + long / 2 * slope - 0.15), (x + long, y + long * slope)]) * (
                side,
                1,
            )
            plate = scene.frame.mask(band(curve(line), rng.uniform(0.14, 0.2) + 0.13 * strength))
            scene.tissue += (0.35 + 1.75 * strength) * scene.frame.blur(plate, 0.08) * scene.lungs[side]
        base = _sigmoid((scene.y - (dome - 1.5)) / 0.9) * scene.lungs[side]
        scene.fill(base, 0.3 * strength)


def emphysema(scene: Scene, strength: float, rng: np.random.Generator) -> None:
    """Too much air, too few vessels, bullae in the upper zones; the flat domes are in the outlines."""
    scene.air *= np.float32(1 + 0.05 + 0.14 * strength)
    scene.markings *= np.float32(1 - 0.55 * min(strength, 1))
    for side in (-1, 1):
        for _ in range(2):
            radius = rng.uniform(1.2, 2.4)
            at = scene.place(rng, side, 0.1, 0.4)
            ring = ellipse(at, (radius, radius * 1.1))
            scene.air += 0.9 * strength * scene.frame.ball(at, (radius, radius * 1.1)) * scene.lungs[side]
            scene.tissue += 0.3 * strength * scene.frame.ring(ring, 0.09) * scene.lungs[side]


def _network(scene: Scene, rng: np.random.Generator, grain: float) -> np.ndarray:
    """Return a net of fine lines, about 0..1: where smooth noise passes through zero."""
    first, second = scene.frame.cloud(rng, grain), scene.frame.cloud(rng, grain * 0.8)
    net = np.maximum(np.exp(-((first / 0.25) ** 2)), 0.8 * np.exp(-((second / 0.25) ** 2)))
    return scene.frame.blur(net, 0.07)


def _zone(scene: Scene, start: float, end: float) -> np.ndarray:
    """Return a weight that rises from 0 at depth `start` cm to 1 at `end`."""
    return np.clip((scene.y - np.float32(start)) / np.float32(end - start), 0, 1)


def fibrosis(scene: Scene, strength: float, rng: np.random.Generator) -> None:
    """A coarse net at the bases and along the wall."""
    wall = scene.shape.half_width(scene.y[:, :1]).astype(np.float32)
    rim = np.clip(1.25 - (wall - np.abs(scene.x)) / 6, 0.15, 1)
    weight = _zone(scene, 9, 21) * rim * scene.lung
    scene.tissue += (0.4 + 2.6 * strength) * _network(scene, rng, 1.3) * weight
    scene.fill(weight, 0.16 * strength)


def interstitial_lung_disease(scene: Scene, strength: float, rng: np.random.Generator) -> None:
    """A fine net with small nodules through both lungs."""
    scene.tissue += (0.3 + 1.5 * strength) * _network(scene, rng, 1.0) * scene.lung * np.float32(0.8)
    dots = np.maximum(scene.frame.cloud(rng, 0.8) - 1.2, 0)
    scene.tissue += (0.15 + 0.6 * strength) * dots * scene.lung


def pleural_thickening(scene: Scene, strength: float, rng: np.random.Generator) -> None:
    """A rind along the lateral wall and a cap over the apex."""
    frame = scene.frame
    for side in affected_sides(scene.exam, "pleural_thickening", both=0.4):
        dome = of_side(scene.shape.domes, side)
        y = np.linspace(rng.uniform(7, 11), dome + 2.0, 14)
        wall = scene.shape.half_width(y)
        depth = (
            (0.22 + 0.75 * strength) * (1 + 0.16 * np.sin(y * 0.9 + rng.uniform(0, 6))) * np.hanning(16)[1:-1] ** 0.6
        )
        rind = np.vstack([np.stack([wall + 0.6, y], 1), np.stack([wall - depth, y], 1)[::-1]]) * (side, 1)
        scene.fill(frame.blur(frame.mask(rind), 0.06) * scene.lungs[side], 0.5 + 0.5 * strength)
        scene.tissue += 0.9 * strength * frame.blur(frame.mask(rind), 0.06) * scene.lungs[side]
        cap = _sigmoid((np.float32(0.9 + 1.1 * strength) - scene.y) / 0.2) * scene.lungs[side]
        scene.fill(cap, 0.4 + 0.5 * strength)


def hernia(scene: Scene, strength: float, rng: np.random.Generator) -> None:
    """A hiatal hernia: a round shadow behind the heart with gas above fluid."""
    radius = 1.9 + 1.5 * strength * rng.uniform(0.7, 1.2)
    at = (rng.uniform(-0.3, 2.2), min(scene.shape.domes) - radius * 0.35)
    sack = scene.frame.ball(at, (radius, radius * 0.92))
    gas = sack * (scene.y < np.float32(at[1] + 0.1 * radius))
    scene.tissue += (0.7 + 1.9 * strength) * sack
    scene.tissue -= (0.7 + 3.4 * strength) * scene.frame.blur(gas * (sack > 0.35), 0.08)


def enlarged_cardiomediastinum(scene: Scene, strength: float, rng: np.random.Generator) -> None:
    """A broad upper mediastinum."""
    out = 3.1 + 1.5 * strength
    right, left = out * rng.uniform(0.85, 1.1), out * rng.uniform(0.85, 1.1)
    side = np.array([(2.4, -2), (0.86 * right, 1.5), (right, 5.5), (right, 9.5), (2.6, 14)])
    other = np.array([(2.6, 14), (left, 9.5), (left, 5.5), (0.86 * left, 1.5), (2.4, -2)])
    outline = np.vstack([curve(side) * (-1, 1), curve(other)])
    scene.fill(scene.frame.blur(scene.frame.mask(outline), 0.25), 0.45 + 0.35 * strength)


def calcification(scene: Scene, strength: float, rng: np.random.Generator) -> None:
    """Specks as dense as bone: old granulomas, and a rim of the aortic knob."""
    for _ in range(2 + int(rng.integers(0, 4))):
        side = -1 if rng.random() < 0.5 else 1
        at = scene.place(rng, side, 0.1, 0.8)
        for _ in range(3):
            spot = (at[0] + rng.normal(0, 0.35), at[1] + rng.normal(0, 0.35))
            radius = rng.uniform(0.16, 0.34)
            scene.tissue += (0.5 + 2.6 * strength) * scene.frame.mask(ellipse(spot, (radius, radius * 0.8)))
    knob = scene.shape.aorta
    arc = np.roll(knob, 8, axis=0)[: len(knob) // 2]
    scene.tissue += (0.4 + 2.0 * strength) * scene.frame.stroke(arc * 0.985 + knob.mean(axis=0) * 0.015, 0.18)


def lung_cavity(scene: Scene, strength: float, rng: np.random.Generator) -> None:
    """A thick-walled ring with fluid in it."""
    side = -1 if rng.random() < 0.5 else 1
    _cavity(scene, strength, rng, side, 1.6 + 0.9 * rng.random())


def _cavity(scene: Scene, strength: float, rng: np.random.Generator, side: int, radius: float) -> None:
    at = scene.place(rng, side, 0.15, 0.5)
    shell = scene.frame.ball(at, (radius, radius)) - 0.85 * scene.frame.ball(at, (radius * 0.66, radius * 0.64))
    scene.tissue += (0.6 + 2.6 * strength) * scene.frame.blur(np.maximum(shell, 0), 0.06) * scene.lungs[side]
    fluid = scene.frame.ball(at, (radius * 0.66, radius * 0.64)) * (scene.y > np.float32(at[1] + 0.25 * radius))
    scene.tissue += (0.3 + 1.6 * strength) * fluid * scene.lungs[side]


def lung_cyst(scene: Scene, strength: float, rng: np.random.Generator) -> None:
    """A hair-thin ring around air."""
    for _ in range(1 + int(rng.integers(0, 3))):
        side = -1 if rng.random() < 0.5 else 1
        at, radius = scene.place(rng, side), rng.uniform(1.0, 2.2)
        outline = ellipse(at, (radius, radius * 1.05))
        inside = scene.frame.mask(outline) * scene.lungs[side]
        scene.markings *= 1 - np.float32(min(0.3 + 0.7 * strength, 1)) * inside
        scene.air += (0.3 + 1.0 * strength) * scene.frame.ball(at, (radius, radius * 1.05)) * scene.lungs[side]
        scene.tissue += (0.25 + 0.8 * strength) * scene.frame.ring(outline, 0.12) * scene.lungs[side]


def tuberculosis(scene: Scene, strength: float, rng: np.random.Generator) -> None:
    """Upper zones: patches, small spots, a cavity, and strands to the hilum."""
    for side in affected_sides(scene.exam, "tuberculosis", both=0.35):
        scene.fill(_patches(scene, rng, side, 0.06, 0.4, 4), 0.14 + 0.5 * strength)
        _cavity(scene, strength * 0.7, rng, side, rng.uniform(1.0, 1.6))
        upper = 1 - _zone(scene, 5, 12)
        scene.tissue += (0.2 + 1.0 * strength) * _network(scene, rng, 0.8) * upper * scene.lungs[side]


DRAWERS: dict[str, Drawer] = {
    "emphysema": emphysema,
    "edema": edema,
    "infiltration": infiltration,
    "pneumonia": pneumonia,
    "consolidation": consolidation,
    "bacterial_pneumonia": bacterial_pneumonia,
    "viral_pneumonia": viral_pneumonia,
    "tuberculosis": tuberculosis,
    "fibrosis": fibrosis,
    "interstitial_lung_disease": interstitial_lung_disease,
    "enlarged_cardiomediastinum": enlarged_cardiomediastinum,
    "nodule": nodule,
    "mass": mass,
    "lung_cavity": lung_cavity,
    "lung_cyst": lung_cyst,
    "calcification": calcification,
    "atelectasis": atelectasis,
    "pleural_thickening": pleural_thickening,
    "hernia": hernia,
    "effusion": effusion,
    "pneumothorax": pneumothorax,
}
"""Later ones lie over earlier ones: fluid drowns what the lung shows, and a pneumothorax empties what is left."""
