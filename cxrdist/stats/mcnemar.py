"""McNemar's test: do two models call the same images right equally often?  Shapes: N images, P units (patients).

Which images are asked about is said by masking targets with NaN: with the negatives masked it compares sensitivities,
with the positives masked specificities, with neither accuracies.
"""

from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest, chi2

from cxrdist.stats.resample import Units


@dataclass(frozen=True)
class McNemar:
    """How two models' calls differ on the same images (McNemar 1947); shares in [-1, 1], counts in images."""

    difference: float
    """Share of images that the first calls right minus that of the second."""
    first_only: int
    """Images that only the first calls right."""
    second_only: int
    """Images that only the second calls right."""
    p: float
    """Two-sided, of no difference; NaN if no image, or with `units` fewer than two of them, are labelled."""


def mcnemar_test(
    targets: np.ndarray, first_called: np.ndarray, second_called: np.ndarray, units: Units | None = None
) -> McNemar:
    """Return McNemar's test of two models' calls, exact for single images, or clustered by `units`.

    - Without `units` images are independent, and p is that of the exact binomial test on the images where just one
      model is right (McNemar 1947, Psychometrika 12:153).
    - With `units` it is Obuchowski's test (1998, Statistics in Medicine 17:1495), a chi-square of one degree,
      ``(K - 1) / K (sum d)^2 / sum d^2``, where d is in how many of a unit's images only the first is right, less in
      how many only the second, and K the number of units with a labelled image.  (Her variance of the difference
      comes down to this, as Yang et al. 2010, Biometrical Journal 52:638, show.)  It asks nothing of how images of a
      patient agree; Eliasziw & Donner's (1991) presumes one correlation for all patients.  It holds for many patients:
      with fewer than about ten whose d is not 0, read `permutation_test` instead.  Units of one image each give the
      chi-square without continuity correction times (K - 1) / K.

    Args:
        targets: (N,) of 1, 0, NaN for masked.
        first_called: (N,) of 1 or True where the first model calls the finding present, at its threshold.
        second_called: As `first_called`.
        units: Which images belong together.  `strata` do not matter.

    Raises:
        ValueError: If shapes or values are wrong.
    """
    targets = np.asarray(targets, dtype=np.float64)
    known = ~np.isnan(targets)
    first, second = (
        _right(targets, called, known, name)
        for called, name in ((first_called, "first_called"), (second_called, "second_called"))
    )
    if units is not None and units.of_image.shape != targets.shape:
        raise ValueError(f"`units` must be of the {len(targets)} images of `targets`, got {len(units.of_image)}.")
    gain = first.astype(np.int64) - second
    first_only, second_only = int(np.count_nonzero(gain == 1)), int(np.count_nonzero(gain == -1))
    difference = float(gain.mean()) if len(gain) else float("nan")
    p = _exact(first_only, second_only, len(gain)) if units is None else _clustered(gain, units.of_image[known])
    return McNemar(difference, first_only, second_only, p)


def _right(targets: np.ndarray, called: np.ndarray, known: np.ndarray, name: str) -> np.ndarray:
    """Return (n,) bool: which of the known images are called right."""
    called = np.asarray(called)
    if targets.ndim != 1 or called.shape != targets.shape:
        raise ValueError(f"`{name}` must have the shape (N,) of `targets`, got {called.shape} and {targets.shape}.")
    for values, what in ((targets[known], "targets"), (called[known], name)):
        if not np.isin(values, (0, 1)).all():
            raise ValueError(f"`{what}` must be 0 or 1, got another value.")
    return called[known] == targets[known]


def _exact(first_only: int, second_only: int, n_images: int) -> float:
    if not n_images:
        return float("nan")
    return float(binomtest(first_only, first_only + second_only).pvalue) if first_only + second_only else 1.0


def _clustered(gain: np.ndarray, of_image: np.ndarray) -> float:
    """Return p for the (n,) gains of 1, 0, -1 of images in their units."""
    _, unit = np.unique(of_image, return_inverse=True)
    n_units = int(unit.max(initial=-1)) + 1
    if n_units < 2:
        return float("nan")
    by_unit = np.zeros(n_units, dtype=np.int64)
    np.add.at(by_unit, unit, gain)
    squares = int(np.sum(by_unit**2))
    if not squares:
        return 1.0
    return float(chi2.sf((n_units - 1) / n_units * int(by_unit.sum()) ** 2 / squares, 1))
