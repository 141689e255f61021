"""The smallest fact file: somebody's own table of one finding, for tests to change."""

from typing import Any

from cxrdist.datasets import FactFile

OWN: dict[str, Any] = {
    "name": "mine",
    "title": "Mine",
    "home": "here",
    "licence": "mine",
    "coding": "0 or 1",
    "markers": [{"paths": ["labels.csv"]}],
    "layout": {"kind": "table", "tables": [{"files": ["labels.csv"]}], "image": "file"},
    "projections": {"*": "PA"},
    "labels": {"coding": "columns"},
    "findings": {"effusion": "Fluid"},
    "splits": {"test_fraction": 0.3, "val_fraction": 0.2},
    "namespace": "mine",
}


def own_facts(**changes: Any) -> FactFile:
    """Return the facts of `OWN` with other values of some fields."""
    return FactFile.build({**OWN, **changes}, where="mine.yaml")


def own_layout(**changes: Any) -> dict[str, Any]:
    """Return the layout of `OWN` with other values of some fields."""
    return {**OWN["layout"], **changes}
