"""Datasets as they lie on disk: fact files, detection, and one importer for all of them."""

from cxrdist.datasets.catalogue import fact_hash, list_facts, read_facts
from cxrdist.datasets.detect import describe_markers, detect
from cxrdist.datasets.facts import FactFile
from cxrdist.datasets.importer import UnknownLabelsError, import_dataset
from cxrdist.datasets.records import Import, Reject, Row

__all__ = [
    "FactFile",
    "Import",
    "Reject",
    "Row",
    "UnknownLabelsError",
    "describe_markers",
    "detect",
    "fact_hash",
    "import_dataset",
    "list_facts",
    "read_facts",
]
