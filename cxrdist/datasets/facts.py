"""Fact files: what is known of a dataset's copy on disk, as data.  A dataset of a known shape is one YAML file.

A layout turns files into *records*: cells by column name, and the image they speak of.  A table has columns of its own;
a folder tree gets them from a pattern over its paths.  Everything behind (patient, projection, labels, splits) reads
cells and does not know where they came from.
"""

import hashlib
import json
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from cxrdist.config import Config, read_yaml, shipped
from cxrdist.datasets.records import Split
from cxrdist.errors import UsageError
from cxrdist.findings import check_names


class Marker(Config):
    """What tells that a folder holds the dataset; all of `paths` must lie in one folder, up to 4 levels down."""

    paths: list[str]
    """File or folder patterns (``*``), case-insensitive; ``.gz`` may follow."""
    columns: list[str] = []
    """Columns that the first of `paths`, a table, must have."""


class Table(Config):
    """One table of the source, or one that can stand for it in another release."""

    files: list[str]
    """Name patterns, best first; case-insensitive, ``.gz`` may follow, up to 4 levels down."""
    split: Split | None = None
    """The official split of every row."""
    unless: str | None = None
    """A name pattern: where such a file exists too, the rows go to `split_then` instead."""
    split_then: Split | None = None
    rename: dict[str, str] = {}
    """Columns that have another name in this table: ``{name here: name in the facts}``."""
    required: bool = True


class TableLayout(Config):
    """Images named by tables."""

    kind: Literal["table"]
    tables: list[Table]
    image: str
    """Column with the image's path, name or id."""
    match_parts: int = 1
    """How many of the last parts of the path find the file; the folders above differ between copies."""
    within: str = ""
    """Pattern of the images' paths below the root; what does not match is none of the dataset's images."""
    readers: Literal["majority", "any", "all"] | None = None
    """How the rows of one image by several readers become one.  None: a second row of an image is a reject."""


class FolderLayout(Config):
    """Images that say by their path what they are."""

    kind: Literal["folders"]
    path: str
    """Pattern of an image's whole path below the marker's folder; its named groups are the cells."""
    names: list[str] = []
    """Patterns of the file's name without suffix, the first that matches gives more cells."""


class Cell(Config):
    """Where a fact about an image is read: a column, or the part of it that group 1 of `pattern` matches."""

    column: str
    pattern: str | None = None


class Age(Config):
    """The column of the age, and its unit; a unit written behind the number (``045Y``) wins."""

    column: str
    unit: Literal["years", "months", "days"] = "years"
    zero_is_missing: bool = False


class Columns(Config):
    """Which cells hold what is not a label."""

    patient: list[Cell] = []
    """Parts of the patient's id; none: the dataset has no patients, and each image stands for itself."""
    study: list[Cell] = []
    projection: list[Cell] = []
    """Tried in order until one is in `projections`."""
    sex: Cell | None = None
    age: Age | None = None

    @field_validator("patient", "study", "projection", mode="before")
    @classmethod
    def _list(cls, value: Any) -> Any:
        return [_cell(part) for part in (value if isinstance(value, list) else [value])]

    @field_validator("sex", mode="before")
    @classmethod
    def _one(cls, value: Any) -> Any:
        return _cell(value)

    @field_validator("age", mode="before")
    @classmethod
    def _age(cls, value: Any) -> Any:
        return {"column": value} if isinstance(value, str) else value


class ColumnLabels(Config):
    """A column per label with a code in each cell."""

    coding: Literal["columns"]
    blank: Literal[0, 1] | None = None
    """What an empty cell says; null: not mentioned."""
    values: dict[str, Literal[-1, 0, 1] | None] = {"1": 1, "0": 0, "-1": -1}
    """What each code says; numbers are compared as numbers."""
    others: Literal[-1, 0, 1, "error"] | None = "error"
    """What any other code says; error: a code that is not in `values` stops the import."""


class TokenLabels(Config):
    """Labels as words in one or more columns; what is listed is present."""

    coding: Literal["tokens"]
    columns: list[str]
    separators: list[str] = []
    """Strings between the words of a cell."""
    unlisted: Literal[0] | None = None
    """0: what is not listed is absent (closed world).  Null: it is not mentioned, but for images of `normal`."""
    exclude: list[str] = []
    """Words for which the source itself leaves an image unlabelled; such an image is a reject."""
    others: list[str] | None = []
    """Further words that may occur and are no finding here; null: any."""


class FindingSource(Config):
    """The columns or words that a finding is made of: present if any is."""

    names: list[str]
    relation: Literal["=", "≈", "⊂", "⊃"] = "="
    """The source's meaning against ours: the same, near, narrower, broader."""


class Splits(Config):
    """Where an image's split comes from: its table, `column`, or `lists`; and what is carved where there is none."""

    column: str | None = None
    values: dict[str, Split] = {}
    """The split that each value of `column` stands for; an image with another value is a reject."""
    lists: dict[Split, list[str]] = {}
    """Files with an image name per line, best first; an image in none of them is a reject."""
    val_fraction: float = Field(default=0.1, ge=0, lt=1)
    """Share of the training patients who become validation, where the source has no validation split."""
    test_fraction: float = Field(default=0.0, ge=0, lt=1)
    """Share of the patients who become test, where the source has no split at all."""
    seed: int = 0


class FactFile(Config):
    """All that is known of one dataset."""

    name: str = Field(pattern="^[a-z][a-z0-9_]*$")
    title: str
    home: str
    """Where to get it."""
    licence: str
    coding: str
    """How its labels are made and coded, in a sentence."""
    notes: str = ""
    markers: list[Marker]
    layout: Annotated[TableLayout | FolderLayout, Field(discriminator="kind")]
    columns: Columns = Columns()
    projections: dict[str, Literal["PA", "AP", "frontal", "lateral", "other", "unknown"]] = {}
    """What each code means; ``*`` is every image of the dataset.  frontal: front or back, the source does not say."""
    replace: dict[str, dict[str, str]] = {}
    """Cells to rewrite before anything reads them: ``{column: {old: new}}``."""
    keep: dict[str, list[str]] = {}
    """``{column: values}``: an image with another value is no radiograph of this dataset, and a reject."""
    labels: Annotated[ColumnLabels | TokenLabels, Field(discriminator="coding")]
    findings: dict[str, FindingSource]
    """Canonical names and what they are made of; a name or a list of names stands for an exact relation."""
    splits: Splits = Splits()
    namespace: str
    """Whose patient ids these are: releases of one hospital share it, so that one patient keeps one pseudonym."""
    overlaps: dict[str, str] = {}
    """Datasets with the same images or patients, and how they overlap."""

    @property
    def has_patient_ids(self) -> bool:
        """Whether images of one patient can be told."""
        return bool(self.columns.patient)

    @field_validator("findings", mode="before")
    @classmethod
    def _sources(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {name: _finding_source(source) for name, source in value.items()}

    @field_validator("findings")
    @classmethod
    def _canonical(cls, value: dict[str, FindingSource]) -> dict[str, FindingSource]:
        check_names(list(value))
        return value


def read_facts(name_or_path: str) -> FactFile:
    """Return the facts of a known dataset by name, or those in a YAML file.

    Raises:
        UsageError: If there is no such dataset or file, or if the file is wrong.
    """
    if name_or_path.endswith((".yaml", ".yml")):
        path = Path(name_or_path)
        return FactFile.build(read_yaml(path), where=path.name)
    known = {facts.name: facts for facts in list_facts()}
    if name_or_path not in known:
        close = get_close_matches(name_or_path.lower().replace("-", "_"), known, n=1, cutoff=0.4)
        near = f" Did you mean {close[0]!r}?" if close else ""
        raise UsageError(
            f"A dataset must be one of {', '.join(known)} or the path of a fact file, got {name_or_path!r}.{near}"
        )
    return known[name_or_path]


@cache
def list_facts() -> list[FactFile]:
    """Return the facts of every dataset that comes with the tool, by name."""
    return [FactFile.build(read_yaml(path), where=path.name) for path in sorted(shipped("shards").glob("*.yaml"))]


def fact_hash(facts: FactFile) -> str:
    """Return the SHA-256 of the resolved facts: the same for any spelling of the same content."""
    return hashlib.sha256(json.dumps(facts.tree(), sort_keys=True).encode()).hexdigest()


def _cell(value: Any) -> Any:
    return {"column": value} if isinstance(value, str) else value


def _finding_source(value: Any) -> Any:
    if isinstance(value, str):
        return {"names": [value]}
    return {"names": value} if isinstance(value, list) else value
