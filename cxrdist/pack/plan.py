"""Which image goes into which shard, decided before any image is read.

So the bytes of a shard depend on its rows alone: not on the number of workers, nor on how often packing was stopped.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass, field
from typing import Any

from cxrdist import __version__
from cxrdist.datasets.records import SPLITS, Import, Reject, Row, Split
from cxrdist.datasets.shard_format import FORMAT_VERSION, ORIGIN, Manifest, Preprocessing
from cxrdist.dicom import BurnedInPolicy
from cxrdist.errors import UserError
from cxrdist.findings import LabelPolicy, titles
from cxrdist.pack.changes import changes_hash
from cxrdist.pack.options import PackOptions
from cxrdist.pack.pseudonyms import Pseudonyms
from cxrdist.pack.ways_out import way_out_of_rejects


@dataclass(frozen=True)
class DatasetName:
    """What pack needs to know of a dataset besides its rows."""

    name: str
    title: str
    namespace: str
    facts: str
    """Hash of the fact file's content; only a keyed hash of it goes into a shard folder, see `Plan.facts`."""
    variant: str | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    policy: LabelPolicy = field(default_factory=LabelPolicy)
    """Its default for training."""
    burned_in_text: BurnedInPolicy = "reject"
    """What becomes of images in which text is seen, where the user does not say."""
    derived: tuple[str, ...] = ()
    """Findings that are made of others."""
    patients_known: bool = True
    """Whether the source has ids of patients."""


@dataclass(frozen=True)
class Planned:
    """An image to pack, under its pseudonyms."""

    row: Row
    image_id: str
    patient_id: str
    study_id: str


@dataclass(frozen=True)
class PlannedShard:
    """The images that are tried for one shard; its final number may be lower if shards before it come out empty."""

    split: Split
    number: int
    images: tuple[Planned, ...]

    @property
    def name(self) -> str:
        """Name inside the work folder."""
        return f"{self.split}-{self.number:06d}"


@dataclass(frozen=True)
class Left:
    """An image that is left out, under its pseudonym."""

    image_id: str
    reason: str
    detail: str


@dataclass(frozen=True)
class Plan:
    """Everything about a pack that is known before the first image is read."""

    dataset: DatasetName
    options: PackOptions
    pseudonyms: Pseudonyms
    findings: tuple[str, ...]
    """All findings the dataset annotates, in the canonical order."""
    soft: tuple[str, ...]
    """Those of them with shares of readers."""
    shards: tuple[PlannedShard, ...]
    rejects: tuple[tuple[Reject, Left], ...]
    """What the importer left out, and repeated rows."""
    shard_length: int
    inputs: str
    """Keyed hash of all rows, rejects and file sizes."""

    @property
    def images(self) -> Iterable[Planned]:
        """All images in the order of the shards."""
        return (image for shard in self.shards for image in shard.images)

    @property
    def image_count(self) -> int:
        """Number of images that are tried."""
        return sum(len(shard.images) for shard in self.shards)

    @property
    def rows(self) -> int:
        """Number of images the source names."""
        return self.image_count + len(self.rejects)

    @property
    def how(self) -> Preprocessing:
        """What is done to every image."""
        return self.options.preprocessing(self.dataset.burned_in_text)

    @property
    def facts(self) -> str:
        """Keyed hash of the facts, always: whoever knows a fact file could try which patient's id is dropped in it."""
        return self.pseudonyms.keyed_hash(b"facts\0" + self.dataset.facts.encode())

    @property
    def changes(self) -> str | None:
        """Keyed hash of the facts changed by hand."""
        return changes_hash(self.dataset.changes, self.pseudonyms)

    def recipe(self) -> dict[str, object]:
        """Return what decides the bytes of the shard folder, in words a user knows."""
        return {
            "dataset": self.dataset.name,
            "fact file": self.facts,
            "code version": __version__,
            "shard format": FORMAT_VERSION,
            "id key": self.pseudonyms.fingerprint,
            **self.how.model_dump(),
            "samples per shard": self.shard_length,
            "input files": self.inputs,
        }


def recipe_of(manifest: Manifest) -> dict[str, object]:
    """Return the `Plan.recipe` that a finished shard folder was made by."""
    return {
        "dataset": manifest.dataset,
        "fact file": manifest.facts,
        "code version": manifest.code_version,
        "shard format": manifest.format_version,
        "id key": manifest.id_key,
        **manifest.preprocessing.model_dump(),
        "samples per shard": manifest.samples_per_shard,
        "input files": manifest.inputs,
    }


def make_plan(dataset: DatasetName, found: Import, options: PackOptions, pseudonyms: Pseudonyms) -> Plan:
    """Return the plan for the rows `found`; the order of the rows does not matter.

    Raises:
        UserError: If there is nothing to pack.
    """
    if not found.rows:
        raise UserError(
            f"A pack must have at least one image, got 0 of {len(found.rejects)} rows [in dataset {dataset.name}]"
            f"{_by_reason(found.rejects)}. {way_out_of_rejects(Counter(reject.reason for reject in found.rejects))}"
        )
    _refuse_free_text(dataset, found.rows)
    images: dict[str, Planned] = {}
    repeated = []
    for row in sorted(found.rows, key=_row_order):
        planned = Planned(
            row,
            pseudonyms.image(row.source),
            pseudonyms.patient(row.patient),
            pseudonyms.study(row.patient, row.study),
        )
        if images.setdefault(planned.image_id, planned) is not planned:
            repeated.append(Reject(row.source, "duplicate_row", "the source names this image more than once"))
    rejects = [
        (reject, Left(pseudonyms.image(reject.source), reject.reason, reject.detail))
        for reject in [*found.rejects, *repeated]
    ]
    rejects.sort(key=lambda pair: (pair[1].image_id, pair[1].reason, pair[1].detail))
    length = options.shard_length(len(images))
    shards = []
    for split in SPLITS:
        members = sorted((image for image in images.values() if image.row.split == split), key=_by_key)
        shards += [
            PlannedShard(members[0].row.split, number, tuple(members[start : start + length]))
            for number, start in enumerate(range(0, len(members), length))
        ]
    annotated = {finding for row in found.rows for finding in row.findings}
    findings = tuple(finding for finding in titles() if finding in annotated)
    assert len(findings) == len(annotated), "importers hand on canonical findings only"
    shared = {finding for row in found.rows for finding in row.soft}
    assert shared <= annotated, "a share of readers is one of an annotated finding"
    soft = tuple(finding for finding in findings if finding in shared)
    inputs = pseudonyms.keyed_hash(_inputs(shards, [left for _, left in rejects]))
    return Plan(dataset, options, pseudonyms, findings, soft, tuple(shards), tuple(rejects), length, inputs)


def _refuse_free_text(dataset: DatasetName, rows: list[Row]) -> None:
    """Raise `UserError` for an origin that is no word of a fact file; it is not told, as it may be a person's name."""
    wrong = {row.origin for row in rows if row.origin is not None and not ORIGIN.fullmatch(row.origin)}
    if wrong:
        raise UserError(
            f"An origin must be a word of at most 40 letters a-z, digits and _, got {len(wrong)} others "
            f"[in dataset {dataset.name}]. Give the source's words such names in the fact file."
        )


def _inputs(shards: list[PlannedShard], rejects: list[Left]) -> bytes:
    # The size of a file, not its time: a copy of the same data is the same input.
    rows = [
        (
            *(image.image_id, image.patient_id, image.study_id, image.row.split, image.row.projection, image.row.sex),
            *(image.row.age, image.row.findings, image.row.notes, image.row.origin, image.row.soft),
            *(astuple(image.row.pixels), _size(image.row)),
        )
        for shard in shards
        for image in shard.images
    ]
    left = [(left.image_id, left.reason, left.detail) for left in rejects]
    return json.dumps([rows, left], sort_keys=True).encode()


def _size(row: Row) -> int:
    try:
        return row.path.stat().st_size
    except OSError:
        return -1


def _row_order(row: Row) -> tuple[str, str]:
    return row.source, repr(row)


def _by_key(image: Planned) -> str:
    return image.image_id


def _by_reason(rejects: list[Reject]) -> str:
    reasons = sorted({reject.reason for reject in rejects})
    counts = [f"{reason} {sum(reject.reason == reason for reject in rejects)}" for reason in reasons]
    return f" ({', '.join(counts)})" if counts else ""
