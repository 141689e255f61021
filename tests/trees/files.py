"""What the trees are made of: tiny pictures and tables; and what tests ask of an import."""

import csv
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from cxrdist.datasets import detect, import_dataset
from cxrdist.datasets.records import Import, Row


def picture(path: Path, *, sixteen: bool = False) -> None:
    """Write noise of 8 by 8 pixels in the format of the suffix: JPEG, or PNG for any other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = np.uint16 if sixteen else np.uint8
    image = np.random.default_rng(0).integers(0, np.iinfo(kind).max, (8, 8), kind, endpoint=True)
    suffix = ".jpg" if path.suffix.lower() in (".jpg", ".jpeg") else ".png"
    path.write_bytes(cv2.imencode(suffix, image)[1].tobytes())


def table(path: Path, header: list[str], rows: Iterable[Mapping[str, str]], *, encoding: str = "utf-8") -> None:
    """Write a CSV file; cells that a row lacks are blank."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding=encoding) as file:
        writer = csv.DictWriter(file, header, restval="")
        writer.writeheader()
        writer.writerows(rows)


def imported(root: Path | Sequence[Path], name: str, images: int, **how: Any) -> Import:
    """Return what is found in `root`, known for the dataset `name`: each of its `images` is a row or a reject."""
    facts = detect(root)
    assert facts.name == name
    found = import_dataset(facts, root, **how)
    assert len(found.rows) + len(found.rejects) == images
    return found


def by_name(found: Import) -> dict[str, Row]:
    """Return the rows by their file's name; where all are called alike (``view1_frontal.jpg``), by its path."""
    return {Path(row.source).name if "view" not in row.source else row.source: row for row in found.rows}


def by_letter(found: Import) -> dict[str, Row]:
    """Return the rows by the first letter of their file's name."""
    return {row.path.name[0]: row for row in found.rows}


def reasons(found: Import) -> Counter[str]:
    """Return how many images were rejected, by reason."""
    return Counter(reject.reason for reject in found.rejects)


def ones(row: Row) -> set[str]:
    """Return the findings that are present."""
    return {name for name, value in row.findings.items() if value == 1}
