"""What a user decides about reading an image; apart, so that who only names the choices loads no decoder."""

from typing import Literal

Equalize = Literal["none", "global", "clahe", "tayebi2024"]
"""How the histogram is spread, see `cxrdist.dicom.equalize`."""
BurnedInPolicy = Literal["reject", "flag", "mask"]
"""What becomes of an image with text in its pixels: left out, kept with a note, or kept with the text blackened."""
