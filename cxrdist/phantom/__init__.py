"""Procedural chest radiographs, written in the on-disk layouts of real data sets.

No patient is behind any of them: demo and tests drive the real importers with pictures that anybody may see.
The names below load when they are first used, so that the command line can list the layouts at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cxrdist.phantom.gallery import contact_sheet
    from cxrdist.phantom.write import LAYOUTS, PhantomSummary, write_phantoms

__all__ = ["LAYOUTS", "PhantomSummary", "contact_sheet", "write_phantoms"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{'gallery' if name == 'contact_sheet' else 'write'}"), name)
