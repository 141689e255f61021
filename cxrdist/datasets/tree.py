"""A dataset's folders on disk: what lies in them, what is junk, and which file a table means."""

import os
import re
import stat
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from cxrdist.datasets.layouts import IMAGE_SUFFIXES
from cxrdist.errors import UsageError, UserError

MARKER_LEVELS = 4
JUNK = ("__macosx", "thumbs.db", ".*", "*.part", "*.crdownload", "index.html*")
"""Left behind by archives, file managers and download tools; hidden files cover ``._*`` and ``.azDownload-*``."""
MOST_ALONE = 8
"""Folders with one folder in each that are passed through from the root on."""
LEVELS_UP = 2
"""How far above the root folders of `FactFile.beside` are looked for: ``mimic-cxr/2.0.0`` has its sister two up."""


class Tree:
    """One or several roots that hold one dataset, seen as one tree of relative POSIX paths.

    Paths below a further root begin with its number (``2:``), so that no two files share a path.  The first root's
    come first: where two roots have the same, the first counts.
    """

    def __init__(self, roots: Sequence[Path]) -> None:
        for root in roots:
            check_root(root)
        self.roots = list(roots)
        self._files: list[str] | None = None

    @property
    def files(self) -> list[str]:
        """All files but junk, by root and sorted."""
        if self._files is None:
            self._files = [
                _numbered(number, path) for number, root in enumerate(self.roots, 1) for path in sorted(walk(root))
            ]
        return self._files

    def near(self, *, folders: bool = False) -> list[str]:
        """Return the files (and folders, if asked) at most `MARKER_LEVELS` down.

        Folders at the top that hold a folder and nothing else do not count: ``wget`` makes three.
        """
        found = []
        for number, root in enumerate(self.roots, 1):
            levels = MARKER_LEVELS + _alone(root)
            if self._files is None:  # a look for markers need not read the whole tree
                found += [_numbered(number, path) for path in walk(root, levels=levels, folders=folders)]
                continue
            own = [path for path in self._files if (root_number(path) or "1:") == f"{number}:"]
            found += [path for path in own if path.count("/") < levels]
            if folders:
                parents = {"/".join(path.split("/")[:depth]) for path in own for depth in range(1, levels + 1)}
                found += sorted(parents.difference(own))
        return found

    def path(self, relative: str) -> Path:
        """Return where a file of the tree is."""
        number = root_number(relative)
        return self.roots[int(number[:-1]) - 1 if number else 0] / relative[len(number) :]

    def shown(self, relative: str) -> list[str]:
        """Return how patterns may see a path: from its root, or with the root's own name before it."""
        number = root_number(relative)
        plain = relative[len(number) :]
        return [plain, f"{self.roots[int(number[:-1]) - 1 if number else 0].name}/{plain}"]

    def below(self, home: str) -> Iterator[str]:
        """Yield the files below the folder `home`, as they are called from there; ``""`` is the first root."""
        prefix = folder_prefix(home)
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
        if _is_junk(entry.name):
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


def _is_junk(name: str) -> bool:
    return any(fnmatchcase(name.lower(), pattern) for pattern in JUNK)


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
    match = re.match(r"[1-9]\d?:", path)
    return match[0] if match else ""


def folder_prefix(home: str) -> str:
    """Return what the paths of all files below the folder `home` begin with."""
    return home if home.endswith(":") or not home else f"{home}/"


def _numbered(number: int, path: str) -> str:
    # A path of the first root that looks numbered is numbered, too.
    return path if number == 1 and not root_number(path) else f"{number}:{path}"


def _order(path: str) -> tuple[int, str]:
    number = root_number(path)
    return int(number[:-1]) if number else 1, path


def _alone(root: Path) -> int:
    """Return how many folders from `root` on hold one folder and nothing else."""
    levels = 0
    while levels < MOST_ALONE:
        entries = [entry for entry in root.iterdir() if not _is_junk(entry.name)]
        if len(entries) != 1 or not entries[0].is_dir():
            break
        root, levels = entries[0], levels + 1
    return levels


def find(paths: Iterable[str], pattern: str) -> list[str]:
    """Return those of `paths` whose last parts match `pattern`: by root, the shallowest and uncompressed first."""
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
    return sorted(found, key=lambda path: (_order(path)[0], path.count("/"), path.lower().endswith(".gz"), path))


class ImageFiles:
    """The image files of a tree, found by the last parts of their path, in any case and with any suffix.

    Where several files end alike, that one is meant which shares most of its path with what the table says; between
    files that share as much, copies of one image, the first is taken.
    """

    def __init__(
        self, tree: Tree, *, parts: int = 1, within: str = "", suffixes: Sequence[str] = IMAGE_SUFFIXES
    ) -> None:
        self._tree = tree
        self._parts = parts
        self._named: dict[str, list[str]] = {}
        pattern = re.compile(within, re.IGNORECASE)
        self.paths = [
            path for path in tree.files if is_image(path, suffixes) and any(map(pattern.search, tree.shown(path)))
        ]
        for path in self.paths:
            self._named.setdefault(stem(self._tail(path)), []).append(path)

    def find(self, named: str) -> str | None:
        """Return the path of the image that a table calls `named`; None if it is not on disk.

        Raises:
            UserError: If several files, of different sizes, could be meant.
        """
        candidates = self._named.get(stem(self._tail(named)), [])
        if len(candidates) > 1:
            likeness = [_likeness(path, named) for path in candidates]
            candidates = [path for path, like in zip(candidates, likeness, strict=True) if like == max(likeness)]
            alike = [path for path in candidates if _rank(path) == _rank(candidates[0])]
            if len({self._size(path) for path in alike}) > 1:
                raise UserError(
                    f"A table must say which file it means, got a name that {len(alike)} different files in several "
                    f"folders have. Name more of the path in the table, or one of the folders by `layout.within`."
                )
        return candidates[0] if candidates else None

    def name(self, named: str) -> str:
        """Return what names an image in any copy of the dataset: the parts that find it, without suffix."""
        return stem(self._tail(named))

    def is_copy(self, path: str, seen: set[str]) -> bool:
        """Whether the file is one of `seen` once more: under the same name, and as large or in another format."""
        others = [other for other in self._named[stem(self._tail(path))] if other in seen]
        return any(ending(other) != ending(path) or self._size(other) == self._size(path) for other in others)

    def _size(self, path: str) -> int:
        try:
            return self._tree.path(path).stat().st_size
        except OSError:
            return -1

    def _tail(self, path: str) -> str:
        return "/".join(_parts_of(path.lower())[-self._parts :])


def _parts_of(path: str) -> list[str]:
    """Return the parts of a path in one spelling; discs write umlauts as one character or as two."""
    path = unicodedata.normalize("NFC", path.strip()).replace("\\", "/")
    return path[len(root_number(path)) :].split("/")


def _likeness(path: str, named: str) -> tuple[int, int, int]:
    """Return how many of the last parts are the same in any case, and in this one; and whether the suffix is."""
    ours, theirs = _parts_of(path), _parts_of(named)
    same = 0
    for one, other in zip(reversed(ours[:-1]), reversed(theirs[:-1]), strict=False):
        if one.lower() != other.lower():
            break
        same += 1
    return int(ending(path) == ending(named)), same, int(stem(ours[-1]) == stem(theirs[-1]))


def _rank(path: str) -> tuple[str, str]:
    return root_number(path), ending(path)


def ending(path: str) -> str:
    """Return an image's suffix in lower case; nothing for a name without."""
    return path[len(stem(path)) :].lower()


def is_image(path: str, suffixes: Sequence[str] = IMAGE_SUFFIXES) -> bool:
    """Whether the file's name is an image's."""
    return path.lower().endswith(tuple(suffixes))


def stem(path: str) -> str:
    """Return `path` without an image's suffix; other dots belong to the name."""
    known = next((suffix for suffix in ALL_SUFFIXES if path.lower().endswith(suffix)), "")
    return path[: len(path) - len(known)]


ALL_SUFFIXES = tuple(sorted((*IMAGE_SUFFIXES, ".img", ".bmp", ".tif", ".tiff"), key=len, reverse=True))
