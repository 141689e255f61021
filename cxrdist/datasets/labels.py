"""From a source's codes to the four values of a finding: 1, 0, -1 (uncertain), None (not mentioned)."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

from cxrdist.datasets.facts import ColumnLabels, FactFile, TokenLabels
from cxrdist.findings import ABSENT, NO_FINDING, PRESENT, UNCERTAIN

Findings = dict[str, int | None]
Combine = Literal["majority", "any", "all"]


@dataclass
class Labeller:
    """Reads the findings of one record; keeps the codes and words that the fact file does not know."""

    facts: FactFile
    unknown: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._sources = {
            finding: [name.strip().lower() for name in source.names] for finding, source in self.facts.findings.items()
        }
        labels = self.facts.labels
        if isinstance(labels, ColumnLabels):
            self._codes = {_code(code): value for code, value in labels.values.items()}
        else:
            self._excluded = {word.lower() for word in labels.exclude}
            self._known = {word for words in self._sources.values() for word in words}
            self._known |= {word.lower() for word in labels.others or []}

    def findings(self, cells: dict[str, str]) -> Findings | None:
        """Return every finding of the dataset; None if the source leaves the image unlabelled on purpose."""
        labels = self.facts.labels
        if isinstance(labels, ColumnLabels):
            return self._from_columns(labels, cells)
        return self._from_words(labels, cells)

    def _from_columns(self, labels: ColumnLabels, cells: dict[str, str]) -> Findings:
        findings: Findings = {}
        for finding, columns in self._sources.items():
            findings[finding] = union([self._value(labels, cells.get(column)) for column in columns])
        return findings

    def _value(self, labels: ColumnLabels, cell: str | None) -> int | None:
        if cell is None:
            return labels.blank
        code = _code(cell)
        if code in self._codes:
            return self._codes[code]
        if labels.others == "error":
            self.unknown[cell[:40]] += 1
            return None
        return labels.others

    def _from_words(self, labels: TokenLabels, cells: dict[str, str]) -> Findings | None:
        listed = set(words(labels, cells))
        if not listed or listed & self._excluded:
            return None
        if labels.others is not None:
            self.unknown.update(listed - self._known)
        normal = any(word in listed for word in self._sources.get(NO_FINDING, ()))
        unlisted = ABSENT if normal else labels.unlisted
        findings: Findings = {
            finding: PRESENT if listed.intersection(names) else unlisted for finding, names in self._sources.items()
        }
        if NO_FINDING in findings and not normal:
            findings[NO_FINDING] = ABSENT  # something is listed
        return findings


def words(labels: TokenLabels, cells: dict[str, str]) -> list[str]:
    """Return the whole words of a record's label columns in lower case.

    Never parts of words: "pericardial effusion" is no effusion, "pseudonodule" no nodule.
    """
    found = []
    for column in labels.columns:
        parts = [cells.get(column.lower(), "")]
        for separator in labels.separators:
            parts = [piece for part in parts for piece in part.split(separator)]
        found += [part.strip().lower() for part in parts]
    return [word for word in found if word]


def union(values: Iterable[int | None]) -> int | None:
    """Return the value of a finding that is present where any of its parts is; unknown parts leave it unknown."""
    seen = set(values)
    for value in (PRESENT, UNCERTAIN, None):
        if value in seen:
            return value
    return ABSENT


def combine_readers(readings: Sequence[Findings], how: Combine) -> tuple[Findings, bool]:
    """Return one value per finding, and whether the readers saw something on which no majority agrees.

    majority: more than half say present; exactly half is uncertain.  Readers who do not mention a finding have no vote.
    """
    findings: Findings = {}
    for finding in readings[0]:
        votes = [reading[finding] for reading in readings if reading[finding] is not None]
        findings[finding] = _vote([int(vote == PRESENT) for vote in votes], how) if votes else None
    seen = any(value == PRESENT for reading in readings for name, value in reading.items() if name != NO_FINDING)
    agreed = any(value in (PRESENT, UNCERTAIN) for value in findings.values())
    return findings, seen and not agreed


def _vote(votes: list[int], how: Combine) -> int:
    if how == "any":
        return max(votes)
    if how == "all":
        return min(votes)
    twice = 2 * sum(votes)
    return UNCERTAIN if twice == len(votes) else int(twice > len(votes))


@lru_cache(maxsize=1024)
def _code(text: str) -> str:
    """Return a number in one spelling (``1``, ``1.0`` and `` 1`` are the same code), any other text in lower case."""
    try:
        return f"{float(text):g}"
    except ValueError:
        return text.strip().lower()
