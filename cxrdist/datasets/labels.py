"""From a source's codes to the four values of a finding: 1, 0, -1 (uncertain), None (not mentioned)."""

import ast
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from cxrdist.datasets.codes import code
from cxrdist.datasets.facts import ColumnLabels, FactFile, FindingSource, TokenLabels
from cxrdist.datasets.layouts import Combine
from cxrdist.datasets.readers import Cells
from cxrdist.errors import RejectReason
from cxrdist.findings import ABSENT, NO_FINDING, PRESENT, UNCERTAIN

Findings = dict[str, int | None]


@dataclass(frozen=True)
class Unlabelled:
    """Why an image has no labels."""

    reason: RejectReason
    detail: str = ""


@dataclass
class Labeller:
    """Reads the findings of one record; keeps the codes and words that the fact file does not know."""

    facts: FactFile
    unknown: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._sources = {
            finding: [name.strip().lower() for name in source.names]
            for finding, source in self.facts.findings.items()
            if source.names
        }
        self._derived = {finding: source for finding, source in self.facts.findings.items() if not source.names}
        self._read: dict[tuple[str | None, ...], Findings | Unlabelled] = {}
        labels = self.facts.labels
        if isinstance(labels, ColumnLabels):
            self._columns = sorted({column for columns in self._sources.values() for column in columns})
            common = {code(text): value for text, value in labels.values.items()}
            self._codes = {
                finding: {code(text): value for text, value in self.facts.findings[finding].values.items()} or common
                for finding in self._sources
            }
        else:
            self._columns = [column.lower() for column in labels.columns]
            self._excluded = _lower(labels.exclude)
            self._unlabelled = _lower(labels.unlabelled)
            self._open = _lower(labels.open)
            self._known = {word for words in self._sources.values() for word in words}
            self._known |= self._excluded | self._unlabelled | self._open | _lower(labels.others or [])

    @property
    def way_out(self) -> str:
        """What to do where a code or word is not known."""
        if isinstance(self.facts.labels, ColumnLabels):
            return (
                "Add them there to `labels.values`, or to the finding's own `values`; `labels.others` says what all "
                "others mean."
            )
        return "Add them there to `findings`, or to `labels.others` where they are no finding."

    def findings(self, cells: Cells) -> Findings | Unlabelled:
        """Return every finding of the dataset, or why the image has none.

        Equal cells give the same object, so it must not be changed: most images of a large dataset are labelled alike.
        """
        labels = self.facts.labels
        told = tuple(map(cells.get, self._columns))
        if told in self._read:
            return self._read[told]
        strange = self.unknown.total()
        found = (
            self._from_columns(labels, cells) if isinstance(labels, ColumnLabels) else self._from_words(labels, cells)
        )
        found = found if isinstance(found, Unlabelled) else self._complete(found)
        if self.unknown.total() == strange:  # each cell with a strange word counts
            self._read[told] = found
        return found

    def _complete(self, findings: Findings) -> Findings:
        """Return `findings` with those that are made of others, in the fact file's order."""
        whole = findings | {name: _derive(source, findings) for name, source in self._derived.items()}
        return {name: whole[name] for name in self.facts.findings}

    def _from_columns(self, labels: ColumnLabels, cells: Cells) -> Findings:
        return {
            finding: union([self._value(labels, finding, cells.get(column)) for column in self._told(finding, cells)])
            for finding in self._sources
        }

    def _told(self, finding: str, cells: Cells) -> list[str]:
        """Return the columns that a finding is made of in this record's table."""
        columns = self._sources[finding]
        filled = [column for column in columns if column in cells] if self.facts.findings[finding].either else []
        return filled or columns

    def _value(self, labels: ColumnLabels, finding: str, cell: str | None) -> int | None:
        if cell is None:
            return labels.blank
        known = self._codes[finding]
        text = code(cell)
        if text in known:
            return known[text]
        if labels.others == "error":
            self.unknown[cell[:40]] += 1
            return None
        return labels.others

    def _from_words(self, labels: TokenLabels, cells: Cells) -> Findings | Unlabelled:
        listed = set(words(labels, cells))
        if listed & self._excluded:
            return Unlabelled("excluded_by_source", "the source takes it out")
        if listed & self._unlabelled or (not listed and labels.blank is None):
            return Unlabelled("no_label_row")
        if labels.others is not None:
            self.unknown.update(listed - self._known)
        normal = not listed or any(self._says(NO_FINDING, word, listed) for word in self._sources.get(NO_FINDING, ()))
        unlisted = ABSENT if normal else None if listed & self._open else labels.unlisted
        findings: Findings = {
            finding: PRESENT if any(self._says(finding, word, listed) for word in names) else unlisted
            for finding, names in self._sources.items()
        }
        if NO_FINDING in findings:
            abnormal = listed - self._open - set(self._sources[NO_FINDING])
            findings[NO_FINDING] = PRESENT if normal else ABSENT if abnormal else None
        return findings

    def _says(self, finding: str, word: str, listed: set[str]) -> bool:
        return word in listed and not (self.facts.findings[finding].alone and len(listed) > 1)


def words(labels: TokenLabels, cells: Cells) -> list[str]:
    """Return the whole words of a record's label columns in lower case.

    Never parts of words: "pericardial effusion" is no effusion, "pseudonodule" no nodule.
    """
    found: list[str] = []
    for column in labels.columns:
        text = cells.get(column.lower(), "")
        parts = _python_list(text) if labels.python_list else [text]
        for separator in labels.separators:
            parts = [piece for part in parts for piece in part.split(separator)]
        found += [_part(labels, part.strip().lower()) for part in parts]
    return [word for word in found if word]


def _part(labels: TokenLabels, word: str) -> str:
    match = re.match(labels.part, word, re.IGNORECASE) if labels.part else None
    return match[0].strip() if match else word


def union(values: Iterable[int | None]) -> int | None:
    """Return the value of a finding that is present where any of its parts is; unknown parts leave it unknown."""
    seen = set(values)
    for value in (PRESENT, UNCERTAIN, None):
        if value in seen:
            return value
    return ABSENT


def merge_rows(readings: Sequence[Findings]) -> Findings:
    """Return the findings of an image with several rows, each of which says more of it (a row per box or mask)."""
    if len(readings) == 1:
        return readings[0]
    findings = {finding: union([reading[finding] for reading in readings]) for finding in readings[0]}
    if any(value == PRESENT for name, value in findings.items() if name != NO_FINDING) and NO_FINDING in findings:
        findings[NO_FINDING] = ABSENT
    return findings


def combine_readers(readings: Sequence[Findings], how: Combine) -> tuple[Findings, bool]:
    """Return one value per finding, and whether the readers saw something on which no majority agrees.

    majority: more than half say present; exactly half is uncertain.  Readers who do not mention a finding have no vote.
    """
    findings: Findings = {}
    for finding in readings[0]:
        votes = _votes(finding, readings)
        findings[finding] = _vote(votes, how) if votes else None
    seen = any(value == PRESENT for reading in readings for name, value in reading.items() if name != NO_FINDING)
    agreed = any(value in (PRESENT, UNCERTAIN) for value in findings.values())
    return findings, seen and not agreed


def shares(readings: Sequence[Findings]) -> dict[str, float]:
    """Return the share of the readers who say present, for each finding that one mentions."""
    votes = {finding: _votes(finding, readings) for finding in readings[0]}
    return {finding: sum(says) / len(says) for finding, says in votes.items() if says}


def _votes(finding: str, readings: Sequence[Findings]) -> list[int]:
    return [int(reading[finding] == PRESENT) for reading in readings if reading[finding] is not None]


def _vote(votes: list[int], how: Combine) -> int:
    if how == "any":
        return max(votes)
    if how == "all":
        return min(votes)
    twice = 2 * sum(votes)
    return UNCERTAIN if twice == len(votes) else int(twice > len(votes))


def _derive(source: FindingSource, findings: Findings) -> int | None:
    """Return a finding that is made of others: any of them, or none of them."""
    any_of = union([findings[part] for part in source.any_of or source.none_of])
    if source.any_of or any_of is None or any_of == UNCERTAIN:
        return any_of
    return 1 - any_of


def _python_list(text: str) -> list[str]:
    """Return the texts of a list in Python's spelling; text that is none counts as one word, so that it is not lost."""
    try:
        parts = ast.literal_eval(text) if text else []
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return [text]
    return [str(part) for part in parts] if isinstance(parts, list | tuple | set) else [text]


def _lower(names: Iterable[str]) -> set[str]:
    return {name.strip().lower() for name in names}
