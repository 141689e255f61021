"""Procedural chest radiographs, written in the on-disk layouts of real data sets.

No patient is behind any of them: demo and tests drive the real importers with pictures that anybody may see.
"""

from cxrdist.phantom.gallery import contact_sheet
from cxrdist.phantom.write import LAYOUTS, PhantomSummary, write_phantoms

__all__ = ["LAYOUTS", "PhantomSummary", "contact_sheet", "write_phantoms"]
