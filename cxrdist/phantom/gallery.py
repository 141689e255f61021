"""A contact sheet of what the phantoms show: per finding a healthy picture and three degrees of difficulty."""

from pathlib import Path

import cv2
import numpy as np

from cxrdist.errors import UserError
from cxrdist.findings import titles
from cxrdist.phantom.acquisition import Beam
from cxrdist.phantom.disease import strength
from cxrdist.phantom.draw import draw_exam_picture
from cxrdist.phantom.people import Key, draw_exam, draw_patient

SHOWN = (
    *("cardiomegaly", "effusion", "pneumothorax", "consolidation", "pneumonia", "edema"),
    *("atelectasis", "nodule", "mass", "emphysema", "fibrosis", "support_devices"),
)
DIFFICULTIES = (0.0, 0.5, 0.9)
_TITLE_PX = 15
_BLOCKS = 2  # findings side by side


def contact_sheet(out: Path, *, size: int = 160, seed: int = 0) -> Path:
    """Write a picture with a strip per finding: healthy, then obvious, middling and barely visible; return `out`.

    Args:
        out: File to write; its suffix (``.png``, ``.jpg``) is its format.
        size: Side of one radiograph, pixels.
        seed: Seed of the patients.
    """
    strips = [_strip(name, number, size, seed) for number, name in enumerate(SHOWN)]
    rows = [np.hstack(strips[k : k + _BLOCKS]) for k in range(0, len(strips), _BLOCKS)]
    sheet = np.vstack(rows)
    # 64 grey levels: the eye sees no difference, and the file is a third smaller.
    flags = [cv2.IMWRITE_PNG_COMPRESSION, 9] if out.suffix.lower() == ".png" else []
    if not cv2.imwrite(str(out), np.rint(sheet * 63).astype(np.uint8) * 4, flags):
        raise UserError(
            f"A contact sheet must be written into a folder that exists, got {str(out)!r}. Name another place."
        )
    return out


def _strip(name: str, number: int, size: int, seed: int) -> np.ndarray:
    key = Key(seed, 0, number)
    patient = draw_patient(key)
    tiles = []
    for found in ({}, *({name: strength(difficulty, 0.5)} for difficulty in DIFFICULTIES)):
        exam = draw_exam(key, patient, "AP" if name == "support_devices" else "PA", found)  # tubes are for beds
        tiles.append(draw_exam_picture(exam, Beam(), shape=(size, size)))
    picture = np.hstack(tiles)
    title = np.zeros((_TITLE_PX, picture.shape[1]), np.uint8)
    words = ["healthy", *(f"{titles()[name]}, difficulty {difficulty:g}" for difficulty in DIFFICULTIES)]
    for k, text in enumerate(words):
        cv2.putText(title, text, (k * size + 3, 11), cv2.FONT_HERSHEY_SIMPLEX, size / 500, 255, 1, cv2.LINE_AA)
    return np.vstack([title.astype(np.float32) / 255, picture])
