"""Several training seeds of a strategy made one number.  Shapes: R redraws, S files (one per training seed), K columns.

Two things vary: which patients were tested, and which seed was trained with.  The interval of the mean over the files
at hand covers the first alone; the hierarchical one covers both, by drawing files as well as patients.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from zlib import crc32

import numpy as np

from cxrdist.seeds import Purpose, stream


@dataclass(frozen=True)
class SeedSpread:
    """How far the files of one strategy lie apart on the same full sample; NaN where a file has no number."""

    n: int
    """Files, S."""
    mean: float
    standard_deviation: float
    """Between files, with S - 1 below; NaN for a single file, which tells nothing about spread."""
    low: float
    """The lowest of them."""
    high: float


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
    With `hierarchical` each redraw also draws S of the S files with replacement (Davison & Hinkley 1997, 3.8;
    Bouthillier et al. 2021, "Accounting for variance in machine learning benchmarks").  Files and patients are crossed,
    not nested, so one draw of patients serves all files (Owen 2007, "The pigeonhole bootstrap").  Drawing S of S
    leaves out 1/S of the spread between files: with two or three it is told too small, and of one file nothing is told.

    **Pairing.** The draw of files is a pure function of `seed`, the redraw's number and the set of `train_seeds`.  So
    two strategies trained with the same seeds draw the same seeds, and a difference between them is paired: what a
    seed decides for both (order of samples, initial head) cancels.  Strategies with other seeds, or with seeds not
    given (then `strategy` stands for them), draw independently.

    **Undefined.** A redraw has a number when every file that counts in it has one, else it is NaN: a mean over the
    other files would be that of another strategy.

    Args:
        theta: (R, S) or (R, S, K), each file in each redraw of patients.
        point: (S,) or (S, K), each file on the full sample.
        hierarchical: Whether files are drawn too.
        seed: Of ``stream(seed, Purpose.SEEDS, redraw, ...)``.
        strategy: Name that tells strategies apart whose `train_seeds` are not given.
        train_seeds: S different numbers of 0 or more, in the order of the files; None where they are not known.

    Raises:
        ValueError: If the shapes differ, S is 0, or `train_seeds` are not S different numbers of 0 or more.
    """
    theta, point = np.asarray(theta, dtype=np.float64), np.asarray(point, dtype=np.float64)
    if theta.ndim not in (2, 3) or theta.shape[1:] != point.shape or not point.size:
        raise ValueError(
            f"`theta` must have the shape (R, S) or (R, S, K) and `point` that without R, "
            f"got {theta.shape} and {point.shape}."
        )
    n_files = len(point)
    order = _order(train_seeds, n_files)
    # Files are added up by ascending seed, so that the order in which they were named changes no bit.
    theta, point = theta[:, order], point[order]
    if not hierarchical:
        return theta.mean(axis=1), point.mean(axis=0)
    counts = draw_files(n_files, len(theta), seed=seed, strategy=strategy, train_seeds=train_seeds)
    weights = counts.reshape(*counts.shape, *(1,) * (theta.ndim - 2))
    drawn = np.where(weights > 0, weights * theta, 0.0)  # 0 x NaN is NaN: a file not drawn must not count
    return drawn.sum(axis=1) / n_files, point.mean(axis=0)


def draw_files(
    n_files: int,
    n_resamples: int,
    *,
    seed: int,
    strategy: str = "",
    train_seeds: Sequence[int] | None = None,
) -> np.ndarray:
    """Return (R, S) int64, how often each file is drawn, files by ascending training seed; rows sum to S.

    See `combine_seeds` for the rule of which strategies share their draws.
    """
    order = _order(train_seeds, n_files)
    # The leading 1 or 0 keeps a name's number from meaning a seed.
    who = (0, crc32(strategy.encode())) if train_seeds is None else (1, *(int(train_seeds[i]) for i in order))
    counts = np.empty((n_resamples, n_files), dtype=np.int64)
    for redraw in range(n_resamples):
        drawn = stream(seed, Purpose.SEEDS, redraw, *who).integers(0, n_files, n_files)
        counts[redraw] = np.bincount(drawn, minlength=n_files)
    return counts


def seed_spread(point: np.ndarray) -> SeedSpread:
    """Return how far the (S,) numbers of a strategy's files lie apart; one undefined file leaves all undefined.

    Raises:
        ValueError: If `point` is not (S,) with S of 1 or more.
    """
    point = np.asarray(point, dtype=np.float64)
    if point.ndim != 1 or not len(point):
        raise ValueError(f"`point` must have the shape (S,) with at least one file, got {point.shape}.")
    deviation = float(np.std(point, ddof=1)) if len(point) > 1 else float("nan")
    return SeedSpread(len(point), float(point.mean()), deviation, float(point.min()), float(point.max()))


def _order(train_seeds: Sequence[int] | None, n_files: int) -> np.ndarray:
    """Return (S,) the files by ascending training seed; as they came where the seeds are not known."""
    if train_seeds is None:
        return np.arange(n_files)
    if len(train_seeds) != n_files or len(set(train_seeds)) != n_files or min(train_seeds) < 0:
        raise ValueError(
            f"`train_seeds` must be {n_files} different numbers of 0 or more, one per file, got {list(train_seeds)}."
        )
    return np.argsort(np.asarray(train_seeds), kind="stable")
