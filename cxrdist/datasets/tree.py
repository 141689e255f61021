"""A dataset's folders on disk: what lies in them, what is junk, and which file a table means."""

import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from cxrdist.datasets.layouts import IMAGE_SUFFIXES
from cxrdist.errors import UsageError, UserError

MARKER_LEVELS = 4
JUNK = ("__macosx", "thumbs.db", ".*", "*.part", "*.crdownload", "index.html*")
"""Left behind by archives, file managers and download tools; hidden files cover ``._*`` and ``.azDownload-*``."""
LEVELS_UP = 2
"""How far above the root folders of `FactFile.beside` are looked for: ``mimic-cxr/2.0.0`` has its sister two up."""


class Tree:
    """One or several roots that hold one dataset, seen as one tree of relative POSIX paths.

    Paths below a further root begin with its number (``2:``), so that no two files share a path.
    """

    def __init__(self, roots: Sequence[Path]) -> None:
        for root in roots:
            check_root(root)
        self.roots = list(roots)
        self._files: list[str] | None = None

    @property
    def files(self) -> list[str]:
        """All files but junk, sorted."""
        if self._files is None:
            self._files = sorted(
                _numbered(number, path) for number, root in enumerate(self.roots, 1) for path in walk(root)
            )
        return self._files

    def near(self, *, folders: bool = False) -> list[str]:
        """Return the files (and folders, if asked) at most `MARKER_LEVELS` down."""
        if self._files is None:  # a look for markers need not read the whole tree
            return [
                _numbered(number, path)
                for number, root in enumerate(self.roots, 1)
                for path in walk(root, levels=MARKER_LEVELS, folders=folders)
            ]
        found = [path for path in self._files if path.count("/") < MARKER_LEVELS]
        if folders:
            parents = {
                "/".join(path.split("/")[:depth]) for path in self._files for depth in range(1, MARKER_LEVELS + 1)
            }
            found += sorted(parent for parent in parents.difference(self._files))
        return found

    def path(self, relative: str) -> Path:
        """Return where a file of the tree is."""
        number = root_number(relative)
        return self.roots[int(number[:-1]) - 1 if number else 0] / relative[len(number) :]

    def below(self, home: str) -> Iterator[str]:
        """Yield the files below the folder `home`, as they are called from there; ``""`` is the first root."""
        prefix = home if home.endswith(":") or not home else f"{home}/"
        for path in self.files:
            if path.startswith(prefix) and (prefix or not root_number(path)):
                yield path[len(prefix) :]

    def include(self, patterns: Iterable[str]) -> None:
        """Add the folders next to the first root, or up to `LEVELS_UP` above, whose names match one of `patterns`."""
        first = self.roots[0].resolve()
        known = {root.resolve() for root in self.roots}
        for pattern in patterns:
            for level in first.parents[: LEVELS_UP + 1]:
                found = [path for path in _folders(level) if fnmatchcase(path.name.lower(), pattern.lower())]
                found = [path for path in found if path not in known and path not in first.parents]
                if found:
                    self.roots += found
                    known.update(found)
                    break
        self._files = None


def check_root(root: Path) -> None:
    """Raise `UsageError` if `root` is no folder and `UserError` if it is empty."""
    if not root.is_dir():
        raise UsageError(f"`--root` must be an existing folder, got {str(root)!r}. Check the path.")
    if next(root.iterdir(), None) is None:
        raise UserError(f"`--root` must hold a dataset, got the empty folder {str(root)!r}.")


def walk(root: Path, *, levels: int | None = None, folders: bool = False) -> Iterator[str]:
    """Yield the paths of files below `root` (and of folders, if asked), relative, POSIX, sorted, without junk.

    Linked folders are entered; a link that leads back up is not.  Pipes, sockets and devices are no files.
    """
    try:
        yield from _walk(str(root), "", levels, folders, ())
    except RecursionError:
        raise UserError("Folders below `--root` must lie less than hundreds deep, got deeper ones.") from None


def _walk(
    folder: str, prefix: str, levels: int | None, folders: bool, above: tuple[tuple[int, int], ...]
) -> Iterator[str]:
    status = Path(folder).stat()
    identity = (status.st_dev, status.st_ino)
    if identity in above:
        return
    try:
        with os.scandir(folder) as scan:
            entries = sorted(scan, key=lambda entry: entry.name)
    except PermissionError:
        raise UserError(
            "A folder below `--root` must be readable, got one that is not. Check the permissions."
        ) from None
    for entry in entries:
        if any(fnmatchcase(entry.name.lower(), pattern) for pattern in JUNK):
            continue
        path = prefix + entry.name
        if not _is_folder(entry):
            if _is_file(entry):
                yield path
            continue
        if folders:
            yield path
        if levels is None or levels > 1:
            yield from _walk(entry.path, path + "/", levels and levels - 1, folders, (*above, identity))


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_file(entry: "os.DirEntry[str]") -> bool:
    try:  # a link to nowhere is a file that is missing; a pipe would be waited for without end
        return entry.is_file() or stat.S_ISREG(entry.stat().st_mode)
    except OSError:
        return True


def _folders(parent: Path) -> list[Path]:
    try:
        return sorted(path for path in parent.iterdir() if path.is_dir())
    except OSError:
        return []


def root_number(path: str) -> str:
    """Return what stands before a path below a further root (``2:``); nothing for the first."""
    match = re.match(r"[2-9]:|[1-9]\d:", path)
    return match[0] if match else ""


def _numbered(number: int, path: str) -> str:
    return path if number == 1 else f"{number}:{path}"


def find(paths: Iterable[str], pattern: str) -> list[str]:
    """Return those of `paths` whose last parts match `pattern`; the shallowest and uncompressed first."""
    depth = pattern.count("/") + 1
    wanted = pattern.lower()
    # Folders hold hundreds of thousands of images, and `auto` asks for the markers of every dataset.
    end = re.split(r"[]*?[]", wanted)[-1]
    ends = (end, f"{end}.gz")
    found = []
    for path in paths:
        if not path.lower().endswith(ends):
            continue
        tail = "/".join(path[len(root_number(path)) :].lower().split("/")[-depth:])
        if fnmatchcase(tail.removesuffix(".gz"), wanted):
            found.append(path)
    return sorted(found, key=lambda path: (path.count("/"), path.lower().endswith(".gz"), path))


class ImageFiles:
    """The image files of a tree, found by the last parts of their path, in any case and with any suffix."""

    def __init__(
        self, files: Iterable[str], *, parts: int = 1, within: str = "", suffixes: Sequence[str] = IMAGE_SUFFIXES
    ) -> None:
        self._parts = parts
        self._exact: dict[str, str] = {}
        self._stems: dict[str, str] = {}
        pattern = re.compile(within, re.IGNORECASE)
        self.paths = [path for path in files if is_image(path, suffixes) and pattern.search(path)]
        for path in self.paths:  # sorted: of two copies the first is taken
            self._exact.setdefault(self._tail(path), path)
            self._stems.setdefault(stem(self._tail(path)), path)

    def find(self, named: str) -> str | None:
        """Return the path of the image that a table calls `named`; None if it is not on disk."""
        tail = self._tail(named)
        return self._exact.get(tail) or self._stems.get(stem(tail))

    def name(self, named: str) -> str:
        """Return what names an image in any copy of the dataset: the parts that find it, without suffix."""
        return stem(self._tail(named))

    def copies(self, path: str) -> str:
        """Return the copy of `path` that `find` gives; itself but for a second copy of one image."""
        return self._stems[stem(self._tail(path))]

    def _tail(self, path: str) -> str:
        path = path.strip().replace("\\", "/").lower()
        return "/".join(path[len(root_number(path)) :].split("/")[-self._parts :])


def is_image(path: str, suffixes: Sequence[str] = IMAGE_SUFFIXES) -> bool:
    """Whether the file's name is an image's."""
    return path.lower().endswith(tuple(suffixes))


def stem(path: str) -> str:
    """Return `path` without an image's suffix; other dots belong to the name."""
    known = next((suffix for suffix in ALL_SUFFIXES if path.lower().endswith(suffix)), "")
    return path[: len(path) - len(known)]


ALL_SUFFIXES = tuple(sorted((*IMAGE_SUFFIXES, ".img", ".bmp", ".tif", ".tiff"), key=len, reverse=True))
