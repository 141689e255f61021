"""What a threshold does: rates of the confusion counts.  Shapes: N images, P units, B redraws.

Every formula takes true and false positives, true and false negatives, (...) each and 0 or more, and gives (...) in
[0, 1], MCC in [-1, 1].  An image is *called* when ``score >= threshold``.  The four counts are whole numbers and exact
under whole weights, so a rate has the rounding of its one formula and does not depend on the order of images.

A rate whose denominator is zero does not exist and is NaN, never 0 or 1: sensitivity without positives, specificity
without negatives, PPV where nothing is called, NPV where everything is, F1 where there is neither a positive nor a
call, balanced accuracy with one class only, MCC where a class or a kind of call is absent (scikit-learn writes 0
there; Chicco & Jurman 2020 call it undefined).  Without a threshold (NaN) every rate is NaN.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from cxrdist.stats.kernels import weighted_sums
from cxrdist.stats.labelled import labelled, point
from cxrdist.stats.resample import Units

Formula = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def sensitivity(tp: np.ndarray, fp: np.ndarray, tn: np.ndarray, fn: np.ndarray) -> np.ndarray:
    """Return (...), the share of present findings that are called (Altman & Bland 1994, BMJ 308:1552)."""
    return _share(tp, tp + fn)


def specificity(tp: np.ndarray, fp: np.ndarray, tn: np.ndarray, fn: np.ndarray) -> np.ndarray:
    """Return (...), the share of absent findings that are not called (Altman & Bland 1994, BMJ 308:1552)."""
    return _share(tn, tn + fp)


def ppv(tp: np.ndarray, fp: np.ndarray, tn: np.ndarray, fn: np.ndarray) -> np.ndarray:
    """Return (...), the share of calls that are right, at this prevalence (Altman & Bland 1994, BMJ 309:102)."""
    return _share(tp, tp + fp)


def npv(tp: np.ndarray, fp: np.ndarray, tn: np.ndarray, fn: np.ndarray) -> np.ndarray:
    """Return (...), the share of non-calls that are right, at this prevalence (Altman & Bland 1994, BMJ 309:102)."""
    return _share(tn, tn + fn)


def f1(tp: np.ndarray, fp: np.ndarray, tn: np.ndarray, fn: np.ndarray) -> np.ndarray:
    """Return (...), the harmonic mean of sensitivity and PPV (van Rijsbergen 1979, Information Retrieval, 7)."""
    return _share(2 * tp, 2 * tp + fp + fn)


def accuracy(tp: np.ndarray, fp: np.ndarray, tn: np.ndarray, fn: np.ndarray) -> np.ndarray:
    """Return (...), the share of images called rightly (Metz 1978, Semin Nucl Med 8:283)."""
    return _share(tp + tn, tp + fp + tn + fn)


def balanced_accuracy(tp: np.ndarray, fp: np.ndarray, tn: np.ndarray, fn: np.ndarray) -> np.ndarray:
    """Return (...), the mean of sensitivity and specificity (Brodersen et al. 2010, ICPR)."""
    return (_share(tp, tp + fn) + _share(tn, tn + fp)) / 2


def mcc(tp: np.ndarray, fp: np.ndarray, tn: np.ndarray, fn: np.ndarray) -> np.ndarray:
    """Return (...), the correlation of calls with the truth.

    Matthews 1975 (Biochim Biophys Acta 405:442); Chicco & Jurman 2020 (BMC Genomics 21:6).
    """
    # Two roots, so that small float weights do not underflow in a product of four.
    spread = np.sqrt((tp + fp) * (tp + fn)) * np.sqrt((tn + fp) * (tn + fn))
    return _share(tp * tn - fp * fn, spread)


RATES: dict[str, Formula] = {
    one.__name__: one for one in (sensitivity, specificity, ppv, npv, f1, accuracy, balanced_accuracy, mcc)
}
"""Name -> formula over true positives, false positives, true negatives and false negatives, arrays of one shape."""


@dataclass(frozen=True)
class RateStatistic:
    """One rate of one model on one finding at a threshold; a `Statistic`."""

    rate: str
    """A name in `RATES`, which cite their sources."""
    cells: np.ndarray
    """(P, 4) float64 whole numbers: true and false positives, true and false negatives of each unit."""

    def under(self, counts: np.ndarray) -> np.ndarray:
        """Return (B,) the rate under the (P, B) `counts`; NaN where its denominator is 0.

        Raises:
            ValueError: If `counts` do not have P rows, or are of another type than kernels take.
        """
        return RATES[self.rate](*weighted_sums(counts, self.cells))


def rate_statistic(
    rate: str, targets: np.ndarray, scores: np.ndarray, units: Units, threshold: float | None
) -> RateStatistic:
    """Return one of `RATES`, which cite their sources, prepared.

    Args:
        rate: A name in `RATES`.
        targets: (N,) of 1, 0, or NaN for masked images, which take no part.
        scores: (N,), an image is called when its score is `threshold` or more.
        units: What is redrawn.
        threshold: Chosen on other data; NaN where none could be chosen, and then every value is NaN.

    Raises:
        ValueError: If a shape or value is wrong, or the threshold is missing.
    """
    if rate not in RATES:
        raise ValueError(f"`rate` must be one of {', '.join(RATES)}, got {rate!r}.")
    if threshold is None:
        raise ValueError(f"`threshold` must be given for {rate}, got None.")
    images = labelled(targets, scores, units)
    present, called = images.positive, images.scores >= threshold
    cells = images.totals(
        present & called, ~present & called, ~present & ~called, present & ~called, n_units=units.n
    )  # in the order of the formulas
    # Without a threshold nothing was decided: no counts, so that no rate exists.
    return RateStatistic(rate, np.zeros_like(cells) if np.isnan(threshold) else cells)


def rate_at(
    rate: str, targets: np.ndarray, scores: np.ndarray, threshold: float, weights: np.ndarray | None = None
) -> float:
    """Return one of `RATES` of ``score >= threshold``, in [0, 1] (MCC: [-1, 1]); see `rate_statistic`.

    `targets`, `scores` and image `weights` (None: all 1) are (N,) each.

    Raises:
        ValueError: If a shape or value is wrong.
    """
    return point(partial(rate_statistic, rate, targets, scores, threshold=threshold), np.shape(targets)[0], weights)


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    part, whole = np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64)
    return np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)
