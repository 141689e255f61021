"""The shard folder on disk: its names, its manifest, its index, and how to read the two.

A shard folder holds plain WebDataset tars plus four tables; `shards/README.md` describes it for readers.  Everything
here is light: `read_manifest` needs no pandas and no pyarrow.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import ValidationError

from cxrdist.config import Config
from cxrdist.datasets.records import FRONTAL, ProjectionFilter, Split
from cxrdist.dicom.choices import BurnedInPolicy, Equalize
from cxrdist.errors import UsageError, UserError
from cxrdist.findings import LabelPolicy

if TYPE_CHECKING:
    import pandas as pd

FORMAT_VERSION = 2
"""2 adds the index columns `SOURCE_COLUMNS`; folders of version 1 are read with nulls there."""
MANIFEST = "manifest.json"
INDEX = "index.parquet"
REJECTS = "rejects.csv"
TIMM_INFO = "_info.json"
OPEN_CLIP_SIZES = "sizes.json"
WORK_FOLDER = ".pack"
"""Hidden folder inside an unfinished shard folder: finished shards and what is known of them."""

EXTENSIONS = {"jpeg": "jpg", "png": "png"}
KEY = re.compile(r"[A-Za-z0-9_-]+")
"""A key has no dot: readers of WebDataset end the key at the first one, so two keys with dots can become one sample."""

JSON_FIELDS = (
    "image_id",
    "patient_id",
    "study_id",
    "projection",
    "sex",
    "age",
    "findings",
    "height",
    "width",
    "source",
)
# PS3.3 C.7.6.3.1.2, and Pillow's modes for PNG and JPEG.
MONOCHROME = frozenset({"MONOCHROME1", "MONOCHROME2"})
COLOUR = frozenset({"RGB", "YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_422", "YBR_PARTIAL_420", "YBR_ICT", "YBR_RCT"})
PILLOW_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGBA", "RGBX", "CMYK", "YCbCr", "I", "I;16", "I;16B", "F"})
ORIGIN = re.compile(r"[a-z0-9_]{1,40}")
"""An origin is a word that a fact file made up, so never a name as the source writes it."""
SOURCE_FIELDS: dict[str, frozenset[str] | re.Pattern[str] | None] = {
    "kind": frozenset({"dicom", "png", "jpeg", "raw"}),
    "transfer_syntax": re.compile(r"[A-Z][A-Za-z0-9 ,()\[\]&-]{0,99}"),  # a name; an unknown UID begins with a digit
    "guessed_syntax": None,
    "photometric": MONOCHROME | COLOUR | PILLOW_MODES | {"PALETTE COLOR"},
    "polarity_conflict": None,
    "bits": None,
    "bits_stored": None,
    "voi": frozenset({"lut", "window", "range", "none"}),
    "spacing_mm": None,
    "spacing_from": frozenset({"PixelSpacing", "ImagerPixelSpacing"}),
    "resampled_aspect": None,
    "secondary": None,
    "burned_in_text": frozenset({"declared", "seen", "masked"}),
    "equalize": frozenset({"global", "clahe", "tayebi2024"}),
    "frontal": None,
    "readers": None,
    "no_majority": None,
    "origin": ORIGIN,
}
"""What `source` may hold, and which words; None: numbers alone.  All else that a header or table says stays behind."""

INDEX_COLUMNS = (
    "key",
    "split",
    "shard",
    "image_offset",
    "image_bytes",
    "crc32",
    "json_offset",
    "json_bytes",
    "image_id",
    "patient_id",
    "study_id",
    "projection",
    "frontal",
    "sex",
    "age",
    "height",
    "width",
)
"""First columns.  Offsets are of a member's data inside the tar: one pread gives the encoded image.

`crc32` is `zlib.crc32` of the encoded image: a JPEG with damage inside still decodes, to another picture.
"""
SOURCE_COLUMNS = ("origin", "kind", "transfer_syntax", "bits")
"""Columns between those and the findings: what the JSON's `source` says of where an image came from, or null."""

REJECT_COLUMNS = ("image_id", "reason", "detail")


class Preprocessing(Config):
    """What was done to every image between its source and the shard."""

    size: int
    """Pixels of the shorter side at most; smaller images keep their size.  With `equalize` tayebi2024 of both sides."""
    format: Literal["jpeg", "png"]
    bits: Literal[8, 16]
    quality: int | None
    """JPEG quality; null for PNG."""
    projection: ProjectionFilter
    equalize: Equalize = "none"
    burned_in_text: BurnedInPolicy | None = None
    """What became of images with text in their pixels; null in older folders: nobody looked."""
    declared_text: BurnedInPolicy = "reject"
    """What became of images whose header says that they have text."""


class Shard(Config):
    """One tar."""

    name: str
    split: Split
    samples: int
    bytes: int
    sha256: str


class Manifest(Config):
    """What is in a shard folder; written last, so its presence says that the folder is finished."""

    format_version: int
    dataset: str
    """The fact file's name."""
    title: str
    namespace: str
    """Two shard folders of one namespace, packed with one id key, share their pseudonyms."""
    id_key: str
    """Fingerprint of the id key; pseudonyms of two folders compare only when it is the same."""
    derived: list[str] = []
    """Findings that say nothing of their own (made of others): left out where a run does not name its findings."""
    patients_known: bool = True
    """Whether the source says whose an image is; else every image counts as a patient of its own."""
    complete: bool
    rows: int
    """Images the source names: the sum of `splits` and `rejects`."""
    splits: dict[Split, int]
    """Samples per split."""
    rejects: dict[str, int]
    """Images left out, by reason."""
    findings: list[str]
    soft: list[str] = []
    """Findings of which samples may carry the share of their readers who say present."""
    preprocessing: Preprocessing
    facts: str
    """Keyed hash of the facts: values that are kept or dropped can be those of a patient, so a plain hash could be
    guessed."""
    variant: str | None = None
    """The fact file's variant, if one was named."""
    changes: str | None = None
    """Keyed hash of the facts that the user changed by hand, under which they are in a private file; None: none."""
    policy: LabelPolicy = LabelPolicy()
    """What becomes of uncertain and unmentioned findings, where a run does not say."""
    code_version: str
    samples_per_shard: int
    inputs: str
    """Keyed hash of all rows and the sizes of their files."""
    index_sha256: str
    rejects_sha256: str
    shards: list[Shard]

    @property
    def samples(self) -> int:
        """Number of samples of all splits."""
        return sum(self.splits.values())

    @property
    def without_training(self) -> str | None:
        """A warning where no sample is in the training split; None where there are some."""
        if self.splits.get("train"):
            return None
        return f"{self.title} has no training samples: it serves to test, and not to train."

    def shards_of(self, split: str) -> list[Shard]:
        """Return the shards of one split, in order."""
        return [shard for shard in self.shards if shard.split == split]


def shard_name(dataset: str, split: str, number: int) -> str:
    """Return the file name of a shard."""
    return f"{dataset}-{split}-{number:06d}.tar"


def finding_column(finding: str) -> str:
    """Return the index column of a finding."""
    return f"y_{finding}"


def soft_column(finding: str) -> str:
    """Return the index column of the share of readers who say present."""
    return f"s_{finding}"


def is_frontal(projection: str, *, noted: bool, packed: ProjectionFilter) -> bool:
    """Return whether an image is known to be PA or AP, even where nobody says which.

    `noted` is the importer's note; a folder `packed` with the frontal filter holds no other image.
    """
    return projection in FRONTAL or (projection == "unknown" and (noted or packed == "frontal"))


def source_allows(name: str, value: object) -> bool:
    """Return whether `source` may hold this; a header can hold a person's name in any field."""
    words = SOURCE_FIELDS.get(name)
    if not isinstance(value, str):
        return name in SOURCE_FIELDS and isinstance(value, bool | int | float)
    return words.fullmatch(value) is not None if isinstance(words, re.Pattern) else value in (words or ())


def index_columns(
    findings: Sequence[str], soft: Sequence[str] = (), *, format_version: int = FORMAT_VERSION
) -> list[str]:
    """Return all columns of the index of a dataset that annotates `findings`, as folders of a format have them.

    `soft` are those of the findings with shares of readers.
    """
    source = SOURCE_COLUMNS if format_version > 1 else ()
    return [*INDEX_COLUMNS, *source, *map(finding_column, findings), *map(soft_column, soft)]


def read_manifest(shards: Path) -> Manifest:
    """Return the manifest of a finished shard folder.

    Raises:
        UsageError: If the folder does not exist.
        UserError: If it is no shard folder, is not finished, is damaged, or is of a newer format.
    """
    if not shards.is_dir():
        raise UsageError(f"A shard folder must exist, got {str(shards)!r}. Check the path, or make it: `cxrdist pack`.")
    path = shards / MANIFEST
    if not path.is_file():
        if (shards / WORK_FOLDER).is_dir():
            raise UserError(_unfinished(shards))
        raise UserError(f"{str(shards)!r} is not a shard folder: it has no {MANIFEST}. Run `cxrdist pack` to make one.")
    damaged = UserError(f"{MANIFEST} in {str(shards)!r} is damaged. Run the same `cxrdist pack` into a new folder.")
    try:
        tree = json.loads(path.read_bytes())
    except ValueError:
        raise damaged from None
    version = tree.get("format_version") if isinstance(tree, dict) else None
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise UserError(
            f"Shard format must be version {FORMAT_VERSION} or older, got {version} [in {str(shards)!r}]. "
            f"Upgrade cxrdist, or pack again with this one."
        )
    try:
        manifest = Manifest.model_validate(tree)
    except ValidationError:
        raise damaged from None
    if not manifest.complete:
        raise UserError(_unfinished(shards))
    return manifest


def manifest_sha256(shards: Path) -> str:
    """Return the hash of the manifest file, and so of every byte in the folder that it vouches for."""
    read_manifest(shards)
    return hashlib.sha256((shards / MANIFEST).read_bytes()).hexdigest()


def read_index(shards: Path) -> "pd.DataFrame":
    """Return the index: a row per sample in the order of the tars, columns `index_columns`.

    Offsets, sizes and `crc32` are int64, `frontal` is bool, `age` is Int16, `height` and `width` int32, `bits` is Int8,
    findings Int8 (1, 0, -1, null), shares of readers float32 (0 to 1, NaN).  Columns that an older format lacks are
    there, all null.

    Raises:
        UsageError, UserError: As `read_manifest`; also if the index does not fit the manifest.
    """
    import pandas as pd  # noqa: PLC0415 - slow to import, and most callers only want the manifest
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    manifest = read_manifest(shards)
    way_out = "Run `cxrdist shards verify` to see what is broken."
    try:
        table = pq.read_table(shards / INDEX)
    except (OSError, pa.ArrowException):
        raise UserError(f"{INDEX} in {str(shards)!r} is missing or damaged. {way_out}") from None
    wanted = index_columns(manifest.findings, manifest.soft, format_version=manifest.format_version)
    if table.column_names != wanted or table.num_rows != manifest.samples:
        raise UserError(f"{INDEX} in {str(shards)!r} must fit its manifest, got other columns or rows. {way_out}")
    for place, name in enumerate(index_columns(manifest.findings, manifest.soft)):
        if name not in table.column_names:
            table = table.add_column(place, name, pa.nulls(len(table), pa.int8() if name == "bits" else pa.string()))
    nullable = {pa.int8(): pd.Int8Dtype(), pa.int16(): pd.Int16Dtype()}
    return table.to_pandas(types_mapper=nullable.get)


def _unfinished(shards: Path) -> str:
    return (
        f"The shard folder {str(shards)!r} is not finished: packing was interrupted. "
        f"Run the same `cxrdist pack` command again; it goes on where it stopped."
    )
