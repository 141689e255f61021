"""Learning curves: AUROC against the size of the training set, where variants of a dataset differ in it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cxrdist.report.analysis import DatasetResult, StudyResult
from cxrdist.report.cells import Cell, flatten
from cxrdist.report.tables import Table, Text, interval, number, signed
from cxrdist.stats.comparison import Difference, Estimate
from cxrdist.stats.meanings import MACRO, confidence

GROWS_WITH_SIZE = ("train_images", "train.", "optim.", "seed", "shards", "model.weights")
"""What the points of one curve may differ in besides the size: more images are trained on for longer."""


@dataclass(frozen=True)
class Point:
    """One strategy at one size."""

    variant: str
    images: float
    """In the training set; mean over seeds where these draw whole patients until a size is reached."""
    estimate: Estimate
    difference: Difference | None


@dataclass(frozen=True)
class LearningCurves:
    """What one panel shows."""

    title: str
    dataset: str
    lines: dict[str, tuple[Point, ...]]
    """By strategy, sizes rising; every strategy with a point."""


def learning_curves(study: StudyResult) -> list[LearningCurves]:
    """Return the curves of every dataset whose variants have two sizes or more; others make no curve."""
    found = []
    for dataset in dict.fromkeys(one.dataset for one in study.datasets):
        families = _families([one for one in study.datasets if one.dataset == dataset])
        curves = [(family, lines) for family in families if len(_sizes(lines := _lines(study, family))) > 1]
        for family, lines in curves:
            names = f": {family[0].variant} … {family[-1].variant}" if len(curves) > 1 else ""
            found.append(LearningCurves(f"{dataset}{names}", dataset, lines))
    return found


def learning_rows(study: StudyResult) -> list[dict[str, Any]]:
    """Return a flat row per point for csv."""
    return [
        {
            "dataset": curves.dataset,
            "variant": point.variant,
            "strategy": strategy,
            "train_images": point.images,
            "auroc": point.estimate.value,
            "auroc_low": point.estimate.low,
            "auroc_high": point.estimate.high,
            "auroc_sd_seeds": point.estimate.spread,
            "reference": study.options.reference,
            "difference": point.difference.value if point.difference else math.nan,
            "difference_low": point.difference.low if point.difference else math.nan,
            "difference_high": point.difference.high if point.difference else math.nan,
            "q": point.difference.q if point.difference else math.nan,
        }
        for curves in learning_curves(study)
        for strategy, points in curves.lines.items()
        for point in points
    ]


def learning_table(study: StudyResult) -> Table:
    """Return the mean AUROC of every strategy by the size of the training set, a row per dataset and strategy."""
    found = learning_curves(study)
    sizes = sorted({round(point.images) for curves in found for line in curves.lines.values() for point in line})
    rows = []
    for curves in found:
        for strategy, line in curves.lines.items():
            at = {round(point.images): point for point in line}
            rows.append((Text(curves.title), Text(strategy), *(_text(study, at.get(size)) for size in sizes)))
    heads = tuple(f"{size:,} images" for size in sizes)
    caption = (
        f"Mean AUROC over findings [{confidence(study.options.alpha)} interval] by the size of the training set; in "
        f"bold where its difference to {study.options.reference} has q < {study.options.alpha:g}."
    )
    return Table("learning", caption, ("Dataset", "Strategy", *heads), tuple(rows))


def _text(study: StudyResult, point: Point | None) -> Text:
    if point is None:
        return Text("–")
    d = point.difference
    sure = d is not None and d.q < study.options.alpha
    told = f" ({signed(d.value)})" if d is not None and not math.isnan(d.value) else ""
    one = point.estimate
    return Text(f"{number(one.value)} {interval(one.low, one.high)}{told}", sure)


def _families(rows: Sequence[DatasetResult]) -> list[list[DatasetResult]]:
    """Return rows that are alike but for the size, by rising size; each in the first family that it fits."""
    families: list[list[DatasetResult]] = []
    for one in sorted(rows, key=lambda row: min(_images(row).values(), default=math.inf)):
        fitting = (family for family in families if all(_alike(one, other) for other in family))
        family = next(fitting, None)
        if family is None:
            families.append([one])
        else:
            family.append(one)
    return families


def _alike(one: DatasetResult, other: DatasetResult) -> bool:
    ours, theirs = _settings(one), _settings(other)
    sizes, other_sizes = _images(one), _images(other)
    shared = ours.keys() & theirs.keys()
    return all(ours[name] == theirs[name] and sizes[name] != other_sizes[name] for name in shared)


def _settings(one: DatasetResult) -> dict[str, dict[str, str]]:
    """Return what each strategy's cells are made with, as far as the points of a curve must agree in it."""
    found: dict[str, dict[str, str]] = {}
    for cell in _finished(one):
        flat = flatten(cell.config)
        kept = {name: repr(value) for name, value in flat.items() if not name.startswith(GROWS_WITH_SIZE)}
        found.setdefault(cell.files.strategy, kept)
    return found


def _images(one: DatasetResult) -> dict[str, float]:
    """Return the size of each strategy's training set, mean over its cells."""
    sizes: dict[str, list[int]] = {}
    for cell in _finished(one):
        assert cell.train_images is not None
        sizes.setdefault(cell.files.strategy, []).append(cell.train_images)
    return {strategy: sum(counts) / len(counts) for strategy, counts in sizes.items()}


def _finished(one: DatasetResult) -> list[Cell]:
    return [cell for cell in one.cells if cell.test and cell.train_images is not None]


def _lines(study: StudyResult, family: Sequence[DatasetResult]) -> dict[str, tuple[Point, ...]]:
    lines = {}
    for strategy in study.strategies:
        points = []
        for one in family:
            images = _images(one).get(strategy)
            if images is None or one.comparison is None or strategy not in one.comparison.models:
                continue
            estimate = one.comparison.estimate(strategy, MACRO)
            if not math.isnan(estimate.value):
                points.append(Point(one.variant, images, estimate, one.comparison.difference(strategy, MACRO)))
        if points:
            lines[strategy] = tuple(sorted(points, key=lambda point: point.images))
    return lines


def _sizes(lines: dict[str, tuple[Point, ...]]) -> set[float]:
    return {point.images for line in lines.values() for point in line}
