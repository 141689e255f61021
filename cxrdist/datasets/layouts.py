"""The part of a fact file that says where images and tables lie and how tables are written.

A layout turns files into *records*: cells by column name, and the image they speak of.  A table has columns of its own;
a folder tree gets them from a pattern over its paths.  Everything behind (patient, projection, labels, splits) reads
cells and does not know where they came from.
"""

import re
from datetime import date
from functools import partial
from typing import Annotated, Any, Literal, Self
from xml.etree import ElementTree

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from cxrdist.config import Config
from cxrdist.datasets.records import Split

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".dcm", ".dicom", ".dcm.gz")
SPREADSHEET_SUFFIXES = (".xlsx", ".xls", ".xlsm", ".ods")


def _as_text(value: Any) -> Any:
    """Return what YAML reads as a number, a truth value or a date as the text that a table has."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | float | date) else value


Word = Annotated[str, BeforeValidator(_as_text)]
"""A code or word of a table; quotes around a number are not needed."""


def checked_pattern(text: str, *, group: bool = False) -> str:
    """Return the regular expression `text`; with `group` it must have one.

    Raises:
        ValueError: If it is none.
    """
    try:
        groups = re.compile(text).groups
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"must be a regular expression, got {text!r} ({error})") from None
    if group and not groups:
        raise ValueError(f"must have a group in round brackets, which is the part that counts, got {text!r}")
    return text


Pattern = Annotated[str, AfterValidator(checked_pattern)]
"""A regular expression."""


def as_cell(value: Any) -> Any:
    """Return the long form of a cell in a fact file: a name alone is a column's."""
    return {"column": value} if isinstance(value, str) else value


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


class Cell(Config):
    """Where a fact about an image is read: a column, or the part of it that group 1 of `pattern` matches."""

    column: str
    pattern: Annotated[str, AfterValidator(partial(checked_pattern, group=True))] | None = None
    otherwise: list[str] = []
    """Columns that are read the same way where `column` says nothing."""


OneCell = Annotated[Cell, BeforeValidator(as_cell)]
"""A name alone is a column's."""
CellList = Annotated[list[OneCell], BeforeValidator(_as_list)]
"""One alone needs no brackets."""


class Marker(Config):
    """What tells that a folder holds the dataset; all of `paths` must lie in one folder, up to 4 levels down."""

    paths: list[str] = Field(min_length=1)
    """File or folder patterns (``*``), case-insensitive; ``.gz`` may follow."""
    columns: list[str] = []
    """Columns that the first of `paths`, a table, must have."""


def _xml_path(text: str) -> str:
    try:
        ElementTree.Element("x").findall(text)
    except (SyntaxError, KeyError, ValueError, TypeError):
        raise ValueError(f"must be a path of elements, got {text!r}") from None
    return text


class Xml(Config):
    """How rows are read out of XML files."""

    record: Annotated[str, AfterValidator(_xml_path)]
    """Path of the elements that are one row each, in the limited XPath of Python's ElementTree."""
    cells: dict[str, str]
    """``{column: path}`` from the record, or from the top with a leading ``/``; ``path@name`` reads an attribute."""

    @field_validator("cells")
    @classmethod
    def _cells(cls, value: dict[str, str]) -> dict[str, str]:
        for path in value.values():
            _xml_path(path.lstrip("/").partition("@")[0] or ".")
        return value


class TableFile(Config):
    """How a table is found and read.  The format is CSV, Parquet, JSON, JSON Lines or COCO by the name, unless said."""

    files: list[str] = Field(min_length=1)
    """Name patterns, best first; case-insensitive, ``.gz`` may follow, up to 4 levels down."""
    every: bool = False
    """Read all files that match the first pattern with a match, instead of one."""
    separator: str | None = None
    """Between the cells of a row; null: comma, semicolon or tab, whichever the first line has most of."""
    header: list[str] = []
    """Names of the columns, where the file has no line of them."""
    lines: list[Pattern] = []
    """Patterns of a whole line, tried in order; named groups are the cells.  For text that is no table."""
    xml: Xml | None = None
    rename: dict[str, str] = {}
    """Columns that have another name in this table: ``{name here: name in the facts}``."""
    where: dict[str, list[Word]] = {}
    """``{column: values}``: other rows do not count, where the table has that column at all."""

    @field_validator("files")
    @classmethod
    def _no_spreadsheets(cls, value: list[str]) -> list[str]:
        wrong = next((name for name in value if name.lower().endswith(SPREADSHEET_SUFFIXES)), None)
        if wrong:
            raise ValueError(f"must be CSV, Parquet, JSON or XML, got {wrong!r}; save the spreadsheet as CSV")
        return value

    @field_validator("separator")
    @classmethod
    def _one_character(cls, value: str | None) -> str | None:
        if value is not None and (len(value) != 1 or value in '\r\n"'):
            raise ValueError(f'must be one character ("\\t" for a tab) and no quote, got {value!r}')
        return value


class _Keyed(TableFile):
    on: list[str] = Field(min_length=1)
    """Columns that the two tables must have in common, under these names."""


class NamedBy(_Keyed):
    """A table that names the images of another table's rows."""


class Table(TableFile):
    """A table that names images, or one that can stand for it in another release."""

    named_by: NamedBy | None = None
    """The table that names the images, where a row speaks of a whole study: each of its images gets the row."""
    split: Split | None = None
    """The official split of every row."""
    unless: str | None = None
    """A name pattern: where such a file exists too, the rows go to `split_then` instead."""
    split_then: Split | None = None
    folder: str = ""
    """Folder that the images of this table lie in, put before their names."""
    required: bool = True
    """False: it may be missing, as long as one table of the layout is there."""


class Join(_Keyed):
    """A table whose columns are added to the images' own rows."""

    required: bool = True
    """Whether the table must be there."""
    unmatched: Literal["keep", "reject"] = "keep"
    """What becomes of an image without a row in this table; reject: ``no_label_row``."""
    overwrite: bool = False
    """Whether its cells replace those that are there already."""
    repeats: Literal["error", "union"] = "error"
    """What rows for the same image that differ are: a fault of the table, or each says more (a row per box or mask)."""


class Text(Config):
    """Small text files, one beside each image, that say more of it."""

    folder: str
    """Name of the folder that holds them; they have the image's name, and the suffix .txt."""
    patterns: list[Pattern]
    """Searched in the text; named groups are cells."""


class _Images(Config):
    joins: list[Join] = []
    suffixes: list[str] = list(IMAGE_SUFFIXES)
    """Endings of the images' names; ``""``: any name at all, inside `within`."""


Combine = Literal["majority", "any", "all", "mean"]


class TableLayout(_Images):
    """Images named by tables."""

    kind: Literal["table"]
    tables: list[Table] = Field(min_length=1)
    image: CellList = Field(min_length=1)
    """Columns with the image's path, name or id, or parts of them; the first that names a file on the disk counts."""
    match_parts: int = Field(1, ge=1)
    """How many of the last parts of the path find the file; the folders above differ between copies."""
    within: Pattern = ""
    """Pattern of the images' paths below the root; what does not match is none of the dataset's images."""
    unnamed: Literal["reject", "ignore"] = "reject"
    """What an image file is that no table names; ignore: another dataset's, whose folder this one shares."""
    repeats: Literal["reject", "union"] = "reject"
    """What a second row of an image is: a reject, or more findings of the same image (a row per box or mask)."""
    readers: Combine | None = None
    """How several readers of an image become one; mean: majority, and the share of the readers as a soft label."""
    reader: str | None = None
    """Column that tells readers apart, where one reader has several rows; else each row is a reader."""

    @model_validator(mode="after")
    def _reader_needs_readers(self) -> Self:
        if self.reader and not self.readers:
            raise ValueError("`reader` needs `readers`, got none")
        return self


class FolderLayout(_Images):
    """Images that say by their path what they are."""

    kind: Literal["folders"]
    path: Annotated[list[Pattern], BeforeValidator(_as_list)] = Field(min_length=1)
    """Patterns of an image's whole path below the marker's folder; the first that any image fits counts, and its named
    groups are the cells."""
    names: list[Pattern] = []
    """Patterns of the file's name without suffix, the first that matches gives more cells."""
    texts: list[Text] = []
