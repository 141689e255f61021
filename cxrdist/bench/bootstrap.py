"""The bootstrap of AUROCs beside a plain loop of scikit-learn's `roc_auc_score`: same redraws, same predictions.

Both sides take turns in one process.  The plain loop draws patients, gathers the indices of their images, and calls
`roc_auc_score` for every model and finding; a few redraws of it tell its speed.  It draws from the same streams, so the
values of both sides are compared as well.

Shapes: N images, K findings, P patients, R redraws, C = models x findings.
"""

import resource
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cxrdist.bench.processor import describe_processor
from cxrdist.dispatch import fork_map
from cxrdist.errors import UsageError
from cxrdist.log import progress
from cxrdist.seeds import Purpose, stream
from cxrdist.stats.auroc import SortedAuroc, auroc_statistic
from cxrdist.stats.resample import TOGETHER, Units, redraw, whole_units

LIBRARIES = ("numpy", "numba", "scikit-learn")

PREVALENCE = (0.239, 0.182, 0.128, 0.104, 0.071, 0.068, 0.063, 0.045, 0.043, 0.042, 0.036, 0.022, 0.017, 0.003)
"""Shares of positives in the test split of ChestX-ray14 (Wang et al. 2017), from infiltration to hernia."""


@dataclass(frozen=True)
class BootstrapOptions:
    """What is measured; the sizes are those of ChestX-ray14's test split."""

    images: int = 25596
    findings: int = 14
    models: int = 3
    patients: int = 2797
    redraws: int = 10_000
    """Redraws of ours in each round."""
    plain_redraws: int = 1
    """Redraws of the plain loop in each round."""
    workers: int = 2
    rounds: int = 5
    seed: int = 0


@dataclass(frozen=True)
class Spread:
    """A number over the rounds."""

    median: float
    low: float
    """The least of the rounds."""
    high: float
    """The greatest of the rounds."""


@dataclass(frozen=True)
class BootstrapResult:
    """The outcome of `bench bootstrap`."""

    ours_us: Spread
    """One AUROC under one redraw on one core, microseconds, drawing not counted."""
    plain_us: Spread
    """The same of the plain loop."""
    ratio: Spread
    """Plain / ours, both without the drawing."""
    ratio_with_drawing: Spread
    """Plain / ours, both from the drawing of patients to the last AUROC."""
    workers_ratio: Spread
    """One core's time / that of `workers` processes, drawing included."""
    ten_thousand_s: float
    """10,000 redraws of all models and findings on one core at this speed, seconds."""
    ten_thousand_workers_s: float
    """The same with `workers` processes."""
    sorting_s: float
    """Preparing all statistics once, seconds; in no other number."""
    first_call_s: float
    """The first call of all, which compiles or loads what an earlier process compiled, seconds; in no other number."""
    memory_mib: float | None
    """Peak of resident memory above that with the predictions alone, over all of ours; None where it is not told."""
    difference: float
    """Greatest difference of an AUROC between the sides."""
    rounds: int
    machine: dict[str, Any]


@dataclass
class _Round:
    ours_s: float
    ours_drawn_s: float
    workers_s: float
    plain_s: float
    plain_drawn_s: float


def bench_bootstrap(options: BootstrapOptions, *, shown: bool = True) -> BootstrapResult:
    """Measure both sides on this machine.

    Raises:
        UsageError: If there are more patients than images, or too few to hold both classes.
    """
    from sklearn.metrics import roc_auc_score  # noqa: PLC0415 - loaded before memory is measured, and only here

    targets, scores, units = make_predictions(options)
    before = _begin_peak()
    started = time.perf_counter()
    redraw([auroc_statistic(targets[:, 0], scores[0][:, 0], units)], units, n_resamples=1, seed=options.seed)
    first_call_s = time.perf_counter() - started
    started = time.perf_counter()
    columns = [
        auroc_statistic(targets[:, k], matrix[:, k], units) for matrix in scores for k in range(options.findings)
    ]
    sorting_s = time.perf_counter() - started
    spread = fork_map(options.workers)
    theta = redraw(columns, units, n_resamples=options.redraws, seed=options.seed, map=spread)
    memory_mib = None if before is None else (_peak() - before) / 2**20

    plain = _PlainLoop(targets, scores, units, roc_auc_score)
    rounds, difference = [], 0.0
    with progress("bench bootstrap", options.rounds, unit="rounds", shown=shown) as bar:
        for number in range(options.rounds):
            taken, values, first = _round(options, number, columns, units, spread, plain)
            rounds.append(taken)
            difference = max(difference, greatest_difference(values, theta[first : first + len(values)]))
            bar.advance()
    return _result(options, rounds, sorting_s, first_call_s, memory_mib, difference)


def make_predictions(options: BootstrapOptions) -> tuple[np.ndarray, list[np.ndarray], Units]:
    """Return (N, K) targets, an (N, K) matrix of probabilities for each model, and the patients.

    Patients have geometrically many images, as archives do; prevalences are those of ChestX-ray14, over again.

    Raises:
        UsageError: If there are more patients than images, or too few images to hold both classes.
    """
    if options.patients > options.images:
        raise UsageError(f"`--patients` must be at most `--images` {options.images}, got {options.patients}.")
    rng = np.random.default_rng(options.seed)
    more = rng.choice(options.patients, options.images - options.patients, p=_shares(rng, options.patients))
    units = whole_units(np.sort(np.r_[np.arange(options.patients), more]))
    prevalence = np.resize(PREVALENCE, options.findings)
    positive = np.maximum(1, np.round(prevalence * options.images)).astype(int)
    if (positive >= options.images).any():
        raise UsageError(f"`--images` must be at least 2, got {options.images}.")
    targets = np.zeros((options.images, options.findings))
    for k, count in enumerate(positive):
        targets[rng.choice(options.images, count, replace=False), k] = 1
    noise = rng.normal(size=(options.models, *targets.shape)) + 1.2 * targets
    return targets, list(1 / (1 + np.exp(2 - noise))), units


def greatest_difference(one: np.ndarray, other: np.ndarray) -> float:
    """Return the greatest difference of two arrays; infinite where only one of them is NaN."""
    apart = np.where(np.isnan(one) != np.isnan(other), np.inf, np.abs(one - other))
    return float(np.nanmax(apart, initial=0.0))


def _shares(rng: np.random.Generator, patients: int) -> np.ndarray:
    shares = rng.exponential(size=patients)
    return shares / shares.sum()


class _PlainLoop:
    """What a person would write."""

    def __init__(
        self, targets: np.ndarray, scores: list[np.ndarray], units: Units, score: Callable[..., float]
    ) -> None:
        self.targets, self.scores, self.score = targets, scores, score
        ends = np.cumsum(np.bincount(units.of_image, minlength=units.n))
        self.images_of = np.split(np.argsort(units.of_image, kind="stable"), ends[:-1])

    def draw(self, seed: int, number: int) -> np.ndarray:
        """Return the images of redraw `number`, repeated as often as drawn."""
        n = len(self.images_of)
        drawn = stream(seed, Purpose.BOOTSTRAP, number).integers(0, n, n)
        return np.concatenate([self.images_of[patient] for patient in drawn])

    def values(self, images: np.ndarray) -> list[float]:
        """Return the C AUROCs of one redraw; NaN where it lost a class."""
        found = []
        for matrix in self.scores:
            for k in range(self.targets.shape[1]):
                truth = self.targets[images, k]
                both = 0 < truth.sum() < len(truth)
                found.append(self.score(truth, matrix[images, k]) if both else float("nan"))
        return found


def _round(
    options: BootstrapOptions,
    number: int,
    columns: list[SortedAuroc],
    units: Units,
    spread: Any,
    plain: _PlainLoop,
) -> tuple[_Round, np.ndarray, int]:
    """Return the times of one round, the (r, C) values of the plain loop, and the number of its first redraw."""
    seed, n = options.seed, options.redraws
    first = number * options.plain_redraws % max(n - options.plain_redraws + 1, 1)
    numbers = range(first, min(first + options.plain_redraws, n))

    started = time.perf_counter()
    drawn = [plain.draw(seed, redraw_number) for redraw_number in numbers]
    drawing_s = time.perf_counter() - started
    started = time.perf_counter()
    values = np.array([plain.values(images) for images in drawn])
    plain_s = time.perf_counter() - started

    counts = [units.draw(range(at, min(at + TOGETHER, n)), seed) for at in range(0, n, TOGETHER)]
    started = time.perf_counter()
    for together in counts:
        for column in columns:
            column.under(together)
    ours_s = time.perf_counter() - started
    del counts  # a process is copied with all that it holds
    # The second of two may find the processor in another state than the first: they change places.
    whole = {}
    for who in ("one", "all") if number % 2 else ("all", "one"):
        started = time.perf_counter()
        redraw(columns, units, n_resamples=n, seed=seed, map=spread if who == "all" else map)
        whole[who] = time.perf_counter() - started
    plain_share = len(numbers)
    taken = _Round(
        ours_s=ours_s / n,
        ours_drawn_s=whole["one"] / n,
        workers_s=whole["all"] / n,
        plain_s=plain_s / plain_share,
        plain_drawn_s=(drawing_s + plain_s) / plain_share,
    )
    return taken, values, first


def _result(
    options: BootstrapOptions,
    rounds: list[_Round],
    sorting_s: float,
    first_call_s: float,
    memory_mib: float | None,
    difference: float,
) -> BootstrapResult:
    per_auroc = 1e6 / (options.models * options.findings)
    return BootstrapResult(
        ours_us=_spread([one.ours_s * per_auroc for one in rounds]),
        plain_us=_spread([one.plain_s * per_auroc for one in rounds]),
        ratio=_spread([one.plain_s / one.ours_s for one in rounds]),
        ratio_with_drawing=_spread([one.plain_drawn_s / one.ours_drawn_s for one in rounds]),
        workers_ratio=_spread([one.ours_drawn_s / one.workers_s for one in rounds]),
        ten_thousand_s=1e4 * statistics.median(one.ours_drawn_s for one in rounds),
        ten_thousand_workers_s=1e4 * statistics.median(one.workers_s for one in rounds),
        sorting_s=sorting_s,
        first_call_s=first_call_s,
        memory_mib=memory_mib,
        difference=difference,
        rounds=len(rounds),
        machine=describe_processor(LIBRARIES),
    )


def _spread(values: list[float]) -> Spread:
    return Spread(statistics.median(values), min(values), max(values))


def _begin_peak() -> int | None:
    """Let the peak of resident memory begin anew and return what is resident now, bytes; None where that is unknown."""
    if not sys.platform.startswith("linux"):
        return None
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # proc(5); without it the peak is the old one
        return _peak()
    return None


def _peak() -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    held = [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")]
    return held[0] if held else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
