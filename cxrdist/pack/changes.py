"""Facts that a user changed by hand (`pack --set`): which they are is public, their values are not.

A value can be a patient's own (``drop.hospital_id=["H1"]`` takes out one who objects), so the manifest has only a keyed
hash of them, and the values stay in a private file beside the id key, for `shards repair`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cxrdist.datasets.shard_format import Manifest
from cxrdist.errors import UserError
from cxrdist.pack.private import write_private
from cxrdist.pack.pseudonyms import Pseudonyms


def changes_path(dataset: str, id_key: Path) -> Path:
    """Return where the changed facts of packs of `dataset` are kept."""
    return id_key.parent / f"{dataset}.changes.json"


def changes_hash(changes: Mapping[str, Any], pseudonyms: Pseudonyms) -> str | None:
    """Return the keyed hash of changed facts, by which they are found again; None where nothing was changed."""
    if not changes:
        return None
    tree = json.loads(json.dumps(dict(changes), default=str))  # keys that YAML reads as numbers become text
    return pseudonyms.keyed_hash(b"changes\0" + json.dumps(tree, sort_keys=True).encode())


def keep_changes(path: Path, name: str, changes: Mapping[str, Any]) -> None:
    """Add changed facts under the hash `name` to the private file, mode 0600, keeping those of other packs.

    Raises:
        UserError: If there is a file that is none of these, or the place cannot be written.
    """
    text = json.dumps(_read(path) | {name: dict(changes)}, indent=1, default=str) + "\n"
    write_private(path, text.encode(), "The private file of changed facts")


def recall_changes(manifest: Manifest, id_key: Path) -> dict[str, Any]:
    """Return the facts that were changed by hand when the folder of `manifest` was packed.

    Raises:
        UserError: If they are not in the private file beside `id_key`.
    """
    if manifest.changes is None:
        return {}
    path = changes_path(manifest.dataset, id_key)
    changes = _read(path).get(manifest.changes)
    if not isinstance(changes, dict):
        raise UserError(
            f"The facts changed by hand must be known, got none of this pack [in {str(path)!r}]. "
            f"Give the same `--set` as when it was packed."
        )
    return changes


def _read(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_bytes()) if path.exists() else {}
    except (OSError, ValueError):
        tree = None
    if not isinstance(tree, dict):
        raise UserError(
            f"The file of changed facts must be one that `cxrdist pack` wrote, got another [{str(path)!r}]."
        )
    return tree
