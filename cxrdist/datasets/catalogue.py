"""Fact files that come with the tool or a user has written: found, changed and built."""

import hashlib
import json
from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from cxrdist.config import Tree, override, read_yaml, shipped
from cxrdist.datasets.facts import ColumnLabels, FactFile, finding_source
from cxrdist.errors import UsageError, unknown


def read_facts(name_or_path: str, *, variant: str | None = None, changes: Mapping[str, Any] | None = None) -> FactFile:
    """Return the facts of a known dataset by name, or those in a YAML file.

    Args:
        name_or_path: A name of `list_facts`, or the path of a ``.yaml`` file.
        variant: One of the fact file's `variants`.
        changes: ``{dotted name: value}`` set on top.

    Raises:
        UsageError: If there is no such dataset, file or variant, or if a name or value is wrong.
    """
    tree, where = _source(name_or_path)
    changes = changes or {}
    own = [name for name in ("variant", "changes") if tree.get(name)]
    own += [name for name in changes if name.split(".")[0] in ("variant", "changes")]
    if own:
        raise UsageError(
            f"`{own[0]}` must not be set: it tells what was chosen, got a value [in {where}]. Choose by `--variant`."
        )
    if variant:
        tree = _changed(tree, _variant(tree, variant))
    tree = _changed(tree, changes)
    return FactFile.build(tree | {"variant": variant, "changes": dict(changes)}, where=where)


@cache
def list_facts() -> list[FactFile]:
    """Return the facts of every dataset that comes with the tool, by name."""
    return [FactFile.build(read_yaml(path), where=path.name) for path in sorted(shipped("shards").glob("*.yaml"))]


def fact_hash(facts: FactFile) -> str:
    """Return the SHA-256 of the resolved facts: the same for any spelling of the same content."""
    # A variant is what it changes, not what it is called, and the others beside it do not matter.
    tree = {name: value for name, value in facts.tree().items() if name not in ("variants", "variant", "changes")}
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def _variant(tree: Tree, name: str) -> Tree:
    """Return what a variant changes."""
    variants = tree.get("variants")
    if not isinstance(variants, dict) or not variants:
        raise UsageError(f"A variant must be one of the fact file's, got {name!r}: {tree.get('name')} has no variants.")
    if name not in variants:
        raise UsageError(unknown(f"A variant of {tree.get('name')}", name, variants))
    found = variants[name]
    return {part: value for part, value in found.items() if part != "about"} if isinstance(found, dict) else {}


def _changed(tree: Tree, changes: Mapping[str, Any]) -> Tree:
    """Return `tree` with `changes`; what is added to a short form or to a default does not take its place."""
    labels, findings = tree.get("labels"), tree.get("findings")
    of_labels = changes.get("labels")
    if isinstance(labels, dict) and labels.get("coding") == "columns" and "values" not in labels:
        added = any(f"{name}.".startswith("labels.values.") for name in changes)
        if added or (isinstance(of_labels, Mapping) and "values" in of_labels):
            tree = override(tree, {"labels.values": dict(ColumnLabels(coding="columns").values)})
    if isinstance(findings, dict):
        parts = {name.split(".")[1] for name in changes if name.startswith("findings.") and name.count(".") > 1}
        whole = {name: finding_source(source) if name in parts else source for name, source in findings.items()}
        tree = tree | {"findings": whole}
    return override(tree, changes)


def _source(name_or_path: str) -> tuple[Tree, str]:
    if name_or_path.endswith((".yaml", ".yml")):
        path = Path(name_or_path)
        return read_yaml(path), path.name
    paths = {path.stem: path for path in sorted(shipped("shards").glob("*.yaml"))}
    if name_or_path not in paths:
        close = get_close_matches(name_or_path.lower().replace("-", "_"), paths, n=1, cutoff=0.4)
        near = f" Did you mean {close[0]!r}?" if close else ""
        raise UsageError(
            f"A dataset must be one of {', '.join(paths)} or the path of a fact file, got {name_or_path!r}.{near}"
        )
    return read_yaml(paths[name_or_path]), paths[name_or_path].name
