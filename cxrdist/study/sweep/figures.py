"""Figures of a sweep, in the style of a study's report."""

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cxrdist.report.figures import COLOURS, MARKERS, REFERENCE_COLOUR, STYLE
from cxrdist.study.sweep.importance import Importance, place, shown
from cxrdist.study.sweep.results import Findings, Row
from cxrdist.study.sweep.run import build_rule
from cxrdist.study.sweep.schedulers import Asha
from cxrdist.study.sweep.space import Space

TICKS = 5
LONGEST = 22
"""Letters of a value that an axis shows."""


def draw(found: Findings, importance: dict[str, list[Importance]]) -> dict[str, Figure]:
    """Return the figures by name: parallel, importance (where anything is known), history."""
    figures: dict[str, Figure] = {}
    with rc_context(STYLE):
        rows = [row for row in found.rows if row.best is not None]
        if rows:
            figures["parallel"] = _parallel(found, rows)
            figures["history"] = _history(found)
        if any(importance.values()):
            figures["importance"] = _importance(importance)
    return figures


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _parallel(found: Findings, rows: list[Row]) -> Figure:
    """A line per trial through its values, coloured by validation AUROC; those that ran to their end are thicker."""
    names = list(found.sweep.search)
    by_strategy = len(found.strategies) > 1
    spaces: dict[str, Space] = {"strategy": Space(choice=found.strategies)} if by_strategy else {}
    spaces |= {name: found.sweep.search[name] for name in names}
    scores = [row.best or 0.0 for row in rows]
    low, high = min(scores), max(scores)
    high = high if high > low else low + 1e-3
    figure = _figure(max(6.4, 1.75 * (len(spaces) + 1)), 4.2)
    axes = figure.subplots()
    colours = colormaps["viridis"]
    for row in sorted(rows, key=lambda one: one.best or 0.0):
        values = ({"strategy": row.trial.strategy} if by_strategy else {}) | row.trial.values
        score = ((row.best or 0.0) - low) / (high - low)
        heights = [*(place(space, values[name]) for name, space in spaces.items()), score]
        done = row.state == "done"
        axes.plot(
            heights, color=colours(score), linewidth=1.6 if done else 0.9, alpha=0.95 if done else 0.55,
            marker="o", markersize=3.2 if done else 0, solid_joinstyle="round",
        )  # fmt: skip
    for x, (_, space) in enumerate(spaces.items()):
        _vertical(axes, x, _ticks(space))
    _vertical(axes, len(spaces), [(i / 4, f"{low + (high - low) * i / 4:.3f}") for i in range(5)])
    axes.set_xlim(-0.25, len(spaces) + 0.45)
    axes.set_ylim(-0.06, 1.06)
    axes.set_xticks(range(len(spaces) + 1), [*spaces, "validation AUROC"])
    axes.tick_params(axis="x", length=0, pad=8)
    axes.set_yticks([])
    axes.spines[["left", "bottom"]].set_visible(False)
    bar = figure.colorbar(ScalarMappable(Normalize(low, high), colours), ax=axes, shrink=0.85, pad=0.01)
    bar.set_label("validation AUROC")
    bar.outline.set_visible(False)
    return figure


def _vertical(axes: Axes, x: float, ticks: list[tuple[float, str]]) -> None:
    axes.axvline(x, color="#8a909b", linewidth=1.0, zorder=1)
    for height, text in ticks:
        axes.annotate(
            text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…", (x, height), xytext=(4, 0),
            textcoords="offset points", va="center", fontsize=7.5, color="#333a45", zorder=5,
            bbox={"boxstyle": "round,pad=0.12", "facecolor": "white", "edgecolor": "none", "alpha": 0.75},
        )  # fmt: skip


def _ticks(space: Space) -> list[tuple[float, str]]:
    if space.is_listed:
        return [(place(space, value), shown(value)) for value in space.values]
    count = TICKS if not space.is_whole else min(TICKS, int(space.values[1] - space.values[0]) + 1)
    low, high = space.values
    heights = np.linspace(0, 1, count)
    values = np.exp(np.log(low) + heights * np.log(high / low)) if space.is_log else low + heights * (high - low)
    if space.is_whole:
        return [(place(space, round(value)), str(round(value))) for value in values]
    return [(float(height), f"{value:.2g}") for height, value in zip(heights, values, strict=True)]


def _importance(importance: dict[str, list[Importance]]) -> Figure:
    """A bar per searched value, a panel per strategy."""
    panels = {strategy: found for strategy, found in importance.items() if found}
    longest = max(len(found) for found in panels.values())
    figure = _figure(8.6, 0.9 + 0.34 * longest)
    axes_list = figure.subplots(1, len(panels), sharex=True, squeeze=False)[0]
    for (strategy, found), axes in zip(panels.items(), axes_list, strict=True):
        ordered = found[::-1]
        axes.barh(
            range(len(ordered)), [one.mean for one in ordered], xerr=[one.spread for one in ordered],
            color=COLOURS[0], height=0.6, error_kw={"ecolor": "#1c2430", "elinewidth": 1.1, "capsize": 3},
        )  # fmt: skip
        axes.set_yticks(range(len(ordered)), [one.name for one in ordered])
        axes.set_title(strategy if len(importance) > 1 else "")
        axes.set_xlabel("loss of R² when its values change places")
        axes.axvline(0, color="#8a909b", linewidth=0.8)
        axes.grid(axis="x")
        axes.set_axisbelow(True)
    return figure


def _history(found: Findings) -> Figure:
    """Left the best so far over the trials, right each trial's validations with the rungs."""
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(found.strategies)}
    figure = _figure(8.6, 3.6)
    left, right = figure.subplots(1, 2, sharey=True)
    for i, strategy in enumerate(found.strategies):
        rows = [row for row in found.of(strategy) if row.best is not None]
        scores = [row.best or 0.0 for row in rows]
        numbers = range(len(rows))
        left.scatter(numbers, scores, s=14, marker=MARKERS[i % len(MARKERS)], color=colours[strategy], alpha=0.55)
        so_far = np.maximum.accumulate(
            [s if row.state == "done" else -np.inf for s, row in zip(scores, rows, strict=True)]
        )
        so_far[np.isneginf(so_far)] = np.nan
        left.step(numbers, so_far, where="post", color=colours[strategy], label=strategy, linewidth=1.6)
        best = found.best(strategy)
        for row in rows:
            chosen = best is not None and row.name == best.name
            right.plot(
                [step for step, _ in row.values], [value for _, value in row.values], color=colours[strategy],
                linewidth=2.0 if chosen else 0.8, alpha=1.0 if chosen else 0.45,
            )  # fmt: skip
            if row.state == "stopped":
                right.plot(*row.values[-1], marker="x", markersize=5, color=colours[strategy])
    rule = build_rule(found.sweep)
    for rung in sorted(rule.rungs) if isinstance(rule, Asha) else ():
        right.axvline(rung, color=REFERENCE_COLOUR, linewidth=0.8, linestyle=(0, (3, 3)))
    left.set_title("Best so far")
    left.set_xlabel("trial, in the order of the draws")
    left.set_ylabel("validation AUROC")
    right.set_title("Learning curves" + ("; dashed: rungs, ×: stopped" if isinstance(rule, Asha) else "; ×: stopped"))
    right.set_xlabel("optimizer step")
    for axis in (left.xaxis, right.xaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    for axes in (left, right):
        axes.grid(axis="y")
        axes.set_axisbelow(True)
    if len(found.strategies) > 1:
        left.legend(loc="lower right")
    return figure
