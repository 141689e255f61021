"""A small tree of every dataset, in its real layout and with the traps of the real copies.

Each module makes the trees of one family.  A maker writes below a folder, and returns how many images the dataset then
has: those that its tables name, and the image files that none of them does.
"""

from collections.abc import Callable
from pathlib import Path

from tests.trees import (
    aachen,
    chexpert,
    covid,
    jsrt,
    kermany,
    mimic,
    nih14,
    openi,
    padchest,
    pneumothorax,
    rsna,
    tuberculosis,
    vindr,
)

TREES: dict[str, Callable[[Path], int]] = {
    **aachen.TREES,
    **chexpert.TREES,
    **covid.TREES,
    **jsrt.TREES,
    **kermany.TREES,
    **mimic.TREES,
    **nih14.TREES,
    **padchest.TREES,
    **openi.TREES,
    **pneumothorax.TREES,
    **rsna.TREES,
    **tuberculosis.TREES,
    **vindr.TREES,
}
"""By dataset; ``dataset/form`` are further forms of it."""
