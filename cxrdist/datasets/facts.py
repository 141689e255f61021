"""Fact files: what is known of a dataset's copy on disk, as data.  A dataset of a known shape is one YAML file."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from cxrdist.config import Config
from cxrdist.datasets.layouts import CellList, FolderLayout, Marker, OneCell, Pattern, TableLayout, Word, as_cell
from cxrdist.datasets.records import Sex, Split
from cxrdist.dicom.choices import BurnedInPolicy
from cxrdist.dicom.hints import PixelHints, RawImage
from cxrdist.findings import LabelPolicy, check_names


class Age(Config):
    """The column of the age, and its unit; a unit written behind the number (``045Y``) wins."""

    column: str
    unit: Literal["years", "months", "days"] = "years"
    zero_is_missing: bool = False
    born: bool = False
    """The column holds a year or date of birth, and the age is that at `at`."""
    at: str | None = None
    """Column with the year or date of the examination, for `born` and `since`."""
    since: str | None = None
    """Column with the year or date when the age was as `column` says; the years up to `at` are added."""

    @model_validator(mode="after")
    def _needs_the_examination(self) -> Self:
        if (self.born or self.since) and not self.at:
            raise ValueError("must have `at`, the column of the examination's date, with `born` or `since`, got none")
        return self


class Columns(Config):
    """Which cells hold what is not a label."""

    patient: CellList = []
    """Parts of the patient's id; none: the dataset has no patients, and each image stands for itself."""
    study: CellList = []
    projection: CellList = []
    """Tried in order until one is in `projections`."""
    sex: OneCell | None = None
    age: Annotated[Age, BeforeValidator(as_cell)] | None = None


class Origin(Config):
    """Which of several collections an image came into the dataset from; the shards tell it: it can be a shortcut."""

    column: str
    words: dict[Word, Annotated[str, Field(pattern="^[a-z0-9_]{1,40}$")]]
    """What the source writes, and the word for it here; anything else counts as ``other``."""


class Inversion(Config):
    """Files whose values were written as they were stored, small ones bright."""

    column: str
    values: list[Word]


class Raw(Config):
    """A headerless file of 16-bit words; see `cxrdist.dicom.RawImage`."""

    rows: int = Field(ge=1)
    columns: int = Field(ge=1)
    bits: int = Field(ge=2, le=16)
    big_endian: bool = True
    signed: bool = False


class Pixels(Config):
    """What the files do not say about their pixels."""

    raw: Raw | None = None
    """Their shape, where they have no header at all."""
    invert: bool | Inversion = False
    """True for every file, or for those that a column names."""
    range: Literal["file", "robust"] = "file"
    """robust: values were never brought to the display range (12 bits in a 16-bit PNG)."""

    def hints(self, cells: Mapping[str, str]) -> PixelHints:
        """Return how the file of a record has to be read."""
        invert = self.invert
        if isinstance(invert, Inversion):
            invert = cells.get(invert.column.lower(), "").lower() in {value.lower() for value in invert.values}
        return PixelHints(RawImage(**self.raw.model_dump()) if self.raw else None, invert, self.range)


class ColumnLabels(Config):
    """A column per label with a code in each cell."""

    coding: Literal["columns"]
    blank: Literal[0, 1] | None = None
    """What an empty cell says; null: not mentioned."""
    values: dict[Word, Literal[-1, 0, 1] | None] = {"1": 1, "0": 0, "-1": -1}
    """What each code says; numbers are compared as numbers."""
    others: Literal[-1, 0, 1, "error"] | None = "error"
    """What any other code says; error: a code that is not in `values` stops the import."""


class TokenLabels(Config):
    """Labels as words in one or more columns; what is listed is present."""

    coding: Literal["tokens"]
    columns: list[str]
    separators: list[str] = []
    """Strings between the words of a cell."""
    python_list: bool = False
    """A cell is a list as Python writes it: ``['a', ' b']``."""
    part: Pattern | None = None
    """Pattern of the part of a word that counts, from its beginning on (``[^/]*`` of ``Opacity/lung/base``)."""
    unlisted: Literal[0] | None = None
    """0: what is not listed is absent (closed world).  Null: it is not mentioned, but for images of `no_finding`."""
    blank: Literal[0] | None = None
    """What a cell without words says; 0: nothing is there, the image has no finding.  Null: no label, a reject."""
    open: list[Word] = []
    """Words after which nothing that is not listed is known (``unchanged``: from a report that is not here)."""
    exclude: list[Word] = []
    """Words by which the source itself takes an image out; such an image is a reject."""
    unlabelled: list[Word] = []
    """Words that say there is no label; such an image is a reject."""
    others: list[Word] | None = []
    """Further words that may occur and are no finding here; null: any."""


class FindingSource(Config):
    """What a finding is made of: present if any of the columns or words `names` says so; or of other findings."""

    names: list[Word] = []
    relation: Literal["=", "≈", "⊂", "⊃"] = "="
    """The source's meaning against ours: the same, near, narrower, broader."""
    values: dict[Word, Literal[-1, 0, 1] | None] = {}
    """Codes of these columns, instead of those in `labels`."""
    either: bool = False
    """The names are columns of different releases: blank ones do not count where another is filled."""
    alone: bool = False
    """A word that counts only where it is the only one."""
    none_of: list[str] = []
    """Instead of names: present where all of these findings are absent, absent where one is present."""
    any_of: list[str] = []
    """Instead of names: present where one of these findings is."""


class Splits(Config):
    """Where an image's split comes from, and what is carved where there is none."""

    column: str | None = None
    """Where it is blank, the table's own split counts."""
    values: dict[Word, Split] = {}
    """The split that each value of `column` stands for; an image with another value is a reject."""
    lists: dict[Split, list[str]] = {}
    """Files with an image name per line, best first; an image in none of them is a reject."""
    folders: dict[Split, Pattern] = {}
    """Patterns of the images' paths, where a copy keeps the splits in folders of their own."""
    official: bool = True
    """False: the source's own splits are put aside, and all are carved by patient."""
    crossing: Literal["keep", "reject"] = "keep"
    """What becomes of a patient's images where some are held out and others are not; reject: only those of the most
    held-out split stay.  Keep: the source's splits are taken as they are, so that results compare, with a warning."""
    val_fraction: float = Field(default=0.1, ge=0, lt=1)
    """Share of the training patients who become validation, where the source has no validation split."""
    test_fraction: float = Field(default=0.0, ge=0, lt=1)
    """Share of the patients who become test, where the source has no split at all."""
    seed: int = 0

    @model_validator(mode="after")
    def _somebody_trains(self) -> Self:
        if self.test_fraction + self.val_fraction >= 1:
            raise ValueError(
                f"must leave somebody to train on, got test_fraction {self.test_fraction} and val_fraction "
                f"{self.val_fraction}, which add up to 1 or more"
            )
        return self


def finding_source(value: Any) -> Any:
    """Return the long form of what a fact file says of a finding: a name or a list of names stands for its sources."""
    if isinstance(value, str):
        return {"names": [value]}
    return {"names": value} if isinstance(value, list) else value


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
    verified: bool = True
    """False: the layout is written down from memory, and not yet tried on a real copy."""
    markers: list[Marker] = Field(min_length=1)
    beside: list[str] = []
    """Name patterns of folders next to the root (or one or two levels above) that hold tables or images of it, too."""
    layout: Annotated[TableLayout | FolderLayout, Field(discriminator="kind")]
    columns: Columns = Columns()
    projections: dict[Word, Literal["PA", "AP", "frontal", "lateral", "other", "unknown", "header"]] = {}
    """What each code means; ``*`` is every other image of the dataset.  frontal: front or back, the source does not say
    which; header: only the file's own header tells."""
    sexes: dict[Word, Sex] = {}
    """Codes of the sex besides the usual words: ``{"0": M, "1": F}``."""
    origin: Origin | None = None
    pixels: Pixels = Pixels()
    burned_in_text: BurnedInPolicy = "reject"
    """What to do with an image in whose pixels text is found, unless the user says; flag where the publisher of a
    dataset has looked for names himself."""
    replace: dict[str, dict[Word, Word]] = {}
    """Cells to rewrite before anything reads them: ``{column: {old: new}}``."""
    optional_columns: list[str] = []
    """Columns that some releases lack; any other that is named here and is in no table stops the import."""
    keep: dict[str, list[Word]] = {}
    """``{column: values}``: an image with another value is no radiograph of this dataset, and a reject."""
    drop: dict[str, list[Word]] = {}
    """``{column: values}``: an image with one of these values is a reject."""
    labels: Annotated[ColumnLabels | TokenLabels, Field(discriminator="coding")]
    policy: LabelPolicy = LabelPolicy()
    """What becomes of uncertain and unmentioned findings in training, where a run does not say."""
    findings: dict[str, Annotated[FindingSource, BeforeValidator(finding_source)]]
    """Canonical names and what they are made of; a name or a list of names stands for an exact relation."""
    splits: Splits = Splits()
    namespace: str
    """Whose patient ids these are: releases of one hospital share it, so that one patient keeps one pseudonym."""
    overlaps: dict[str, str] = {}
    """Datasets with the same images or patients, and how they overlap."""
    variants: dict[str, dict[str, Any]] = {}
    """Other readings of the same copy, by name: ``about`` in a sentence, and the facts that differ (dotted names)."""
    variant: str | None = None
    """The variant that these facts are; `read_facts` writes it here."""
    changes: dict[str, Any] = {}
    """What a user changed by hand, dotted names; `read_facts` writes it here."""

    @property
    def has_patient_ids(self) -> bool:
        """Whether images of one patient can be told."""
        return bool(self.columns.patient)

    @field_validator("findings")
    @classmethod
    def _canonical(cls, value: dict[str, FindingSource]) -> dict[str, FindingSource]:
        check_names(list(value))
        for name, source in value.items():
            if sum(map(bool, (source.names, source.none_of, source.any_of))) != 1:
                raise ValueError(f"`findings.{name}` must have one of names, none_of, any_of.")
            wrong = [part for part in (*source.none_of, *source.any_of) if part not in value or not value[part].names]
            if wrong:
                raise ValueError(f"`findings.{name}` must be made of findings that have names, got {wrong[0]!r}.")
        return value

    @field_validator("variants")
    @classmethod
    def _told(cls, value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for name, changes in value.items():
            if not isinstance(changes.get("about"), str):
                raise ValueError(f"`variants.{name}` must say what it is `about`, got nothing.")
        return value
