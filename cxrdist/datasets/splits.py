"""Who is trained on, and who is tested: official splits first, the rest by a pure function of the patient."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from cxrdist.datasets.facts import FactFile
from cxrdist.datasets.records import Split
from cxrdist.datasets.tables import Record, read_list
from cxrdist.datasets.tree import MARKER_LEVELS, find, stem, walk
from cxrdist.errors import UserError

ListedSplits = dict[str, Split]


def fraction_of(facts: FactFile, patient: str) -> float:
    """Return the patient's place in [0, 1): SHA-256 of namespace, seed and id, as a fraction of 2**256."""
    digest = hashlib.sha256(f"{facts.namespace}:{facts.splits.seed}:{patient}".encode()).digest()
    return int.from_bytes(digest, "big") / 2**256


def carve_validation(facts: FactFile, patient: str) -> Split:
    """Return the split of a patient of the official training data."""
    return "val" if fraction_of(facts, patient) < facts.splits.val_fraction else "train"


def carve_all(facts: FactFile, patient: str) -> Split:
    """Return the split of a patient of a dataset without any."""
    place = fraction_of(facts, patient)
    if place < facts.splits.test_fraction:
        return "test"
    return "val" if place < facts.splits.test_fraction + facts.splits.val_fraction else "train"


def read_split_lists(facts: FactFile, root: Path) -> ListedSplits:
    """Return the split of each image that the official lists name, by name without suffix in lower case.

    Raises:
        UserError: If a list is missing, or if an image is in two.
    """
    near = list(walk(root, levels=MARKER_LEVELS)) if facts.splits.lists else []
    listed: ListedSplits = {}
    for split, names in facts.splits.lists.items():
        path = next((found for name in names for found in find(near, name)), None)
        if path is None:
            raise UserError(
                f"{facts.title} must have the list {' or '.join(names)} of its {split} images at most {MARKER_LEVELS} "
                f"levels below `--root`, got none."
            )
        for line in read_list(root / path):
            key = list_key(line)
            if listed.setdefault(key, split) != split:
                raise UserError(
                    f"An image of {facts.title} must be in one split list, got one in both {listed[key]} and {split}."
                )
    return listed


def list_key(path: str) -> str:
    """Return how lists name an image: without folders and suffix, in lower case."""
    return stem(path.replace("\\", "/").rsplit("/", 1)[-1].lower())


def official_split(facts: FactFile, record: Record, listed: ListedSplits) -> Split | None:
    """Return the split that the source gives a record; None if it has none for it."""
    if facts.splits.lists:
        return listed.get(list_key(record.source))
    if facts.splits.column:
        value = record.cells.get(facts.splits.column.lower(), "").lower()
        return {code.lower(): split for code, split in facts.splits.values.items()}.get(value)
    return record.split


def has_official(facts: FactFile) -> bool:
    """Whether the source has splits at all."""
    layout = facts.layout
    tables = layout.kind == "table" and any(table.split for table in layout.tables)
    return bool(facts.splits.lists or facts.splits.column or tables)


def crossing_patients(splits: Iterable[tuple[str, Split]]) -> int:
    """Return how many patients are in more than one split, of (patient, split) pairs."""
    first: dict[str, Split] = {}
    crossing = {patient for patient, split in splits if first.setdefault(patient, split) != split}
    return len(crossing)
