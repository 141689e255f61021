"""A report's numbers once more under the convention of Tayebi Arasteh et al. 2024, labelled as such everywhere."""

from typing import Any

from cxrdist.report.analysis import StudyResult
from cxrdist.report.tables import NONE, Table, Text, number, row_heads, row_texts
from cxrdist.stats.meanings import MACRO
from cxrdist.stats.metrics import METRICS as TITLES
from cxrdist.stats.tayebi2024 import CONVENTION, LABEL, METRICS, Value, Verdict


def replication_rows(study: StudyResult) -> list[dict[str, Any]]:
    """Return a flat row per dataset, strategy, finding and metric, and one per P, for csv."""
    rows = [
        {"convention": CONVENTION, "kind": kind, "dataset": one.dataset, "variant": one.variant, **row}
        for one in study.datasets
        if one.replication
        for kind, some in (("value", one.replication.rows()), ("difference", one.replication.difference_rows()))
        for row in some
    ]
    columns = dict.fromkeys(name for row in rows for name in row)
    return [{name: row.get(name, "") for name in columns} for row in rows]


def replication_table(study: StudyResult) -> Table:
    """Return the label means as that paper prints them, a row per dataset and strategy."""
    rows: list[tuple[Text, ...]] = []
    for one in study.datasets:
        found = one.replication
        for strategy in found.models if found else ():
            assert found
            auroc, *values = [_percent(found.value(strategy, MACRO, metric)) for metric in METRICS]
            verdict = next((v for v in found.verdicts if (v.model, v.finding) == (strategy, MACRO)), None)
            p = _p(verdict, found.n_resamples)
            rows.append((*row_texts(study, one), *(Text(cell) for cell in (strategy, auroc, *p, *values))))
    auroc, *others = (f"{TITLES[name].title}, %" for name in METRICS)
    heads = (*row_heads(study), "Strategy", auroc, "P", "Higher AUROC", *others)
    caption = f"{LABEL} Label means ± that standard deviation, P against {study.options.reference}."
    return Table(CONVENTION, caption, heads, tuple(rows), len(row_heads(study)))


def _percent(one: Value) -> str:
    return f"{number(100 * one.mean, 2)} ± {number(100 * one.standard_deviation, 2)}"


def _p(verdict: Verdict | None, n_resamples: int) -> tuple[str, str]:
    if verdict is None:
        return "reference", NONE
    p = f"<{1 / n_resamples:g}" if verdict.p == 0 else number(verdict.p)
    return p, verdict.higher or "neither"
