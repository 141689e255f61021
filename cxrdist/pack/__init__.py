"""From a dataset's own files to a shard folder, once, and never with a name in it."""

from cxrdist.pack.dataset import pack_dataset, repair_dataset
from cxrdist.pack.options import PackOptions
from cxrdist.pack.pseudonyms import default_id_key, id_map_path
from cxrdist.pack.run import pack_rows

__all__ = ["PackOptions", "default_id_key", "id_map_path", "pack_dataset", "pack_rows", "repair_dataset"]
