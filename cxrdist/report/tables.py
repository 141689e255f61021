"""The report's tables: numbers in full for csv, the same numbers rounded for readers in Markdown and LaTeX."""

import csv
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cxrdist.findings import titles
from cxrdist.report.analysis import RATES, DatasetResult, StudyResult
from cxrdist.report.cells import Guard
from cxrdist.stats.comparison import Comparison, Difference, Estimate
from cxrdist.stats.meanings import MACRO, confidence

NONE = "–"
"""What stands where there is no number, so that no cell is blank."""
MISSING = "missing"
ABSENT = "not in the grid"
"""What stands where a study has no cell by its design."""

LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "–": "--", "−": "$-$", "×": r"$\times$", "±": r"$\pm$", "Δ": r"$\Delta$",
}  # fmt: skip
LATEX_ROWS_OF_A_PAGE = 45
MARKDOWN = {"\\": "\\\\", "|": "\\|", "<": "&lt;", ">": "&gt;", "&": "&amp;", "*": "\\*", "_": "\\_", "`": "\\`"}


@dataclass(frozen=True)
class Text:
    """One cell for readers."""

    text: str
    bold: bool = False


@dataclass(frozen=True)
class Table:
    """A table for readers; every row has as many cells as there are columns, none of them blank."""

    name: str
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Text, ...], ...]
    grouped_by: int = 1
    """First columns whose values, where they repeat, are one group."""


def number(value: float, digits: int = 3) -> str:
    """Return a rounded number, with a true minus sign, or a dash if undefined."""
    if math.isnan(value):
        return NONE
    return f"{value:.{digits}f}".replace("-", "−")


def signed(value: float) -> str:
    """Return a rounded difference with its sign."""
    return NONE if math.isnan(value) else f"{value:+.3f}".replace("-", "−")


def interval(low: float, high: float, show: Any = number) -> str:
    """Return ``[low, high]``, or a dash if undefined."""
    return NONE if math.isnan(low) or math.isnan(high) else f"[{show(low)}, {show(high)}]"


def probability(value: float) -> str:
    """Return a p- or q-value to three decimals."""
    if math.isnan(value):
        return NONE
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def title_of(finding: str) -> str:
    """Return a finding's title for readers."""
    return "Mean over findings" if finding == MACRO else titles().get(finding, finding.replace("_", " "))


def best(comparison: Comparison | None, finding: str) -> str | None:
    """Return the strategy with the highest AUROC, None if it stands alone or nothing is defined."""
    if comparison is None:
        return None
    found = [comparison.estimate(model, finding) for model in comparison.models]
    found = [one for one in found if not math.isnan(one.value)]
    return max(found, key=lambda e: e.value).model if len(found) > 1 else None


def headline_rows(study: StudyResult) -> list[dict[str, Any]]:
    """Return a flat row per dataset, variant and strategy for csv.

    A strategy without results has the status ``missing``, one without a cell by design ``absent``.
    """
    return [_flat(study, one, strategy, MACRO) for one in study.datasets for strategy in study.strategies]


def finding_rows(study: StudyResult) -> list[dict[str, Any]]:
    """Return a flat row per dataset, finding and strategy for csv."""
    return [
        _flat(study, one, strategy, count.finding)
        | {"positive": count.positive, "negative": count.negative, "masked": count.masked}
        | (one.rates.get((strategy, count.finding)) or dict.fromkeys(RATES, math.nan))
        for one in study.datasets
        for count in (one.comparison.counts if one.comparison else ())
        for strategy in study.strategies
        if strategy not in one.absent
    ]


def row_heads(study: StudyResult) -> tuple[str, ...]:
    """Return the names of the columns that `row_texts` fills."""
    return ("Dataset", "Variant") if any(one.variant for one in study.datasets) else ("Dataset",)


def row_texts(study: StudyResult, one: DatasetResult) -> list[Text]:
    """Return what names a dataset in a table, and its variant where any has one."""
    return [Text(one.dataset), *([Text(one.variant or NONE)] if len(row_heads(study)) > 1 else [])]


def headline_table(study: StudyResult) -> Table:
    """Return macro AUROC and difference to the reference, a row per dataset and strategy."""
    level = confidence(study.options.alpha)
    several = len(study.seeds) > 1
    rows = []
    for one in study.datasets:
        for strategy in study.strategies:
            row = [*row_texts(study, one), Text(strategy)]
            row += _auroc_texts(study, one, strategy, MACRO, with_spread=several)
            rows.append(tuple(row + _difference_texts(study, one, strategy, MACRO)))
    seeds = ("SD over seeds",) if several else ()
    heads = row_heads(study)
    columns = (*heads, "Strategy", "AUROC", f"{level} CI", *seeds, "Difference", f"{level} CI of it", "p", "q")
    within = " and variant" * (len(heads) > 1)
    caption = (
        f"Mean AUROC over findings and its difference to {study.options.reference}; the best per dataset{within} in "
        "bold."
    )
    return Table("headline", caption, columns, tuple(rows), len(heads))


def finding_table(study: StudyResult) -> Table:
    """Return AUROC, rates and difference, a row per dataset, finding and strategy."""
    level = confidence(study.options.alpha)
    rows = []
    for one in study.datasets:
        for count in one.comparison.counts if one.comparison else ():
            for strategy in (name for name in study.strategies if name not in one.absent):
                rate = one.rates.get((strategy, count.finding)) or dict.fromkeys(RATES, math.nan)
                row = [*row_texts(study, one), Text(title_of(count.finding)), Text(strategy)]
                row += [Text(f"{count.positive} / {count.positive + count.negative}")]
                row += _auroc_texts(study, one, strategy, count.finding)
                row += [Text(number(rate["sensitivity"], 2)), Text(number(rate["specificity"], 2))]
                rows.append(tuple(row + _difference_texts(study, one, strategy, count.finding)))
    heads = row_heads(study)
    columns = (*heads, "Finding", "Strategy", "n positive / n", "AUROC", f"{level} CI", "Sens.", "Spec.")
    caption = "AUROC per finding; sensitivity and specificity at the threshold that validation gave."
    return Table("findings", caption, (*columns, "Difference", f"{level} CI of it", "p", "q"), tuple(rows), len(heads))


def guard_table(guards: Sequence[Guard]) -> Table:
    """Return the guards as a table."""
    rows = [
        (Text("passed" if g.passed else "FAILED", not g.passed), Text(g.name), Text(g.detail or NONE)) for g in guards
    ]
    return Table("guards", "Checks of rigor.", ("Result", "Check", "Detail"), tuple(rows))


def write_csv(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Write flat rows as `csv_text` gives them."""
    path.write_text(csv_text(rows), encoding="utf-8")


def csv_text(rows: Sequence[dict[str, Any]]) -> str:
    """Return flat rows with numbers in full; undefined numbers are empty fields, as statistics programs want them."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: "" if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()})
    return buffer.getvalue()


def markdown(table: Table) -> str:
    """Return `table` in GitHub's Markdown."""

    def line(texts: Sequence[str]) -> str:
        return f"| {' | '.join(texts)} |"

    def cell(one: Text) -> str:
        text = _escape(one.text, MARKDOWN)
        return f"**{text}**" if one.bold else text

    head = [line([_escape(name, MARKDOWN) for name in table.columns]), line(["---"] * len(table.columns))]
    body = [line([cell(one) for one in row]) for row in table.rows]
    return "\n".join([f"{_escape(table.caption, MARKDOWN)}\n", *head, *body, ""])


def latex(table: Table) -> str:
    r"""Return `table` for LaTeX with ``\usepackage{booktabs}``, a long one with ``\usepackage{longtable}`` besides.

    A rule parts the groups of the first columns where they repeat themselves.
    """
    heads = " & ".join(_latex_cell(Text(name)) for name in table.columns) + r" \\"
    groups = [row[: table.grouped_by] for row in table.rows]
    grouped = len(set(groups)) < len(groups)
    body: list[str] = []
    for above, row in zip([None, *groups], table.rows, strict=False):
        body += [r"\midrule"] if grouped and above is not None and row[: table.grouped_by] != above else []
        body.append(" & ".join(_latex_cell(one) for one in row) + r" \\")
    name = re.sub(r"[^A-Za-z0-9]+", "-", table.name)
    caption, columns = rf"\caption{{{_escape(table.caption, LATEX)}}}", "l" * len(table.columns)
    if len(table.rows) > LATEX_ROWS_OF_A_PAGE:
        top = [rf"\begin{{longtable}}{{{columns}}}", rf"{caption}\label{{tab:{name}}}\\"]
        repeated = [r"\toprule", heads, r"\midrule", r"\endhead", r"\bottomrule", r"\endfoot"]
        return "\n".join([*top, *repeated, *body, r"\end{longtable}", ""])
    top = [r"\begin{table}", r"\centering", caption, rf"\label{{tab:{name}}}", rf"\begin{{tabular}}{{{columns}}}"]
    bottom = [r"\bottomrule", r"\end{tabular}", r"\end{table}", ""]
    return "\n".join([*top, r"\toprule", heads, r"\midrule", *body, *bottom])


def _latex_cell(one: Text) -> str:
    text = _escape(one.text, LATEX)
    # After the end of a row LaTeX takes a bracket for a length and a star for a command's own.
    text = f"{{}}{text}" if text.startswith(("[", "*")) else text
    return rf"\textbf{{{text}}}" if one.bold else text


def _flat(study: StudyResult, one: DatasetResult, strategy: str, finding: str) -> dict[str, Any]:
    estimate, difference = _numbers(one, strategy, finding)
    return {
        "dataset": one.dataset,
        "variant": one.variant,
        "strategy": strategy,
        "finding": finding,
        "status": "done" if estimate else "absent" if strategy in one.absent else MISSING,
        "seeds": len(estimate.by_member) if estimate else 0,
        "auroc": estimate.value if estimate else math.nan,
        "auroc_low": estimate.low if estimate else math.nan,
        "auroc_high": estimate.high if estimate else math.nan,
        "auroc_sd_seeds": estimate.spread if estimate else math.nan,
        "reference": study.options.reference,
        "difference": difference.value if difference else math.nan,
        "difference_low": difference.low if difference else math.nan,
        "difference_high": difference.high if difference else math.nan,
        "p": difference.p if difference else math.nan,
        "q": difference.q if difference else math.nan,
        "delong_p": difference.delong.p if difference and difference.delong else math.nan,
    }


def _auroc_texts(
    study: StudyResult, one: DatasetResult, strategy: str, finding: str, *, with_spread: bool = False
) -> list[Text]:
    estimate, _ = _numbers(one, strategy, finding)
    if estimate is None:
        told = ABSENT if strategy in one.absent else MISSING
        return [Text(told), Text(NONE), *([Text(NONE)] if with_spread else [])]
    spread = [Text(number(estimate.spread))] if with_spread else []
    winner = best(one.comparison, finding) == strategy
    return [Text(number(estimate.value), winner), Text(interval(estimate.low, estimate.high)), *spread]


def _difference_texts(study: StudyResult, one: DatasetResult, strategy: str, finding: str) -> list[Text]:
    _, d = _numbers(one, strategy, finding)
    if strategy == study.options.reference and strategy not in one.absent:
        return [Text("reference"), Text(NONE), Text(NONE), Text(NONE)]
    if d is None:
        return [Text(NONE)] * 4
    sure = d.q < study.options.alpha
    return [
        Text(signed(d.value), sure),
        Text(interval(d.low, d.high, signed)),
        Text(probability(d.p)),
        Text(probability(d.q)),
    ]


def _numbers(one: DatasetResult, strategy: str, finding: str) -> tuple[Estimate | None, Difference | None]:
    if one.comparison is None or strategy not in one.comparison.models:
        return None, None
    return one.comparison.estimate(strategy, finding), one.comparison.difference(strategy, finding)


def _escape(text: str, table: dict[str, str]) -> str:
    return "".join(table.get(character, character) for character in text.replace("\n", " "))
