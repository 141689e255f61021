"""The report of a study: read its run folders, compute the statistics, write one page and its tables."""

from cxrdist.report.cells import CellFiles, Guard, ReportOptions, row_name
from cxrdist.report.external import ExternalFiles
from cxrdist.report.write import write_report

__all__ = ["CellFiles", "ExternalFiles", "Guard", "ReportOptions", "row_name", "write_report"]
