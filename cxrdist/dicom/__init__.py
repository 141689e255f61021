"""From one image file to display-ready pixels: the only path from stored values to what a model sees.

The names here are imported when they are first asked for: who wants `PixelHints` alone waits for no decoder.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cxrdist.dicom.choices import BurnedInPolicy, Equalize
    from cxrdist.dicom.hints import PixelHints, RawImage
    from cxrdist.dicom.radiograph import MAX_PIXELS, Radiograph, read_radiograph
    from cxrdist.dicom.resize import quantise, shrink

HOMES = {
    "BurnedInPolicy": "choices",
    "Equalize": "choices",
    "PixelHints": "hints",
    "RawImage": "hints",
    "MAX_PIXELS": "radiograph",
    "Radiograph": "radiograph",
    "read_radiograph": "radiograph",
    "quantise": "resize",
    "shrink": "resize",
}
__all__ = [
    "MAX_PIXELS",
    "BurnedInPolicy",
    "Equalize",
    "PixelHints",
    "Radiograph",
    "RawImage",
    "quantise",
    "read_radiograph",
    "shrink",
]


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"cxrdist.dicom.{HOMES[name]}"), name)
