"""Figures of a report.  One colour and one marker per strategy throughout, safe for colour-blind readers."""

import io
import math
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cxrdist.report.analysis import DatasetResult, StudyResult
from cxrdist.report.learning import LearningCurves, learning_curves
from cxrdist.report.tables import number, title_of
from cxrdist.stats.meanings import MACRO, confidence

REFERENCE_COLOUR = "#5f6672"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8B5A2B")
"""Okabe & Ito (2008), in the order of best contrast on white; the reference is grey."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
STYLE = {
    "font.family": "DejaVu Sans",  # ships with matplotlib, so the same bytes everywhere
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a909b",
    "axes.labelcolor": "#333a45",
    "axes.linewidth": 0.8,
    "xtick.color": "#5f6672",
    "ytick.color": "#333a45",
    "text.color": "#1c2430",
    "text.parse_math": False,  # a strategy may be named $x$
    "grid.color": "#e3e6ea",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "svg.hashsalt": "cxrdist",  # the same figure, the same bytes
    "figure.dpi": 100,
}
INK = "#1c2430"
MANY = 6
"""Datasets and variants, above which a line each is all that a page has room for."""
PANEL_ENDS = (0.02, 0.04, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)
"""Where the axes of a reliability diagram may end."""


def colours(strategies: Sequence[str], reference: str) -> dict[str, str]:
    """Return the colour of each strategy; it depends on the strategies' order alone."""
    others = [name for name in strategies if name != reference]
    return {reference: REFERENCE_COLOUR} | {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(others)}


def draw(study: StudyResult) -> dict[str, Figure]:
    """Return every figure by name: forest, learning, training, and per dataset i ``forest_i``, ``roc_i`` and so on.

    What would be longer than a few pages has another form: small panels, or a figure of each dataset.
    """
    figures: dict[str, Figure] = {}
    with mpl.rc_context(STYLE):
        if any(one.comparison and one.comparison.differences for one in study.datasets):
            figures["forest"] = _forest_panels(study) if many(study) else _headline_forest(study)
        curves = learning_curves(study)
        if curves:
            figures["learning"] = _learning(study, curves)
        for i, one in enumerate(study.datasets):
            if one.comparison and one.comparison.differences:
                figures[f"forest_{i}"] = _finding_forest(study, one)
            if one.curves:
                figures[f"roc_{i}"] = _roc(study, one)
                figures[f"reliability_{i}"] = _reliability(study, one)
        trained = {i: one for i, one in enumerate(study.datasets) if any(cell.metrics for cell in one.cells)}
        if many(study):
            figures |= {f"training_{i}": _training(study, [one]) for i, one in trained.items()}
        elif trained:
            figures["training"] = _training(study, list(trained.values()))
    return figures


def many(study: StudyResult) -> bool:
    """Whether a report has so many datasets and variants that they are rows and not columns."""
    return len(study.datasets) > MANY


def to_bytes(figure: Figure, kind: str) -> bytes:
    """Return the file of a figure, kind "svg" or "png"; without a date, so the same figure gives the same bytes."""
    buffer = io.BytesIO()
    with mpl.rc_context(STYLE):
        metadata = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
        figure.savefig(buffer, format=kind, dpi=180, bbox_inches="tight", pad_inches=0.06, metadata=metadata)
    return buffer.getvalue()


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _marker(study: StudyResult, strategy: str) -> str:
    return MARKERS[study.strategies.index(strategy) % len(MARKERS)]


def _headline_forest(study: StudyResult) -> Figure:
    """Difference of the macro mean to the reference: a block per dataset, a line per strategy."""
    palette = colours(study.strategies, study.options.reference)
    others = [name for name in study.strategies if name != study.options.reference]
    shown = [one for one in study.datasets if one.comparison and one.comparison.differences]
    figure = _figure(8.6, 0.75 + 0.29 * len(shown) * (len(others) + 0.9))
    axes = figure.subplots()
    y = 0.0
    ticks: list[float] = []
    labels: list[str] = []
    heads: list[int] = []
    for one in shown:
        heads.append(len(ticks))
        ticks.append(y)
        labels.append(one.name)
        for strategy in (name for name in others if name not in one.absent):
            y -= 1
            ticks.append(y)
            labels.append(strategy)
            d = one.comparison.difference(strategy) if one.comparison else None
            if d is None or math.isnan(d.value):
                side = axes.get_yaxis_transform()
                axes.text(1.01, y, "missing", transform=side, va="center", fontsize=8, style="italic")
                continue
            _whisker(axes, d.value, d.low, d.high, y, palette[strategy], _marker(study, strategy))
            text = f"{d.value:+.3f}  [{d.low:+.3f}, {d.high:+.3f}]".replace("-", "−")
            axes.text(1.01, y, text, transform=axes.get_yaxis_transform(), va="center", fontsize=8)
        y -= 1.4
    axes.set_yticks(ticks, labels)
    for i in heads:
        axes.get_yticklabels()[i].set_fontweight("bold")
    axes.set_ylim(y + 0.7, 0.7)
    _zero_line(axes)
    axes.set_xlabel(f"Difference in mean AUROC to {study.options.reference} (right: better)")
    return figure


def _forest_panels(study: StudyResult) -> Figure:
    """Difference of the macro mean to the reference: a panel per strategy, a line per dataset and variant."""
    palette = colours(study.strategies, study.options.reference)
    others = [name for name in study.strategies if name != study.options.reference]
    shown = [one for one in study.datasets if one.comparison and one.comparison.differences]
    across = min(4, len(others))
    down = math.ceil(len(others) / across)
    figure = _figure(1.9 * across + 1.6, down * (0.17 * len(shown) + 0.75))
    grid = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    for axes, strategy in zip(grid.flat, others, strict=False):
        for row, one in enumerate(shown):
            d = one.comparison.difference(strategy) if one.comparison else None
            if d is not None and not math.isnan(d.value):
                sure = d.q < study.options.alpha
                _whisker(axes, d.value, d.low, d.high, row, palette[strategy], _marker(study, strategy), filled=sure)
            elif strategy not in one.absent:
                axes.text(0.98, row, "missing", transform=axes.get_yaxis_transform(), va="center", ha="right",
                          fontsize=7, style="italic")  # fmt: skip
        for row in range(1, len(shown)):
            if shown[row].dataset != shown[row - 1].dataset:
                axes.axhline(row - 0.5, color="#c9ced6", linewidth=0.6)
        _zero_line(axes)
        axes.set_title(strategy, color=palette[strategy])
        axes.set_yticks(range(len(shown)), [one.name for one in shown], fontsize=7.5)
        axes.set_ylim(len(shown) - 0.4, -0.6)
    for place, axes in enumerate(grid.flat):
        axes.set_visible(place < len(others))
        axes.tick_params(axis="x", labelbottom=place + across >= len(others))
    figure.supxlabel(
        f"Difference in mean AUROC to {study.options.reference} (right: better; filled: q < {study.options.alpha:g})",
        fontsize=9,
    )
    return figure


def _learning(study: StudyResult, curves: Sequence[LearningCurves]) -> Figure:
    """Mean AUROC with its interval against the size of the training set: a panel per dataset, a line per strategy."""
    palette = colours(study.strategies, study.options.reference)
    across = min(3, len(curves))
    down = math.ceil(len(curves) / across)
    figure = _figure(3.0 * across + 0.4, 2.7 * down + 0.6)
    grid = figure.subplots(down, across, squeeze=False)
    for axes, one in zip(grid.flat, curves, strict=False):
        for place, (strategy, points) in enumerate(one.lines.items()):
            # Side by side, so that intervals of one size do not hide each other; the axis is logarithmic.
            aside = 1.025 ** (place - (len(one.lines) - 1) / 2)
            images = [point.images * aside for point in points]
            values = np.array([point.estimate.value for point in points])
            ends = np.array([(point.estimate.low, point.estimate.high) for point in points])
            reach = np.abs(np.nan_to_num(ends - values[:, None])).T
            axes.errorbar(
                images, values, yerr=reach, color=palette[strategy], marker=_marker(study, strategy), linewidth=1.5,
                elinewidth=1.0, capsize=1.8, markersize=5, markeredgecolor="white", markeredgewidth=0.5,
            )  # fmt: skip
        sizes = sorted({point.images for line in one.lines.values() for point in line})
        axes.set_xscale("log")
        axes.set_xticks(_apart(sizes), [f"{size:,.0f}" for size in _apart(sizes)])
        axes.minorticks_off()
        axes.set_title(one.title)
        axes.grid(True)
    for axes in list(grid.flat)[len(curves) :]:
        axes.set_visible(False)
    figure.supxlabel("Training images", fontsize=9)
    figure.supylabel(f"Mean AUROC [{confidence(study.options.alpha)} interval]", fontsize=9)
    _legend(figure, study, [name for name in study.strategies if any(name in one.lines for one in curves)])
    return figure


def _apart(sizes: Sequence[float]) -> list[float]:
    """Return the sizes that can stand beside each other under an axis, of those that are nearly the same one."""
    kept = list(sizes[:1])
    for size in sizes[1:]:
        if size / kept[-1] > (sizes[-1] / sizes[0]) ** 0.2:
            kept.append(size)
    return kept


def _finding_forest(study: StudyResult, one: DatasetResult) -> Figure:
    """Difference to the reference per finding, strategies side by side on each line."""
    palette = colours(study.strategies, study.options.reference)
    assert one.comparison
    others = [name for name in one.comparison.models if name != study.options.reference]
    findings = [*(count.finding for count in one.comparison.counts if not count.one_class), MACRO]
    figure = _figure(8.6, 0.95 + len(findings) * (0.16 + 0.15 * len(others)))
    axes = figure.subplots()
    offsets = (np.arange(len(others)) - (len(others) - 1) / 2) * min(0.8 / len(others), 0.26)
    for row, finding in enumerate(findings):
        for strategy, offset in zip(others, offsets, strict=True):
            d = one.comparison.difference(strategy, finding)
            if d and not math.isnan(d.value):
                _whisker(axes, d.value, d.low, d.high, row + offset, palette[strategy], _marker(study, strategy))
    axes.axhline(len(findings) - 1.5, color="#c9ced6", linewidth=0.8)
    axes.set_yticks(range(len(findings)), [title_of(finding) for finding in findings])
    axes.get_yticklabels()[-1].set_fontweight("bold")
    axes.set_ylim(len(findings) - 0.4, -0.6)
    _zero_line(axes)
    axes.set_xlabel(f"Difference in AUROC to {study.options.reference} (right: better)")
    _legend(figure, study, others)
    return figure


def _whisker(
    axes: Axes, value: float, low: float, high: float, y: float, colour: str, marker: str, *, filled: bool | None = None
) -> None:
    """Draw a value and its interval; small, and hollow unless `filled`, where that is told."""
    width, size = (1.8, 7) if filled is None else (1.2, 4.5)
    face, edge = (colour, "white") if filled in (None, True) else ("white", colour)
    axes.plot([low, high], [y, y], color=colour, linewidth=width, solid_capstyle="round", zorder=2)
    rim = 0.3 if filled else 0.8
    axes.plot(value, y, marker, color=face, markersize=size, markeredgecolor=edge, markeredgewidth=rim, zorder=3)


def _zero_line(axes: Axes) -> None:
    axes.axvline(0, color=INK, linewidth=0.9, zorder=1)
    axes.grid(axis="x")
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_formatter(lambda x, _: "0" if abs(x) < 1e-9 else f"{x:+.3g}".replace("-", "−"))


def _roc(study: StudyResult, one: DatasetResult) -> Figure:
    """ROC curves on test: a panel per finding, strategies overlaid, their AUROC in the corner."""
    assert one.comparison
    palette = colours(study.strategies, study.options.reference)
    findings = [count.finding for count in one.comparison.counts if not count.one_class]
    models = one.comparison.models
    figure, panels = _panels(len(findings), shared=True)
    for axes, finding in zip(panels, findings, strict=True):
        axes.plot([0, 1], [0, 1], color="#c9ced6", linewidth=0.9, linestyle=(0, (4, 3)))
        for line, strategy in enumerate(models):
            curve = one.curves.get((strategy, finding))
            if curve is None:
                continue
            x, y = _thin(curve.false_positive_rate, curve.true_positive_rate)
            axes.plot(x, y, color=palette[strategy], linewidth=1.5)
            value = number(one.comparison.estimate(strategy, finding).value)
            height = 0.04 + 0.105 * (len(models) - 1 - line)
            axes.text(0.98, height, value, ha="right", color=palette[strategy], fontsize=8, weight="bold")
        axes.set_title(title_of(finding))
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xticks=[0, 0.5, 1], yticks=[0, 0.5, 1], aspect="equal")
        axes.grid(True)
    figure.supxlabel("1 − specificity", fontsize=9)
    figure.supylabel("Sensitivity", fontsize=9)
    _legend(figure, study, models)
    return figure


def _reliability(study: StudyResult, one: DatasetResult) -> Figure:
    """Share with the finding against the probability: a panel per finding, in the corner the calibration error.

    A thick line with points is all seeds together; with several seeds, each has a thin one besides.  A panel ends where
    its probabilities and shares do, since those of a rare finding lie near 0.
    """
    assert one.comparison
    palette = colours(study.strategies, study.options.reference)
    findings = [count.finding for count in one.comparison.counts if not count.one_class]
    models = one.comparison.models
    figure, panels = _panels(len(findings), shared=False)
    for axes, finding in zip(panels, findings, strict=True):
        axes.plot([0, 1], [0, 1], color="#9aa1ac", linewidth=0.9, linestyle=(0, (4, 3)))
        drawn = []
        for strategy in models:
            found = one.reliability[strategy, finding]
            for curve in found.files if len(found.files) > 1 else ():
                axes.plot(curve.mean_predicted, curve.share_positive, color=palette[strategy], linewidth=0.7, alpha=0.4)
            x, y = found.pooled.mean_predicted, found.pooled.share_positive
            axes.plot(
                x, y, _marker(study, strategy), linestyle="-", color=palette[strategy], linewidth=1.5, markersize=3.6,
                markeredgecolor="white", markeredgewidth=0.4,
            )  # fmt: skip
            drawn += [np.stack([c.mean_predicted, c.share_positive]) for c in (found.pooled, *found.files)]
        points = np.concatenate(drawn, axis=1)
        most = points.max()
        end = next((end for end in PANEL_ENDS if end >= most), 1.0)
        ticks = [0, end / 2, end]
        axes.set_title(title_of(finding))
        edges = (-0.02 * end, 1.02 * end)
        axes.set(xlim=edges, ylim=edges, xticks=ticks, yticks=ticks, aspect="equal")
        axes.grid(True)
        # Below the diagonal on the right, or above it on the left where that is the emptier corner.
        x, y = points / end
        left = np.sum((x < 0.32) & (y > 0.6)) < np.sum((x > 0.68) & (y < 0.4))
        for line, strategy in enumerate(models):
            height = 0.875 - 0.105 * line if left else 0.04 + 0.105 * (len(models) - 1 - line)
            axes.text(
                0.04 if left else 0.98, height, number(one.reliability[strategy, finding].ece),
                ha="left" if left else "right", color=palette[strategy], fontsize=8, weight="bold",
                transform=axes.transAxes,
            )  # fmt: skip
    figure.supxlabel("Mean probability (in the corner: expected calibration error, ECE)", fontsize=9)
    figure.supylabel("Share with the finding", fontsize=9)
    _legend(figure, study, models)
    return figure


def _panels(n: int, *, shared: bool) -> tuple[Figure, list[Axes]]:
    """Return a figure of `n` square panels and these."""
    across = 3 if n in (5, 6, 9) else min(n, 4)  # few empty panels
    down = math.ceil(n / across)
    figure = _figure(2.25 * across + 0.4, 2.3 * down + 0.5)
    grid = figure.subplots(down, across, sharex=shared, sharey=shared, squeeze=False)
    for axes in list(grid.flat)[n:]:
        axes.set_visible(False)
    return figure, list(grid.flat)[:n]


def _thin(x: np.ndarray, y: np.ndarray, most: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Return at most about `most` points of a curve: corners only, then every so-manieth."""
    corner = np.ones(len(x), dtype=bool)
    corner[1:-1] = (np.diff(x)[:-1] * np.diff(y)[1:]) != (np.diff(x)[1:] * np.diff(y)[:-1])
    x, y = x[corner], y[corner]
    keep = np.unique(np.linspace(0, len(x) - 1, min(len(x), most)).astype(int))
    return x[keep], y[keep]


def _training(study: StudyResult, shown: Sequence[DatasetResult]) -> Figure:
    """Train loss and validation AUROC against the step: a row per dataset, a line per run."""
    palette = colours(study.strategies, study.options.reference)
    figure = _figure(8.6, 2.2 * len(shown) + 0.4)
    grid = figure.subplots(len(shown), 2, squeeze=False)
    for (left, right), one in zip(grid, shown, strict=True):
        for cell in one.cells:
            colour = palette[cell.files.strategy]
            step, loss = _series(cell.metrics, "train", "loss")
            left.plot(*_bins(step, loss), color=colour, linewidth=1.4)
            step, value = _series(cell.metrics, "val", "auroc_macro")
            marker = _marker(study, cell.files.strategy)
            right.plot(step, value, marker, linestyle="-", color=colour, linewidth=1.4, markersize=3.5)
        left.set(title=f"{one.name}: train loss", xlabel="Optimizer step")
        right.set(title=f"{one.name}: validation AUROC", xlabel="Optimizer step")
        for axes in (left, right):
            axes.grid(True)
    _legend(figure, study, [name for name in study.strategies if any(name not in one.absent for one in shown)])
    return figure


def _series(metrics: Sequence[dict], kind: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    points = [(line["step"], line[name]) for line in metrics if line["kind"] == kind and line.get(name) is not None]
    return np.array([step for step, _ in points], dtype=float), np.array([value for _, value in points], dtype=float)


def _bins(step: np.ndarray, value: np.ndarray, most: int = 120) -> tuple[np.ndarray, np.ndarray]:
    """Return means of neighbouring points where there are more than `most`, so that a trend can be seen."""
    if len(step) <= most:
        return step, value
    parts = np.array_split(np.arange(len(step)), most)
    return np.array([step[part].mean() for part in parts]), np.array([np.nanmean(value[part]) for part in parts])


def _legend(figure: Figure, study: StudyResult, names: Sequence[str]) -> None:
    palette = colours(study.strategies, study.options.reference)
    handles = [
        Line2D(
            [],
            [],
            color=palette[name],
            marker=_marker(study, name),
            markersize=5,
            linewidth=1.6,
            markeredgecolor="white",
        )
        for name in names
    ]
    # A name with a leading underscore would be dropped by matplotlib's automatic legend; given by hand it stays.
    figure.legend(
        handles,
        list(names),
        loc="outside upper center",
        ncols=max(1, min(len(names), 110 // (max(map(len, names)) + 7))),
        fontsize=9,
    )
