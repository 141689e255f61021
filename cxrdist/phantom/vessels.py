"""Pulmonary vessels: trees that leave the hila, branch and taper, as cm of blood that the beam crosses."""

import cv2
import numpy as np

from cxrdist.phantom.canvas import Frame
from cxrdist.phantom.people import Draw, Exam
from cxrdist.phantom.shapes import Shape

_DEPTH_CM = 0.8
"""Vessel width that draws at full value."""


def vessels(frame: Frame, exam: Exam, shape: Shape | None) -> np.ndarray:
    """Return the (H, W) map of vessels of both lungs, cm; clip it with the lungs.  Without a `shape`: a lateral's."""
    total = frame.zeros()
    trees = [_tree(exam.key.lasting(Draw.VESSELS, side + 1), _hilum(shape, side), side) for side in (-1, 1)]
    for level in range(3):
        layer = np.zeros((frame.height, frame.width), np.uint8)
        for tree in trees:
            _draw(frame, layer, *tree[level], halves=level < 2)
        total += layer
    return frame.blur(total * np.float32(_DEPTH_CM / 255), 0.05)


def _hilum(shape: Shape | None, side: int) -> np.ndarray:
    if shape is None:
        return np.array([0.4, 9.8])
    return np.array([side * 3.6 + shape.tracheal_shift * 0.5, 9.9 if side > 0 else 10.6])


def _tree(rng: np.random.Generator, hilum: np.ndarray, side: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return per level the branches (B, S, 2) and their widths (B, S)."""
    count, steps = 12, 9
    # Angles fan out from straight up to steeply down; more vessels, and wider ones, run to the bases.
    fan = np.linspace(-1.35, 1.38, count) + rng.normal(0, 0.08, count)
    base = fan > 0.2
    length = np.where(base, 11.0, 9.0) * rng.uniform(0.8, 1.15, count)
    start = hilum + np.stack([side * rng.uniform(-0.4, 0.6, count), 0.9 * fan + rng.normal(0, 0.3, count)], 1)
    trunk = _walk(rng, start, fan, length, steps, side, 0.11)
    trunk_width = np.where(base, 0.62, 0.5)[:, None] * np.linspace(1, 0.28, steps)
    levels = [(trunk, trunk_width)]
    parents, widths, angles, reach = trunk, trunk_width, fan, length
    for children, share, spread in ((4, 0.55, 0.5), (2, 0.5, 0.55)):
        at = rng.integers(2, parents.shape[1] - 1, (len(parents), children))
        rows = np.repeat(np.arange(len(parents)), children)
        points, thick = parents[rows, at.ravel()], widths[rows, at.ravel()]
        sign = np.where(np.arange(len(rows)) % 2 == 0, 1, -1)
        turn = angles[rows] + sign * spread * rng.uniform(0.6, 1.3, len(rows))
        reach = reach[rows] * share * rng.uniform(0.6, 1.1, len(rows))
        parents = _walk(rng, points, turn, reach, 7, side, 0.14)
        widths = thick[:, None] * 0.72 * np.linspace(1, 0.3, 7)
        angles = turn
        levels.append((parents, widths))
    return levels


def _walk(
    rng: np.random.Generator,
    start: np.ndarray,
    angle: np.ndarray,
    length: np.ndarray,
    steps: int,
    side: int,
    wobble: float,
) -> np.ndarray:
    bend = np.cumsum(rng.normal(0, wobble, (len(start), steps - 1)), axis=1)
    heading = angle[:, None] + bend
    stride = length[:, None] / (steps - 1)
    moves = np.stack([side * np.cos(heading) * stride, np.sin(heading) * stride], axis=2)
    return np.concatenate([start[:, None], start[:, None] + np.cumsum(moves, axis=1)], axis=1)


def _draw(frame: Frame, layer: np.ndarray, lines: np.ndarray, widths: np.ndarray, *, halves: bool) -> None:
    """Draw branches (B, S, 2) of `widths` (B, S), the farther half first, so that a vessel fades as it tapers."""
    pixels = frame.pixels(lines)
    direction = np.gradient(pixels, axis=1)
    direction /= np.maximum(np.hypot(direction[..., :1], direction[..., 1:]), 1e-6)
    normal = direction[..., ::-1] * (-1, 1)
    offset = normal * np.maximum(widths * frame.scale, 0.9)[..., None] / 2
    sides = np.rint(np.stack([pixels + offset, pixels - offset]) * 32).astype(np.int32)
    middle = lines.shape[1] // 2
    for part in (slice(middle, None), slice(0, middle + 1)) if halves else (slice(None),):
        mean = widths[:, part].mean(axis=1)
        # Below a pixel a vessel becomes fainter instead of thinner.
        values = np.maximum(255 * mean / _DEPTH_CM * np.minimum(mean * frame.scale, 1.0), 1).astype(int).tolist()
        outlines = np.concatenate([sides[0][:, part], sides[1][:, part][:, ::-1]], axis=1)
        for outline, value in zip(outlines, values, strict=True):
            cv2.fillPoly(layer, [outline], value, cv2.LINE_AA, 5)
