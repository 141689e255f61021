"""Writes a data set of drawn radiographs in a real data set's layout."""

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2

from cxrdist.errors import UsageError, UserError, unknown
from cxrdist.log import progress
from cxrdist.phantom.disease import DRAWN
from cxrdist.phantom.layouts import HOMES
from cxrdist.phantom.layouts.base import Item, Layout, Order


def _layout(home: str) -> Layout:
    module, name = home.split(".")
    found = getattr(import_module(f"cxrdist.phantom.layouts.{module}"), name)
    assert isinstance(found, Layout), home
    return found


LAYOUTS: dict[str, Layout] = {name: _layout(home) for name, home in HOMES.items()}

MARK = ".cxrdist-phantom.json"
"""Marks a folder as ours and says what it was made from."""

_CHUNK = 16
SMALLEST, LARGEST = 48, 4096


@dataclass(frozen=True)
class PhantomSummary:
    """What was written."""

    layout: str
    root: Path
    """What an importer is given."""
    patients: int
    images: int
    """Rows of the tables, planted traps included."""
    held_out: int
    """Images of the official test part."""
    findings: dict[str, int]
    """Images per finding that is present, broader ones included; canonical names."""


def write_phantoms(  # noqa: PLR0913 - all of what can be chosen of a phantom
    layout: str,
    out: Path,
    *,
    patients: int,
    seed: int = 0,
    difficulty: float = 0.5,
    size: int | None = None,
    workers: int = 1,
    prevalence: Mapping[str, float] | None = None,
    held_out: float | None = None,
    traps: bool = True,
    shown: bool = True,
) -> PhantomSummary:
    """Draw `patients` patients into `out` in the on-disk layout of a real data set.

    The same arguments give the same bytes, whatever `workers` is.  Writing again into a folder made by this function
    replaces it; any other folder with something in it is refused.

    Args:
        layout: A key of `LAYOUTS`.
        out: The data set's root; made if missing.
        patients: Number of patients, >= 2.
        seed: Seed of everything drawn.
        difficulty: 0 (findings obvious) .. 1 (barely visible).
        size: Short side of the pictures, pixels; default the layout's.
        workers: Processes that draw.
        prevalence: Share of the images per drawn finding; replaces the layout's table as a whole, so that
            ``{"cardiomegaly": 0.5}`` draws nothing else.
        held_out: Share of the patients in the official test part; default the layout's.
        traps: Plant what real copies contain: junk files, a truncated image, a missing one, odd rows.
        shown: Show progress.

    Raises:
        UsageError: If the layout or a finding is unknown, or a number is out of range.
        UserError: If `out` holds something else.
    """
    if layout not in LAYOUTS:
        raise UsageError(unknown("A phantom layout", layout, LAYOUTS))
    plan = LAYOUTS[layout]
    order = Order(
        patients=_within("patients", patients, 2, 99_999),
        seed=_within("seed", seed, 0, 2**63 - 1),
        difficulty=_within("difficulty", difficulty, 0.0, 1.0),
        size=_within("size", plan.size if size is None else size, SMALLEST, LARGEST),
        prevalence=_prevalence(plan.prevalence if prevalence is None else prevalence),
        healthy=plan.healthy if prevalence is None else 0.0,
        held_out=_within("held_out", plan.held_out if held_out is None else held_out, 0.0, 1.0),
        traps=traps,
    )
    workers = _within("workers", workers, 1, 1024)
    _claim(out, layout, order)
    items = plan.plan(order)
    for folder in sorted({(out / item.path).parent for item in items}):
        folder.mkdir(parents=True, exist_ok=True)
    with progress(f"Drawing {layout}", len(items), shown=shown) as bar:
        for count in _draw_all(plan, items, order, out, workers):
            bar.advance(count)
    plan.write_tables(items, order, out)
    if order.traps:
        _spoil(items, out)
    return _summary(plan, items, out)


def _draw_all(plan: Layout, items: Sequence[Item], order: Order, out: Path, workers: int) -> Iterator[int]:
    """Draw everything, yielding how many were done; a worker's threads would only fight for the same cores."""
    chunks = [items[k : k + _CHUNK] for k in range(0, len(items), _CHUNK)]
    if workers == 1:
        yield from map(partial(_draw_chunk, plan.name), chunks, repeat(order), repeat(out))
        return
    # Spawned, not forked: a parent that has started threads (torch, OpenCV) must not be forked.
    with ProcessPoolExecutor(min(workers, len(chunks)), mp_context=get_context("spawn")) as pool:
        yield from pool.map(partial(_draw_chunk, plan.name), chunks, repeat(order), repeat(out))


def _draw_chunk(layout: str, items: Sequence[Item], order: Order, out: Path) -> int:
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        for item in items:
            LAYOUTS[layout].write_image(item, order, out / item.path)
    finally:
        cv2.setNumThreads(threads)
    return len(items)


def _claim(out: Path, layout: str, order: Order) -> None:
    """Empty a folder that an earlier call made, refuse any other that is not empty, and mark it as ours."""
    mark = out / MARK
    made: dict[str, Any] = {"layout": layout, "patients": order.patients, "seed": order.seed}
    made |= {"difficulty": order.difficulty, "size": order.size, "prevalence": dict(order.prevalence)}
    made |= {"healthy": order.healthy, "held_out": order.held_out, "traps": order.traps}
    if out.exists() and not out.is_dir():
        raise UserError(f"Phantoms need a folder, got a file at {str(out)!r}. Name another place.")
    if out.is_dir() and any(out.iterdir()):
        if not mark.is_file():
            raise UserError(
                f"Phantoms are written into an empty folder, got one with files in it: {str(out)!r}. Name another."
            )
        _empty(out, keep=mark)
    out.mkdir(parents=True, exist_ok=True)
    mark.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")


def _empty(folder: Path, keep: Path) -> None:
    """Remove what is below `folder` except `keep`; links are removed, never followed."""
    for entry in sorted(folder.iterdir()):
        if entry == keep:
            continue
        if entry.is_dir() and not entry.is_symlink():
            _empty(entry, keep)
            entry.rmdir()
        else:
            entry.unlink()


def _spoil(items: Sequence[Item], out: Path) -> None:
    """Cut one image short and take one away: downloads end early.  Small data sets keep all their images."""
    train = [item for item in items if not item.held_out and item.projection != "lateral"]
    if len(train) < 12:
        return
    torn = out / train[len(train) // 3].path
    torn.write_bytes(torn.read_bytes()[: torn.stat().st_size // 3])
    (out / train[2 * len(train) // 3].path).unlink()


def _summary(plan: Layout, items: Sequence[Item], out: Path) -> PhantomSummary:
    counts = Counter(name for item in items for name in item.labels)
    test = sum(item.held_out for item in items)
    patients = len({item.key.patient for item in items})
    return PhantomSummary(plan.name, out, patients, len(items), test, dict(sorted(counts.items())))


def _prevalence(shares: Mapping[str, float]) -> dict[str, float]:
    wrong = [unknown("A drawn finding", name, DRAWN) for name in shares if name not in DRAWN]
    if wrong:
        raise UsageError("\n".join(wrong))
    return {name: _within(f"prevalence of {name}", shares[name], 0.0, 0.95) for name in DRAWN if name in shares}


def _within(name: str, value: Any, low: float, high: float) -> Any:
    if not (isinstance(value, int | float) and math.isfinite(value) and low <= value <= high):
        raise UsageError(f"`{name}` must lie in {low} .. {high}, got {value!r}.")
    return value
