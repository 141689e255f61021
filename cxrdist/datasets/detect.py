"""Which dataset lies in a folder, by its marker files: folder names differ from copy to copy."""

from collections.abc import Sequence
from pathlib import Path

from cxrdist.datasets.catalogue import list_facts
from cxrdist.datasets.facts import FactFile
from cxrdist.datasets.layouts import Marker
from cxrdist.datasets.readers import header_of, spreadsheet_hint
from cxrdist.datasets.tree import MARKER_LEVELS, Tree, find, root_number
from cxrdist.errors import UserError


def detect(root: Path | Sequence[Path]) -> FactFile:
    """Return the facts of the dataset in `root`; of several that fit, the one with the most specific marker.

    Raises:
        UsageError: If `root` is no folder.
        UserError: If it is empty, if nothing fits, or if two fit alike.
    """
    tree = Tree([root] if isinstance(root, Path) else root)
    near = tree.near(folders=True)
    headers: dict[str, set[str]] = {}
    fits: dict[int, list[FactFile]] = {}
    for facts in list_facts():
        weights = [_weight(marker) for marker in facts.markers if marker_home(tree, near, marker, headers) is not None]
        if weights:
            fits.setdefault(max(weights), []).append(facts)
    best = fits[max(fits)] if fits else []
    if len(best) == 1:
        return best[0]
    if best:
        names = ", ".join(facts.name for facts in best)
        raise UserError(f"`--root` must hold one dataset, got one that fits {names}. Name it instead of `auto`.")
    raise UserError(
        f"`--root` must hold a known dataset, got none: the marker files of {len(list_facts())} datasets were looked "
        f"for {MARKER_LEVELS} levels down (`cxrdist datasets` lists them). Name the dataset, or write a fact file."
    )


def home_of(facts: FactFile, tree: Tree) -> str:
    """Return the folder of the tree where the dataset's first fitting marker lies; ``""`` for the root itself.

    Raises:
        UserError: If no marker is there.
    """
    near = tree.near(folders=True)
    for marker in facts.markers:
        home = marker_home(tree, near, marker, {})
        if home is not None:
            return home
    raise UserError(
        f"{facts.title} must have {describe_markers(facts)} at most {MARKER_LEVELS} levels below `--root`, got none."
        + spreadsheet_hint(near, [path for marker in facts.markers for path in marker.paths])
    )


def marker_home(tree: Tree, near: list[str], marker: Marker, headers: dict[str, set[str]]) -> str | None:
    """Return the shallowest folder that holds all paths of the marker; None if there is none.

    `headers` keeps the columns of the tables that were looked into.
    """
    homes = []
    for pattern in marker.paths:
        depth = pattern.count("/") + 1
        found = find(near, pattern)
        if pattern == marker.paths[0] and marker.columns:
            columns = {column.strip().lower() for column in marker.columns}
            for path in found:
                if path not in headers:
                    headers[path] = header_of(tree.path(path))
            found = [path for path in found if columns <= headers[path]]
        homes.append({_above(path, depth) for path in found})
    common = set.intersection(*homes)
    return min(common, key=lambda home: (home.count("/") + bool(home), home)) if common else None


def describe_markers(facts: FactFile) -> str:
    """Return what marks the dataset, as text for a person."""
    parts = []
    for marker in facts.markers:
        columns = f" with columns {', '.join(marker.columns)}" if marker.columns else ""
        parts.append(" + ".join(marker.paths) + columns)
    return " or ".join(parts)


def _above(path: str, depth: int) -> str:
    """Return the folder `depth` above `path`; of a further root, at most its number and colon."""
    number = root_number(path)
    return number + "/".join(path[len(number) :].split("/")[:-depth])


def _weight(marker: Marker) -> int:
    return len(marker.paths) + len(marker.columns)
