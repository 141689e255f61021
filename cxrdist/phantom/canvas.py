"""Drawing in centimetres: antialiased masks, soft profiles and smooth noise on a pixel frame of any size.

Points are (N, 2) arrays of (x, y) in cm in the plane of the detector; x grows to the image's right (the patient's
left), y grows downwards, and the origin lies on the midline at the height of the lungs' apices.
Maps are (H, W) float32.
"""

import math
from dataclasses import dataclass
from functools import cache, cached_property

import cv2
import numpy as np

_LEFT = np.array((-1.0, 1.0))
_SHIFT = 5  # fractional bits of the coordinates handed to OpenCV: 1/32 pixel


@dataclass(frozen=True)
class Frame:
    """Maps cm to pixels: a rotation about (0, 12) cm, a scale and a shift."""

    height: int
    width: int
    scale: float
    """Pixels per cm."""
    angle: float = 0.0
    """Tilt of the patient in the image, radians."""
    centre: tuple[float, float] = (0.0, 13.0)
    """The point (cm) that lies in the middle of the image."""

    def pixels(self, points: np.ndarray) -> np.ndarray:
        """Return (N, 2) pixel coordinates of points in cm."""
        c, s = np.cos(self.angle) * self.scale, np.sin(self.angle) * self.scale
        turn = np.array([[c, s], [-s, c]])
        origin = np.array([self.width / 2 - 0.5, self.height / 2 - 0.5]) - np.array(self.centre) @ turn
        return np.asarray(points @ turn + origin)

    @cached_property
    def grid(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the cm coordinates (x, y) of every pixel, two (H, W) maps; do not write into them."""
        c, s = np.cos(self.angle) / self.scale, np.sin(self.angle) / self.scale
        u = np.arange(self.width, dtype=np.float32) - (self.width / 2 - 0.5)
        v = (np.arange(self.height, dtype=np.float32) - (self.height / 2 - 0.5))[:, None]
        x = u * np.float32(c) + v * np.float32(s) + np.float32(self.centre[0])
        y = v * np.float32(c) - u * np.float32(s) + np.float32(self.centre[1])
        return x, y

    def zeros(self) -> np.ndarray:
        """Return an empty map."""
        return np.zeros((self.height, self.width), np.float32)

    def fixed(self, points: np.ndarray) -> np.ndarray:
        """Return points as the fixed-point integers that OpenCV draws."""
        return np.rint(self.pixels(points) * (1 << _SHIFT)).astype(np.int32)

    def mask8(self, *polygons: np.ndarray) -> np.ndarray:
        """Return the union of filled polygons as uint8 coverage, 0..255."""
        canvas = np.zeros((self.height, self.width), np.uint8)
        corners = self.fixed(np.concatenate(polygons))
        start = 0
        for polygon in polygons:
            end = start + len(polygon)
            cv2.fillPoly(canvas, [corners[start:end]], 255, cv2.LINE_AA, _SHIFT)
            start = end
        return canvas

    def mask(self, *polygons: np.ndarray) -> np.ndarray:
        """Return the union of filled polygons as coverage in [0, 1]."""
        return self.mask8(*polygons).astype(np.float32) / 255

    def stroke(self, points: np.ndarray, width: float) -> np.ndarray:
        """Return an open line of `width` cm; lines thinner than a pixel become fainter, not thinner."""
        pixels = width * self.scale
        line = self.mask(band(points, max(width, 1.0 / self.scale) / 2))
        return line * np.float32(min(1.0, pixels))

    def ring(self, outline: np.ndarray, width: float) -> np.ndarray:
        """Return a closed line of `width` cm along `outline`."""
        return self.stroke(np.concatenate([outline, outline[:1]]), width)

    def blur(self, image: np.ndarray, sigma: float) -> np.ndarray:
        """Return `image` blurred by a Gaussian of `sigma` cm; wide blurs are made on a smaller copy."""
        pixels = sigma * self.scale
        if pixels < 0.3:
            return image
        step = int(pixels // 2.5)
        if step < 2:
            return cv2.GaussianBlur(image, (0, 0), pixels, borderType=cv2.BORDER_REPLICATE)
        size = (max(self.width // step, 4), max(self.height // step, 4))
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        small = cv2.GaussianBlur(small, (0, 0), pixels * size[0] / self.width, borderType=cv2.BORDER_REPLICATE)
        return cv2.resize(small, (self.width, self.height), interpolation=cv2.INTER_LINEAR)

    def dome(self, mask: np.ndarray, depth: float, power: float = 2.0) -> np.ndarray:
        """Return a rounded profile in [0, 1] of a uint8 mask: 0 at its rim, 1 from `depth` cm inside."""
        inner = cv2.threshold(mask, 127, 255, cv2.THRESH_BINARY)[1]
        # The rim runs half a pixel before the first pixel inside.
        pixels = np.maximum(cv2.distanceTransform(inner, cv2.DIST_L2, 5) - np.float32(0.5), 0)
        distance = pixels / np.float32(depth * self.scale)
        inside = 1 - np.minimum(distance, 1)
        return np.sqrt(1 - inside**power) * (mask.astype(np.float32) / 255)

    def ball(self, centre: tuple[float, float], radii: tuple[float, float], angle: float = 0.0) -> np.ndarray:
        """Return the thickness profile of an ellipsoid, 1 in its middle."""
        column, row = self.pixels(np.array([centre]))[0]
        reach = max(radii) * self.scale + 2
        top, left = max(int(row - reach), 0), max(int(column - reach), 0)
        box = slice(top, max(int(row + reach) + 1, top)), slice(left, max(int(column + reach) + 1, left))
        x, y = self.grid[0][box], self.grid[1][box]
        c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        dx, dy = x - np.float32(centre[0]), y - np.float32(centre[1])
        a, b = (dx * c + dy * s) / np.float32(radii[0]), (dy * c - dx * s) / np.float32(radii[1])
        profile = self.zeros()
        profile[box] = np.sqrt(np.maximum(0, 1 - a * a - b * b))
        return profile

    def cloud(self, rng: np.random.Generator, grain: float) -> np.ndarray:
        """Return smooth noise with unit variance and structures of about `grain` cm."""
        # The grid of random numbers is laid out in cm, so the same stream gives the same clouds at every size.  Two
        # octaves, for one alone shows its lattice.
        extent_x, extent_y = self.width / self.scale, self.height / self.scale
        total = None
        for share, cell in ((0.95, grain), (0.85, 0.59 * grain)):
            cols, rows = max(int(extent_x / cell + 0.5), 2), max(int(extent_y / cell + 0.5), 2)
            small = rng.standard_normal((rows, cols), dtype=np.float32) * np.float32(share)
            octave = cv2.resize(small, (self.width, self.height), interpolation=cv2.INTER_CUBIC)
            total = octave if total is None else total + octave
        return np.asarray(total)


@cache
def _spline_basis(steps: int) -> np.ndarray:
    t = np.linspace(0, 1, steps, endpoint=False)[:, None]
    weights = [-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, -(t**2) + t**3]
    return 0.5 * np.concatenate(weights, axis=1)


def curve(points: np.ndarray, *, closed: bool = False, steps: int = 8) -> np.ndarray:
    """Return a Catmull-Rom spline through `points`, (M, 2)."""
    points = np.asarray(points, float)
    if closed:
        padded = np.concatenate([points[-1:], points, points[:2]])
    else:
        padded = np.concatenate([2 * points[:1] - points[1:2], points, 2 * points[-1:] - points[-2:-1]])
    count = len(padded) - 3
    windows = padded[np.arange(count)[:, None] + np.arange(4)]
    smooth = (_spline_basis(steps) @ windows).reshape(-1, 2)
    return smooth if closed else np.concatenate([smooth, points[-1:]])


def band(points: np.ndarray, half_width: float | np.ndarray) -> np.ndarray:
    """Return the outline of a ribbon along `points` with `half_width` cm (one, or one per point) to either side."""
    direction = np.empty_like(points)
    direction[1:-1] = points[2:] - points[:-2]
    direction[0], direction[-1] = points[1] - points[0], points[-1] - points[-2]
    scale = half_width / np.maximum(np.hypot(direction[:, 0], direction[:, 1]), 1e-6)
    offset = direction[:, ::-1] * scale[:, None] * _LEFT
    return np.concatenate([points + offset, (points - offset)[::-1]])


def moved(points: np.ndarray, x: float, y: float) -> np.ndarray:
    """Return `points` shifted by (x, y) cm."""
    return np.asarray(points + np.array((x, y)))


def ellipse(
    centre: tuple[float, float], radii: tuple[float, float], angle: float = 0.0, points: int = 32
) -> np.ndarray:
    """Return the outline of an ellipse."""
    c, s = math.cos(angle), math.sin(angle)
    axes = np.array([[radii[0] * c, radii[0] * s], [-radii[1] * s, radii[1] * c]])
    return np.asarray(_circle(points) @ axes + np.array(centre))


@cache
def _circle(points: int) -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, points, endpoint=False)
    return np.stack([np.cos(t), np.sin(t)], axis=1)
