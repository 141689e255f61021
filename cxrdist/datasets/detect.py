"""Which dataset lies in a folder, by its marker files: folder names differ from copy to copy."""

from pathlib import Path

from cxrdist.datasets.facts import FactFile, Marker, list_facts
from cxrdist.datasets.tables import header_of
from cxrdist.datasets.tree import MARKER_LEVELS, check_root, find, walk
from cxrdist.errors import UserError


def detect(root: Path) -> FactFile:
    """Return the facts of the dataset in `root`; of several that fit, the one with the most specific marker.

    Raises:
        UsageError: If `root` is no folder.
        UserError: If it is empty, if nothing fits, or if two fit alike.
    """
    check_root(root)
    near = list(walk(root, levels=MARKER_LEVELS, folders=True))
    fits: dict[int, list[FactFile]] = {}
    for facts in list_facts():
        weights = [_weight(marker) for marker in facts.markers if marker_home(root, near, marker) is not None]
        if weights:
            fits.setdefault(max(weights), []).append(facts)
    best = fits[max(fits)] if fits else []
    if len(best) == 1:
        return best[0]
    if best:
        names = ", ".join(facts.name for facts in best)
        raise UserError(f"`--root` must hold one dataset, got one that fits {names}. Name it instead of `auto`.")
    looked = "; ".join(f"{facts.name}: {describe_markers(facts)}" for facts in list_facts())
    raise UserError(
        f"`--root` must hold a known dataset, got none. Looked {MARKER_LEVELS} levels down for {looked}. "
        "Name the dataset, or write a fact file for it."
    )


def home_of(facts: FactFile, root: Path) -> str:
    """Return the folder below `root` where the dataset's first fitting marker lies; ``""`` for `root` itself.

    Raises:
        UserError: If no marker is there.
    """
    near = list(walk(root, levels=MARKER_LEVELS, folders=True))
    for marker in facts.markers:
        home = marker_home(root, near, marker)
        if home is not None:
            return home
    raise UserError(
        f"{facts.title} must have {describe_markers(facts)} at most {MARKER_LEVELS} levels below `--root`, got none."
    )


def marker_home(root: Path, near: list[str], marker: Marker) -> str | None:
    """Return the shallowest folder that holds all paths of the marker; None if there is none."""
    homes = []
    for pattern in marker.paths:
        depth = pattern.count("/") + 1
        found = find(near, pattern)
        if pattern == marker.paths[0] and marker.columns:
            columns = {column.lower() for column in marker.columns}
            found = [path for path in found if columns <= header_of(root / path)]
        homes.append({"/".join(path.split("/")[:-depth]) for path in found})
    common = set.intersection(*homes)
    return min(common, key=lambda home: (home.count("/") + bool(home), home)) if common else None


def describe_markers(facts: FactFile) -> str:
    """Return what marks the dataset, as text for a person."""
    parts = []
    for marker in facts.markers:
        columns = f" with columns {', '.join(marker.columns)}" if marker.columns else ""
        parts.append(" + ".join(marker.paths) + columns)
    return " or ".join(parts)


def _weight(marker: Marker) -> int:
    return len(marker.paths) + len(marker.columns)
