"""Tars whose bytes depend on their content alone, with the place of every member known while writing.

USTAR (POSIX.1-1988) with mtime 0, owner 0, mode 0444: what every tar program and WebDataset reads.
"""

import contextlib
import hashlib
import os
import tarfile
from pathlib import Path
from types import TracebackType
from typing import Self

FIELDS = {"mtime": 0, "uid": 0, "gid": 0, "uname": "", "gname": "", "mode": 0o444}


class TarWriter:
    """Writes one tar.  Leaving the block ends the tar and brings it to the disk."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._hash = hashlib.sha256()
        self.bytes = 0

    def add(self, name: str, data: bytes) -> int:
        """Append a member; return the offset of its first data byte in the tar."""
        member = tarfile.TarInfo(name)
        member.size = len(data)
        for field, value in FIELDS.items():
            setattr(member, field, value)
        self._write(member.tobuf(tarfile.USTAR_FORMAT))
        offset = self.bytes
        self._write(data)
        self._pad(tarfile.BLOCKSIZE)
        return offset

    @property
    def sha256(self) -> str:
        """Hash of what was written so far."""
        return self._hash.hexdigest()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file:
            if error is None:
                self._write(bytes(2 * tarfile.BLOCKSIZE))
                self._pad(tarfile.RECORDSIZE)
                self._file.flush()
                os.fsync(self._file.fileno())

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._hash.update(data)
        self.bytes += len(data)

    def _pad(self, multiple: int) -> None:
        self._write(bytes(-self.bytes % multiple))


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def member_names(path: Path) -> list[str]:
    """Return the names of all members in order, as Python's own reader finds them."""
    with tarfile.open(path, "r:") as tar:
        return tar.getnames()


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk: a rename alone may be lost with the power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some file systems cannot; their renames are as safe as they make them
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
