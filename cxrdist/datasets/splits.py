"""Who is trained on, and who is tested: official splits first, the rest by a pure function of the patient."""

import hashlib
import re
import unicodedata
from collections.abc import Iterable

from cxrdist.datasets.codes import code
from cxrdist.datasets.facts import FactFile
from cxrdist.datasets.layouts import TableLayout
from cxrdist.datasets.readers import read_list
from cxrdist.datasets.records import Split
from cxrdist.datasets.tables import Record
from cxrdist.datasets.tree import MARKER_LEVELS, Tree, find, folder_prefix, stem
from cxrdist.errors import UserError


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


class OfficialSplits:
    """The source's own splits, as far as this copy of it has them.

    Raises:
        UserError: If a list is missing, or if an image is in two.
    """

    def __init__(self, facts: FactFile, tree: Tree, home: str = "") -> None:
        splits = facts.splits
        self._listed: dict[str, Split] | None = None
        self._column: str | None = None
        self._folders: dict[Split, re.Pattern[str]] = {}
        self._tree, self._shown = tree, 0
        self._tables = False
        if not splits.official:
            return
        if splits.lists:
            self._listed = _read_lists(facts, tree, home)
        elif splits.column:
            self._column = splits.column.strip().lower()
            self._values = {code(text): split for text, split in splits.values.items()}
        else:
            self._tables = isinstance(facts.layout, TableLayout) and any(table.split for table in facts.layout.tables)
            patterns = {split: re.compile(pattern, re.IGNORECASE) for split, pattern in splits.folders.items()}
            for shown in range(2):  # the root itself may be the folder that says it
                if any(pattern.search(tree.shown(path)[shown]) for pattern in patterns.values() for path in tree.files):
                    self._folders, self._shown = patterns, shown
                    break

    @property
    def exist(self) -> bool:
        """Whether this copy of the source has splits at all."""
        return self._listed is not None or bool(self._column or self._folders or self._tables)

    def of(self, record: Record) -> Split | None:
        """Return the split that the source gives a record; None if it has none for it."""
        if self._listed is not None:
            return self._listed.get(list_key(record.source))
        if self._column:
            cell = record.cells.get(self._column)
            return record.split if cell is None and "" not in self._values else self._values.get(code(cell or ""))
        if self._folders:
            shown = self._tree.shown(record.source)[self._shown]
            return next((split for split, pattern in self._folders.items() if pattern.search(shown)), None)
        return record.split if self._tables else None


def list_key(path: str) -> str:
    """Return how lists name an image: without folders and suffix, in lower case."""
    return stem(unicodedata.normalize("NFC", path).replace("\\", "/").rsplit("/", 1)[-1].lower())


def crossing_patients(splits: Iterable[tuple[str, Split]]) -> int:
    """Return how many patients are in more than one split, of (patient, split) pairs."""
    first: dict[str, Split] = {}
    crossing = {patient for patient, split in splits if first.setdefault(patient, split) != split}
    return len(crossing)


def _read_lists(facts: FactFile, tree: Tree, home: str) -> dict[str, Split]:
    """Return the split of each image that the official lists name, by name without suffix in lower case."""
    near = tree.near()
    listed: dict[str, Split] = {}
    for split, names in facts.splits.lists.items():
        paths = [path for name in names for path in find(near, name)]
        path = next((path for path in paths if path.startswith(folder_prefix(home))), paths[0] if paths else None)
        if path is None:
            raise UserError(
                f"{facts.title} must have the list {' or '.join(names)} of its {split} images at most {MARKER_LEVELS} "
                f"levels below `--root`, got none."
            )
        for line in read_list(tree.path(path), " or ".join(names)):
            if listed.setdefault(list_key(line), split) != split:
                raise UserError(
                    f"An image of {facts.title} must be in one split list, got one in both {listed[list_key(line)]} "
                    f"and {split}."
                )
    return listed
