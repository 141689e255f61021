"""Folders of small objects in which a name is created by one writer only: on a disk, or in an object store.

fsspec's ``pipe_file(..., mode="create")`` is exclusive where the backend asks the server for it: s3fs with
``If-None-Match`` (from botocore 1.35.20), gcsfs with ``ifGenerationMatch`` and adlfs with ``overwrite=False``.  With
other backends, fsspec's own local one among them, it looks first and writes then, so that two writers can both have
come first: they are refused, and on a disk a hard link takes its place.
"""

import contextlib
import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote
from uuid import uuid4

from cxrdist.disk import sync
from cxrdist.errors import UserError

NEEDS = {
    "s3": "cxrdist[s3]",
    "s3a": "cxrdist[s3]",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
}
"""What to install for each protocol whose backend creates objects exclusively."""
PROBE = "exclusive"
NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EACCES)
"""What file systems without hard links answer."""


class Store(Protocol):
    """A folder of objects."""

    @property
    def url(self) -> str:
        """Return where it is, for sentences."""

    def names(self) -> list[str]:
        """Return the names of all objects, in no order; none where there is no folder."""

    def fetch(self, names: Sequence[str]) -> list[bytes | None]:
        """Return the content of each object; None for one that is not there."""

    def create(self, name: str, content: bytes) -> bool:
        """Write an object of a new name, whole or not at all; return whether it is ours: False if there is one."""

    def put(self, name: str, content: bytes) -> None:
        """Write an object, over the one that may be there, whole or not at all."""

    def check(self) -> None:
        """Make sure that names are created once only.

        Raises:
            UserError: If they are not.
        """


def check_url(url: str) -> str | None:
    """Return what is wrong with a ledger's URL, None if nothing; looks at the text only."""
    protocol, mark, place = url.partition("://")
    known = ", ".join(["file", *NEEDS])
    if not mark:
        return f"must be a URL such as s3://bucket/study or file:///shared/study, got {url!r}"
    if protocol != "file" and protocol not in NEEDS:
        return f"must be in a store that creates objects exclusively ({known}), got {url!r}"
    if protocol == "file" and not place.startswith("/"):
        return f"must be absolute, as other machines have other working folders, got {url!r}. Write file:///a/b"
    if not place.strip("/"):
        return f"must name a folder, got {url!r}"
    return None


def open_store(url: str) -> Store:
    """Return the folder at `url`; asks the store nothing yet.

    Raises:
        UserError: If the URL is none that will do, or its backend is not installed.
    """
    wrong = check_url(url)
    if wrong:
        raise UserError(f"`ledger` {wrong}.")
    protocol, _, place = url.partition("://")
    if protocol == "file":
        return DiskStore(Path(unquote(place)))
    import fsspec  # type: ignore[import-untyped] # noqa: PLC0415 - most studies have their ledger in a file

    try:
        fs, folder = fsspec.url_to_fs(url)
    except ImportError:
        raise UserError(
            f"A ledger at {protocol}:// must have its fsspec backend, got none installed [{url}]. "
            f"Install it on all machines: pip install '{NEEDS[protocol]}'."
        ) from None
    except Exception as error:
        raise _unreachable(url, error) from None
    return RemoteStore(fs, folder, url)


@dataclass(frozen=True)
class DiskStore:
    """A folder on a disk that all writers see."""

    folder: Path

    @property
    def url(self) -> str:
        """Return the folder as a URL."""
        return self.folder.as_uri()

    def names(self) -> list[str]:
        """Return the names of all objects."""
        with self._asked():
            try:
                return os.listdir(self.folder)  # noqa: PTH208 - names are wanted, thousands of them
            except FileNotFoundError:
                return []

    def fetch(self, names: Sequence[str]) -> list[bytes | None]:
        """Return the content of each object; None for one that is none."""
        with self._asked():
            return [self._read(name) for name in names]

    def _read(self, name: str) -> bytes | None:
        try:
            return (self.folder / name).read_bytes()
        except (FileNotFoundError, IsADirectoryError):
            return None

    def create(self, name: str, content: bytes) -> bool:
        """Write under a name of our own and link it to `name`, so that nobody reads half of it."""
        with self._asked(), self._written(content) as hidden:
            path = self.folder / name
            try:
                path.hardlink_to(hidden)
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in NO_LINKS:
                    raise
                # Here it can be read half: readers ask again for what they cannot read.
                try:
                    with path.open("xb") as file:
                        file.write(content)
                    sync(path)
                except FileExistsError:
                    return False
            sync(self.folder)
            return True

    def put(self, name: str, content: bytes) -> None:
        """Write under a name of our own and rename it; what is written anew all the time need not outlive the power."""
        with self._asked(), self._written(content, synced=False) as hidden:
            hidden.replace(self.folder / name)

    def check(self) -> None:
        """Do nothing: a disk creates names once."""

    @contextmanager
    def _written(self, content: bytes, *, synced: bool = True) -> Iterator[Path]:
        self.folder.mkdir(parents=True, exist_ok=True)
        hidden = self.folder / f".{uuid4().hex}"
        try:
            hidden.write_bytes(content)
            if synced:
                sync(hidden)
            yield hidden
        finally:
            hidden.unlink(missing_ok=True)

    @contextmanager
    def _asked(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise _unreachable(self.url, error) from None


@dataclass(frozen=True)
class RemoteStore:
    """A folder of an object store, through fsspec."""

    fs: Any
    """An `fsspec.AbstractFileSystem` whose ``mode="create"`` is exclusive."""

    folder: str
    url: str

    def names(self) -> list[str]:
        """Return the names of all objects, as they are now: fsspec keeps listings."""
        with self._asked():
            self.fs.invalidate_cache(self.folder)
            try:
                return [path.rstrip("/").rpartition("/")[2] for path in self.fs.ls(self.folder, detail=False)]
            except FileNotFoundError:
                return []

    def fetch(self, names: Sequence[str]) -> list[bytes | None]:
        """Return the content of each object, many asked for at once."""
        if not names:
            return []
        with self._asked():
            # `cat` would take characters of the URL for a pattern.
            found = self.fs.cat_ranges([f"{self.folder}/{name}" for name in names], None, None, on_error="return")
            for content in found:
                if isinstance(content, Exception) and not isinstance(content, FileNotFoundError | IsADirectoryError):
                    raise content
        return [None if isinstance(content, Exception) else bytes(content) for content in found]

    def create(self, name: str, content: bytes) -> bool:
        """Ask the store to write `name` if there is none."""
        with self._asked():
            try:
                self.fs.pipe_file(f"{self.folder}/{name}", content, mode="create")
            except FileExistsError:
                return False
            except OSError as error:
                # Not every store with the protocol of S3 says which condition failed.  409 is of two at one time.
                if error.errno == errno.EBUSY or self.fetch([name]) != [None]:
                    return False
                raise
            return True

    def put(self, name: str, content: bytes) -> None:
        """Write an object over the one that may be there."""
        with self._asked():
            self.fs.pipe_file(f"{self.folder}/{name}", content)

    def check(self) -> None:
        """Create one object twice: a server of the same protocol may not know the condition, and write again."""
        if self.create(PROBE, b"{}") and self.create(PROBE, b"{}"):
            raise UserError(
                f"A ledger's store must refuse to create an object twice, got one that does it [{self.url}]. "
                "Choose another store, or leave `ledger` out: then it is a file in the study folder."
            )

    @contextmanager
    def _asked(self) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        # Backends have errors of their own for credentials, networks and servers, which share no class.
        except Exception as error:
            raise _unreachable(self.url, error) from None


def _unreachable(url: str, error: Exception) -> UserError:
    said = ""
    with contextlib.suppress(AttributeError):
        said = getattr(error, "strerror", None) or ""
    said = said or (str(error).splitlines() or [""])[0] or type(error).__name__
    return UserError(
        f"The ledger must be readable and writable, got {said!r} [{url}]. "
        "Mend that or choose another `ledger`; the same command goes on from what is done."
    )
