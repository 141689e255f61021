"""What two shard folders share: images and patients by fact files, by pseudonyms and by bytes; how their greys differ.

A model that was trained on an image must not be tested on it, and one that can tell two datasets apart need not look at
the lungs where their prevalences differ.  Shapes: n images read of a folder.
"""

import itertools
from collections.abc import Sequence

import numpy as np
import pandas as pd

from cxrdist.config import Config
from cxrdist.datasets import list_facts
from cxrdist.datasets.shard_format import Manifest
from cxrdist.pack.contents import Contents
from cxrdist.pack.shortcuts import STRONG_AUROC
from cxrdist.stats.auroc import auroc

FEWEST_IMAGES = 20
"""Images of each folder below which their grey levels are not compared."""
IMAGE_KEY = ["crc32", "image_bytes", "height", "width"]
"""Equal for the same encoded image, and by chance for about one of 2**45 pairs of others."""


class Shared(Config):
    """What is in both of two folders."""

    count: int
    crossing: int
    """How many of them are in the training split of one and in validation or test of the other."""


class Pair(Config):
    """Two shard folders."""

    first: str
    second: str
    known: list[str]
    """What fact files say of their overlap."""
    common: list[str]
    """Further datasets with which both overlap, and through which they may with each other."""
    patients: Shared | None
    """None where pseudonyms do not compare: another namespace or id key, or a dataset without ids of patients."""
    images: Shared | None
    """Images equal to the last byte; None where the folders were packed in different ways."""
    dataset_auroc: float | None
    """How well mean and spread of an image's grey levels tell which of the two it is from; None for too few images."""
    warnings: list[str]
    notes: list[str]


def known_overlaps(manifest: Manifest) -> dict[str, str] | None:
    """Return the datasets known to share images or patients with a packed one, and how; None if its facts are not here.

    Both directions count: what its own fact file says, and what others say of it.
    """
    told = {facts.name: facts.overlaps for facts in list_facts()}
    name = manifest.dataset
    if name not in told:
        return None
    return told[name] | {
        other: f"{other} says of {name}: {overlaps[name]}"
        for other, overlaps in told.items()
        if name in overlaps and other not in told[name]
    }


def compare_folders(folders: Sequence[Contents]) -> list[Pair]:
    """Return what every two of the folders share."""
    named = list(zip(folder_names(folders), folders, strict=True))
    return [_compare(*one, *two) for one, two in itertools.combinations(named, 2)]


def folder_names(folders: Sequence[Contents]) -> list[str]:
    """Return a name for each folder: its dataset's, or its own, or its path, whichever first tells all apart."""
    ways = (
        [folder.manifest.dataset for folder in folders],
        [folder.path.resolve().name for folder in folders],
        [str(folder.path) for folder in folders],
    )
    return next((names for names in ways if len(set(names)) == len(names)), ways[-1])


def _compare(first: str, one: Contents, second: str, two: Contents) -> Pair:
    both = f"{first} and {second}"
    known, notes = _known(one.manifest, two.manifest)
    overlaps = [set(known_overlaps(folder.manifest) or {}) for folder in (one, two)]
    warnings = []
    if known:
        warnings.append(f"{both} are known to overlap ({'; '.join(known)}): do not train on one and test on the other.")
    patients = _shared_patients(one, two)
    if patients and patients.count:
        warnings.append(_sentence(both, patients, "patients"))
    elif nameless := [name for name, folder in ((first, one), (second, two)) if not folder.manifest.patients_known]:
        notes += [f"{name} has no ids of patients, so those it shares with others cannot be told." for name in nameless]
    elif one.manifest.namespace == two.manifest.namespace and patients is None:
        warnings.append(
            f"{both} have patients of one source, but were packed with different id keys, so those in both cannot be "
            f"told. Pack them with one `--id-key`."
        )
    images = _shared_images(one, two)
    if images is None:
        notes.append(f"{both} were packed in different ways, so images in both cannot be told.")
    elif images.count:
        warnings.append(_sentence(both, images, "images, equal to the last byte"))
    area = _dataset_auroc(_grey(one), _grey(two))
    if area is not None and area >= STRONG_AUROC:
        equalised = all(folder.manifest.preprocessing.equalize == "global" for folder in (one, two))
        way_out = "" if equalised else " Packing both with `--equalize global` brings them closer."
        warnings.append(
            f"{both} are told apart by mean and spread of the grey levels alone (AUROC {area:.2f}): a model of both "
            f"can learn whose image it is instead of what is in it.{way_out}"
        )
    return Pair(
        first=first,
        second=second,
        known=known,
        common=[] if known else sorted(overlaps[0] & overlaps[1]),
        patients=patients,
        images=images,
        dataset_auroc=area,
        warnings=warnings,
        notes=notes,
    )


def _sentence(both: str, shared: Shared, what: str) -> str:
    apart = f"{shared.crossing} of them in train of one and in val or test of the other"
    return f"{both} share {shared.count} {what}, {apart if shared.crossing else 'none across train and the rest'}."


def _known(one: Manifest, two: Manifest) -> tuple[list[str], list[str]]:
    """Return what fact files say of an overlap, and notes on what they leave open."""
    if one.dataset == two.dataset:
        return ["one dataset packed twice"], []
    told = {facts.name: facts.overlaps for facts in list_facts()}
    known = [
        f"{here} says of {there}: {told[here][there]}"
        for here, there in ((one.dataset, two.dataset), (two.dataset, one.dataset))
        if there in told.get(here, {})
    ]
    notes = [
        f"{name} was packed with a fact file that does not come with cxrdist, so its known overlaps are not looked up."
        for name in (one.dataset, two.dataset)
        if name not in told
    ]
    return known, notes


def _shared_patients(one: Contents, two: Contents) -> Shared | None:
    """Return how many patients are in both; pseudonyms depend on the namespace and the id key.

    Where images stand for patients, a count of 0 would say that nobody is in both, which nobody knows.
    """
    if not (one.manifest.patients_known and two.manifest.patients_known):
        return None
    if (one.manifest.namespace, one.manifest.id_key) != (two.manifest.namespace, two.manifest.id_key):
        return None
    (train, held_out), (train_too, held_out_too) = _patients(one.index), _patients(two.index)
    crossing = (train & held_out_too) | (train_too & held_out)
    return Shared(count=len((train | held_out) & (train_too | held_out_too)), crossing=len(crossing))


def _patients(index: pd.DataFrame) -> tuple[set[str], set[str]]:
    """Return the patients in training, and those in validation or test."""
    training = index["split"] == "train"
    return set(index.loc[training, "patient_id"]), set(index.loc[~training, "patient_id"])


def _shared_images(one: Contents, two: Contents) -> Shared | None:
    """Return how many images of both have the same bytes."""
    if _way(one.manifest) != _way(two.manifest):
        return None
    both = pd.merge(_first_of_each(one.index), _first_of_each(two.index), on=IMAGE_KEY)
    return Shared(count=len(both), crossing=int((both["train_x"] != both["train_y"]).sum()))


def _way(manifest: Manifest) -> dict[str, object]:
    """Return what was done to every image of a folder; policies say which images are in it, or change single ones."""
    return manifest.preprocessing.model_dump(include={"size", "format", "bits", "quality", "equalize"})


def _first_of_each(index: pd.DataFrame) -> pd.DataFrame:
    return index[IMAGE_KEY].assign(train=index["split"] == "train").drop_duplicates(IMAGE_KEY)


def _grey(folder: Contents) -> np.ndarray:
    """Return (n, 2) mean and spread of every image read."""
    parts = [np.stack([levels.mean, levels.spread], axis=1) for levels in folder.levels.values()]
    return np.concatenate(parts) if parts else np.zeros((0, 2))


def _dataset_auroc(one: np.ndarray, two: np.ndarray) -> float | None:
    """Return how well a normal distribution per folder over (n, 2) values tells them apart.

    Two-fold: every other image is scored by what was fitted to the rest.  Two normal distributions and not a line:
    equalised images lie close together in the midst of the others.
    """
    if min(len(one), len(two)) < FEWEST_IMAGES:
        return None
    scores, targets = [], []
    for fold in (0, 1):
        for target, values in enumerate((one, two)):
            ratio = _log_density(two[1 - fold :: 2], values[fold::2]) - _log_density(
                one[1 - fold :: 2], values[fold::2]
            )
            scores.append(ratio)
            targets.append(np.full(len(ratio), float(target)))
    return auroc(np.concatenate(targets), np.concatenate(scores))


def _log_density(fitted: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the (n,) log density of `values` under the normal distribution of `fitted`, but for a constant."""
    # A tenth of a grey level of noise: images of one mean and spread have no density.
    covariance = np.cov(fitted, rowvar=False) + 0.01 * np.eye(2)
    away = values - fitted.mean(axis=0)
    return -0.5 * ((away @ np.linalg.inv(covariance)) * away).sum(axis=1) - 0.5 * np.linalg.slogdet(covariance)[1]
