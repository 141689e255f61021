"""What is in a shard folder, in numbers."""

import csv
from collections import Counter
from pathlib import Path

import pandas as pd

from cxrdist.config import Config
from cxrdist.datasets.records import SPLITS
from cxrdist.datasets.shard_format import REJECTS, Manifest, finding_column, read_index, read_manifest
from cxrdist.errors import UserError
from cxrdist.findings import ABSENT, PRESENT, UNCERTAIN


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


class SplitInfo(Config):
    """One split."""

    samples: int
    patients: int
    studies: int
    findings: dict[str, Prevalence]
    projection: dict[str, int]
    sex: dict[str, int]
    age: Ages


class ShardInfo(Config):
    """One shard folder."""

    manifest: Manifest
    patients: int
    bytes: int
    splits: dict[str, SplitInfo]
    """Splits that have samples, in the order train, val, test."""


def shard_info(shards: Path) -> ShardInfo:
    """Return counts, patients, prevalence and what else the index of a shard folder tells.

    Raises:
        UsageError, UserError: As `read_index`.
    """
    manifest = read_manifest(shards)
    index = read_index(shards)
    return ShardInfo(
        manifest=manifest,
        patients=int(index["patient_id"].nunique()),
        bytes=sum(shard.bytes for shard in manifest.shards),
        splits={
            split: _split_info(index[index["split"] == split], manifest.findings)
            for split in SPLITS
            if manifest.splits.get(split)  # type: ignore[call-overload]
        },
    )


def read_rejects(shards: Path) -> list[dict[str, str]]:
    """Return the lines of `rejects.csv`: image_id, reason, detail."""
    try:
        with (shards / REJECTS).open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error):
        raise UserError(f"{REJECTS} in {str(shards)!r} is missing or damaged. Run the same `cxrdist pack`.") from None


def _split_info(index: pd.DataFrame, findings: list[str]) -> SplitInfo:
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
    )


def _prevalence(values: "pd.Series[int]") -> Prevalence:
    return Prevalence(
        present=int((values == PRESENT).sum()),
        absent=int((values == ABSENT).sum()),
        uncertain=int((values == UNCERTAIN).sum()),
        not_mentioned=int(values.isna().sum()),
    )
