"""What tests of drawn data sets need: the plan that a tree was drawn from, its files, and where a chest is bright."""

import json
from pathlib import Path

import numpy as np

from cxrdist.phantom import LAYOUTS
from cxrdist.phantom.layouts.base import Item, Order
from cxrdist.phantom.write import MARK


def plan_of(root: Path) -> tuple[list[Item], Order]:
    """Return the images that a tree was planned with, planted losses included, and what was ordered."""
    facts = json.loads((root / MARK).read_text(encoding="utf-8"))
    layout = LAYOUTS[facts.pop("layout")]
    order = Order(**facts)
    return layout.plan(order), order


def files_in(folder: Path) -> dict[str, bytes]:
    """Return ``{relative path: bytes}`` of all files below `folder`."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def spine_and_lungs(shown: np.ndarray) -> tuple[float, list[float]]:
    """Return how bright (H, W) pixels of a frontal chest are on average, in the spine and in either lung."""
    rows, columns = shown.shape
    across = shown[int(0.42 * rows) : int(0.55 * rows)].mean(axis=0)
    lungs = [across[int(a * columns) : int((a + 0.12) * columns)].mean() for a in (0.2, 0.68)]
    return float(across[int(0.45 * columns) : int(0.55 * columns)].mean()), [float(lung) for lung in lungs]
