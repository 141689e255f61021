"""Why a metric has no number in a redraw.  Shapes: N images, K findings, R redraws."""

from collections.abc import Sequence

import numpy as np

from cxrdist.stats.averages import support_statistic
from cxrdist.stats.bootstrap import Sample
from cxrdist.stats.meanings import MICRO
from cxrdist.stats.resample import MapFunction, redraw

NEEDS = {
    "auroc": (1, 0),
    "auprc": (1,),
    "sensitivity": (1,),
    "specificity": (0,),
    "balanced_accuracy": (1, 0),
    "mcc": (1, 0),
    "calibration_slope": (1, 0),
    "calibration_intercept": (1, 0),
}
"""Metric -> targets without which it does not exist; those not named exist with one class."""

OTHERWISE = {
    "ppv": "no image was called",
    "npv": "every image was called",
    "f1": "no image had the finding or was called",
    "mcc": "all images were called, or none",
    "calibration_slope": "the probabilities parted the classes without overlap, or were all alike",
}
"""Metric -> what else leaves it without a number, for any one model."""
UNLABELLED = "no image had a label"
"""What leaves the others without one."""
MOST_UNDEFINED = 0.2
"""Share of undefined redraws above which those left are too biased a choice for a p."""


def of_one_unit(sample: Sample, metrics: Sequence[str]) -> set[tuple[str, str]]:
    """Return each (metric, finding) that needs a class which fewer than two units have; `MICRO` is all findings as one.

    Redraws without that one unit are undefined and left out, so in all others it is there: what it might have been
    instead never varies, and an interval or p would rest on a single patient without showing it.  A rule of ours.
    """
    found = set()
    for finding, targets in {
        **dict(zip(sample.findings, sample.targets.T, strict=True)),
        MICRO: sample.targets,
    }.items():
        holds = [(targets == target).reshape(len(targets), -1).any(axis=1) for target in (0, 1)]
        sizes = [len(np.unique(sample.units.of_image[images])) for images in holds]
        found |= {(name, finding) for name in metrics if any(sizes[target] < 2 for target in NEEDS.get(name, ()))}
    return found


def too_few_left(redraws: np.ndarray) -> bool:
    """Return whether more than `MOST_UNDEFINED` of the (R,) redraws are undefined (NaN), a rule of ours."""
    return bool(np.isnan(redraws).mean() > MOST_UNDEFINED)


def without_class(
    sample: Sample, *, n_resamples: int, seed: int, map: MapFunction
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return finding -> (R,) bool twice: redraws that lost all images without it, and all with it (index: the target).

    `MICRO` is there as well, for which all findings are one.
    """
    columns = list(sample.targets.T)
    statistics = [support_statistic(one, sample.units) for column in columns for one in (1 - column, column)]
    totals = redraw(statistics, sample.units, n_resamples=n_resamples, seed=seed, map=map)
    totals = totals.reshape(n_resamples, len(columns), 2)
    found = {name: (totals[:, k, 0] == 0, totals[:, k, 1] == 0) for k, name in enumerate(sample.findings)}
    together = totals.sum(axis=1)
    return found | {MICRO: (together[:, 0] == 0, together[:, 1] == 0)}


def lacking(metric: str, lost: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Return (R,) bool: redraws that lost a class which `metric` needs; `lost` is of `without_class`."""
    return np.logical_or.reduce([lost[target] for target in NEEDS.get(metric, ())] or [np.zeros_like(lost[0])])
