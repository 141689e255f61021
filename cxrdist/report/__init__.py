"""The report of a study: read its run folders, compute the statistics, write one page and its tables.

Names load when they are first asked for: every trial on a cluster reads a study's options, and none draws a figure.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cxrdist.report.cells import CellFiles, Guard, ReportOptions, row_name
    from cxrdist.report.external import ExternalFiles
    from cxrdist.report.write import write_report

__all__ = ["CellFiles", "ExternalFiles", "Guard", "ReportOptions", "row_name", "write_report"]

HOME = {"ExternalFiles": "external", "write_report": "write"}
"""Modules of the names that are not in `cells`."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{HOME.get(name, 'cells')}"), name)
