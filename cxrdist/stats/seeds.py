"""Several training seeds of a strategy made one number.  Shapes: R redraws, S files (one per training seed), K columns.

Two things vary: which patients were tested, and which seed was trained with.  The interval of the mean over the files
at hand covers the first alone; the hierarchical one covers both.
"""

from collections.abc import Sequence
from functools import lru_cache
from zlib import crc32

import numpy as np

from cxrdist.seeds import Purpose, stream


def combine_seeds(
    theta: np.ndarray,
    point: np.ndarray,
    *,
    hierarchical: bool,
    seed: int,
    strategy: str = "",
    train_seeds: Sequence[int] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return a strategy's number in each redraw, (R,) or (R, K), and on the full sample, () or (K,).

    It is the mean over the strategy's files, taken inside each redraw, because all files see the same test patients.
    With `hierarchical` each redraw also shifts that mean by what another set of S seeds might have done (Bouthillier et
    al. 2021, "Accounting for variance in machine learning benchmarks"): by ``sum_i m_i (point_i - mean of point)`` with
    the multipliers m of `seed_multipliers`.  The shift is distributed as Student's t with S - 1 degrees of freedom x
    the standard error of a mean of S, so it is as wide as few seeds demand, at every level of confidence.  Files and
    patients are crossed, not nested, so one redraw of patients serves all files, and both shifts add up (the sum of a
    normal and a t is Behrens & Fisher's, see Kim & Cohen 1998, J Educ Behav Stat 23:356).

    Drawing S of S files with replacement instead would leave out 1/S of the spread between files and take S - 1 degrees
    of freedom for infinitely many: with half the variance from the seeds, nominal 95 % intervals would hold the truth
    in 89 % (S = 2), 90 % (3), 92 % (5), 94 % (10); with nine tenths of it, in 70 %, 80 %, 86 %, 92 %.

    **What remains.**  Of one file nothing can be told: S = 1 gives the interval for patients alone.  The numbers of
    seeds are taken to be about normal, which so few cannot show.  Where patients vary more than seeds, intervals are
    too wide rather than too narrow (98 % for S = 2, 97 % for 3), with two files several times so: train three or more.
    How a seed and a patient go together is within both shifts, counted twice.  A bound may lie outside the range of the
    metric, and with two or three files the redraws have no standard deviation to speak of, only quantiles.

    **Pairing.** The multipliers are a pure function of `seed`, the redraw's number and the set of `train_seeds`, and
    the shift is linear in the files.  So the redraws of a difference of two strategies trained with the same seeds are
    those of the seed by seed differences: what a seed decides for both (order of samples, initial head) cancels.
    Strategies with other seeds, or with seeds not given (then `strategy` stands for them), shift independently.

    **Undefined.** A redraw has a number when every file has one, else it is NaN: a mean over the other files would be
    that of another strategy.

    Args:
        theta: (R, S) or (R, S, K), each file in each redraw of patients.
        point: (S,) or (S, K), each file on the full sample.
        hierarchical: Whether the seeds vary too.
        seed: Of ``stream(seed, Purpose.SEEDS, redraw, ...)``.
        strategy: Name that tells strategies apart whose `train_seeds` are not given.
        train_seeds: S different numbers of 0 or more, in the order of the files; None where they are not known.  Where
            they are given, the order of the files changes no bit.

    Raises:
        ValueError: If the shapes differ, S is 0, or `train_seeds` are not S different numbers of 0 or more.
    """
    theta, point = np.asarray(theta, dtype=np.float64), np.asarray(point, dtype=np.float64)
    if theta.ndim not in (2, 3) or theta.shape[1:] != point.shape or not point.size:
        raise ValueError(
            f"`theta` must have the shape (R, S) or (R, S, K) and `point` that without R, "
            f"got {theta.shape} and {point.shape}."
        )
    order = _order(train_seeds, len(point))
    combined, mean = mean_over_files(theta, axis=1), mean_over_files(point, axis=0)
    if hierarchical and len(point) > 1:
        multipliers = seed_multipliers(len(point), len(theta), seed=seed, strategy=strategy, train_seeds=train_seeds)
        # Of equal numbers, the mean may differ by rounding, and the tails of t would make something of it.
        apart = np.where(np.ptp(point, axis=0) == 0, 0.0, point - mean)[order]
        for i, deviation in enumerate(apart):
            combined = combined + np.multiply.outer(multipliers[:, i], deviation)
    return combined, mean


def mean_over_files(values: np.ndarray, axis: int) -> np.ndarray:
    """Return (...), the mean of (..., S, ...) over the files along `axis`.

    Added up by size, so that the order of files changes no bit; NaN where one is NaN.
    """
    ordered = np.moveaxis(np.sort(values, axis=axis), axis, 0)
    total = ordered[0]
    for one in ordered[1:]:  # NumPy's own sum would ask how the array lies
        total = total + one
    return np.asarray(total / len(ordered))


def seed_multipliers(
    n_files: int,
    n_resamples: int,
    *,
    seed: int,
    strategy: str = "",
    train_seeds: Sequence[int] | None = None,
) -> np.ndarray:
    """Return (R, S), what each file's deviation from the mean counts for in each redraw, by ascending training seed.

    Of S files, S normal numbers g and a chi-squared c with S - 1 degrees of freedom, drawn in this order from the
    redraw's stream, make ``m_i = g_i / sqrt(S (S - 1)) / sqrt(c / (S - 1))``: given the files, ``sum_i m_i (x_i -
    mean)`` is the standard error of their mean x Student's t (a multiplier bootstrap: van der Vaart & Wellner 1996,
    2.9, whose normal sum is studentised; Box & Tiao 1973, 2.4 has it as the posterior of a mean).

    See `combine_seeds` for the rule of which strategies share theirs.

    Raises:
        ValueError: If `n_files` is below 2, or `train_seeds` are not that many different numbers of 0 or more.
    """
    if n_files < 2:
        raise ValueError(f"`n_files` must be 2 or more, got {n_files}.")
    order = _order(train_seeds, n_files)
    # The leading 1 or 0 keeps a name's number from meaning a seed.
    who = (0, crc32(strategy.encode())) if train_seeds is None else (1, *(int(train_seeds[i]) for i in order))
    return _multipliers(n_files, n_resamples, seed, who)


@lru_cache(maxsize=16)
def _multipliers(n_files: int, n_resamples: int, seed: int, who: tuple[int, ...]) -> np.ndarray:
    """Kept, since every finding, metric and subgroup of a strategy asks for the same."""
    found = np.empty((n_resamples, n_files))
    for redraw in range(n_resamples):
        rng = stream(seed, Purpose.SEEDS, redraw, *who)
        normal, spread = rng.standard_normal(n_files), rng.chisquare(n_files - 1)
        found[redraw] = normal / np.sqrt(n_files * spread)
    found.flags.writeable = False
    return found


def _order(train_seeds: Sequence[int] | None, n_files: int) -> np.ndarray:
    """Return (S,) the files by ascending training seed; as they came where the seeds are not known."""
    if train_seeds is None:
        return np.arange(n_files)
    if len(train_seeds) != n_files or len(set(train_seeds)) != n_files or min(train_seeds) < 0:
        raise ValueError(
            f"`train_seeds` must be {n_files} different numbers of 0 or more, one per file, got {list(train_seeds)}."
        )
    return np.argsort(np.asarray(train_seeds), kind="stable")
