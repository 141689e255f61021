"""One planned shard: rendered into a temporary tar, brought to the disk, renamed, read back, recorded.

A shard in the work folder is finished when its record is there, which is written last.
"""

import os
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
from pydantic import ValidationError

from cxrdist.config import Config
from cxrdist.datasets.shard_format import EXTENSIONS, Preprocessing
from cxrdist.errors import ImageRejectedError, UserError
from cxrdist.pack.plan import Left, PlannedShard
from cxrdist.pack.render import Rendered, render
from cxrdist.pack.tar import TarWriter, file_sha256, member_names, sync_folder

PARTIAL = ".partial"
"""Ending of files that are being written; whatever has it after a stop is rubbish."""


class Place(Config):
    """Where the two members of a sample are in their tar; offsets are of the data."""

    key: str
    image_offset: int
    image_bytes: int
    crc32: int
    json_offset: int
    json_bytes: int


class SampleRecord(Config):
    """One sample of a finished tar, with what only its image could tell."""

    place: Place
    projection: str
    sex: str
    age: int | None
    height: int
    width: int
    kind: str | None
    transfer_syntax: str | None
    bits: int | None
    pixels_sha256: str


class Tar(Config):
    """A tar on the disk."""

    bytes: int
    sha256: str


class ShardRecord(Config):
    """What is known of a finished planned shard."""

    tar: Tar
    samples: list[SampleRecord]
    rejects: list[Left]


@dataclass(frozen=True)
class Task:
    """A planned shard on its way to a worker."""

    shard: PlannedShard
    findings: tuple[str, ...]
    how: Preprocessing
    work: Path


def tar_path(work: Path, shard: PlannedShard) -> Path:
    """Return where the tar of a planned shard is while the pack is unfinished."""
    return work / f"{shard.name}.tar"


def record_path(work: Path, shard: PlannedShard) -> Path:
    """Return where the record of a planned shard is."""
    return work / f"{shard.name}.json"


def read_record(work: Path, shard: PlannedShard) -> ShardRecord | None:
    """Return the record of a planned shard, or None if it is not finished."""
    try:
        record = ShardRecord.model_validate_json(record_path(work, shard).read_bytes())
    except (OSError, ValidationError):
        return None
    tried = [*(sample.place.key for sample in record.samples), *(left.image_id for left in record.rejects)]
    return record if sorted(tried) == [image.image_id for image in shard.images] else None


def build_shard(task: Task) -> tuple[PlannedShard, ShardRecord]:
    """Render, write and check one planned shard; its record is then on the disk as well.

    Raises:
        UserError: If the disk does not take it.
    """
    cv2.setNumThreads(1)  # the workers are the threads
    rendered: list[Rendered] = []
    rejects: list[Left] = []

    def samples() -> Iterator[tuple[str, bytes, bytes]]:
        for planned in task.shard.images:
            try:
                sample = render(planned, task.findings, task.how)
            except ImageRejectedError as error:
                rejects.append(Left(planned.image_id, error.reason, error.detail))
                continue
            rendered.append(sample.without_data())
            yield planned.image_id, sample.image, sample.json

    tar, places = write_shard(tar_path(task.work, task.shard), EXTENSIONS[task.how.format], samples())
    records = [
        SampleRecord(
            place=place,
            pixels_sha256=sample.pixels_sha256,
            **{name: sample.fields[name] for name in ("projection", "sex", "age", "height", "width")},
            **{name: sample.fields["source"].get(name) for name in ("kind", "transfer_syntax", "bits")},
        )
        for place, sample in zip(places, rendered, strict=True)
    ]
    record = ShardRecord(tar=tar, samples=records, rejects=rejects)
    write_file(record_path(task.work, task.shard), record.model_dump_json().encode(), task.work)
    return task.shard, record


def write_shard(path: Path, extension: str, samples: Iterable[tuple[str, bytes, bytes]]) -> tuple[Tar, list[Place]]:
    """Write the tar of `samples` (key, image, JSON) to `path`, all at once, and read it back.

    Raises:
        UserError: If the disk does not take it, or gives back other bytes.
    """
    # Two writers of one path (a worker that outlived its parent for a moment) must not share a temporary file.
    partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
    places = []
    try:
        with TarWriter(partial) as tar:
            for key, image, text in samples:
                image_offset = tar.add(f"{key}.{extension}", image)
                json_offset = tar.add(f"{key}.json", text)
                places.append(
                    Place(
                        key=key,
                        image_offset=image_offset,
                        image_bytes=len(image),
                        crc32=zlib.crc32(image),
                        json_offset=json_offset,
                        json_bytes=len(text),
                    )
                )
        written = Tar(bytes=tar.bytes, sha256=tar.sha256)
        names = [f"{place.key}.{ending}" for place in places for ending in (extension, "json")]
        if file_sha256(partial) != written.sha256 or member_names(partial) != names:
            raise UserError(f"A shard must read back as written, got other bytes [{path.name}]. Check the disk.")
        partial.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise not_written(path, error) from None
    return written, places


def write_file(path: Path, data: bytes, work: Path) -> None:
    """Write `data` to `path`, all at once or not at all; the temporary file is in the folder `work`.

    Raises:
        UserError: If the disk does not take it.
    """
    partial = work / f"{path.name}.{os.getpid()}{PARTIAL}"
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise not_written(path, error) from None


def not_written(path: Path, error: OSError) -> UserError:
    """Return the error of a disk that did not take a file of the shard folder."""
    return UserError(
        f"The shard folder must take what is written, got {error.strerror!r} [{path.name}]. "
        f"Nothing is lost: make room or mend it, and run the same command again."
    )
