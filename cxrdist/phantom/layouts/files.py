"""The files of drawn data sets: pictures, tables, and what file managers and downloads leave behind."""

import csv
import gzip
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np


def eight_bit(grey: np.ndarray) -> np.ndarray:
    """Return a picture in [0, 1] as uint8."""
    return np.rint(grey * 255).astype(np.uint8)


def write_picture(path: Path, pixels: np.ndarray) -> None:
    """Write uint8 or (PNG alone) uint16 pixels, (H, W) or (H, W, C), in the format of the suffix."""
    png = path.suffix == ".png"
    cv2.imwrite(str(path), pixels, [cv2.IMWRITE_PNG_COMPRESSION, 3] if png else [cv2.IMWRITE_JPEG_QUALITY, 92])


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table; compressed, without a date, where `path` ends in ``.gz``.  None is a blank cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    data = text.getvalue().encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)


def write_ds_store(folder: Path) -> None:
    """Write what a file manager leaves in a folder."""
    (folder / ".DS_Store").write_bytes(b"\x00\x00\x00\x01Bud1\x00")


def write_index_html(folder: Path) -> None:
    """Write what a recursive download leaves in a folder."""
    (folder / "index.html").write_text(f"<html><body>Index of {folder.name}</body></html>\n", encoding="utf-8")
