"""Heat maps of tests on other datasets: trained on (rows) against tested on (columns), a panel per strategy."""

import math
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from cxrdist.report.analysis import StudyResult
from cxrdist.report.external import Across
from cxrdist.report.figures import INK, STYLE, colours
from cxrdist.report.tables import number

COLOURS = "YlGnBu"
STEP = 0.05
"""The scale ends at multiples of it."""
DARK = 0.6
"""Share of the scale from which numbers are written in white."""


def draw_external(across: Across, study: StudyResult) -> dict[str, Figure]:
    """Return a figure by name: ``external``, or one for each variant where there are several."""
    grids = {
        (variant, strategy): values(across, study, variant, strategy)
        for variant in across.variants
        for strategy in study.strategies
    }
    known = np.concatenate([grid[~np.isnan(grid)] for grid in grids.values()])
    if not len(known):
        return {}
    low, high = math.floor(known.min() / STEP) * STEP, math.ceil(known.max() / STEP) * STEP
    scale = Normalize(low, max(high, low + STEP))
    figures = {}
    with mpl.rc_context(STYLE):
        for i, variant in enumerate(across.variants):
            name = "external" if len(across.variants) == 1 else f"external{i + 1}"
            shown = [one for one in study.strategies if not np.isnan(grids[variant, one]).all()]
            if shown:
                figures[name] = _figure(
                    across, study, shown, {one: grids[variant, one] for one in shown}, scale, variant
                )
    return figures


def values(across: Across, study: StudyResult, variant: str, strategy: str) -> np.ndarray:
    """Return mean AUROC, (trained, tested); the diagonal is the own test split, NaN where there is no number."""
    found = np.full((len(across.trained), len(across.tested)), np.nan)
    for i, trained in enumerate(across.trained):
        for j, tested in enumerate(across.tested):
            if trained == tested:
                homes = [one for one in study.datasets if (one.dataset, one.variant) == (trained, variant)]
                comparison = homes[0].comparison if homes else None
            else:
                pair = across.pair(trained, tested, variant)
                comparison = pair.comparison if pair else None
            if comparison and strategy in comparison.models:
                found[i, j] = comparison.estimate(strategy).value
    return found


def _figure(
    across: Across,
    study: StudyResult,
    strategies: Sequence[str],
    grids: dict[str, np.ndarray],
    scale: Normalize,
    variant: str,
) -> Figure:
    palette = colours(study.strategies, study.options.reference)
    side = 0.62
    width = side * len(across.tested) + 0.5
    across_page = max(1, min(len(strategies), int(9 / width)))
    down = math.ceil(len(strategies) / across_page)
    figure = Figure(
        figsize=(across_page * width + 1.9, down * (0.42 * len(across.trained) + 1.1) + 0.5), layout="constrained"
    )
    FigureCanvasAgg(figure)
    panels = figure.subplots(down, across_page, squeeze=False)
    for place, axes in enumerate(panels.flat):
        axes.set_visible(place < len(strategies))
        if place < len(strategies):
            strategy = strategies[place]
            _panel(axes, across, grids[strategy], scale)
            axes.set_title(strategy, color=palette[strategy])
            axes.set_yticks(range(len(across.trained)), across.trained if place % across_page == 0 else [])
            last = place + across_page >= len(strategies)
            axes.set_xticks(range(len(across.tested)), across.tested if last else [], rotation=40, ha="right",
                            rotation_mode="anchor")  # fmt: skip
    figure.supxlabel("Tested on (framed: the own test split)", fontsize=9)
    figure.supylabel("Trained on", fontsize=9)
    if variant:
        figure.suptitle(variant, fontsize=9.5, fontweight="bold", x=0.01, ha="left")
    bar = figure.colorbar(ScalarMappable(scale, COLOURS), ax=panels, shrink=0.8, aspect=18, pad=0.02)
    bar.set_label("Mean AUROC", fontsize=8.5)
    bar.outline.set_visible(False)
    return figure


def _panel(axes: Axes, across: Across, grid: np.ndarray, scale: Normalize) -> None:
    axes.imshow(np.ma.masked_invalid(grid), cmap=COLOURS, norm=scale, aspect="auto")
    for i, trained in enumerate(across.trained):
        for j, tested in enumerate(across.tested):
            value = grid[i, j]
            if math.isnan(value):
                axes.text(j, i, "–", ha="center", va="center", color=INK, fontsize=8)
                continue
            ink = "white" if float(scale(value)) > DARK else INK
            axes.text(j, i, number(value, 2), ha="center", va="center", color=ink, fontsize=8)
            if trained == tested:
                frame = Rectangle((j - 0.46, i - 0.44), 0.92, 0.88, fill=False, edgecolor=INK, linewidth=1.4)
                axes.add_patch(frame)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
