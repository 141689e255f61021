"""Logistic recalibration of log odds, every redraw by itself.  Shapes: n images, P units, B redraws.

A maximum of the likelihood exists only where the classes overlap (Albert & Anderson 1984, Biometrika 71:1).  With one
logit per image that means: some positive lies strictly below some negative, and some negative strictly below some
positive.  Perfect separation, separation up to ties, constant logits and a single class are told from the images with
weight before anything is fitted, and give NaN.  Elsewhere the maximum is unique and Newton's steps find it; NaN also
where not even `MAX_STEPS` do, which takes a slope of hundreds: classes that overlap by a hair.
"""

import math

import numpy as np

from cxrdist.stats.compiling import compiled
from cxrdist.stats.kernels import typed, writable

MAX_STEPS = 1000
"""Newton's steps (five to eight are usual)."""
LONGEST_LEAP = 4.0
"""No step changes any image's log odds by more: further off the parabola says nothing, and chances may saturate."""
CALM = 0.5
"""A step that changes no image's log odds by more cannot lower the likelihood, whose curvature along it changes by a
factor of e^0.5 < 2 at most (Bach 2010, Electron J Stat 4:384, lemma 1)."""
TOLERANCE = 1e-6
"""A step this small, relative to 1 + the coefficient, is the last: the error left is about its square."""
INTERCEPT_TOLERANCE = 1e-9
"""The same of an intercept, which may be found by halving as well."""


def fit_slopes(
    counts: np.ndarray, unit: np.ndarray, logit: np.ndarray, positive: np.ndarray, start: np.ndarray
) -> np.ndarray:
    """Return (2, B), the a and b that maximise the likelihood of ``logit P(y = 1) = a + b logit``; NaN where none do.

    Recalibration as of Cox 1958 (Biometrika 45:562).

    Args:
        counts: (P, B) uint16 or float64.
        unit: (n,) unit of each image.
        logit: (n,) finite.
        positive: (n,) bool.
        start: (2,) where to begin, best near the answer; NaN to begin without a slope.

    Raises:
        ValueError: If `counts` are not (P, B) of one of these types.
    """
    return _slopes(writable(typed(counts)), writable(unit), writable(logit), writable(positive), writable(start))


def fit_intercepts(counts: np.ndarray, unit: np.ndarray, logit: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Return (B,) the a of ``logit P(y = 1) = a + logit`` at which as many positives are expected as are seen.

    Calibration in the large (Van Calster et al. 2019, BMC Med 17:230).  NaN where a class has no weight: then a is
    infinite.  Arguments, and what is refused, as of `fit_slopes`.
    """
    return _intercepts(writable(typed(counts)), writable(unit), writable(logit), writable(positive))


@compiled
def _held(
    counts: np.ndarray,
    unit: np.ndarray,
    logit: np.ndarray,
    positive: np.ndarray,
    b: int,
    weights: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
) -> int:
    """Copy the images with weight in column b to the front of the last three; return how many."""
    m = 0
    for i in range(len(unit)):
        if counts[unit[i], b] > 0:
            weights[m], x[m], y[m] = counts[unit[i], b], logit[i], 1.0 if positive[i] else 0.0
            m += 1
    return m


@compiled
def _overlap(x: np.ndarray, y: np.ndarray) -> bool:
    least, most = np.full(2, np.inf), np.full(2, -np.inf)
    for i in range(len(x)):
        label = int(y[i])
        least[label], most[label] = min(least[label], x[i]), max(most[label], x[i])
    return bool(least[1] < most[0] and least[0] < most[1])


@compiled
def _likelihood(weights: np.ndarray, z: np.ndarray, y: np.ndarray, a: float, b: float) -> float:
    total = 0.0
    for i in range(len(z)):
        log_odds = a + b * z[i]
        total += weights[i] * (y[i] * log_odds - max(log_odds, 0.0) - math.log1p(math.exp(-abs(log_odds))))
    return total


@compiled
def _climb(weights: np.ndarray, z: np.ndarray, y: np.ndarray, a: float, b: float) -> tuple[float, float, bool]:
    """Return a and b of centred and scaled logits by Newton's steps, and whether those came to rest.

    A step is cut short, and halved where the likelihood would fall: else they diverge on small samples with outliers.
    """
    miss, spread = np.empty(len(z)), np.empty(len(z))
    least, most = z.min(), z.max()
    step_a, step_b, before, calm = 0.0, 0.0, 0.0, True
    for _ in range(MAX_STEPS):
        if not calm and _likelihood(weights, z, y, a, b) < before - 1e-10 * abs(before):  # too far: half the way back
            step_a, step_b = step_a / 2, step_b / 2
            a, b = a - step_a, b - step_b
            continue
        total_miss, total_spread, middle = 0.0, 0.0, 0.0
        for i in range(len(z)):
            log_odds = a + b * z[i]
            small = math.exp(-abs(log_odds))
            likelier = 1 / (1 + small)
            miss[i] = weights[i] * (y[i] - (likelier if log_odds >= 0 else small * likelier))
            spread[i] = weights[i] * (small * likelier * likelier)
            total_miss += miss[i]
            total_spread += spread[i]
            middle += spread[i] * z[i]
        if not total_spread > 0:
            break
        # Around the middle the two equations part; the determinant of the usual form is lost where one image decides.
        middle /= total_spread
        slope, curvature = 0.0, 0.0
        for i in range(len(z)):
            slope += miss[i] * (z[i] - middle)
            curvature += spread[i] * (z[i] - middle) * (z[i] - middle)
        if not curvature > 0:
            break
        step_b = slope / curvature
        step_a = total_miss / total_spread - middle * step_b
        leap = max(abs(step_a + step_b * least), abs(step_a + step_b * most))
        if leap > LONGEST_LEAP:
            step_a, step_b = step_a * LONGEST_LEAP / leap, step_b * LONGEST_LEAP / leap
        calm = leap <= CALM
        if not calm:
            before = _likelihood(weights, z, y, a, b)
        a, b = a + step_a, b + step_b
        if abs(step_a) <= TOLERANCE * (1 + abs(a)) and abs(step_b) <= TOLERANCE * (1 + abs(b)):
            return a, b, True
    return a, b, False


@compiled
def _maximum(weights: np.ndarray, x: np.ndarray, y: np.ndarray, start: np.ndarray) -> tuple[float, float]:
    """Return a and b by Newton's steps from `start`, or, where those lead nowhere, from the model without a slope."""
    # Centred and scaled, so that the two equations stay apart when logits lie close together.
    centre, scale, share, total = 0.0, 0.0, 0.0, 0.0
    for i in range(len(x)):
        total += weights[i]
        centre += weights[i] * x[i]
        share += weights[i] * y[i]
    centre, share = centre / total, share / total
    for i in range(len(x)):
        weights[i] /= total  # nor may the determinant of small weights underflow
        scale += weights[i] * (x[i] - centre) ** 2
    scale = math.sqrt(scale)
    for i in range(len(x)):
        x[i] = (x[i] - centre) / scale
    a, b, found = 0.0, 0.0, False
    if np.isfinite(start[0]) and np.isfinite(start[1]):
        a, b, found = _climb(weights, x, y, start[0] + start[1] * centre, start[1] * scale)
    if not found:
        a, b, found = _climb(weights, x, y, math.log(share / (1 - share)), 0.0)
    return (a - b * centre / scale, b / scale) if found else (math.nan, math.nan)


@compiled
def _in_the_large(weights: np.ndarray, x: np.ndarray, y: np.ndarray) -> float:
    """Return a by Newton's steps, or by halving a bracket that holds it where one would leave that."""
    seen, total, least, most = 0.0, 0.0, np.inf, -np.inf
    for i in range(len(x)):
        seen, total = seen + weights[i] * y[i], total + weights[i]
        least, most = min(least, x[i]), max(most, x[i])
    if not 0 < seen < total:
        return math.nan
    # Shifted so that even the highest logit expects too few positives, or even the lowest too many: a is in between.
    odds = math.log(seen / (total - seen))
    low, high = odds - most, odds - least
    a = min(max(0.0, low), high)
    for _ in range(MAX_STEPS):
        expected, slope = 0.0, 0.0
        for i in range(len(x)):
            log_odds = a + x[i]
            small = math.exp(-abs(log_odds))
            expected += weights[i] * ((1.0 if log_odds >= 0 else small) / (1 + small))
            slope += weights[i] * small / (1 + small) ** 2
        if expected > seen:
            high = a
        else:
            low = a
        new = a + (seen - expected) / slope if slope > 0 else math.inf
        if not low <= new <= high:  # Newton left the bracket: halve it
            new = (low + high) / 2
        step, a = new - a, new
        if abs(step) <= INTERCEPT_TOLERANCE * (1 + abs(a)):
            return a
    return math.nan


@compiled
def _slopes(
    counts: np.ndarray, unit: np.ndarray, logit: np.ndarray, positive: np.ndarray, start: np.ndarray
) -> np.ndarray:
    n, lanes = len(unit), counts.shape[1]
    found = np.full((2, lanes), np.nan)
    weights, x, y = np.empty(n), np.empty(n), np.empty(n)
    for b in range(lanes):
        m = _held(counts, unit, logit, positive, b, weights, x, y)
        if _overlap(x[:m], y[:m]):
            found[0, b], found[1, b] = _maximum(weights[:m], x[:m], y[:m], start)
    return found


@compiled
def _intercepts(counts: np.ndarray, unit: np.ndarray, logit: np.ndarray, positive: np.ndarray) -> np.ndarray:
    n, lanes = len(unit), counts.shape[1]
    found = np.full(lanes, np.nan)
    weights, x, y = np.empty(n), np.empty(n), np.empty(n)
    for b in range(lanes):
        m = _held(counts, unit, logit, positive, b, weights, x, y)
        found[b] = _in_the_large(weights[:m], x[:m], y[:m])
    return found
