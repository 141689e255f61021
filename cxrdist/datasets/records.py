"""What an importer hands on: a row per image that the source names, and a reject per row left out.

Rows hold the source's own ids and paths.  They live in memory and in the private id map only; `pack` replaces them by
pseudonyms before anything is written into a shard folder.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from cxrdist.dicom.hints import PixelHints
from cxrdist.errors import RejectReason

Split = Literal["train", "val", "test"]
Projection = Literal["PA", "AP", "lateral", "other", "unknown"]
ProjectionFilter = Literal["frontal", "all"]
"""Which projections a pack keeps."""
Sex = Literal["F", "M", "unknown"]
SPLITS: tuple[str, ...] = get_args(Split)
PROJECTIONS: tuple[str, ...] = get_args(Projection)
FRONTAL = ("PA", "AP")
OLDEST = 90
"""Years; ages above are told as this one: with a rare age a person can be found (DICOM PS3.15, HIPAA 164.514)."""


@dataclass(frozen=True)
class Row:
    """One image with what its source says of it."""

    source: str
    """Path of the image relative to the dataset's root, POSIX; the image's identity within the dataset."""
    path: Path
    """Where the file is."""
    patient: str
    """The source's patient id; where there is none, the image's own id."""
    study: str
    """The source's study id; where there is none, the image's own id."""
    split: Split
    findings: dict[str, int | None]
    """1, 0, -1 or None (not mentioned) for every finding the dataset annotates, canonical names."""
    projection: Projection = "unknown"
    sex: Sex = "unknown"
    age: int | None = None
    """Years; 90 stands for 90 and above."""
    notes: dict[str, str | int | float | bool] = field(default_factory=dict)
    """Allow-listed remarks of the importer that may enter the shards (for example ``no_majority``)."""
    pixels: PixelHints = field(default_factory=PixelHints)
    """How the file has to be read, where it does not say so itself."""
    origin: str | None = None
    """The collection that the image came into the dataset from: a word of the fact file, never free text."""
    soft: dict[str, float] = field(default_factory=dict)
    """Share of the readers who say present, by finding; where the fact file aggregates readers by mean."""


@dataclass(frozen=True)
class Reject:
    """One row of the source that becomes no sample."""

    source: str
    reason: RejectReason
    detail: str = ""


@dataclass(frozen=True)
class Import:
    """All that an importer found; ``len(rows) + len(rejects)`` is the number of images the source names."""

    rows: list[Row]
    rejects: list[Reject]
