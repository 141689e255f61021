"""Checking one shard: its hash, its members in their order and place, every image and every JSON."""

import json
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from cxrdist.datasets.records import OLDEST, PROJECTIONS
from cxrdist.datasets.shard_format import (
    EXTENSIONS,
    JSON_FIELDS,
    KEY,
    SOURCE_COLUMNS,
    Manifest,
    Shard,
    finding_column,
    is_frontal,
    soft_column,
    source_allows,
)
from cxrdist.pack.tar import FIELDS, file_sha256

MOST_PROBLEMS_PER_SHARD = 20
"""A shard with one member too many has a problem per sample; nobody reads them all."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong."""

    file: str
    """Name of the file in the shard folder, or ``""`` where it concerns the folder."""
    key: str
    """Key of the sample, or ``""`` where it concerns the whole file."""
    sentence: str

    def __str__(self) -> str:
        place = " ".join(part for part in (self.file, self.key) if part)
        return f"{place}: {self.sentence}." if place else f"{self.sentence}."


@dataclass(frozen=True)
class ShardTask:
    """A shard on its way to a worker."""

    shards: Path
    shard: Shard
    manifest: Manifest
    lines: list[dict[str, Any]] | None
    """Its rows of the index, in order; None if there is no index to compare with."""


@dataclass(frozen=True)
class Member:
    """A member of the tar as it was found."""

    info: tarfile.TarInfo
    data: bytes


def check_shard(task: ShardTask) -> list[Problem]:
    """Return what is wrong with one shard; a damaged one gives problems, never an exception."""
    cv2.setNumThreads(1)
    found = [Problem(task.shard.name, key, sentence) for key, sentence in _check(task)]
    if len(found) > MOST_PROBLEMS_PER_SHARD:
        more = Problem(task.shard.name, "", f"{len(found) - MOST_PROBLEMS_PER_SHARD} more problems")
        found = [*found[:MOST_PROBLEMS_PER_SHARD], more]
    return found


def _check(task: ShardTask) -> Iterator[tuple[str, str]]:
    path = task.shards / task.shard.name
    try:
        size = path.stat().st_size
        digest = file_sha256(path)
    except FileNotFoundError:
        yield "", "the file is missing"
        return
    except OSError as error:
        yield "", f"the file cannot be read ({error.strerror})"
        return
    if size != task.shard.bytes:
        yield "", f"the file has {size} bytes, but the manifest says {task.shard.bytes}"
    elif digest != task.shard.sha256:
        yield "", "the file has another SHA-256 than the manifest says"
    members: list[Member] = []
    yield from _read_members(path, members)
    yield from _check_members(task, members)


def _read_members(path: Path, members: list[Member]) -> Iterator[tuple[str, str]]:
    try:
        with tarfile.open(path, "r:") as tar:
            for info in tar:
                file = tar.extractfile(info) if info.isreg() else None
                data = file.read() if file else b""
                if len(data) != info.size:
                    yield _key(info.name), "a member is cut short"
                members.append(Member(info, data))
    except (tarfile.TarError, OSError, ValueError) as error:
        yield "", f"the tar cannot be read to its end ({type(error).__name__})"


def _check_members(task: ShardTask, members: list[Member]) -> Iterator[tuple[str, str]]:
    extension = EXTENSIONS[task.manifest.preprocessing.format]
    if len(members) != 2 * task.shard.samples:
        yield "", f"the tar has {len(members)} members, but two each of {task.shard.samples} samples are wanted"
    if task.lines is not None and len(task.lines) != task.shard.samples:
        yield "", f"the index has {len(task.lines)} samples, but the manifest says {task.shard.samples}"
    last = ""
    for image, text, line in zip_longest(members[::2], members[1::2], task.lines or []):
        if image is None or text is None:
            return  # counted above
        key = _key(image.info.name)
        if image.info.name != f"{key}.{extension}" or text.info.name != f"{key}.json" or not KEY.fullmatch(key):
            yield "", "members are not pairs of an image and a JSON with one key; what follows them is not checked"
            return
        if key <= last:
            yield key, "the key is not greater than the one before it"
        last = key
        yield from ((key, sentence) for sentence in _check_headers(image, text))
        fields = _read_json(text.data)
        if fields is None:
            yield key, "the JSON cannot be read"
        else:
            yield from ((key, sentence) for sentence in _check_fields(fields, key, task.manifest))
        yield from ((key, sentence) for sentence in _check_image(image.data, fields, task.manifest))
        if line is not None:
            yield from ((key, sentence) for sentence in _check_line(line, key, image, text, fields, task))


def _check_headers(*members: Member) -> Iterator[str]:
    for member in members:
        if not member.info.isreg():
            yield "a member is not a plain file"
        elif any(getattr(member.info, field) != value for field, value in FIELDS.items()):
            yield "a member's time, owner or mode is not the fixed one"


def _check_image(data: bytes, fields: dict[str, Any] | None, manifest: Manifest) -> Iterator[str]:
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if data else None
    if pixels is None:
        yield "the image cannot be decoded"
        return
    wanted = np.uint8 if manifest.preprocessing.bits == 8 else np.uint16
    if pixels.ndim != 2 or pixels.dtype != wanted:
        yield f"the image is not grey with {manifest.preprocessing.bits} bits"
    if fields is not None and pixels.shape[:2] != (fields.get("height"), fields.get("width")):
        yield "the image has another size than its JSON says"
    if min(pixels.shape[:2]) > manifest.preprocessing.size:
        yield f"the image's shorter side is above {manifest.preprocessing.size} pixels"


def _check_fields(fields: dict[str, Any], key: str, manifest: Manifest) -> Iterator[str]:
    if sorted(fields.keys() - {"soft"}) != sorted(JSON_FIELDS):
        yield f"the JSON has not exactly the fields {', '.join(JSON_FIELDS)}"
        return
    if fields["image_id"] != key:
        yield "the JSON's `image_id` is not the key"
    ids = (fields["image_id"], fields["patient_id"], fields["study_id"])
    if not all(isinstance(value, str) and KEY.fullmatch(value) for value in ids):
        yield "an id in the JSON is not a pseudonym"
    if fields["projection"] not in PROJECTIONS or fields["sex"] not in ("F", "M", "unknown"):
        yield "`projection` or `sex` is not one of the words for it"
    age = fields["age"]
    if age is not None and not (type(age) is int and 0 <= age <= OLDEST):
        yield f"`age` is not null or a whole number up to {OLDEST}"
    findings = fields["findings"]
    if not isinstance(findings, dict) or sorted(findings) != sorted(manifest.findings):
        yield "`findings` are not those of the manifest"
    elif any(value is not None and value not in (1, 0, -1) for value in findings.values()):
        yield "a finding is not 1, 0, -1 or null"
    soft = fields.get("soft", {})
    if not isinstance(soft, dict) or not soft.keys() <= set(manifest.soft):
        yield "`soft` has other findings than the manifest's"
    elif any(type(share) not in (int, float) or not 0 <= share <= 1 for share in soft.values()):
        yield "a share of readers in `soft` is not a number from 0 to 1"
    source = fields["source"]
    if not isinstance(source, dict) or not all(source_allows(name, value) for name, value in source.items()):
        yield "`source` has a field that is not on the allow-list"


def _check_line(
    line: dict[str, Any], key: str, image: Member, text: Member, fields: dict[str, Any] | None, task: ShardTask
) -> Iterator[str]:
    if line["key"] != key or line["split"] != task.shard.split:
        yield "the index has another key or split here"
        return
    places = {
        "image_offset": image.info.offset_data,
        "image_bytes": image.info.size,
        "json_offset": text.info.offset_data,
        "json_bytes": text.info.size,
    }
    if any(line[name] != value for name, value in places.items()):
        yield "the index has other offsets or sizes"
    if line["crc32"] != zlib.crc32(image.data):
        yield "the image's bytes have another CRC-32 than the index says"
    if fields is None or not isinstance(fields.get("findings"), dict):
        return
    same = ("image_id", "patient_id", "study_id", "projection", "sex", "age", "height", "width")
    told = {name: fields.get(name) for name in same}
    told |= {finding_column(finding): fields["findings"].get(finding) for finding in task.manifest.findings}
    if isinstance(soft := fields.get("soft", {}), dict):
        told |= {soft_column(finding): _float32(soft.get(finding)) for finding in task.manifest.soft}
    source = fields.get("source")
    told["frontal"] = is_frontal(
        str(fields.get("projection")),
        noted=isinstance(source, dict) and bool(source.get("frontal")),
        packed=task.manifest.preprocessing.projection,
    )
    if task.manifest.format_version > 1 and isinstance(source, dict):
        told |= {name: source.get(name) for name in SOURCE_COLUMNS}
    different = [name for name, value in told.items() if line[name] != value]
    if different:
        yield f"the index and the JSON differ in {', '.join(different)}"


def _float32(share: object) -> object:
    """Return a share as the index holds it."""
    return float(np.float32(share)) if isinstance(share, int | float) else share


def _read_json(data: bytes) -> dict[str, Any] | None:
    try:
        fields = json.loads(data)
    except ValueError:
        return None
    return fields if isinstance(fields, dict) else None


def _key(name: str) -> str:
    """Return a member's key if it can be one, else "": a foreign name may be a patient's."""
    key = name.split(".", 1)[0]
    return key if KEY.fullmatch(key) else ""
