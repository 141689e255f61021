"""Whether a path is one folder on every node: each writes a file there, and reads those of all others."""

from collections.abc import Sequence
from typing import Any

from cxrdist.dispatch.nodes import Node, ask
from cxrdist.doctor import measure
from cxrdist.doctor.finding import Finding

HERE = "this command"
"""The place that is no node: its process may be of another user than Ray's."""
Seen = dict[str, dict[str, set[str]]]
"""Path -> place -> places whose file it can read."""

REMOVAL_S = 20.0
SHARED = "Mount one shared file system at that path on every node, writable by the user that Ray runs as."


def check_paths(paths: Sequence[str], nodes: Sequence[Node], *, timeout_s: float) -> list[Finding]:
    """Return a finding for each path; the files are removed however it ends."""
    names = {place: measure.new_mark() for place in (HERE, *(node.address for node in nodes))}
    folders = list(paths)
    try:
        faults = {HERE: measure.write_marks(folders, names[HERE])}
        answers = ask(
            measure.write_marks,
            folders,
            nodes=nodes,
            each={node: (names[node.address],) for node in nodes},
            timeout_s=timeout_s,
        )
        faults |= {
            node.address: dict.fromkeys(folders, answer.fault) if answer.fault else answer.value
            for node, answer in answers.items()
        }
        written = {path: [place for place in names if not faults[place][path]] for path in folders}
        wanted = {path: [names[place] for place in written[path]] for path in folders}
        looks: dict[str, Any] = {HERE: measure.read_marks(wanted)}
        looks |= {
            node.address: answer.value
            for node, answer in ask(measure.read_marks, wanted, nodes=nodes, timeout_s=timeout_s).items()
            if not answer.fault
        }
    finally:
        measure.remove_marks(folders, list(names.values()))
        # Each node, for where it is no shared folder; all files, for where a node has died in between.
        ask(measure.remove_marks, folders, list(names.values()), nodes=nodes, timeout_s=min(timeout_s, REMOVAL_S))
    owners = {name: place for place, name in names.items()}
    seen: Seen = {
        path: {place: {owners[name] for name in told[path]} for place, told in looks.items()} for path in folders
    }
    return [judge(path, {place: faults[place][path] for place in names}, seen[path]) for path in folders]


def judge(path: str, faults: dict[str, str], seen: dict[str, set[str]]) -> Finding:
    """Return the finding for a path.

    Args:
        path: As the user named it.
        faults: What is wrong with writing there, by place; empty where it went well.
        seen: The places whose files a place can read; places that did not answer are missing.
    """
    name = f"path {path}"
    bad = {place: fault for place, fault in faults.items() if fault}
    if bad:
        told = "; ".join(
            f"{fault} on {_named([p for p in bad if bad[p] == fault])}" for fault in dict.fromkeys(bad.values())
        )
        return Finding(name, "problem", f"cannot be written on {len(bad)} of {len(faults)} places: {told}", SHARED)
    silent = [place for place in faults if place not in seen]
    if silent:
        return Finding(name, "problem", f"not read in time on {_named(silent)}", "Its file system or the node hangs.")
    groups: dict[frozenset[str], list[str]] = {}
    for place, owners in seen.items():
        groups.setdefault(frozenset(owners), []).append(place)
    if len(groups) == 1 and set(next(iter(groups))) == set(faults):
        return Finding(name, "ok", f"one folder, read and written from {len(faults)} places")
    told = "; ".join(_named(places) for places in groups.values())
    return Finding(name, "problem", f"is not one folder but {len(groups)}, each seen by: {told}", SHARED)


def _named(places: Sequence[str], most: int = 4) -> str:
    return ", ".join(places[:most]) + (f" and {len(places) - most} more" if len(places) > most else "")
