"""A comparison for readers: tables for the terminal, the page and LaTeX, one long table for csv."""

import math
from collections.abc import Sequence
from typing import Any

from cxrdist.report.analysis import StudyResult
from cxrdist.report.tables import NONE, Table, Text, interval, number, title_of
from cxrdist.stats.comparison import Comparison, Difference
from cxrdist.stats.meanings import AVERAGES, STATEMENTS, confidence
from cxrdist.stats.metrics import METRICS
from cxrdist.stats.subgroups import SubgroupRow

CORRECTIONS = {
    "bh": "Benjamini-Hochberg",
    "by": "Benjamini-Yekutieli",
    "holm": "Holm",
    "max_t": "max-T",
    "none": "no correction",
}
TESTS = {
    "p_delong": "DeLong p",
    "p_permutation": "permutation p",
    "p_mcnemar": "McNemar p",
    "p_non_inferior": "p non-inferior",
    "p_equivalent": "p equivalent",
}
"""Field of a difference -> its name; a column is shown where any difference has a number."""
NOT_ADJUSTED = ("p_non_inferior", "p_equivalent")
"""Of these, claims of their own, which no q stands beside."""
CSV_TESTS = {f"{name}_not_adjusted" if name in NOT_ADJUSTED else name: name for name in TESTS}
"""Column -> field."""

CSV_COLUMNS = (
    "kind", "model", "reference", "metric", "finding", "column", "level", "value", "low", "high", "p", "q",
    *CSV_TESTS, "standard_error", "standard_error_patients", "delong_standard_error", "sd_seeds", "n_files",
    "threshold", "redraws_undefined", "n_images", "n_patients", "n_positive", "note",
)  # fmt: skip


def tables(comparison: Comparison) -> list[Table]:
    """Return a table of estimates per metric, one of differences, and one per subgroup column."""
    found = [_estimates(comparison, metric) for metric in comparison.options.metrics]
    if comparison.differences:
        found.append(_differences(comparison))
    columns = dict.fromkeys(row.column for row in comparison.subgroups)
    return found + [_subgroups(comparison, column) for column in columns]


def csv_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """Return every number in full as flat rows of `CSV_COLUMNS`; what does not apply is NaN or empty."""
    rows = [
        {
            "kind": "estimate",
            **row,
            "sd_seeds": row["spread"],
            "n_files": len(row["by_member"]),
            **_sizes(comparison, row["finding"]),
        }
        for row in comparison.rows()
    ]
    for row in comparison.difference_rows():
        tests = {column: row[name] for column, name in CSV_TESTS.items()}
        rows.append({"kind": "difference", **row, **tests})
    for one in comparison.subgroups:
        common = {name: getattr(one, name) for name in CSV_COLUMNS if hasattr(one, name)}
        rows.append({"kind": "subgroup", **common, "metric": comparison.metric, "p": math.nan, "q": math.nan})
        gap = {"metric": comparison.metric, "value": one.gap, "low": one.gap_low, "high": one.gap_high, "p": one.p}
        rows.append({"kind": "subgroup_gap", **common, **gap})
    return [{name: row.get(name, "") for name in CSV_COLUMNS} for row in rows]


def _sizes(comparison: Comparison, finding: str) -> dict[str, int]:
    """Return what a number rests on: images with a label, their patients, positive images; of averages, all images."""
    for one in comparison.counts:
        if one.finding == finding:
            labelled = one.positive + one.negative
            return {"n_images": labelled, "n_patients": one.patients, "n_positive": one.positive}
    return {"n_images": comparison.n_images, "n_patients": comparison.n_patients}


def study_rows(study: StudyResult) -> list[dict[str, Any]]:
    """Return `csv_rows` of every dataset and variant of a report, with their names."""
    return [
        {"dataset": one.dataset, "variant": one.variant, **row}
        for one in study.datasets
        if one.comparison
        for row in csv_rows(one.comparison)
    ]


def meanings(study: StudyResult) -> list[tuple[str, str]]:
    """Return the title of each metric of a report and a sentence on what it is."""
    return [(METRICS[name].title, METRICS[name].meaning) for name in study.options.metrics]


def sentences(comparison: Comparison) -> list[str]:
    """Return in a sentence each what the numbers of `tables` are."""
    options = comparison.options
    level = confidence(options.alpha)
    drawn = "patients" if options.cluster == "patient_id" else "images"
    drawn += " and of other training seeds" if options.hierarchical else ""
    told = [f"{METRICS[name].title} ({better(name)}): {METRICS[name].meaning}" for name in options.metrics]
    told.append(
        f"[low, high]: {level} {'BCa' if options.interval == 'bca' else options.interval} interval of "
        f"{options.n_resamples} redraws of {drawn}, the same for all models."
    )
    raised = [METRICS[name].title for name in options.metrics if METRICS[name].raised_by_redraws]
    if raised:
        told.append(
            f"Redraws raise the {' and '.join(raised)} of a model; its interval is the basic one of squares, whatever "
            "that of the others is."
        )
    if comparison.differences:
        told.append(f"p: {STATEMENTS['p']}")
        told.append(f"q: {STATEMENTS['q']} Here: {CORRECTIONS[options.correction]}.")
        rows = comparison.difference_rows()
        told += [
            f"{_heading(name, options.margin)}: {STATEMENTS[title]}"
            for name, title in TESTS.items()
            if _any(rows, name)
        ]
    if comparison.subgroups:
        told.append(f"gap to the rest: {STATEMENTS['gap to the rest']}")
        told.append(
            "q of a gap: p adjusted over all models and levels of a column; averages are a family of their own."
        )
    return told


def better(metric: str) -> str:
    """Return in words which values of a metric are good."""
    one = METRICS[metric]
    return f"{one.better} is better" if one.target is None else f"{one.target:g} is right"


def _heading(name: str, margin: float | None) -> str:
    return f"{TESTS[name]} within {margin:g} (not adjusted)" if name in NOT_ADJUSTED else TESTS[name]


def _estimates(comparison: Comparison, metric: str) -> Table:
    level = confidence(comparison.options.alpha)
    findings = dict.fromkeys(one.finding for one in comparison.estimates)
    rows = []
    for finding in findings:
        sizes = _sizes(comparison, finding)
        positive = f"{sizes['n_positive']} / {sizes['n_images']}" if "n_positive" in sizes else NONE
        cells = [Text(_title(finding)), Text(positive)]
        for model in comparison.models:
            one = comparison.estimate(model, finding, metric)
            spread = "" if math.isnan(one.spread) else f" ± {number(one.spread, 4)}"
            told = f"{number(one.value, 4)}{spread} {_four(one.low, one.high)}"
            cells.append(Text(NONE if math.isnan(one.value) else told))
        rows.append(tuple(cells))
    files = any(len(one.by_member) > 1 for one in comparison.estimates)
    seeds = " ± standard deviation between files" if files else ""
    caption = f"{METRICS[metric].title} ({better(metric)}){seeds} [{level} interval]"
    return Table(metric, caption, ("finding", "positive / n", *comparison.models), tuple(rows))


def _differences(comparison: Comparison) -> Table:
    level = confidence(comparison.options.alpha)
    flat = comparison.difference_rows()
    tests = [name for name in TESTS if _any(flat, name)]
    several = len(comparison.options.metrics) > 1
    rows = []
    for d, row in zip(comparison.differences, flat, strict=True):
        cells = [f"{d.model} − {d.reference}", _title(d.finding)]
        cells += [f"{METRICS[d.metric].title} ({better(d.metric)})"] if several else []
        cells += [_signed(d.value), _four(d.low, d.high, _signed), _p(d.p), _p(d.q), *(_p(row[name]) for name in tests)]
        rows.append(tuple(Text(cell, bold=_sure(d, comparison) and i == 2 + several) for i, cell in enumerate(cells)))
    value = "difference" if several else f"{METRICS[comparison.metric].title} ({better(comparison.metric)})"
    heads = ("models", "finding", *(["metric"] if several else []), value, f"{level} interval", "p", "q")
    caption = f"Differences, two-sided p, q after {CORRECTIONS[comparison.options.correction]}"
    return Table(
        "differences", caption, (*heads, *(_heading(name, comparison.options.margin) for name in tests)), tuple(rows)
    )


def _subgroups(comparison: Comparison, column: str) -> Table:
    title = METRICS[comparison.metric].title
    of = len(comparison.counts)
    rows = [_subgroup(one, of) for one in comparison.subgroups if one.column == column]
    correction = CORRECTIONS[comparison.options.correction]
    caption = f"{title} ({better(comparison.metric)}) by {column}, its gap to all other images, q after {correction}"
    return Table(f"by-{column}", caption, _subgroup_heads(column, title), tuple(rows))


def _subgroup_heads(column: str, title: str) -> tuple[str, ...]:
    return ("model", "finding", column, "images", "patients", "positive", title, "gap to the rest", "p", "q")


def level_told(row: SubgroupRow, findings: int) -> str:
    """Return the level of a row, of a mean over a part of so many findings also over how many."""
    if row.n_findings is None or row.n_findings in (0, findings):
        return row.level
    return f"{row.level} ({row.n_findings} of {findings} findings)"


def _subgroup(one: SubgroupRow, findings: int) -> tuple[Text, ...]:
    counts = [str(one.n_images), str(one.n_patients), NONE if one.n_positive is None else str(one.n_positive)]
    if math.isnan(one.value):
        cells = [one.note or NONE, NONE, NONE, NONE]
    else:
        gap = NONE if math.isnan(one.gap) else f"{_signed(one.gap)} {_four(one.gap_low, one.gap_high, _signed)}"
        cells = [f"{number(one.value, 4)} {_four(one.low, one.high)}", gap, _p(one.p), _p(one.q)]
    return tuple(Text(cell) for cell in (one.model, _title(one.finding), level_told(one, findings), *counts, *cells))


def _sure(d: Difference, comparison: Comparison) -> bool:
    return d.q < comparison.options.alpha


def _any(rows: Sequence[dict[str, Any]], name: str) -> bool:
    return any(not math.isnan(row[name]) for row in rows)


def _title(finding: str) -> str:
    if finding in AVERAGES:
        return f"{finding} average"
    return title_of(finding)


def _four(low: float, high: float, show: Any = None) -> str:
    return interval(low, high, show or (lambda value: number(value, 4)))


def _signed(value: float) -> str:
    return NONE if math.isnan(value) else f"{value:+.4f}".replace("-", "−")


def _p(value: float) -> str:
    return NONE if math.isnan(value) else "<0.0001" if value < 0.0001 else f"{value:.4f}"
