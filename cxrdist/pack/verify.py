"""Checking a shard folder against its manifest, its index and its format, down to every pixel and every field."""

from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd

from cxrdist.datasets.shard_format import (
    INDEX,
    MANIFEST,
    OPEN_CLIP_SIZES,
    REJECTS,
    TIMM_INFO,
    Manifest,
    read_index,
    read_manifest,
)
from cxrdist.dispatch import process_map
from cxrdist.errors import REJECT_REASONS, UserError
from cxrdist.log import progress
from cxrdist.pack.check import Problem, ShardTask, check_shard
from cxrdist.pack.info import read_rejects
from cxrdist.pack.tar import file_sha256

MOST_NAMED = 5


def verify_shards(shards: Path, workers: int = 1, *, shown: bool = True) -> list[Problem]:
    """Return everything that is wrong with a shard folder; an empty list vouches for every byte and every sample.

    Args:
        shards: A finished shard folder.
        workers: Processes that check shards.
        shown: Whether progress goes to standard error.

    Raises:
        UsageError, UserError: If it is no finished shard folder, see `read_manifest`.
    """
    manifest = read_manifest(shards)
    problems = [*_files(shards, manifest), *_counts(shards, manifest)]
    index = _index(shards, manifest)
    if index is None:
        problems.append(Problem(INDEX, "", "the index is missing or does not fit the manifest"))
    else:
        problems += _index_problems(index, manifest)
    tasks = [ShardTask(shards, shard, manifest, _lines(index, shard.name)) for shard in manifest.shards]
    with progress(f"verify {manifest.dataset}", manifest.samples, shown=shown) as bar:
        for task, found in zip(tasks, process_map(workers)(check_shard, tasks), strict=True):
            problems += found
            bar.advance(task.shard.samples, f"{len(problems)} problems" if problems else "")
    return problems


def _files(shards: Path, manifest: Manifest) -> list[Problem]:
    """Check that each table has its hash and that nothing else lies in the folder."""
    problems = []
    for name, expected in ((INDEX, manifest.index_sha256), (REJECTS, manifest.rejects_sha256)):
        path = shards / name
        if not path.is_file():
            problems.append(Problem(name, "", "the file is missing"))
        elif file_sha256(path) != expected:
            problems.append(Problem(name, "", "the file has another SHA-256 than the manifest says"))
    tables = {MANIFEST, INDEX, REJECTS, TIMM_INFO, OPEN_CLIP_SIZES}
    problems += [
        Problem(name, "", "the file is missing")
        for name in (TIMM_INFO, OPEN_CLIP_SIZES)
        if not (shards / name).is_file()
    ]
    known = tables | {shard.name for shard in manifest.shards}
    strangers = sorted(path.name for path in shards.iterdir() if path.name not in known)
    # Not by name: what somebody put there by hand may be called after a patient.
    if strangers:
        problems.append(Problem("", "", f"{len(strangers)} files or folders do not belong to the shard folder"))
    return problems


def _counts(shards: Path, manifest: Manifest) -> list[Problem]:
    problems = []
    for split, count in manifest.splits.items():
        held = sum(shard.samples for shard in manifest.shards_of(split))
        if held != count:
            problems.append(Problem(MANIFEST, "", f"split {split} has {count} samples, but its shards have {held}"))
    if manifest.samples + sum(manifest.rejects.values()) != manifest.rows:
        problems.append(Problem(MANIFEST, "", f"samples and rejects do not add up to {manifest.rows} rows"))
    try:
        rejects = Counter(line["reason"] for line in read_rejects(shards))
    except (UserError, KeyError):
        return [*problems, Problem(REJECTS, "", "the table of rejects cannot be read")]
    if dict(rejects) != manifest.rejects:
        problems.append(Problem(REJECTS, "", "the counts by reason differ from the manifest's"))
    problems += [
        Problem(REJECTS, "", f"reason {reason!r} is not in the vocabulary")
        for reason in rejects
        if reason not in REJECT_REASONS
    ]
    return problems


def _index(shards: Path, manifest: Manifest) -> pd.DataFrame | None:
    try:
        return read_index(shards)
    except UserError:
        return None


def _index_problems(index: pd.DataFrame, manifest: Manifest) -> list[Problem]:
    problems = [
        Problem(INDEX, str(key), "the key stands for more than one sample")
        for key in index["key"][index["key"].duplicated()].unique()[:MOST_NAMED]
    ]
    splits_of_patient = index.groupby("patient_id")["split"].nunique()
    shared = splits_of_patient[splits_of_patient > 1].index
    problems += [
        Problem(INDEX, "", f"patient {patient} is in more than one split ({len(shared)} such patients)")
        for patient in shared[:MOST_NAMED]
    ]
    names = {shard.name for shard in manifest.shards}
    if not set(index["shard"]) <= names:
        problems.append(Problem(INDEX, "", "the index names shards that the manifest does not"))
    return problems


def _lines(index: pd.DataFrame | None, shard: str) -> list[dict[str, Any]] | None:
    if index is None:
        return None
    lines = index[index["shard"] == shard].astype(object)
    return lines.where(lines.notna(), None).to_dict("records")  # type: ignore[return-value] # names are text
