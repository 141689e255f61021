"""What is in a shard folder, in numbers, and which of them a model could score by without looking at the lungs."""

import csv
from collections import Counter
from pathlib import Path

import pandas as pd

from cxrdist.config import Config
from cxrdist.datasets.shard_format import REJECTS, SOURCE_COLUMNS, Manifest, finding_column
from cxrdist.errors import UserError
from cxrdist.findings import ABSENT, PRESENT, UNCERTAIN
from cxrdist.pack.contents import IMAGES_PER_SPLIT, Contents, Levels, moments, percentile, read_contents
from cxrdist.pack.overlaps import known_overlaps
from cxrdist.pack.shortcuts import Shortcut, find_shortcuts, shortcut_warnings


class Prevalence(Config):
    """How often a finding has each of its four values; their sum is the number of samples."""

    present: int
    absent: int
    uncertain: int
    not_mentioned: int

    @property
    def share(self) -> float | None:
        """Present among present and absent; None where there is neither."""
        sure = self.present + self.absent
        return self.present / sure if sure else None


class Ages(Config):
    """Ages in years; 90 stands for 90 and above."""

    known: int
    mean: float | None
    youngest: int | None
    oldest: int | None


class Intensities(Config):
    """Grey levels, 0 to 255 whatever the depth, over all pixels of the images read."""

    images: int
    """How many images were read, at even distances in the split."""
    unreadable: int
    """How many more were tried and are damaged."""
    mean: float | None
    sd: float | None
    p1: float | None
    p50: float | None
    p99: float | None


class SplitInfo(Config):
    """One split."""

    samples: int
    patients: int
    studies: int
    findings: dict[str, Prevalence]
    projection: dict[str, int]
    sex: dict[str, int]
    age: Ages
    origin: dict[str, int]
    """Samples by the collection they came from; empty where the dataset has none."""
    kind: dict[str, int]
    """Samples by the format of their file; empty in folders of format 1."""
    transfer_syntax: dict[str, int]
    """DICOM files only."""
    bits: dict[str, int]
    """Samples by the bits of their file that carry information."""
    intensities: Intensities | None
    """None where no images were asked for."""


class ShardInfo(Config):
    """One shard folder."""

    manifest: Manifest
    patients: int
    bytes: int
    splits: dict[str, SplitInfo]
    """Splits that have samples, in the order train, val, test."""
    overlaps: dict[str, str] | None
    """Datasets known to hold the same images or patients, and how; None if the fact file does not come with us."""
    shortcuts: list[Shortcut]
    """Every finding with every rule, the strongest first."""
    warnings: list[str]


def shard_info(shards: Path, images: int = IMAGES_PER_SPLIT) -> ShardInfo:
    """Return counts, patients, prevalence, shortcuts and what else the index of a shard folder tells.

    Args:
        shards: A finished shard folder.
        images: How many images of each split are read at most, for grey levels; 0 reads none.

    Raises:
        UsageError, UserError: As `read_index`.
    """
    return describe(read_contents(shards, images))


def describe(contents: Contents) -> ShardInfo:
    """Return the numbers of an opened folder."""
    manifest, index = contents.manifest, contents.index
    shortcuts = find_shortcuts(contents)
    damaged = sum(levels.unreadable for levels in contents.levels.values())
    tried = damaged + sum(len(levels.rows) for levels in contents.levels.values())
    warnings = [manifest.without_training] if manifest.without_training else []
    if damaged:
        warnings.append(
            f"{damaged} of {tried} images that were read are damaged. Check the folder with `cxrdist shards verify`."
        )
    return ShardInfo(
        manifest=manifest,
        patients=int(index["patient_id"].nunique()),
        bytes=sum(shard.bytes for shard in manifest.shards),
        splits={
            split: _split_info(index[index["split"] == split], manifest.findings, contents.levels.get(split))
            for split in contents.splits
        },
        overlaps=known_overlaps(manifest),
        shortcuts=shortcuts,
        warnings=[*warnings, *shortcut_warnings(shortcuts)],
    )


def read_rejects(shards: Path) -> list[dict[str, str]]:
    """Return the lines of `rejects.csv`: image_id, reason, detail."""
    try:
        with (shards / REJECTS).open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error):
        raise UserError(f"{REJECTS} in {str(shards)!r} is missing or damaged. Run the same `cxrdist pack`.") from None


def _split_info(index: pd.DataFrame, findings: list[str], levels: Levels | None) -> SplitInfo:
    ages = index["age"].dropna()
    return SplitInfo(
        samples=len(index),
        patients=int(index["patient_id"].nunique()),
        studies=int(index["study_id"].nunique()),
        findings={finding: _prevalence(index[finding_column(finding)]) for finding in findings},
        projection=dict(Counter(index["projection"]).most_common()),
        sex=dict(Counter(index["sex"]).most_common()),
        age=Ages(
            known=len(ages),
            mean=float(ages.mean()) if len(ages) else None,
            youngest=int(ages.min()) if len(ages) else None,
            oldest=int(ages.max()) if len(ages) else None,
        ),
        **{name: _counts(index[name]) for name in SOURCE_COLUMNS},
        intensities=None if levels is None else _intensities(levels),
    )


def _counts(column: pd.Series) -> dict[str, int]:
    counts = Counter(map(str, column.dropna()))
    return dict(counts.most_common())


def _intensities(levels: Levels) -> Intensities:
    read = len(levels.rows)
    mean, sd = moments(levels.counts) if read else (None, None)
    low, middle, high = (percentile(levels.counts, share) if read else None for share in (0.01, 0.5, 0.99))
    return Intensities(images=read, unreadable=levels.unreadable, mean=mean, sd=sd, p1=low, p50=middle, p99=high)


def _prevalence(values: "pd.Series[int]") -> Prevalence:
    return Prevalence(
        present=int((values == PRESENT).sum()),
        absent=int((values == ABSENT).sum()),
        uncertain=int((values == UNCERTAIN).sum()),
        not_mentioned=int(values.isna().sum()),
    )
