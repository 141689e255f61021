"""The samples of one split, over one or several shard folders.  Shapes: N samples, K findings, H W pixels."""

import os
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from cxrdist.data.config import ProjectionChoice
from cxrdist.datasets.shard_format import read_index
from cxrdist.errors import UsageError, UserError, unknown
from cxrdist.findings import ABSENT, NO_FINDING, PRESENT, LabelPolicy, apply_policy
from cxrdist.seeds import Purpose, stream


@dataclass(frozen=True)
class Samples:
    """Rows of the index of one split, in the index's own order, with where to read each image."""

    table: pd.DataFrame
    """The index rows with a `tar` column (absolute path of the shard); shape (N, ...)."""

    def __len__(self) -> int:
        return len(self.table)

    def findings(self) -> list[str]:
        """Return the findings that are annotated here, in the index's order."""
        return [column.removeprefix("y_") for column in self.table.columns if column.startswith("y_")]

    def values(self, findings: Sequence[str]) -> np.ndarray:
        """Return (N, K) float32 of 1, 0, -1 or NaN (not mentioned).

        Raises:
            UserError: If one of `findings` is not annotated in these shards.
        """
        known = self.findings()
        missing = [unknown("A finding of these shards", name, known) for name in findings if name not in known]
        if missing:
            raise UserError("\n".join(missing))
        columns = [self.table[f"y_{name}"].to_numpy(dtype=np.float32, na_value=np.nan) for name in findings]
        return np.stack(columns, axis=1) if columns else np.zeros((len(self), 0), np.float32)

    def targets(self, findings: Sequence[str], policy: LabelPolicy) -> np.ndarray:
        """Return (N, K) float32 of 1, 0 or NaN (masked) under `policy`; never the shares of readers."""
        no_finding = np.full(len(self), np.nan, np.float32)
        if NO_FINDING in self.findings():
            no_finding = self.values([NO_FINDING])[:, 0]
        return apply_policy(self.values(findings), findings, policy, no_finding=no_finding)

    def training_targets(self, findings: Sequence[str], policy: LabelPolicy) -> np.ndarray:
        """Return (N, K) float32 in [0, 1] or NaN (masked): `targets`, but shares where `policy.soft` and there are any.

        A share wins over the value, also over a masked one: half of the readers is 0.5 and not uncertain.

        Raises:
            UserError: If `policy` asks for shares and none of these findings has one here.
        """
        targets = self.targets(findings, policy)
        if not policy.soft:
            return targets
        shares = np.full_like(targets, np.nan)
        for column, name in enumerate(findings):
            if f"s_{name}" in self.table.columns:
                shares[:, column] = self.table[f"s_{name}"].to_numpy(dtype=np.float32, na_value=np.nan)
        if np.isnan(shares).all():
            raise UsageError(
                "`labels.soft` needs shards with shares of readers, got none in the training images. Set it to false, "
                "or pack with a fact file that combines its readers by `mean`."
            )
        return np.where(np.isnan(shares), targets, shares)

    def image(self, sample: int) -> np.ndarray:
        """Return the packed image of one sample, (H, W) uint8 or uint16.

        Raises:
            UserError: If its bytes are not those that were packed, or no image; names the shard and the key.
        """
        tar, offset, size, crc32 = self._reads[sample]
        encoded = _read(tar, offset, size)
        image = None
        # Before decoding: libjpeg makes a picture of almost anything, with a warning that nobody reads.
        if len(encoded) == size > 0 and zlib.crc32(encoded) == crc32:
            image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_UNCHANGED)
        if image is None:
            key = self.table["key"].iloc[sample]
            raise UserError(
                f"A packed image must have the bytes it was packed with, got damaged ones "
                f"[in {Path(tar).name}, key {key}]. "
                "Check the folder with `cxrdist shards verify`."
            )
        return image

    def subset(self, rows: np.ndarray) -> "Samples":
        """Return the samples at positions `rows`, in that order."""
        return Samples(self.table.iloc[rows].reset_index(drop=True))

    def draw(self, images: int, seed: int) -> "Samples":
        """Return at least `images` samples: whole patients in a random order until there are enough.

        The first draws of a seed are the same for every size, so a smaller training set is part of a larger one.

        Raises:
            UserError: If there are not so many.
        """
        if images > len(self):
            raise UsageError(
                f"A training subset must have at most the {len(self)} images that are there, got {images}. "
                "Set `train_images` to null for all of them."
            )
        patients = np.sort(self.table["patient_id"].unique().astype(str))
        order = stream(seed, Purpose.SUBSET).permutation(patients)
        counts = self.table["patient_id"].value_counts()
        enough = int(np.searchsorted(np.cumsum(counts[order].to_numpy()), images)) + 1
        chosen = self.table["patient_id"].isin(order[:enough])
        return self.subset(np.flatnonzero(chosen.to_numpy()))

    def prepare(self) -> None:
        """Make ready for `image`; called before reading processes are forked, they all share what this holds."""
        _ = self._reads

    @property
    def _reads(self) -> list[tuple[str, int, int, int]]:
        # Plain tuples: a DataFrame row costs more than decoding a small image does.
        cached = self.__dict__.get("_read_list")
        if cached is None:
            columns = ("tar", "image_offset", "image_bytes", "crc32")
            cached = list(zip(*(self.table[name].tolist() for name in columns), strict=True))
            object.__setattr__(self, "_read_list", cached)
        return cached


def read_samples(folders: Sequence[Path], split: str, *, projection: ProjectionChoice = "frontal") -> Samples:
    """Return the samples of `split` in shard `folders`; a finding that one of them lacks is not mentioned there.

    Raises:
        UserError: If a folder is no finished shard folder, or if nothing is left.
    """
    tables = []
    for folder in folders:
        table = _rows(folder, split, projection)
        tables.append(table.assign(tar=[str(folder.resolve() / shard) for shard in table["shard"]]))
    joined = pd.concat(tables, ignore_index=True)
    if joined.empty:
        names = ", ".join(folder.name for folder in folders)
        raise UserError(f"Split {split!r} must hold images of projection {projection!r}, got none [in {names}].")
    return Samples(joined)


def count_samples(folder: Path, split: str, *, projection: ProjectionChoice = "frontal") -> int:
    """Return how many samples `read_samples` would give, 0 as well; reads neither images nor labels."""
    return len(_rows(folder, split, projection))


def _rows(folder: Path, split: str, projection: ProjectionChoice) -> pd.DataFrame:
    table = read_index(folder)
    table = table[table["split"] == split]
    if projection == "all":
        return table
    return table[table["frontal"] if projection == "frontal" else table["projection"] == projection]


def choose_findings(
    train: Samples, val: Samples, policy: LabelPolicy, val_policy: LabelPolicy | None = None
) -> list[str]:
    """Return the findings with both values in the training split, and in the validation split by its own policy.

    The test split is not asked.
    """
    names = [name for name in train.findings() if name in val.findings()]

    def has_both(samples: Samples, policy: LabelPolicy) -> np.ndarray:
        targets = samples.targets(names, policy)
        return (targets == PRESENT).any(axis=0) & (targets == ABSENT).any(axis=0)

    both = has_both(train, policy) & has_both(val, val_policy or policy)
    return [name for name, usable in zip(names, both, strict=True) if usable]


MAX_OPEN = 256
"""Shards held open by a process: systems often allow 1024 files, and large archives have more shards than that."""

_descriptors: OrderedDict[str, int] = OrderedDict()


def _read(tar: str, offset: int, size: int) -> bytes:
    # `pread` has no position, so forked workers may share a descriptor.
    descriptor = _descriptors.pop(tar, None)
    if descriptor is None:
        try:
            descriptor = os.open(tar, os.O_RDONLY)
        except OSError as error:
            raise UserError(
                f"A shard must be readable, got {error.strerror!r} [{Path(tar).name}]. "
                "Check the folder with `cxrdist shards verify`."
            ) from None
    _descriptors[tar] = descriptor
    while len(_descriptors) > MAX_OPEN:
        os.close(_descriptors.popitem(last=False)[1])
    try:
        return os.pread(descriptor, size, offset)
    except OSError:  # a bad sector
        return b""
