"""Tests on other datasets as tables and as what the page shows of them."""

import math
from collections.abc import Sequence
from typing import Any

from cxrdist.report.analysis import StudyResult
from cxrdist.report.external import Across, PairResult
from cxrdist.report.tables import (
    ABSENT,
    MISSING,
    NONE,
    Table,
    Text,
    interval,
    number,
    probability,
    signed,
    title_of,
)
from cxrdist.stats.comparison import Difference, Estimate
from cxrdist.stats.meanings import MACRO, confidence

NOTHING = "nothing shared"
MARK = "†"


def external_rows(across: Across, study: StudyResult) -> list[dict[str, Any]]:
    """Return a flat row per pair of datasets, variant and strategy for csv, a strategy's own test among them."""
    rows = [
        _row(study, one.dataset, one.dataset, one.variant, strategy, "own" if strategy not in one.missing else MISSING)
        | _numbers(one.comparison.estimate(strategy) if one.comparison and strategy in one.comparison.models else None)
        for one in study.datasets
        if one.dataset in across.trained
        for strategy in study.strategies
        if strategy not in one.absent
    ]
    for pair in across.pairs:
        for strategy in pair.strategies:
            estimate, d = _found(pair, strategy)
            row = _row(study, pair.trained, pair.tested, pair.variant, strategy, _status(pair, strategy))
            row |= _numbers(estimate)
            row["own_auroc"] = pair.own[strategy]
            row["findings"] = " ".join(pair.findings)
            if pair.comparison:
                row |= {"images": pair.comparison.n_images, "patients": pair.comparison.n_patients}
            if d:
                names = {"difference": d.value, "difference_low": d.low, "difference_high": d.high, "p": d.p, "q": d.q}
                row |= names
            rows.append(row | {"remark": pair.nothing or pair.fault or pair.marks.get(strategy, "")})
    return rows


def external_finding_rows(across: Across, study: StudyResult) -> list[dict[str, Any]]:
    """Return a flat row per pair, strategy and shared finding for csv."""
    rows = []
    for pair in across.pairs:
        for count in pair.comparison.counts if pair.comparison else ():
            for strategy in pair.comparison.models if pair.comparison else ():
                estimate, d = _found(pair, strategy, count.finding)
                row = _row(study, pair.trained, pair.tested, pair.variant, strategy, "done") | _numbers(estimate)
                kept = {name: row[name] for name in row if name not in ("findings", "images", "patients", "own_auroc")}
                about = {"finding": count.finding, "positive": count.positive, "negative": count.negative}
                if d:
                    about |= {"difference": d.value, "difference_low": d.low, "difference_high": d.high}
                    about |= {"p": d.p, "q": d.q}
                rows.append(kept | about)
    return rows


def matrix_table(across: Across, study: StudyResult) -> Table:
    """Return mean AUROC, a row per variant, strategy and dataset trained on, a column per dataset tested on."""
    several = len(across.variants) > 1 or across.variants[0] != ""
    rows = []
    for variant in across.variants:
        for strategy in study.strategies:
            for trained in across.trained:
                cells = [_matrix_text(across, study, strategy, trained, tested, variant) for tested in across.tested]
                if all(cell.text == ABSENT for cell in cells):
                    continue
                names = [*([variant or NONE] if several else []), strategy, trained]
                rows.append((*(Text(name) for name in names), *cells))
    level = confidence(study.options.alpha)
    caption = (
        f"Mean AUROC [{level} interval] of models trained on one dataset (row) and tested on another one (column), "
        "over the findings that both share; in bold on their own test split, over all of their findings."
    )
    if any(pair.marks for pair in across.pairs):
        caption += f" {MARK}: not a dataset that the model has never met."
    heads = (*(("Variant",) if several else ()), "Strategy", "Trained on")
    return Table("external", caption, (*heads, *across.tested), tuple(rows), len(heads) - 1)


def differences_table(across: Across, study: StudyResult) -> Table:
    """Return every strategy of every pair with its difference to the reference."""
    level = confidence(study.options.alpha)
    several = len(across.variants) > 1 or across.variants[0] != ""
    rows = []
    for pair in across.pairs:
        for strategy in pair.strategies:
            estimate, d = _found(pair, strategy)
            texts = [pair.trained, pair.tested, *([pair.variant or NONE] if several else []), strategy]
            texts += [str(len(pair.findings))]
            if estimate is None:
                row = [*(Text(text) for text in texts), Text(_told(pair, strategy)), *[Text(NONE)] * 6]
            else:
                texts += [_marked(number(estimate.value), pair, strategy), interval(estimate.low, estimate.high)]
                row = [Text(text) for text in (*texts, number(pair.own[strategy]))]
                row += _difference_texts(study, strategy, d)
            rows.append(tuple(row))
    names = ("Trained on", "Tested on", *(("Variant",) if several else ()))
    numbers = ("AUROC", f"{level} CI", "Own test", "Difference", f"{level} CI of it", "p", "q")
    caption = (
        f"Tests on other datasets: mean AUROC over shared findings, beside it that on the own test split over the same "
        f"findings, and the difference to {study.options.reference}, in bold where q < {study.options.alpha:g}; q is "
        "over all pairs of datasets, a family of its own."
    )
    return Table("external-differences", caption, (*names, "Strategy", "Findings", *numbers), tuple(rows), len(names))


def external_page(across: Across, study: StudyResult, figures: Sequence[str]) -> dict[str, Any]:
    """Return what the page shows; `figures` are the names of the heat maps."""
    tests = [d for one in across.pairs if one.comparison for d in one.comparison.differences if not math.isnan(d.p)]
    return {
        "summary": _summary(across, study),
        "matrix": matrix_table(across, study),
        "figures": list(figures),
        "rows": [
            {
                "title": f"{pair.trained} → {pair.tested}",
                "note": ", ".join(
                    filter(None, [pair.variant, _counted(len(pair.findings), "finding") if pair.findings else ""])
                ),
                "more": pair.nothing,
                "cells": [_page_cell(pair, study, strategy) for strategy in study.strategies],
            }
            for pair in across.pairs
        ],
        "shared": _shared(across),
        "marks": _marks(across),
        "remarks": [text for pair in across.pairs for text in pair.remarks],
        "tests": sum(d.finding == MACRO for d in tests),
    }


def _summary(across: Across, study: StudyResult) -> list[str]:
    sentences = []
    alpha, reference = study.options.alpha, study.options.reference
    for strategy in study.strategies:
        found = [(pair, *_found(pair, strategy)) for pair in across.pairs]
        values = [(e.value, pair.own[strategy]) for pair, e, _ in found if e and not math.isnan(e.value)]
        if not values:
            sentences.append(f"{strategy}: no number on another dataset.")
            continue
        mean = sum(value for value, _ in values) / len(values)
        text = f"{strategy}: mean AUROC {number(mean)} over {_counted(len(values), 'test')} on other datasets"
        both = [(value, own) for value, own in values if not math.isnan(own)]
        if both:
            fall = sum(value - own for value, own in both) / len(both)
            text += f", {signed(fall)} against the own test splits over the same findings"
        differences = [d for _, _, d in found if d and not math.isnan(d.value)]
        if differences:
            above, below = (sum(d.q < alpha and sign * d.value > 0 for d in differences) for sign in (1, -1))
            text += f"; above {reference} with q < {alpha:g} in {above} of {len(differences)}, below it in {below}"
        sentences.append(f"{text}.")
    return sentences


def _shared(across: Across) -> list[str]:
    """Return a sentence for each pair of datasets on what both annotate, variants alike told once."""
    told = []
    for pair in across.pairs:
        name = f"{pair.trained} → {pair.tested}"
        if pair.nothing:
            told.append(f"{name}: {pair.nothing}.")
        elif pair.findings and pair.comparison:
            one_class = [count.finding for count in pair.comparison.counts if count.one_class]
            text = f"{name}: {', '.join(title_of(finding) for finding in pair.findings)}"
            if one_class:
                text += f"; of one class there, so in no mean: {', '.join(title_of(name) for name in one_class)}"
            told.append(f"{text}.")
    return list(dict.fromkeys(told))


def _marks(across: Across) -> list[str]:
    by_mark: dict[tuple[str, str], list[str]] = {}
    for pair in across.pairs:
        for strategy, mark in pair.marks.items():
            names = by_mark.setdefault((f"{pair.trained} → {pair.tested}", mark), [])
            if strategy not in names:
                names.append(strategy)
    return [f"{name} ({', '.join(strategies)}): {mark}" for (name, mark), strategies in by_mark.items()]


def _page_cell(pair: PairResult, study: StudyResult, strategy: str) -> dict[str, Any]:
    cell: dict[str, Any] = {"value": NONE, "interval": "", "below": [], "tone": "", "best": False}
    estimate, d = _found(pair, strategy)
    if estimate is None:
        told = _told(pair, strategy)
        return cell | {"value": told, "tone": "missing" if told == MISSING else "absent"}
    values = {name: e.value for name in pair.strategies if (e := _found(pair, name)[0]) and not math.isnan(e.value)}
    below = [f"own test {number(pair.own[strategy])}"]
    tone = ""
    if d is not None and not math.isnan(d.value):
        sure = d.q < study.options.alpha
        arrow = ("▲" if d.value > 0 else "▼") if sure else ""
        q = f"q = {probability(d.q)}".replace("= <", "< ")
        below += [f"{signed(d.value)} {interval(d.low, d.high, signed)}", f"{q} {arrow}".strip()]
        tone = f"{'up' if d.value > 0 else 'down'} strong" if sure else ""
    elif strategy == study.options.reference:
        below.append("reference")
    best = len(values) > 1 and max(values, key=lambda name: values[name]) == strategy
    shown = _marked(number(estimate.value), pair, strategy)
    return cell | {
        "value": shown, "interval": interval(estimate.low, estimate.high), "below": below, "tone": tone, "best": best,
    }  # fmt: skip


def _matrix_text(across: Across, study: StudyResult, strategy: str, trained: str, tested: str, variant: str) -> Text:
    if trained == tested:
        home = next((one for one in study.datasets if (one.dataset, one.variant) == (trained, variant)), None)
        if home is None or strategy in home.absent:
            return Text(ABSENT)
        if home.comparison is None or strategy not in home.comparison.models:
            return Text(MISSING)
        estimate = home.comparison.estimate(strategy)
        return Text(f"{number(estimate.value)} {interval(estimate.low, estimate.high)}", bold=True)
    pair = across.pair(trained, tested, variant)
    if pair is None or strategy not in pair.strategies:
        return Text(ABSENT)
    estimate_or_none, _ = _found(pair, strategy)
    if estimate_or_none is None:
        return Text(_told(pair, strategy))
    one = estimate_or_none
    return Text(f"{_marked(number(one.value), pair, strategy)} {interval(one.low, one.high)}")


def _difference_texts(study: StudyResult, strategy: str, d: Difference | None) -> list[Text]:
    if d is None:
        return [Text("reference" if strategy == study.options.reference else NONE), *[Text(NONE)] * 3]
    told = interval(d.low, d.high, signed), probability(d.p), probability(d.q)
    return [Text(signed(d.value), d.q < study.options.alpha), *(Text(text) for text in told)]


def _found(pair: PairResult, strategy: str, finding: str = MACRO) -> tuple[Estimate | None, Difference | None]:
    if pair.comparison is None or strategy not in pair.comparison.models:
        return None, None
    return pair.comparison.estimate(strategy, finding), pair.comparison.difference(strategy, finding)


def _status(pair: PairResult, strategy: str) -> str:
    if pair.nothing:
        return "nothing"
    return MISSING if strategy in pair.missing else "done"


def _told(pair: PairResult, strategy: str) -> str:
    """Return what stands where a strategy has no number."""
    if strategy not in pair.strategies:
        return ABSENT
    return (NOTHING if "finding" in pair.nothing else "no images") if pair.nothing else MISSING


def _marked(text: str, pair: PairResult, strategy: str) -> str:
    return f"{text}{MARK}" if strategy in pair.marks else text


def _row(study: StudyResult, trained: str, tested: str, variant: str, strategy: str, status: str) -> dict[str, Any]:
    nothing = math.nan
    return {
        "trained": trained, "tested": tested, "variant": variant, "strategy": strategy, "status": status,
        "findings": "", "images": nothing, "patients": nothing, "seeds": 0, "auroc": nothing, "auroc_low": nothing,
        "auroc_high": nothing, "own_auroc": nothing, "reference": study.options.reference, "difference": nothing,
        "difference_low": nothing, "difference_high": nothing, "p": nothing, "q": nothing, "remark": "",
    }  # fmt: skip


def _numbers(estimate: Estimate | None) -> dict[str, Any]:
    if estimate is None:
        return {}
    return {
        "seeds": len(estimate.by_member), "auroc": estimate.value, "auroc_low": estimate.low,
        "auroc_high": estimate.high,
    }  # fmt: skip


def _counted(count: int, name: str) -> str:
    return f"{count} {name}{'s' * (count != 1)}"
