"""From one image file to display-ready pixels: the only path from stored values to what a model sees."""

from cxrdist.dicom.radiograph import MAX_PIXELS, Radiograph, read_radiograph
from cxrdist.dicom.resize import quantise, shrink

__all__ = ["MAX_PIXELS", "Radiograph", "quantise", "read_radiograph", "shrink"]
