"""A shard folder opened to be looked at: manifest, index, and the grey levels of some of its images.

Shapes: N samples of the folder, n images read of a split, L grey levels (256 or 65536).
"""

import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from cxrdist.datasets.records import SPLITS
from cxrdist.datasets.shard_format import Manifest, read_index, read_manifest

IMAGES_PER_SPLIT = 200
"""Enough for a mean and a spread to about 2 %, and read in a second."""
BRIGHTEST = 255
"""Grey levels are told on this scale whatever the depth, so that folders can be compared."""


@dataclass(frozen=True)
class Levels:
    """Grey levels of the images read of one split, from 0 to `BRIGHTEST`."""

    rows: np.ndarray
    """(n,) their positions in the index."""
    mean: np.ndarray
    """(n,) mean of each image."""
    spread: np.ndarray
    """(n,) standard deviation of each image."""
    counts: np.ndarray
    """(L,) pixels of each level, over all of them."""
    unreadable: int
    """Images that were tried and have other bytes than were packed, or none."""


@dataclass(frozen=True)
class Contents:
    """An opened shard folder."""

    path: Path
    manifest: Manifest
    index: pd.DataFrame
    """(N, ...) rows, as `read_index` gives them."""
    levels: dict[str, Levels]
    """By split; none where no images were asked for."""

    @property
    def splits(self) -> list[str]:
        """Splits that have samples, in the order train, val, test."""
        held = set(self.index["split"])
        return [split for split in SPLITS if split in held]


def read_contents(shards: Path, images: int = IMAGES_PER_SPLIT) -> Contents:
    """Open a shard folder and read at most `images` images of each split, always the same ones.

    Keys are keyed hashes and the index is sorted by them, so rows at even distances are a random sample of a split.

    Raises:
        UsageError, UserError: As `read_index`.
    """
    manifest = read_manifest(shards)
    index = read_index(shards)
    levels = {}
    for split in SPLITS if images else ():
        rows = np.flatnonzero((index["split"] == split).to_numpy())
        if len(rows):
            chosen = np.unique(np.linspace(0, len(rows) - 1, min(images, len(rows))).round().astype(int))
            levels[split] = _read_levels(shards, manifest, index, rows[chosen])
    return Contents(shards, manifest, index, levels)


def percentile(counts: np.ndarray, share: float) -> float:
    """Return the lowest grey level that `share` of the pixels do not exceed, on the scale of `BRIGHTEST`."""
    place = np.searchsorted(np.cumsum(counts), share * counts.sum(), side="left")
    return float(place * BRIGHTEST / (len(counts) - 1))


def moments(counts: np.ndarray) -> tuple[float, float]:
    """Return mean and standard deviation of the pixels behind (L,) `counts`, on the scale of `BRIGHTEST`."""
    scale = np.arange(len(counts)) * (BRIGHTEST / (len(counts) - 1))
    total = counts.sum()
    mean = float(counts @ scale / total)
    return mean, float(np.sqrt(counts @ (scale - mean) ** 2 / total))


def _read_levels(shards: Path, manifest: Manifest, index: pd.DataFrame, rows: np.ndarray) -> Levels:
    bits = manifest.preprocessing.bits
    columns = index.iloc[rows][["shard", "image_offset", "image_bytes", "crc32"]]
    places = list(columns.itertuples(index=False, name=None))

    def measure(place: tuple[str, int, int, int]) -> tuple[np.ndarray, tuple[float, float]] | None:
        pixels = _read_image(shards, *place)
        if pixels is None or pixels.ndim != 2 or 8 * pixels.itemsize != bits:
            return None
        mean, spread = (float(value[0, 0]) for value in cv2.meanStdDev(pixels))
        scale = BRIGHTEST / (2**bits - 1)
        return np.bincount(pixels.ravel(), minlength=2**bits), (mean * scale, spread * scale)

    total = np.zeros(2**bits, np.int64)
    read, stats = [], []
    # Threads: decoding, counting and reading all let go of the interpreter's lock.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        for row, measured in zip(rows.tolist(), threads.map(measure, places), strict=True):
            if measured is not None:
                total += measured[0]
                read.append(row)
                stats.append(measured[1])
    mean, spread = np.array(stats).reshape(-1, 2).T
    return Levels(np.array(read, dtype=np.int64), mean, spread, total, len(rows) - len(read))


def _read_image(shards: Path, shard: str, offset: int, size: int, crc32: int) -> np.ndarray | None:
    """Return a packed image, or None if its bytes are not those that were packed."""
    try:
        descriptor = os.open(shards / shard, os.O_RDONLY)
        try:
            encoded = os.pread(descriptor, size, offset)
        finally:
            os.close(descriptor)
    except OSError:
        return None
    if len(encoded) != size or not size or zlib.crc32(encoded) != crc32:
        return None
    return cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_UNCHANGED)
