"""What to do where a pack cannot go on: sentences that fit what is wrong, and not all that could be."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from cxrdist.datasets import list_facts
from cxrdist.datasets.shard_format import Manifest, Preprocessing
from cxrdist.errors import UserError
from cxrdist.pack.pseudonyms import Pseudonyms, default_id_key, open_id_key

DOWNLOAD = "See whether the download is whole"
OF_REASON = {
    "projection_filtered": "Take every projection with `--projection all`, or write the source's words for frontal "
    "ones into the fact file's `projections`.",
    "missing_file": "Check `--root` (again for a further folder of images), and in the fact file how names find files: "
    "`layout.match_parts` and `layout.suffixes`.",
    "excluded_by_source": "Check the fact file's `splits`, `keep` and `drop`.",
    "no_label_row": "Check that the tables of labels are below `--root`, and the fact file's `labels` and "
    "`layout.joins`.",
    "unreadable": f"{DOWNLOAD}.",
    "unsupported": f"{DOWNLOAD}, and whether its files are radiographs.",
    "constant_image": f"{DOWNLOAD}.",
    "too_large": "Check that the files are radiographs.",
    "burned_in_text": "Look at some of them, and choose `--burned-in-text flag` or `mask`.",
}
"""The way out where more than half of what was left out has this reason."""
OF_DIFFERENCE = {
    "id key": "name the key that it was packed with (`--id-key`)",
    "dataset": "name the dataset that it was packed from",
    "fact file": "give the same fact file, `--variant` and `--set`",
    "code version": "use the version of cxrdist that it was packed with",
    "shard format": "use the version of cxrdist that it was packed with",
    "input files": "give the same `--root` folders, unchanged, from the same level and in the same order",
    "samples per shard": "take the same samples per shard",
}
"""The way back to the pack that is there; what is not here is an option of `pack`."""
BY_KEY = ("fact file", "input files")
"""Hashes under the id key: with another key they say nothing."""


def way_out_of_rejects(reasons: Mapping[str, int]) -> str:
    """Return what to do where nothing is left to pack, from counts by reason."""
    for reason, count in Counter(reasons).most_common(1):
        if 2 * count > sum(reasons.values()) and reason in OF_REASON:
            return OF_REASON[reason]
    return "Check `--root`, `--projection` and the fact file."


def refuse_difference(old: dict[str, object], new: dict[str, object], shards: Path) -> None:
    """Raise `UserError` naming what differs between the recipe of `shards` and the one asked for now."""
    different = [name for name in new if old.get(name) != new[name]]
    if not different:
        return
    if "id key" in different:
        different = [name for name in different if name not in BY_KEY]
    shown = [name if len(str(new[name])) > 20 else f"{name} {old.get(name)} -> {new[name]}" for name in different]
    raise UserError(
        f"A shard folder must hold one pack, got another: {', '.join(shown)} [in {str(shards)!r}]. "
        f"To go on with this one, {_ways_back(different)}. For another pack choose a new `--out`."
    )


def repair_command(shards: Path, manifest: Manifest) -> str:
    """Return the command that mends a finished folder, with the options that it needs here."""
    parts = [f"cxrdist shards repair {shards} --root RAW"]
    if manifest.dataset not in {facts.name for facts in list_facts()}:
        parts.append("--name FACTS.yaml")  # its own, which the user has
    if not _is_default_key(manifest):
        parts.append("--id-key KEY")
    return " ".join(parts)


def _ways_back(different: Sequence[str]) -> str:
    # Another reading of the same files is another input, so its way back comes first.
    read = {"dataset", "fact file", "code version", "projection"} & set(different)
    causes = [name for name in different if not (name == "input files" and read)]
    ways = [_way_back(name) for name in causes if name != "samples per shard" or len(causes) == 1]
    return ", and ".join(dict.fromkeys(ways))


def _way_back(name: str) -> str:
    if name in Preprocessing.model_fields:
        option = "burned_in_text" if name == "declared_text" else name
        return f"give the same `--{option.replace('_', '-')}`"
    return OF_DIFFERENCE[name]


def _is_default_key(manifest: Manifest) -> bool:
    path = default_id_key()
    try:
        return path.exists() and Pseudonyms(open_id_key(path), manifest.namespace).fingerprint == manifest.id_key
    except UserError:
        return False
