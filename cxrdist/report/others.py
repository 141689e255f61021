"""Beside a report's AUROC per finding: averages of every metric, and subgroups, as tables and for the page."""

import math
from collections.abc import Sequence
from typing import Any

from cxrdist.report.analysis import DatasetResult, StudyResult
from cxrdist.report.compared import better, level_told
from cxrdist.report.tables import (
    ABSENT,
    MISSING,
    NONE,
    Table,
    Text,
    interval,
    number,
    probability,
    row_heads,
    row_texts,
    signed,
)
from cxrdist.stats.comparison import Comparison, Difference, Estimate
from cxrdist.stats.meanings import MACRO, confidence
from cxrdist.stats.metrics import METRICS
from cxrdist.stats.subgroups import SubgroupRow

ARROWS = {"better": "▲", "worse": "▼", "differs": "◆"}
"""Verdict -> its mark; up is better, also where lower values are."""


def metrics_table(study: StudyResult) -> Table:
    """Return every average of every metric, a row per dataset, metric and strategy."""
    level = confidence(study.options.alpha)
    rows = [
        _metric_row(study, one, metric, average, strategy)
        for one in study.datasets
        if one.comparison
        for metric, average in _averages(one.comparison)
        for strategy in study.strategies
        if strategy in one.comparison.models
    ]
    names = row_heads(study)
    heads = (*names, "Metric", "Better", "Strategy", "Value", f"{level} CI", "Difference", f"{level} CI of it")
    caption = (
        f"Averages over findings and their difference to {study.options.reference}, in bold and judged where "
        f"q < {study.options.alpha:g}."
    )
    return Table("metrics", caption, (*heads, "p", "q"), tuple(rows), len(names))


def subgroup_tables(study: StudyResult) -> list[Table]:
    """Return a table per subgroup column that any dataset has, of the macro average of the first metric."""
    level = confidence(study.options.alpha)
    found = []
    for column in study.options.subgroups:
        rows = [
            (*row_texts(study, one), *_subgroup_row(row, len(one.comparison.counts)))
            for one in study.datasets
            if one.comparison
            for row in one.comparison.subgroups
            if row.column == column and row.finding == MACRO
        ]
        title = METRICS[study.options.metrics[0]].title
        names = row_heads(study)
        heads = (*names, column, "Images", "Patients", "Strategy", title, f"{level} CI", "Gap to the rest")
        caption = f"{title} by {column}, mean over findings, its gap to all other images; q is over a dataset."
        if rows:
            columns = (*heads, f"{level} CI of it", "p", "q")
            found.append(Table(f"by-{column}", caption, columns, tuple(rows), len(names)))
    return found


def metric_blocks(study: StudyResult) -> list[dict[str, Any]]:
    """Return for the page, per dataset, a row per metric and average with a cell per strategy.

    The macro average of the AUROC is left out, as the page begins with it.
    """
    blocks = []
    for one in study.datasets:
        if one.comparison is None:
            continue
        rows = [
            {
                "title": _title(metric, average),
                "note": better(metric),
                "more": "",
                "cells": [_metric_cell(study, one, metric, average, name) for name in study.strategies],
            }
            for metric, average in _averages(one.comparison)
            if (metric, average) != ("auroc", MACRO)
        ]
        blocks += [{"dataset": one.name, "rows": rows}] if rows else []
    return blocks


def subgroup_blocks(study: StudyResult) -> list[dict[str, Any]]:
    """Return for the page, per column and dataset, a row per level with a cell per strategy."""
    blocks = []
    for column in study.options.subgroups:
        for one in study.datasets:
            found = [row for row in _subgroups(one) if row.column == column and row.finding == MACRO]
            rows = []
            for level in dict.fromkeys(row.level for row in found):
                by_model = {row.model: row for row in found if row.level == level}
                first = next(iter(by_model.values()))
                counts = (
                    f"{first.n_images:,} image{_s(first.n_images)}, {first.n_patients:,} patient{_s(first.n_patients)}"
                )
                note = "" if math.isnan(first.value) else first.note
                cells = [_subgroup_cell(by_model.get(name), name in one.absent) for name in study.strategies]
                rows.append({"title": level, "note": counts, "more": note, "cells": cells})
            blocks += [{"column": column, "dataset": one.name, "rows": rows}] if rows else []
    return blocks


def verdict(d: Difference, comparison: Comparison) -> str:
    """Return ``better``, ``worse``, or ``differs`` where the metric has no direction; nothing unless q < alpha."""
    if math.isnan(d.q) or d.q >= comparison.options.alpha:
        return ""
    good = METRICS[d.metric].better
    if good == "target":
        return "differs"
    return "better" if (d.value > 0) == (good == "higher") else "worse"


def _averages(comparison: Comparison) -> list[tuple[str, str]]:
    return [(metric, average) for metric in comparison.options.metrics for average in comparison.options.averages]


def _title(metric: str, average: str) -> str:
    return METRICS[metric].title if average == MACRO else f"{METRICS[metric].title}, {average}"


def _direction(metric: str) -> str:
    known = METRICS[metric]
    return known.better if known.target is None else f"near {known.target:g}"


def _numbers(
    comparison: Comparison, metric: str, average: str, strategy: str
) -> tuple[Estimate | None, Difference | None]:
    """Return an average and its difference to the reference; None for what has none, as a slope."""
    try:
        estimate = comparison.estimate(strategy, average, metric)
    except KeyError:
        return None, None
    d = comparison.difference(strategy, average, metric=metric)
    return (None if math.isnan(estimate.value) else estimate), (None if d is None or math.isnan(d.value) else d)


def _best(comparison: Comparison, metric: str, average: str) -> str | None:
    """Return the strategy with the best number, None if it stands alone or nothing is defined."""
    found = [_numbers(comparison, metric, average, name)[0] for name in comparison.models]
    values = {one.model: one.value for one in found if one}
    known = METRICS[metric]
    if len(values) < 2:
        return None
    target = known.target
    if target is not None:
        return min(values, key=lambda name: abs(values[name] - target))
    return (max if known.better == "higher" else min)(values, key=lambda name: values[name])


def _metric_row(study: StudyResult, one: DatasetResult, metric: str, average: str, strategy: str) -> tuple[Text, ...]:
    assert one.comparison
    estimate, d = _numbers(one.comparison, metric, average, strategy)
    value = Text(number(estimate.value), _best(one.comparison, metric, average) == strategy) if estimate else Text(NONE)
    bounds = Text(interval(estimate.low, estimate.high) if estimate else NONE)
    told = (
        *row_texts(study, one),
        Text(_title(metric, average)),
        Text(_direction(metric)),
        Text(strategy),
        value,
        bounds,
    )
    if d is None:
        return (*told, Text("reference" if strategy == study.options.reference else NONE), *[Text(NONE)] * 3)
    said = verdict(d, one.comparison)
    difference = Text(f"{signed(d.value)} ({said})" if said else signed(d.value), bool(said))
    return (
        *told,
        difference,
        *(Text(t) for t in (interval(d.low, d.high, signed), probability(d.p), probability(d.q))),
    )


def _metric_cell(study: StudyResult, one: DatasetResult, metric: str, average: str, strategy: str) -> dict[str, Any]:
    comparison = one.comparison
    if comparison is None or strategy not in comparison.models:
        return _no_cell(strategy in one.absent)
    estimate, d = _numbers(comparison, metric, average, strategy)
    if estimate is None:
        return _cell(NONE)
    first = _best(comparison, metric, average) == strategy
    bounds = interval(estimate.low, estimate.high)
    if d is None:
        below = ["reference"] if strategy == study.options.reference else []
        return _cell(number(estimate.value), bounds, below, best=first)
    said = verdict(d, comparison)
    tone = {"better": "up strong", "worse": "down strong"}.get(said, "")
    q = f"q = {probability(d.q)}".replace("= <", "< ")
    below = [f"{signed(d.value)} {interval(d.low, d.high, signed)}", f"{q} {ARROWS.get(said, '')} {said}".strip()]
    return _cell(number(estimate.value), bounds, below, tone=tone, best=first)


def _subgroup_row(row: SubgroupRow, findings: int) -> tuple[Text, ...]:
    if math.isnan(row.value):
        numbers = [row.note or NONE, *[NONE] * 5]
    else:
        gap = [signed(row.gap), interval(row.gap_low, row.gap_high, signed), probability(row.p), probability(row.q)]
        numbers = [number(row.value), interval(row.low, row.high), *gap]
    cells = (level_told(row, findings), f"{row.n_images:,}", f"{row.n_patients:,}", row.model, *numbers)
    return tuple(Text(cell) for cell in cells)


def _subgroup_cell(row: SubgroupRow | None, absent: bool) -> dict[str, Any]:
    if row is None:
        return _no_cell(absent)
    if math.isnan(row.value):
        return _cell(NONE, below=[row.note] if row.note else [])
    below = []
    if not math.isnan(row.gap):
        q = f"q = {probability(row.q)}".replace("= <", "< ")
        below = [f"gap {signed(row.gap)} {interval(row.gap_low, row.gap_high, signed)}", q]
    return _cell(number(row.value), interval(row.low, row.high), below)


def _no_cell(absent: bool) -> dict[str, Any]:
    return _cell(ABSENT, tone="absent") if absent else _cell(MISSING, tone="missing")


def _cell(
    value: str, bounds: str = "", below: Sequence[str] = (), *, tone: str = "", best: bool = False
) -> dict[str, Any]:
    return {"value": value, "interval": bounds, "below": list(below), "tone": tone, "best": best}


def _subgroups(one: DatasetResult) -> Sequence[SubgroupRow]:
    return one.comparison.subgroups if one.comparison else ()


def _s(count: int) -> str:
    return "" if count == 1 else "s"
