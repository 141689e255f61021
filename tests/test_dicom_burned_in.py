"""Lines of text in the pixels are found wherever they are written; anatomy, markers, wires and noise are no text."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from cxrdist.dicom import read_radiograph
from cxrdist.dicom.burned_in import Box, find_text
from cxrdist.phantom.acquisition import Beam
from cxrdist.phantom.draw import draw_exam_picture
from cxrdist.phantom.people import Key, draw_exam, draw_patient

WORDS = ("DOE, JANE", "Mueller^Anna", "ID 20010203", "1958-03-07", "ST. MARY HOSPITAL", "Kowalski 07.03.1958")
STYLES = ("light", "dark", "half", "outlined", "black on a white box", "white on a black box")
SIDE = 1024


@pytest.fixture(scope="module")
def radiographs() -> list[np.ndarray]:
    return [radiograph(number) for number in range(6)]


def radiograph(number: int, side: int = SIDE, **found: float) -> np.ndarray:
    key = Key(0, 3, number)
    return draw_exam_picture(draw_exam(key, draw_patient(key), "AP", found), Beam(), shape=(side, side))


def alpha_of(text: str, height: int, *, font: str) -> np.ndarray:
    """Return (h, w) in [0, 1]: how much each pixel is covered by `text`, capitals `height` pixels high."""
    if font == "pillow":
        face = ImageFont.load_default(height / 0.72)
        left, top, right, bottom = (int(side) for side in face.getbbox(text))
        canvas = Image.new("L", (right - left + 6, bottom - top + 6))
        ImageDraw.Draw(canvas).text((3 - left, 3 - top), text, fill=255, font=face)
        return np.asarray(canvas, np.float32) / 255
    scale, thick = height / 21, max(1, round(height / 9))
    (width, tall), below = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, thick)
    canvas = np.zeros((tall + below + 6, width + 8), np.uint8)
    cv2.putText(canvas, text, (3, tall + 3), cv2.FONT_HERSHEY_SIMPLEX, scale, 255, thick, cv2.LINE_AA)
    return canvas.astype(np.float32) / 255


def write(pixels: np.ndarray, alpha: np.ndarray, top: int, left: int, style: str) -> np.ndarray:
    """Return a copy of `pixels` with the text `alpha` written into it, and (H, W) where its ink is."""
    written = pixels.copy()
    place = np.s_[top : top + alpha.shape[0], left : left + alpha.shape[1]]
    under = pixels[place]
    away = 1.0 if np.median(under) < 0.5 else 0.0  # text that nobody can read names nobody
    if style in ("light", "dark"):
        level = 0.8 * away + 0.1
        written[place] = under * (1 - alpha) + alpha * level
    elif style == "half":
        written[place] = under * (1 - 0.6 * alpha) + 0.6 * alpha * away
    elif style == "outlined":
        dark = cv2.dilate(alpha, np.ones((5, 5)))
        written[place] = under * (1 - dark) * (1 - alpha) + alpha
    else:
        written[place] = 1 - alpha if style.startswith("black") else alpha
    ink = np.zeros(pixels.shape, bool)
    ink[place] = alpha > 0.5
    return written, ink


def blanked(pixels: np.ndarray, boxes: list[Box]) -> np.ndarray:
    pixels = pixels.copy()
    for top, left, bottom, right in boxes:
        pixels[top:bottom, left:right] = 0
    return pixels


def covers(boxes: list[Box], ink: np.ndarray) -> bool:
    """Whether at most a twentieth of the ink is outside of the boxes."""
    return np.count_nonzero(blanked(ink, boxes)) <= 0.05 * np.count_nonzero(ink)


@pytest.mark.parametrize("font", ["opencv", "pillow"])
@pytest.mark.parametrize("style", STYLES)
def test_text_near_a_border_is_found_to_its_last_letter(radiographs, style, font):
    seed = 20240611
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    found, whole, left_over, tried = 0, 0, 0, 0
    for height in (12, 18, 32):
        for upright in (True, True, False):
            alpha = alpha_of(WORDS[rng.integers(len(WORDS))], height, font=font)
            alpha = alpha if upright else np.rot90(alpha)
            # Along the top or bottom, or for turned text along the sides, at most a tenth inside.
            near, along = rng.integers(5, SIDE // 10), rng.integers(0, SIDE - max(alpha.shape))
            near = near if rng.random() < 0.5 else SIDE - near - min(alpha.shape)
            top, left = (near, along) if upright else (along, near)
            written, ink = write(radiographs[tried % len(radiographs)], alpha, top, left, style)
            boxes = find_text(written)
            tried += 1
            found += any(ink[box[0] : box[2], box[1] : box[3]].any() for box in boxes)
            whole += covers(boxes, ink)
            left_over += bool(boxes and find_text(blanked(written, boxes)))
    assert found >= 0.95 * tried, f"{found} of {tried}"
    assert whole >= 0.85 * tried, f"{whole} of {tried}"
    assert not left_over, "what is blanked is not seen again"


@pytest.mark.parametrize("side", [600, 1500, 3000])
def test_text_is_found_at_any_size_of_the_image_and_its_box_is_in_the_image(side):
    pixels = cv2.resize(radiograph(1), (side, side), interpolation=cv2.INTER_CUBIC).clip(0, 1)
    written, ink = write(pixels, alpha_of("DOE, JANE 1958", side // 50, font="pillow"), side // 50, 0, "light")
    boxes = find_text(written)
    assert covers(boxes, ink)
    assert all(0 <= top < bottom <= side and 0 <= left < right <= side for top, left, bottom, right in boxes)
    assert sum((bottom - top) * (right - left) for top, left, bottom, right in boxes) < 0.03 * side**2


def test_words_beside_a_line_are_in_its_box(radiographs):
    written, first = write(radiographs[0], alpha_of("WASHINGTON", 20, font="pillow"), 40, 60, "light")
    written, second = write(written, alpha_of("LI", 20, font="pillow"), 70, 60, "light")
    written, third = write(written, alpha_of("P.", 20, font="pillow"), 40, 245, "light")
    boxes = find_text(written)
    assert covers(boxes, first) and covers(boxes, second) and covers(boxes, third)


@pytest.mark.parametrize("marker", ["L", "R", "AP", "PA", "DG"])
def test_lead_markers_are_no_text(radiographs, marker):
    for number, height in enumerate((15, 30, 60)):
        alpha = alpha_of(marker, height, font="pillow")
        written, _ = write(radiographs[number], alpha, 50, 880, "light")
        assert not find_text(written)


def test_a_marker_and_far_initials_are_no_text(radiographs):
    written, _ = write(radiographs[0], alpha_of("L", 40, font="pillow"), 50, 900, "light")
    written, _ = write(written, alpha_of("KB", 20, font="pillow"), 120, 900, "light")
    assert not find_text(written)


def test_radiographs_without_text_have_none():
    seen = [number for number in range(8) if find_text(radiograph(number, 700, support_devices=1.0))]
    assert not seen


@pytest.mark.parametrize("level", [0.02, 0.1, 0.3])
def test_noise_is_no_text(level):
    rng = np.random.default_rng(3)
    grain = rng.standard_normal((1024, 1024))
    for sigma in (0, 1.5):
        noise = cv2.GaussianBlur(grain, (0, 0), sigma) if sigma else grain
        assert not find_text((0.5 + level * noise / noise.std()).clip(0, 1).astype(np.float32))


def test_edges_grids_rulers_and_wires_are_no_text():
    grey = np.full((1000, 800), 0.4, np.float32)
    edges = grey.copy()
    edges[:60], edges[:, :50] = 0, 1
    grid = grey.copy()
    grid[::40], grid[:, ::40] = 0.9, 0.9
    wires = grey.copy()
    for number in range(5):
        cv2.ellipse(wires, (150 + 20 * number, 200), (90, 120 + 15 * number), 20 * number, 0, 300, 0.95, 3)
    ruler = np.zeros((1000, 800), np.float32)
    ruler[100:900:8, 20:32] = 0.9
    ruler[100:900:40, 20:40] = 0.9
    ramp = np.tile(np.linspace(0, 1, 800, dtype=np.float32), (1000, 1))
    for pixels in (grey, edges, grid, wires, ruler, ramp):
        assert not find_text(pixels)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (3000, 2), (7, 9), (64, 64)])
def test_tiny_and_narrow_images_are_looked_at_as_well(shape):
    assert find_text(np.random.default_rng(0).random(shape, np.float32)) == []


@pytest.mark.realdata
@pytest.mark.skipif("CXRDIST_REALDATA" not in os.environ, reason="needs real radiographs")
def test_real_radiographs_rarely_seem_to_have_text_and_show_it_when_it_is_written_into_them():
    root = Path(os.environ["CXRDIST_REALDATA"])
    children = sorted((root / "kermany").rglob("*.jp*g"))[::12]
    seen = sum(bool(find_text(flagged(path))) for path in children)
    # A hundredth of these has the time of day or the tube voltage in a corner.
    assert len(children) >= 200 and seen <= 0.02 * len(children), f"{seen} of {len(children)}"
    listed = (root / "nih_cxr14" / "untouched_originals_1024.txt").read_text().split()
    free = [pixels for name in listed if not find_text(pixels := flagged(root / "nih_cxr14/images" / Path(name).name))]
    assert 12 <= len(free) <= 15, "five of the nineteen say PORTABLE"
    found = 0
    for number, pixels in enumerate(free):
        alpha = alpha_of(WORDS[number % len(WORDS)], 14, font="pillow")
        written, ink = write(pixels, alpha, 30 if number % 2 else 980, 60 + 40 * number, STYLES[number % len(STYLES)])
        found += covers(find_text(written), ink)
    assert found >= len(free) - 1


def flagged(path: Path) -> np.ndarray:
    return read_radiograph(path, burned_in_text="flag").pixels
