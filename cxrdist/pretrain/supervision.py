"""What several datasets say of their training images, each in columns of its own.  Shapes: N images, K columns.

A finding of one dataset is another column than that of the same name in the next: who annotated, from what and by which
rules differs, so one head for both would be taught two things (Ma et al. 2023, Ark).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cxrdist.data.samples import Samples, read_samples
from cxrdist.datasets.shard_format import read_manifest, soft_column
from cxrdist.errors import UsageError, UserError
from cxrdist.findings import ABSENT, PRESENT, LabelPolicy
from cxrdist.pretrain.config import PretrainConfig
from cxrdist.pretrain.methods import SupervisedConfig
from cxrdist.train.losses import balanced_weights

FINDINGS = 14
"""How many a dataset is assumed to have that is not here, where shapes alone are asked for."""


@dataclass(frozen=True)
class Supervision:
    """The targets of a run's images."""

    columns: list[str]
    """``<dataset>/<finding>``, the columns of a dataset side by side."""
    targets: np.ndarray
    """(N, K) float32 in [0, 1], NaN where masked: in the columns of all other datasets, too."""
    pos_weight: np.ndarray
    """What a positive of each column weighs (K,)."""
    known_share: float
    """Of the targets, those that are not masked."""


def read_supervision(config: PretrainConfig, samples: Samples | None = None) -> Supervision:
    """Return what the datasets of `config` say of `samples`, its training images, which are read if they are not given.

    A dataset's columns are its findings with both values in its own training split under its own label policy, but for
    those that are made of others.

    Raises:
        UserError: If a dataset has no such finding.
        UsageError: If shares of readers are asked for and no dataset has any.
    """
    method = _method(config)
    if samples is None:
        samples = read_samples(config.shards, "train", projection=config.input.projection)
    folders = datasets(config.shards)
    home = samples.table["tar"].map({tar: str(Path(tar).parent) for tar in samples.table["tar"].unique()})
    columns: list[str] = []
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    weights: list[np.ndarray] = []
    softened = False
    for name, folder in folders.items():
        rows = np.flatnonzero((home == str(folder)).to_numpy())
        own, policy = samples.subset(rows), policy_of(folder, method.labels)
        findings = _findings(own, folder, policy)
        if not findings:
            raise UserError(
                "A dataset of a supervised pretraining must have a finding with both values in its training split, got "
                f"none [in {folder.name}]. Take it out of `shards` or change `method.labels`."
            )
        soft = policy.soft and _has_shares(own, findings)
        softened = softened or soft
        columns += [f"{name}/{finding}" for finding in findings]
        parts.append((rows, own.training_targets(findings, policy.model_copy(update={"soft": soft}))))
        hard = own.targets(findings, policy)
        weights.append(balanced_weights(hard) if method.class_weights == "balanced" else np.ones(len(findings)))
    if method.labels.soft and not softened:
        raise UsageError(
            "`method.labels.soft` needs a dataset with shares of readers, got none in the training images. Set it to "
            "false, or pack with a fact file that combines its readers by `mean`."
        )
    targets = np.full((len(samples), len(columns)), np.nan, np.float32)
    start = 0
    for rows, own_targets in parts:
        targets[rows, start : start + own_targets.shape[1]] = own_targets
        start += own_targets.shape[1]
    return Supervision(columns, targets, np.concatenate(weights), float((~np.isnan(targets)).mean()))


def imagine_supervision(config: PretrainConfig) -> tuple[Supervision, list[str]]:
    """Return a supervision with about as many columns as `config` has and no images, and what had to be assumed.

    No index is read: the manifests, where they are here, name the findings.
    """
    columns, notes = [], []
    for name, folder in datasets(config.shards).items():
        try:
            manifest = read_manifest(folder)
        except UserError:
            findings = [str(number) for number in range(FINDINGS)]
            notes.append(f"The shards {folder.name} are not here, so {FINDINGS} findings of theirs are assumed.")
        else:
            findings = [finding for finding in manifest.findings if finding not in manifest.derived]
        columns += [f"{name}/{finding}" for finding in findings]
    targets = np.zeros((0, len(columns)), np.float32)
    return Supervision(columns, targets, np.ones(len(columns)), 1.0), notes


def datasets(folders: Sequence[Path]) -> dict[str, Path]:
    """Return the different shard folders by a name of their own: the folder's, numbered where others have it too."""
    named: dict[str, Path] = {}
    for folder in dict.fromkeys(folder.resolve() for folder in folders):
        name, number = folder.name, 1
        while name in named:
            number += 1
            name = f"{folder.name}-{number}"
        named[name] = folder
    return named


def policy_of(folder: Path, given: LabelPolicy) -> LabelPolicy:
    """Return the label policy of the dataset in `folder`, with what is set in `given`."""
    own = {name: getattr(given, name) for name in given.model_fields_set}
    return read_manifest(folder).policy.model_copy(update=own)


def _findings(own: Samples, folder: Path, policy: LabelPolicy) -> list[str]:
    manifest = read_manifest(folder)
    names = [name for name in manifest.findings if name not in manifest.derived]
    targets = own.targets(names, policy)
    both = (targets == PRESENT).any(axis=0) & (targets == ABSENT).any(axis=0)
    return [name for name, usable in zip(names, both, strict=True) if usable]


def _has_shares(own: Samples, findings: list[str]) -> bool:
    columns = [soft_column(name) for name in findings if soft_column(name) in own.table.columns]
    return bool(own.table[columns].notna().to_numpy().any())


def _method(config: PretrainConfig) -> SupervisedConfig:
    assert isinstance(config.method, SupervisedConfig)
    return config.method
