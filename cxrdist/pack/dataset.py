"""Packing and repairing a dataset as it lies on the disk."""

from pathlib import Path

from cxrdist.datasets import FactFile, fact_hash, import_dataset
from cxrdist.datasets.shard_format import Manifest, read_manifest
from cxrdist.dispatch import Map
from cxrdist.pack.options import PackOptions
from cxrdist.pack.plan import DatasetName
from cxrdist.pack.run import pack_rows


def pack_dataset(
    facts: FactFile,
    root: Path,
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
        root: The dataset's folder.
        out: New, empty, an interrupted pack, or a finished one.
        options: How to pack; see `PackOptions`.
        spread: The map that builds the shards, in any order; None is one over `options.workers` processes.
        shown: Whether progress goes to standard error.

    Raises:
        UserError: If there is nothing to pack, too much of it is broken, or `out` holds something else.
    """
    options = options or PackOptions()
    dataset = DatasetName(facts.name, facts.title, facts.namespace, fact_hash(facts))
    found = import_dataset(facts, root, projection=options.projection)
    return pack_rows(dataset, found, out, options, spread=spread, shown=shown)


def repair_dataset(
    facts: FactFile, root: Path, shards: Path, *, id_key: Path | None = None, workers: int = 1, shown: bool = True
) -> Manifest:
    """Build the broken and missing shards of the finished folder `shards` again, as they were.

    Raises:
        UserError: If the dataset below `root`, the id key or the code is another one than `shards` was packed with.
    """
    manifest = read_manifest(shards)
    how = {name: value for name, value in manifest.preprocessing.model_dump().items() if value is not None}
    options = PackOptions(**how, samples_per_shard=manifest.samples_per_shard, id_key=id_key, workers=workers)
    return pack_dataset(facts, root, shards, options, shown=shown)
