"""What tests of drawn data sets need: the plan that a tree was drawn from."""

import json
from pathlib import Path

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
