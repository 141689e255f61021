"""A dataset's folder on disk: what lies in it, what is junk, and which file a table means."""

import os
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from cxrdist.errors import UsageError, UserError

MARKER_LEVELS = 4
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".dcm", ".dicom")
JUNK = ("__macosx", "thumbs.db", ".*", "*.part", "*.crdownload", "index.html*")
"""Left behind by archives, file managers and download tools; hidden files cover ``._*`` and ``.azDownload-*``."""


def check_root(root: Path) -> None:
    """Raise `UsageError` if `root` is no folder and `UserError` if it is empty."""
    if not root.is_dir():
        raise UsageError(f"`--root` must be an existing folder, got {str(root)!r}. Check the path.")
    if next(root.iterdir(), None) is None:
        raise UserError(f"`--root` must hold a dataset, got the empty folder {str(root)!r}.")


def walk(root: Path, *, levels: int | None = None, folders: bool = False) -> Iterator[str]:
    """Yield the paths of files below `root` (and of folders, if asked), relative, POSIX, sorted, without junk.

    Linked folders are entered; a link that leads back up is not.
    """
    yield from _walk(str(root), "", levels, folders, ())


def _walk(
    folder: str, prefix: str, levels: int | None, folders: bool, above: tuple[tuple[int, int], ...]
) -> Iterator[str]:
    status = Path(folder).stat()
    identity = (status.st_dev, status.st_ino)
    if identity in above:
        return
    with os.scandir(folder) as scan:
        entries = sorted(scan, key=lambda entry: entry.name)
    for entry in entries:
        if any(fnmatchcase(entry.name.lower(), pattern) for pattern in JUNK):
            continue
        path = prefix + entry.name
        if not entry.is_dir():
            yield path
            continue
        if folders:
            yield path
        if levels is None or levels > 1:
            yield from _walk(entry.path, path + "/", levels and levels - 1, folders, (*above, identity))


def find(paths: list[str], pattern: str) -> list[str]:
    """Return those of `paths` whose last parts match `pattern`; the shallowest and uncompressed first."""
    depth = pattern.count("/") + 1
    wanted = pattern.lower()
    found = []
    for path in paths:
        tail = "/".join(path.lower().split("/")[-depth:])
        if fnmatchcase(tail.removesuffix(".gz"), wanted):
            found.append(path)
    return sorted(found, key=lambda path: (path.count("/"), path.lower().endswith(".gz"), path))


class ImageFiles:
    """The image files below a root, found by the last parts of their path, in any case and with any suffix."""

    def __init__(self, root: Path, *, parts: int, within: str = "") -> None:
        self._parts = parts
        self._exact: dict[str, str] = {}
        self._stems: dict[str, str] = {}
        pattern = re.compile(within, re.IGNORECASE)
        self.paths = [path for path in walk(root) if is_image(path) and pattern.search(path)]
        for path in self.paths:  # sorted: of two copies the first is taken
            self._exact.setdefault(self._tail(path), path)
            self._stems.setdefault(stem(self._tail(path)), path)

    def find(self, named: str) -> str | None:
        """Return the path below the root of the image that a table calls `named`; None if it is not on disk."""
        tail = self._tail(named)
        return self._exact.get(tail) or self._stems.get(stem(tail))

    def name(self, named: str) -> str:
        """Return what names an image in any copy of the dataset: the parts that find it, without suffix."""
        return stem(self._tail(named))

    def copies(self, path: str) -> str:
        """Return the copy of `path` that `find` gives; itself but for a second copy of one image."""
        return self._exact[self._tail(path)]

    def _tail(self, path: str) -> str:
        return "/".join(path.strip().replace("\\", "/").lower().split("/")[-self._parts :])


def is_image(path: str) -> bool:
    """Whether the file's name is an image's."""
    return path.lower().endswith(IMAGE_SUFFIXES)


def stem(path: str) -> str:
    """Return `path` without an image's suffix; other dots belong to the name."""
    return path[: path.rindex(".")] if is_image(path) else path
