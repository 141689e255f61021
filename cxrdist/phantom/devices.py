"""Tubes, lines and wires: what `support_devices` stands for."""

from collections.abc import Sequence

import numpy as np

from cxrdist.phantom.canvas import band, curve, ellipse, moved
from cxrdist.phantom.people import Draw, Exam
from cxrdist.phantom.scene import Scene
from cxrdist.phantom.shapes import affected_sides


def add_devices(scene: Scene) -> None:
    """Draw the devices of `device_names`, each an opaque thing that lies in the chest or on it."""
    rng = scene.exam.key.lasting(Draw.DEVICE)
    names = device_names(scene.exam, rng)
    if not names:
        return
    metal = scene.frame.zeros()
    for name in names:
        metal += _DRAWERS[name](scene, rng)
    scene.metal += np.float32(0.35 + 0.65 * min(scene.exam.findings["support_devices"], 1.0)) * metal


def device_names(exam: Exam, rng: np.random.Generator | None = None) -> list[str]:
    """Return which one to four devices an exam with `support_devices` has: tubes in bed, pacemakers and wires upright.

    The draws are the first of the stream that places them; `rng`, where it is given, is that stream.
    """
    if "support_devices" not in exam.findings:
        return []
    rng = rng or exam.key.lasting(Draw.DEVICE)
    bed = exam.projection == "AP"
    choices = _IN_BED if bed else _UPRIGHT
    order = rng.permutation(len(choices))
    count = 2 + int(rng.random() < 0.5) if bed else 1 + int(rng.random() < 0.25)
    drain = ["chest_drain"] if bed and "pneumothorax" in exam.findings else []
    return [choices[k] for k in order[:count]] + drain


def tube(scene: Scene, points: Sequence[tuple[float, float]] | np.ndarray, width: float, density: float) -> np.ndarray:
    """Return the map (cm of water) of a hollow tube through `points`: two walls, and an opaque stripe along one."""
    line = curve(np.array(points))
    outer = scene.frame.mask(band(line, width / 2))
    inner = scene.frame.mask(band(line, width * 0.3))
    stripe = scene.frame.stroke(moved(line, width * 0.3, 0), 0.12)
    return np.asarray(density * (outer - 0.75 * inner) + 1.6 * density * stripe)


def _central_line(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    if rng.random() < 0.6:  # right jugular vein
        points = [(-5.5, -7), (-4.0, -2), (-3.0, 2), (-2.8, 6), (-2.5, 10.5)]
    else:  # left subclavian vein
        points = [(12, -2.5), (8, -0.2), (4, 1.3), (0, 3.6), (-2.3, 6.5), (-2.5, 11)]
    return np.asarray(2.4 * scene.frame.stroke(curve(np.array(points)), 0.24))


def _breathing_tube(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    tip = rng.uniform(3.2, 6.0)
    return tube(scene, [(0.3, -9), (0.1, -4), (0.1, 0), (0.2, tip)], 1.0, 1.3)


def _stomach_tube(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    dome = scene.shape.domes[1]
    points = [
        (0.6, -9),
        (0.4, 0),
        (0.7, 10),
        (0.9, 18),
        (2.2, dome + 2),
        (5, dome + 4),
        (rng.uniform(7, 9), dome + 4.5),
    ]
    return tube(scene, points, 0.55, 1.4)


def _leads(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    metal = scene.frame.zeros()
    for x, y in ((-9.5, 1.5), (9.5, 1.8), (10.5, 19.5)):
        at = (x + rng.normal(0, 0.8), y + rng.normal(0, 0.8))
        metal += 1.6 * scene.frame.mask(ellipse(at, (0.75, 0.75))) + 4 * scene.frame.mask(ellipse(at, (0.3, 0.3)))
        sway = rng.normal(0, 2.5, 2)
        wire = curve(
            np.array([at, (at[0] + sway[0], at[1] + 7), (at[0] * 0.7 + sway[1], at[1] + 15), (at[0] * 0.6, 36)])
        )
        metal += 1.5 * scene.frame.stroke(wire, 0.13)
    return metal


def _pacemaker(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    frame, shape = scene.frame, scene.shape
    at = (10.2 + rng.normal(0, 0.5), 3.6 + rng.normal(0, 0.5))
    box = curve(np.array([(-2.2, -1.2), (-0.4, -1.9), (1.9, -1.5), (2.3, 0.4), (1.2, 1.9), (-1.4, 1.8)]), closed=True)
    metal = 7.0 * frame.mask(box * 1.05 + at) + 2.5 * frame.mask(ellipse((at[0] - 0.3, at[1] + 0.3), (1.1, 0.9)))
    apex = (shape.heart_width * 0.4, shape.domes[1] - 1.2)
    for end in (apex, (-shape.heart_width * 0.24, 16.0)):
        way = [(at[0] - 1.2, at[1] - 1.2), (6.5, 0.2), (1.5, 2.6), (-2.1, 6.0), (-2.6, 11.5), (-1.5, 18.2)]
        way = [*way, end] if end is apex else [*way[:-1], (-2.7, 17.0), end]
        metal += 2.4 * frame.stroke(curve(np.array(way)), 0.17)
        metal += 2.5 * frame.mask(ellipse(end, (0.3, 0.22)))
    return metal


def _wires(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Sternal wires, and the ring of a valve."""
    metal = scene.frame.zeros()
    for k in range(6):
        y = 4.6 + 2.5 * k
        x = scene.shape.sway + rng.normal(0, 0.15)
        loop = ellipse((x, y), (0.95, 0.38 + 0.1 * rng.random()), rng.normal(0, 0.15))
        metal += 3.2 * scene.frame.ring(loop, 0.13)
    if rng.random() < 0.5:
        ring = ellipse((2.4, 15.5), (1.35, 0.6), -0.7)
        metal += 3.5 * scene.frame.ring(ring, 0.28)
    return metal


def _port(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    at = (-8.5 + rng.normal(0, 0.4), 4.2 + rng.normal(0, 0.4))
    metal = 2.0 * scene.frame.mask(ellipse(at, (1.3, 1.3))) + 3 * scene.frame.mask(ellipse(at, (0.75, 0.75)))
    way = curve(np.array([at, (-7.0, 0.8), (-4.2, -0.6), (-3.0, 2.5), (-2.6, 9.8)]))
    return np.asarray(metal + 2.2 * scene.frame.stroke(way, 0.22))


def _chest_drain(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    side = affected_sides(scene.exam, "pneumothorax", both=0)[0]
    points = [(side * 19, 17.5), (side * 14, 14.5), (side * 11.8, 9), (side * 8.5, rng.uniform(2.5, 4))]
    return tube(scene, points, 0.9, 1.3)


_IN_BED = ("central_line", "breathing_tube", "stomach_tube", "leads")
_UPRIGHT = ("pacemaker", "wires", "port")
_DRAWERS = {
    "central_line": _central_line,
    "breathing_tube": _breathing_tube,
    "stomach_tube": _stomach_tube,
    "leads": _leads,
    "pacemaker": _pacemaker,
    "wires": _wires,
    "port": _port,
    "chest_drain": _chest_drain,
}
