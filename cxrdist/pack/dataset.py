"""Packing and repairing a dataset as it lies on the disk."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cxrdist.datasets import FactFile, Import, UnknownLabelsError, fact_hash, import_dataset, list_facts, read_facts
from cxrdist.datasets.columns import derived_findings
from cxrdist.datasets.shard_format import Manifest, read_manifest
from cxrdist.dispatch import Map
from cxrdist.errors import UsageError, UserError
from cxrdist.pack.changes import recall_changes
from cxrdist.pack.options import PackOptions
from cxrdist.pack.plan import DatasetName
from cxrdist.pack.private import write_private
from cxrdist.pack.pseudonyms import check_id_key, default_id_key
from cxrdist.pack.run import pack_rows


def pack_dataset(
    facts: FactFile,
    root: Path | Sequence[Path],
    out: Path,
    options: PackOptions | None = None,
    *,
    spread: Map | None = None,
    shown: bool = True,
) -> Manifest:
    """Pack the dataset below `root` into the shard folder `out` and return its manifest.

    The same input, options and id key give the same bytes, whatever the number of workers and of interruptions.  A
    finished folder of the same input is left as it is, but broken or missing shards of it are built again.

    Args:
        facts: What the dataset looks like on disk.
        root: The dataset's folder, or the folders that hold it together.
        out: New, empty, an interrupted pack, or a finished one.
        options: How to pack; see `PackOptions`.
        spread: The map that builds the shards, in any order; None is one over `options.workers` processes.
        shown: Whether progress goes to standard error.

    Raises:
        UserError: If there is nothing to pack, too much of it is broken, or `out` holds something else.
    """
    options = options or PackOptions()
    title = f"{facts.title} ({facts.variant})" if facts.variant else facts.title
    dataset = DatasetName(
        facts.name,
        title,
        facts.namespace,
        fact_hash(facts),
        variant=facts.variant,
        changes=facts.changes,
        policy=facts.policy,
        burned_in_text=facts.burned_in_text,
        derived=tuple(derived_findings(facts)),
        patients_known=facts.has_patient_ids,
    )
    found = _import(facts, root, options, shown=shown)
    return pack_rows(dataset, found, out, options, spread=spread, shown=shown)


def packed_facts(
    shards: Path,
    *,
    name: str | None = None,
    variant: str | None = None,
    changes: Mapping[str, Any] | None = None,
    id_key: Path | None = None,
) -> FactFile:
    """Return the facts that the finished folder `shards` was packed with.

    Args:
        shards: The folder.
        name: The dataset or fact file; None: the dataset in the manifest, if it comes with the tool.
        variant: None: that of the manifest.
        changes: All facts that were changed by hand; none: those in the private file beside the id key.
        id_key: None: the default one.

    Raises:
        UsageError, UserError: If something of it is not known any more; the sentence says which option tells it.
    """
    manifest, key = read_manifest(shards), id_key or default_id_key()
    if name is None and manifest.dataset not in {facts.name for facts in list_facts()}:
        raise UsageError(
            f"A dataset whose fact file does not come with cxrdist must be given, got none [for {manifest.dataset!r}]. "
            f"Name the file that it was packed with: `--name FACTS.yaml`."
        )
    check_id_key(key, manifest.id_key, shards)
    return read_facts(
        name or manifest.dataset,
        variant=variant or manifest.variant,
        changes=changes or recall_changes(manifest, key),
    )


def repair_dataset(
    facts: FactFile,
    root: Path | Sequence[Path],
    shards: Path,
    *,
    id_key: Path | None = None,
    workers: int = 1,
    shown: bool = True,
) -> Manifest:
    """Build the broken and missing shards of the finished folder `shards` again, as they were.

    Raises:
        UserError: If the dataset below `root`, the id key or the code is another one than `shards` was packed with.
    """
    manifest = read_manifest(shards)
    check_id_key(id_key or default_id_key(), manifest.id_key, shards)
    how = {name: value for name, value in manifest.preprocessing.model_dump().items() if value is not None}
    # A policy that the user named is that of both kinds of text; else the fact file decides again.
    if how.pop("declared_text") != how.get("burned_in_text"):
        how.pop("burned_in_text", None)
    options = PackOptions(**how, samples_per_shard=manifest.samples_per_shard, id_key=id_key, workers=workers)
    return pack_dataset(facts, root, shards, options, shown=shown)


def _import(facts: FactFile, root: Path | Sequence[Path], options: PackOptions, *, shown: bool) -> Import:
    try:
        return import_dataset(facts, root, projection=options.projection, shown=shown)
    except UnknownLabelsError as error:
        words, message = error.words, str(error)
    private = (options.id_key or default_id_key()).parent / f"{facts.name}.unknown_labels.txt"
    # For the owner's eyes alone: a label cell can hold a name.
    text = "".join(f"{count}\t{word}\n" for word, count in words.most_common())
    write_private(private, text.encode(), "The list of unknown labels")
    raise UserError(f"{message} They are listed in {str(private)!r}, which only you can read.")
