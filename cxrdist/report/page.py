"""The page: one self-contained HTML file, no script, nothing loaded from elsewhere; every text is escaped."""

import base64
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from cxrdist.report.analysis import BINS, DatasetResult, StudyResult
from cxrdist.report.cells import Cell, Guard, flatten
from cxrdist.report.compared import CORRECTIONS, meanings
from cxrdist.report.external import Across
from cxrdist.report.external_tables import external_page
from cxrdist.report.figures import colours, many
from cxrdist.report.learning import learning_curves, learning_table
from cxrdist.report.others import metric_blocks, subgroup_blocks
from cxrdist.report.replication import replication_table
from cxrdist.report.tables import (
    ABSENT,
    MISSING,
    NONE,
    Table,
    best,
    interval,
    number,
    probability,
    signed,
    title_of,
)
from cxrdist.stats.comparison import Comparison, Difference
from cxrdist.stats.meanings import AVERAGES, MACRO, STATEMENTS, confidence
from cxrdist.stats.metrics import METRICS

# Allow-list: what of environment.json may be read by anyone who gets the report.  First words of dotted names.
SHOWN_FACTS = re.compile(
    r"^(git|revision|version|libraries|python|platform|cxrdist|world|seed|shard|manifest|device|gpu|cuda|precision|steps|global_batch)"
)
ABSOLUTE_PATH = re.compile(r"^(/|~|[A-Za-z]:\\)|://")


def render(
    study: StudyResult,
    *,
    title: str,
    guards: Sequence[Guard],
    notes: Sequence[str],
    figures: Mapping[str, bytes],
    files: Sequence[str],
    across: Across | None = None,
) -> str:
    """Return the page; `figures` are SVG files by name, `files` the names of the tables beside the page."""
    maps = [name for name in figures if name.startswith("external")]
    folder = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    shared, own_names, own = provenance([cell for one in study.datasets for cell in one.cells])
    return environment.get_template("page.html.j2").render(
        title=title,
        style=(folder / "page.css").read_text(encoding="utf-8"),
        facts=_facts(study),
        reference=study.options.reference,
        alpha=f"{study.options.alpha:g}",
        level=confidence(study.options.alpha),
        summary=summary(study),
        tally=tally(study) if many(study) else [],
        headline=_headline(study),
        rows=_headline_rows(study) if many(study) else [],
        learning=_plain(learning_table(study)) if learning_curves(study) else None,
        convention=_plain(replication_table(study)) if any(one.replication for one in study.datasets) else None,
        across=external_page(across, study, maps) if across else None,
        palette=colours(study.strategies, study.options.reference),
        guards=guards,
        failed=sum(not guard.passed for guard in guards),
        datasets=[_dataset(study, one) for one in study.datasets],
        linked=_linked(study),
        strategies=study.strategies,
        metrics=metric_blocks(study),
        subgroups=subgroup_blocks(study),
        **_methods(study),
        notes=notes,
        figures={name: f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}" for name, svg in figures.items()},
        files=files,
        shared_facts=shared,
        own_names=own_names,
        own_facts=own,
    )


def summary(study: StudyResult) -> list[str]:
    """Return the result in words, a sentence per dataset; what q does not support is not claimed."""
    sentences = []
    reference, alpha = study.options.reference, study.options.alpha
    for one in study.datasets:
        winner = best(one.comparison, MACRO)
        if one.comparison is None or winner is None:
            sentences.append(f"{one.name}: {'no comparison' if one.fault else 'only one strategy has results'}.")
            continue
        top = one.comparison.estimate(winner)
        text = f"{one.name}: {winner} has the highest mean AUROC, {number(top.value)} {interval(top.low, top.high)}"
        differences = [d for d in one.comparison.differences if (d.metric, d.finding) == ("auroc", MACRO)]
        better = [d for d in differences if d.q < alpha and d.value > 0]
        worse = [d for d in differences if d.q < alpha and d.value < 0]
        text += f"; above {reference} with q < {alpha:g}: {_named(better)}" if better else ""
        text += f"; below {reference} with q < {alpha:g}: {_named(worse)}" if worse else ""
        if differences and not better and not worse:
            text += f"; no difference to {reference} has q < {alpha:g}"
        sentences.append(f"{text}.")
    return sentences


def tally(study: StudyResult) -> list[str]:
    """Return a sentence per strategy: on how many datasets and variants it is above or below the reference."""
    alpha = study.options.alpha
    sentences = []
    for strategy in study.strategies:
        found = [one.comparison.difference(strategy) for one in study.datasets if one.comparison]
        known = [d for d in found if d is not None and not math.isnan(d.value)]
        if known:
            above, below = (sum(d.q < alpha and sign * d.value > 0 for d in known) for sign in (1, -1))
            mean = sum(d.value for d in known) / len(known)
            sentences.append(
                f"{strategy} is above {study.options.reference} in {above} of {len(known)} comparisons with "
                f"q < {alpha:g}, below it in {below}; the mean of its differences is {signed(mean)}."
            )
    return sentences


def provenance(cells: Sequence[Cell]) -> tuple[list[tuple[str, str]], list[str], list[tuple[str, list[str]]]]:
    """Return the facts all cells share, the names of those they do not, and these per cell."""
    trees = [flatten(_with_shards_in_words(cell.environment)) for cell in cells]
    facts = [{name: str(v) for name, v in tree.items() if _may_show(name, v)} for tree in trees]
    names = list(dict.fromkeys(name for one in facts for name in one))
    shared = [name for name in names if len({one.get(name) for one in facts if one}) == 1 and len(facts) > 1]
    own_names = [name for name in names if name not in shared]
    own = [(cell.label, [one.get(name, NONE) for name in own_names]) for cell, one in zip(cells, facts, strict=True)]
    first = next((one for one in facts if one), {})
    return [(name, first[name]) for name in shared], own_names, own


def _with_shards_in_words(environment: Mapping[str, Any]) -> dict[str, Any]:
    """Return the environment with ``name hash`` of each shard folder as one text, in the order they were read."""
    told = environment.get("shard_manifests")
    if not isinstance(told, list):
        return dict(environment)
    words = [f"{one.get('name')} {one.get('sha256')}" if isinstance(one, Mapping) else "unreadable" for one in told]
    return {**environment, "shard_manifests": "; ".join(words)}


def _may_show(name: str, value: Any) -> bool:
    return bool(SHOWN_FACTS.match(name)) and value not in (None, "") and not ABSOLUTE_PATH.search(str(value))


def _named(differences: Sequence[Difference]) -> str:
    return ", ".join(f"{d.model} ({signed(d.value)}, q = {probability(d.q)})".replace("= <", "< ") for d in differences)


def _facts(study: StudyResult) -> list[tuple[str, str]]:
    # Variants of a dataset have the same test images.
    done = {one.dataset: one.comparison for one in study.datasets if one.comparison}.values()
    counts = (
        (len(study.strategies), "strategy", "strategies"),
        (len({one.dataset for one in study.datasets}), "dataset", "datasets"),
        *([(len(variants), "variant", "variants")] if (variants := _variants(study)) else []),
        (len(study.seeds), "seed", "seeds"),
        (sum(one.n_images for one in done), "test image", "test images"),
        (sum(one.n_patients for one in done), "test patient", "test patients"),
        (study.options.n_resamples, "bootstrap redraw", "bootstrap redraws"),
    )
    return [(f"{count:,}", one if count == 1 else many) for count, one, many in counts]


def _headline(study: StudyResult) -> list[dict[str, Any]]:
    return [
        {"strategy": strategy, "cells": [_cell(study, one, strategy, MACRO) for one in study.datasets]}
        for strategy in study.strategies
    ]


def _variants(study: StudyResult) -> set[str]:
    return {one.variant for one in study.datasets if one.variant}


def _headline_rows(study: StudyResult) -> list[dict[str, Any]]:
    """Return the headline with a row per dataset and variant, and in each cell no more than fits into its column."""
    rows = []
    for i, one in enumerate(study.datasets):
        cells = [_cell(study, one, strategy, MACRO) for strategy in study.strategies]
        for cell, strategy in zip(cells, study.strategies, strict=True):
            d = one.comparison.difference(strategy) if one.comparison else None
            if d is not None and not math.isnan(d.value):
                q = f"q {probability(d.q)}".replace("q <", "q < ")
                cell["below"] = [f"{signed(d.value)} {cell['arrow'] or '·'} {q}"]
        first = i == 0 or study.datasets[i - 1].dataset != one.dataset
        rows.append({"dataset": one.dataset, "variant": one.variant, "first": first, "number": i, "cells": cells})
    return rows


def _linked(study: StudyResult) -> list[tuple[int, str]]:
    """Return the datasets to link to: all of them with their variants, or, where these are many, each at its first."""
    names = [one.dataset if many(study) else one.name for one in study.datasets]
    return [(i, name) for i, name in enumerate(names) if name not in names[:i]]


def _plain(table: Table) -> dict[str, Any]:
    return {"caption": table.caption, "columns": table.columns, "rows": table.rows}


def _dataset(study: StudyResult, one: DatasetResult) -> dict[str, Any]:
    counts = one.comparison.counts if one.comparison else ()
    shown = [strategy for strategy in study.strategies if strategy not in one.absent]
    rows = [
        {
            "title": title_of(count.finding),
            "n": f"{count.positive} / {count.positive + count.negative}",
            "cells": [_cell(study, one, strategy, count.finding) for strategy in shown],
        }
        for count in counts
    ]
    text = _counts(one.comparison) if one.comparison else "No numbers."
    return {
        "name": one.name, "fault": one.fault, "warnings": one.warnings, "rows": rows, "counts": text,
        "strategies": shown,
    }  # fmt: skip


def _methods(study: StudyResult) -> dict[str, Any]:
    done = [one.comparison for one in study.datasets if one.comparison]
    tests = [d for one in done for d in one.differences if d.metric == "auroc" and not math.isnan(d.p)]
    averages = sum(d.finding in AVERAGES for d in tests)
    lost = [e.redraws_undefined for one in done for e in one.estimates if (e.metric, e.finding) == ("auroc", MACRO)]
    return {
        "n_seeds": len(study.seeds),
        "n_resamples": f"{study.options.n_resamples:,}",
        "redraw_seed": study.options.seed,
        "cluster": study.options.cluster,
        "smallest_p": f"{2 / (study.options.n_resamples + 1):.2g}",
        "undefined": max((count for count in lost if count < study.options.n_resamples), default=0),
        "n_averages": averages,
        "n_per_finding": len(tests) - averages,
        "options": study.options,
        "bins": BINS,
        "has_rates": any(METRICS[name].needs_threshold for name in study.options.metrics),
        "correction": CORRECTIONS[study.options.correction],
        "meanings": meanings(study),
        "statements": STATEMENTS,
    }


def _counts(comparison: Comparison) -> str:
    masked = sum(count.masked for count in comparison.counts)
    labels = f", {masked:,} masked labels" if masked else ""
    sample = f"{comparison.n_images:,} test images of {comparison.n_patients:,} patients"
    return f"{sample}, {len(comparison.counts)} findings{labels}."


def _cell(study: StudyResult, one: DatasetResult, strategy: str, finding: str) -> dict[str, Any]:
    comparison = one.comparison
    if comparison is None or strategy not in comparison.models:
        if strategy in one.absent:
            return {"value": ABSENT, "interval": "", "below": [], "tone": "absent", "best": False, "arrow": ""}
        fault = "not comparable" if one.fault and strategy not in one.missing else MISSING
        return {"value": fault, "interval": "", "below": [], "tone": "missing", "best": False, "arrow": ""}
    estimate = comparison.estimate(strategy, finding)
    d = comparison.difference(strategy, finding)
    sure = d is not None and d.q < study.options.alpha
    tone = ("" if d is None or math.isnan(d.value) else "up" if d.value > 0 else "down") + (" strong" if sure else "")
    spread = "" if math.isnan(estimate.spread) or finding != MACRO else f" ± {number(estimate.spread)}"
    if finding == MACRO:
        below = _difference_lines(d) if d else ["reference" if strategy == study.options.reference else "no reference"]
        seeds = len({cell.files.seed for cell in one.cells if cell.files.strategy == strategy})
        few = len(estimate.by_member) < seeds
        below += [f"only {len(estimate.by_member)} of {seeds} seeds"] if few else []
    else:
        rates = one.rates.get((strategy, finding))
        below = [f"{number(rates['sensitivity'], 2)} / {number(rates['specificity'], 2)}"] if rates else []
    return {
        "value": number(estimate.value) + spread,
        "interval": interval(estimate.low, estimate.high),
        "below": below,
        "tone": tone,
        "best": best(comparison, finding) == strategy,
        "arrow": ("▲" if d.value > 0 else "▼") if d is not None and sure else "",
    }


def _difference_lines(d: Difference) -> list[str]:
    test = f"p = {probability(d.p)}, q = {probability(d.q)}".replace("= <", "< ")
    return [f"{signed(d.value)} {interval(d.low, d.high, signed)}", test]
