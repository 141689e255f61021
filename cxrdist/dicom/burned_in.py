"""Text burned into the pixels: lines of letters as scanners, workstations and film digitisers write them.

No reading of words: a line is four or more sharp marks of one height side by side, brighter or darker than what is
around them.  It may lie anywhere, but over the lungs it needs six.  Not seen: handwriting, slanted lines, words of one
to three letters, contrast below a fifth of the grey scale, letters lower than 6 pixels or a hundredth of the image.

Measured.  Names, numbers and dates of 5 and more characters were drawn near a border into radiographs of 1024 to 3000
pixels, in 15 fonts, with capitals of 1.2 to 5 % of the longer side, light, dark, half transparent, outlined or on
boxes, a fifth of them turned: 99.7 % of 676 are found, 95 % to the last letter; once blanked, none is found again.
Images without text that seem to have some, judged by eye: ChestX-ray14 1 of 449, paediatric (Kermany) 3 of 2377,
collected from papers (covid-chestxray) 0 of 117, phantoms 0 of 102.  15 ms for 3000 x 2500 pixels.

Shapes: (h, w) of the working copy, about `WORKING_SIDE` pixels on its longer side.
"""

from dataclasses import dataclass, replace

import cv2
import numpy as np

Box = tuple[int, int, int, int]
"""Top, left, bottom, right in pixels; bottom and right are the first ones outside."""

WORKING_SIDE = 1024
SMALL_SIDE = 640
"""Images up to this side are doubled first: letters of 5 pixels touch each other."""
FEWEST_LETTERS = 4
"""Lead markers have one to three: L, R, PA and a radiographer's initials."""
FEWEST_LETTERS_INSIDE = 6
"""Of a line in the middle half of both sides, over the lungs, where ribs, wires and devices imitate letters."""

TALLEST = 0.07
"""Of a letter, as a share of the longer side."""
STROKE = 0.016
"""Widest stroke, as a share of the longer side."""
FAINTEST = 0.10
"""Least contrast of a stroke with its surroundings; the grey scale is 1."""
FAINTEST_LINE = 0.20
SHARPEST_STEP = 0.6
"""Share of its contrast that a drawn edge climbs within a pixel to each side; a projected one needs many."""
SHARP = 0.7
"""Least share of a letter's outline that climbs so fast."""
QUIET = 0.26
"""Most contrast between the letters, as a share of their own: noise and tangles of wire have more."""
ALIGNED = 0.6
"""Least share of letters that end on one base line or one top line."""


def find_text(pixels: np.ndarray) -> list[Box]:
    """Return a box around each block of text in the (H, W) float32 image of [0, 1], none if there is no text.

    Lines run along a side of the image.  The boxes reach over shorter words and lines beside the line that was found,
    and have a margin: whoever blanks them blanks the text.
    """
    grey, scale = _working_copy(pixels)
    edges = cv2.morphologyEx(grey, cv2.MORPH_GRADIENT, _square(5 if scale < 1 else 3))
    boxes: list[Box] = []
    for hat in (cv2.MORPH_TOPHAT, cv2.MORPH_BLACKHAT):  # bright letters, dark letters
        marks = _marks(grey, edges, hat)
        boxes += _blocks(marks)
        boxes += [(top, left, bottom, right) for left, top, right, bottom in _blocks(marks.turned())]
    return [_scaled(box, scale, pixels.shape) for box in _merged(boxes)]


@dataclass(frozen=True)
class _Marks:
    """Connected marks of one polarity.  N marks; a letter is one, or several letters that touch are."""

    ink: np.ndarray
    """(h, w) uint8: contrast with the surroundings of every pixel."""
    labels: np.ndarray
    """(h, w) int32: 1 + the mark that a pixel is part of, 0 is none."""
    left: np.ndarray
    top: np.ndarray
    width: np.ndarray
    height: np.ndarray
    area: np.ndarray
    sharp: np.ndarray
    """(N,) share of the outline that climbs fast."""
    contrast: np.ndarray
    """(N,) of 255."""

    def turned(self) -> "_Marks":
        """Return the same marks with rows and columns exchanged."""
        return replace(
            self,
            ink=self.ink.T, labels=self.labels.T,
            left=self.top, top=self.left, width=self.height, height=self.width,
        )  # fmt: skip

    @property
    def letters_like(self) -> np.ndarray:
        """Indices of the marks that may be a letter, or some that touch."""
        tallest = TALLEST * max(self.ink.shape)
        fits = (self.height >= 5) & (self.height <= tallest) & (self.width <= 12 * self.height)
        full = self.area >= 0.12 * self.width * self.height
        fits &= full & (self.sharp >= SHARP - 0.2) & (self.contrast >= FAINTEST_LINE * 255)
        return np.flatnonzero(fits)


def _working_copy(pixels: np.ndarray) -> tuple[np.ndarray, float]:
    """Return (h, w) uint8 levels and how many pixels of the input are one of theirs."""
    factor = max(round(max(pixels.shape) / WORKING_SIDE), 1)
    if factor > 1:  # whole factors are several times faster
        height, width = max(pixels.shape[0] // factor, 1), max(pixels.shape[1] // factor, 1)
        area = pixels[: height * factor, : width * factor]
        return cv2.convertScaleAbs(cv2.resize(area, (width, height), interpolation=cv2.INTER_AREA), alpha=255), factor
    if max(pixels.shape) <= SMALL_SIDE:
        larger = cv2.resize(pixels, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)
        return cv2.convertScaleAbs(np.clip(larger, 0, 1), alpha=255), 0.5
    return cv2.convertScaleAbs(pixels, alpha=255), 1


def _marks(grey: np.ndarray, edges: np.ndarray, hat: int) -> _Marks:
    side = max(grey.shape)
    ink = cv2.morphologyEx(grey, hat, _square(max(7, 2 * int(STROKE * side / 2) + 1)))
    peak = cv2.dilate(ink, _square(9))
    # Half of the stroke's own contrast keeps neighbours apart; twice the mean around keeps noise out.
    around = cv2.blur(ink, (side // 8 | 1, side // 8 | 1))
    least = cv2.max(cv2.max(cv2.convertScaleAbs(peak, alpha=0.5), cv2.add(around, around)), FAINTEST * 255)
    mask = cv2.compare(ink, least, cv2.CMP_GT)
    count, labels = cv2.connectedComponents(mask, connectivity=8, ltype=cv2.CV_32S)
    inner = cv2.erode(mask, _square(3), borderType=cv2.BORDER_CONSTANT, borderValue=0)
    outline = np.flatnonzero(cv2.subtract(mask, inner).ravel().view(bool))
    of_mark = labels.ravel()[outline]
    peaks = peak.ravel()[outline].astype(np.float32)
    length = np.maximum(np.bincount(of_mark, minlength=count), 1)[1:]
    steep = edges.ravel()[outline] >= SHARPEST_STEP * peaks
    return _Marks(
        ink=ink,
        labels=labels,
        **_extents(mask, labels, count),
        sharp=np.bincount(of_mark, steep, minlength=count)[1:] / length,
        contrast=np.bincount(of_mark, peaks, minlength=count)[1:] / length,
    )


def _extents(mask: np.ndarray, labels: np.ndarray, count: int) -> dict[str, np.ndarray]:
    """Return place, size and area of each mark; OpenCV's own statistics look at every pixel, and most are no mark's."""
    pixels = np.flatnonzero(mask.ravel().view(bool))
    of_pixel = labels.ravel()[pixels]
    area = np.bincount(of_pixel, minlength=count)[1:]
    if not area.size:
        return dict.fromkeys(("left", "top", "width", "height", "area"), area)
    rows, columns = np.divmod(pixels[np.argsort(of_pixel, kind="stable")], mask.shape[1])
    first = np.cumsum(area) - area
    top, left = rows[first], np.minimum.reduceat(columns, first)
    height = rows[first + area - 1] - top + 1
    return {
        "left": left, "top": top, "width": np.maximum.reduceat(columns, first) - left + 1, "height": height,
        "area": area,
    }  # fmt: skip


def _blocks(marks: _Marks) -> list[Box]:
    """Return the boxes of the lines that run along the rows, with what belongs to them."""
    candidates = marks.letters_like
    # The more marks, the longer the lines that chance makes of them.
    more = min(len(candidates) // 100, 8)
    lines = [line for line in _chains(marks, candidates) if _is_text(marks, line, more)]
    return [_grown(marks, candidates, line) for line in lines]


def _chains(marks: _Marks, candidates: np.ndarray, most: int = 400) -> list[np.ndarray]:
    """Return groups of `candidates` that stand side by side on one line."""
    order = candidates[np.argsort(marks.top[candidates], kind="stable")]
    chains = []
    for start in range(0, len(order), most):  # an image full of marks must not need a quadratic memory
        part = order[start : start + most]
        left, top, width, height = (values[part] for values in (marks.left, marks.top, marks.width, marks.height))
        right, bottom = left + width, top + height
        taller = np.maximum.outer(height, height)
        gap = np.maximum.outer(left, left) - np.minimum.outer(right, right)
        # Letters of one line share the base line or, with g and p among them, the top line.
        off = np.minimum(np.abs(np.subtract.outer(bottom, bottom)), np.abs(np.subtract.outer(top, top)))
        beside = (taller <= 1.9 * np.minimum.outer(height, height)) & (off <= np.maximum(0.22 * taller, 1))
        beside &= (gap <= 1.2 * taller) & (gap >= -0.5 * np.minimum.outer(width, width))
        room = np.maximum(width / (0.4 * height), 1)  # letters are hardly ever narrower
        chains += [part[group] for group in _connected(beside) if room[group].sum() >= FEWEST_LETTERS]
    return chains


def _connected(beside: np.ndarray) -> list[np.ndarray]:
    """Return the connected groups of a symmetric (N, N) relation."""
    left = np.ones(len(beside), bool)
    groups = []
    for first in range(len(beside)):
        if not left[first]:
            continue
        group, queue = [], [first]
        left[first] = False
        while queue:
            group.append(queue.pop())
            new = np.flatnonzero(beside[group[-1]] & left)
            left[new] = False
            queue += new.tolist()
        groups.append(np.array(group))
    return groups


def _is_text(marks: _Marks, line: np.ndarray, more: int) -> bool:
    if np.median(marks.sharp[line]) < SHARP:
        return False
    if _is_scale(marks, line):
        return False
    height = np.median(marks.height[line])
    ends = (marks.top[line], marks.top[line] + marks.height[line])
    aligned = max((np.abs(end - np.median(end)) <= max(1, 0.15 * height) for end in ends), key=np.count_nonzero)
    if np.mean(aligned) < ALIGNED:
        return False
    top, left, bottom, right = _bounds(marks, line)
    rows, columns = marks.ink.shape
    inside = abs(top + bottom - rows) < rows / 2 and abs(left + right - columns) < columns / 2
    fewest = more + (FEWEST_LETTERS_INSIDE if inside else FEWEST_LETTERS)
    if sum(_letters(marks, mark) for mark in line[aligned]) < fewest:
        return False
    between = marks.ink[top:bottom, left:right][marks.labels[top:bottom, left:right] == 0]
    return between.size > 0 and float(between.mean()) <= QUIET * float(np.median(marks.contrast[line]))


def _is_scale(marks: _Marks, line: np.ndarray) -> bool:
    """Whether the marks are the ticks of a ruler, all as thin as I, or the gaps between them, all alike."""
    area = marks.area[line]
    alike = np.quantile(np.abs(area - np.median(area)), 0.75) <= 0.05 * np.median(area)
    return bool(np.mean(marks.width[line] < 0.35 * marks.height[line]) > 0.75 or (len(line) >= 8 and alike))


def _letters(marks: _Marks, mark: int) -> float:
    """Return how many letters a mark is made of; letters have 1.7 strokes in a row, on average."""
    if marks.width[mark] <= 1.3 * marks.height[mark]:
        return 1
    top, left = marks.top[mark], marks.left[mark]
    own = marks.labels[top : top + marks.height[mark], left : left + marks.width[mark]] == mark + 1
    strokes = np.count_nonzero(np.diff(own.astype(np.int8), axis=1, prepend=0) > 0, axis=1)
    return max(1.0, round(float(np.median(strokes)) / 1.7))


def _grown(marks: _Marks, candidates: np.ndarray, line: np.ndarray) -> Box:
    """Return the box of `line`, of the words and lines beside it, and a margin."""
    height = float(np.median(marks.height[line]))
    contrast = float(np.median(marks.contrast[line]))
    alike = (marks.height[candidates] >= 0.4 * height) & (marks.height[candidates] <= 1.8 * height)
    alike &= (marks.contrast[candidates] >= 0.5 * contrast) & (marks.sharp[candidates] >= SHARP - 0.1)
    block, near = line, candidates[alike]
    while True:
        top, left, bottom, right = _bounds(marks, block)
        across, down = 2.5 * height, 1.5 * height  # a full stop and a space; the white between two lines
        beside = (marks.left[near] < right + across) & (marks.left[near] + marks.width[near] > left - across)
        beside &= (marks.top[near] < bottom + down) & (marks.top[near] + marks.height[near] > top - down)
        if not beside.any():
            break
        block, near = np.concatenate([block, near[beside]]), near[~beside]
    if (bottom - top) * (right - left) > marks.ink.size / 5:  # no block of text any more
        top, left, bottom, right = _bounds(marks, line)
    margin = round(0.5 * height)
    return top - margin, left - margin, bottom + margin, right + margin


def _bounds(marks: _Marks, group: np.ndarray) -> Box:
    return (
        int(marks.top[group].min()),
        int(marks.left[group].min()),
        int((marks.top[group] + marks.height[group]).max()),
        int((marks.left[group] + marks.width[group]).max()),
    )


def _merged(boxes: list[Box]) -> list[Box]:
    """Return boxes without overlaps: those that overlap become one around both."""
    apart: list[Box] = []
    for box in boxes:
        grown = box
        while over := [other for other in apart if _overlap(grown, other)]:
            apart = [other for other in apart if other not in over]
            tops, lefts, bottoms, rights = zip(grown, *over, strict=True)
            grown = (min(tops), min(lefts), max(bottoms), max(rights))
        apart.append(grown)
    return sorted(apart)


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _scaled(box: Box, scale: float, shape: tuple[int, ...]) -> Box:
    top, left, bottom, right = box
    return (
        max(int(top * scale), 0),
        max(int(left * scale), 0),
        min(-int(-bottom * scale // 1), shape[0]),
        min(-int(-right * scale // 1), shape[1]),
    )


def _square(side: int) -> np.ndarray:
    return np.ones((side, side), np.uint8)
