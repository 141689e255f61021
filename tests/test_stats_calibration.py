import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq, minimize
from sklearn.linear_model import LogisticRegression

from cxrdist.stats.calibration import (
    LOGIT_FLOOR,
    brier,
    calibration_intercept,
    calibration_slope,
    calibration_slope_statistic,
    ece,
    log_loss,
    reliability_curve,
)
from cxrdist.stats.logistic import fit_slopes
from cxrdist.stats.resample import Units

SCORES = st.sampled_from([0.0, 1e-300, 0.1, 0.25, 0.5, 0.5 + 1e-16, 0.75, 1.0])
IMAGES = st.lists(st.tuples(st.sampled_from([0.0, 1.0]), SCORES, st.integers(0, 4)), min_size=1, max_size=25)


def make_predictions(rng, n=400, slope=0.7, intercept=0.4):
    """Return targets whose log odds are `intercept` + `slope` x those of the probabilities."""
    logit = rng.normal(-1, 1.5, n)
    chance = 1 / (1 + np.exp(-(intercept + slope * logit)))
    return (rng.random(n) < chance).astype(float), 1 / (1 + np.exp(-logit))


def logits(scores):
    p = np.clip(scores, LOGIT_FLOOR, 1 - LOGIT_FLOOR)
    return np.log(p / (1 - p))


def ece_by_definition(targets, scores, weights, n_bins):
    """Line up single images (whole weights), cut, keep equal scores together by their middle."""
    images = sorted(
        (score, target) for target, score, weight in zip(targets, scores, weights, strict=True) for _ in range(weight)
    )
    bins = [[] for _ in range(n_bins)]
    for score in sorted({score for score, _ in images}):
        places = [i for i, (other, _) in enumerate(images) if other == score]
        first, last = places[0], places[-1] + 1  # the group lies on the line from `first` to `last`
        number = (first + last) * n_bins // (2 * len(images))
        bins[number] += [images[i] for i in places]
    error = 0.0
    for held in bins:
        if held:
            confidence = sum(score for score, _ in held) / len(held)
            accuracy = sum(target for _, target in held) / len(held)
            error += len(held) / len(images) * abs(accuracy - confidence)
    return error if images else math.nan


@settings(max_examples=150, deadline=None)
@given(IMAGES, st.integers(1, 20))
def test_ece_is_its_definition(images, n_bins):
    targets, scores, weights = (np.array(column) for column in zip(*images, strict=True))
    expected = ece_by_definition(targets, scores, weights, n_bins)
    for same in (weights, weights.astype(float)):
        assert ece(targets, scores, same, n_bins=n_bins) == pytest.approx(expected, abs=1e-13, nan_ok=True)
    once = ece_by_definition(targets, scores, np.ones_like(weights), n_bins)
    curve = reliability_curve(targets, scores, n_bins)
    assert ece(targets, scores, n_bins=n_bins) == pytest.approx(once, abs=1e-13)
    gaps = np.abs(curve.mean_predicted - curve.share_positive)
    assert np.sum(curve.count / len(targets) * gaps) == pytest.approx(once, abs=1e-13)


@pytest.mark.parametrize("n", [15, 100, 1000])
def test_bins_of_distinct_scores_hold_the_same_number_of_images(n):
    rng = np.random.default_rng(0)
    targets, scores = rng.integers(0, 2, n).astype(float), rng.random(n)
    curve = reliability_curve(targets, scores)
    assert len(curve.count) == 15
    assert curve.count.sum() == n
    assert np.ptp(curve.count) <= 1
    assert (np.diff(curve.mean_predicted) > 0).all()


def test_equal_scores_share_a_bin():
    targets, scores = np.tile([0.0, 1.0, 1.0], 20), np.repeat([0.2, 0.6], 30)
    curve = reliability_curve(targets, scores, 10)
    assert curve.mean_predicted == pytest.approx([0.2, 0.6])
    assert list(curve.count) == [30, 30]
    assert curve.share_positive == pytest.approx([2 / 3, 2 / 3])
    constant = reliability_curve(targets, np.full(60, 0.3))
    assert list(constant.count) == [60]
    assert ece(targets, np.full(60, 0.3)) == pytest.approx(2 / 3 - 0.3)
    assert len(reliability_curve(np.full(3, np.nan), np.zeros(3)).count) == 0


def test_ece_of_float_weights_does_not_depend_on_their_scale():
    rng = np.random.default_rng(1)
    targets, scores = rng.integers(0, 2, 90).astype(float), rng.integers(0, 30, 90) / 30
    weights = rng.random(90)
    value = ece(targets, scores, weights)
    assert ece(targets, scores, weights * 2.0**60) == value
    assert ece(targets, scores, weights / 3) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("weighing", ["none", "integers", "floats"])
@pytest.mark.parametrize("seed", range(4))
def test_slope_and_intercept_are_those_of_independent_fits(seed, weighing):
    rng = np.random.default_rng(seed)
    targets, scores = make_predictions(rng)
    scores[:6] = 0, 1, 0, 1, 1e-12, 0.5  # clipped
    weights = {"none": None, "integers": rng.integers(0, 5, 400), "floats": rng.random(400)}[weighing]
    x, w = logits(scores), np.ones(400) if weights is None else weights
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit = LogisticRegression(C=np.inf, tol=1e-14, solver="newton-cholesky", max_iter=1000)
        fit.fit(x[:, None], targets, sample_weight=w)
    assert calibration_slope(targets, scores, weights) == pytest.approx(fit.coef_[0, 0], rel=1e-10)

    def surplus(a):
        return np.sum(w * (1 / (1 + np.exp(-(a + x))) - targets))

    expected = brentq(surplus, -30, 30, xtol=1e-14, rtol=1e-14)
    assert calibration_intercept(targets, scores, weights) == pytest.approx(expected, abs=1e-10)


def test_only_the_ratios_of_float_weights_count():
    rng = np.random.default_rng(3)
    targets, scores = make_predictions(rng)
    weights = rng.random(400)
    for measure in (calibration_slope, calibration_intercept):
        value = measure(targets, scores, weights)
        for scale in (2.0**-600, 2.0**200):
            assert measure(targets, scores, weights * scale) == pytest.approx(value, rel=1e-10)


@pytest.mark.parametrize("shift", [0.0, 1e-7])
def test_slope_of_logits_that_lie_close_together(shift):
    targets = np.array([0.0, 0.0, 1.0, 0.0, 1.0, 1.0])
    scores = 0.2 + shift + np.array([0, 1, 2, 3, 4, 5]) * 1e-9
    x = logits(scores)
    z = (x - x.mean()) / x.std()

    def loss(ab):
        return np.sum(np.logaddexp(0, ab[0] + ab[1] * z) - targets * (ab[0] + ab[1] * z))

    expected = minimize(loss, np.zeros(2), tol=1e-12).x[1] / x.std()
    assert calibration_slope(targets, scores) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("targets", "scores"),
    [
        ([0, 0, 1, 1], [0.1, 0.2, 0.3, 0.4]),
        ([1, 1, 0, 0], [0.1, 0.2, 0.3, 0.4]),
        ([0, 0, 1, 1], [0.1, 0.3, 0.3, 0.4]),
        ([0, 0, 1, 1], [0.3, 0.3, 0.3, 0.4]),
        ([0, 1, 0, 1], [0.7, 0.7, 0.7, 0.7]),
        ([0, 1, 0, 1], [0.0, 1e-9, 0.0, 1e-12]),
    ],
    ids=["separated", "separated the wrong way", "up to a tie", "at one end", "constant", "constant once clipped"],
)
def test_classes_that_do_not_overlap_have_no_slope_but_an_intercept(targets, scores):
    targets, scores = np.array(targets, dtype=float), np.array(scores)
    assert np.isnan(calibration_slope(targets, scores))
    assert np.isfinite(calibration_intercept(targets, scores))


def test_every_overlap_has_a_slope_wherever_its_search_begins():
    fitted = 0
    for seed in range(400):
        rng = np.random.default_rng(seed)
        n = rng.integers(4, 12)
        x, y = rng.choice([-18.4, -15, -3.0, -1, 0, 0.5, 2, 9, 18.4], n), rng.random(n) < 0.5
        if y.all() or not y.any() or x[y].min() >= x[~y].max() or x[~y].min() >= x[y].max():
            continue
        fitted += 1
        weights, images = 10.0 ** rng.integers(0, 7, (n, 1)), np.arange(n, dtype=np.int32)
        (a,), (b,) = fit_slopes(weights, images, x, y, np.full(2, np.nan))
        miss = weights[:, 0] * (1 / (1 + np.exp(-(a + b * x))) - y)
        assert abs(miss.sum()) < 1e-9 * weights.sum(), seed  # the gradient is zero: the maximum
        assert abs((miss * x).sum()) < 1e-8 * weights.sum(), seed
        for start in ([0.0, 1.0], [0.0, 3.0], [-5.0, -2.0]):
            assert fit_slopes(weights, images, x, y, np.array(start))[1, 0] == pytest.approx(b, rel=1e-7, abs=1e-9), (
                seed
            )
    assert fitted > 250


def test_separation_is_told_in_every_redraw_by_itself():
    targets = np.array([0.0, 1.0, 0.0, 1.0])
    scores = np.array([0.1, 0.2, 0.3, 0.4])
    units = Units(np.arange(4), 4)
    counts = np.array([[1, 1, 1, 1], [1, 0, 1, 1], [0, 1, 1, 1], [3, 1, 1, 1], [1, 1, 1, 0]], dtype=np.uint16).T
    slopes = calibration_slope_statistic(targets, scores, units).under(counts)
    assert np.isnan(slopes).tolist() == [False, True, False, False, False]


def test_one_outlier_against_certain_scores_still_converges():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        targets = rng.integers(0, 2, 200).astype(float)
        scores = np.where(rng.random(200) < 0.02, 1 - targets, targets)  # certain, two in a hundred wrong
        scores[:2], targets[:2] = (1.0, 0.0), (0.0, 1.0)
        slope, intercept = calibration_slope(targets, scores), calibration_intercept(targets, scores)
        # With two distinct logits the slope is the difference of observed log odds over that of the logits.
        high, low = targets[scores == 1].mean(), targets[scores == 0].mean()
        expected = (np.log(high / (1 - high)) - np.log(low / (1 - low))) / (2 * logits(np.array([1.0]))[0])
        assert slope == pytest.approx(expected, rel=1e-6), seed
        assert np.isfinite(intercept)


def test_what_the_numbers_mean():
    rng = np.random.default_rng(9)
    targets, scores = make_predictions(rng, n=20000, slope=1, intercept=0)
    assert calibration_slope(targets, scores) == pytest.approx(1, abs=0.06)
    assert calibration_intercept(targets, scores) == pytest.approx(0, abs=0.06)
    assert ece(targets, scores) < 0.02
    extreme = 1 / (1 + np.exp(-2 * logits(scores)))
    assert calibration_slope(targets, extreme) == pytest.approx(calibration_slope(targets, scores) / 2)
    too_high = 1 / (1 + np.exp(-(logits(scores) + 1)))
    assert calibration_intercept(targets, too_high) == pytest.approx(calibration_intercept(targets, scores) - 1)


def test_certain_and_wrong_costs_what_sklearn_charges():
    wrong = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    assert log_loss(*wrong) == -np.log(np.finfo(float).eps)
    assert log_loss(wrong[0], wrong[0]) == pytest.approx(np.finfo(float).eps)
    assert brier(*wrong) == 1


def test_scores_that_are_no_probabilities_are_refused():
    targets = np.array([0.0, 1.0, np.nan])
    for measure in (brier, log_loss, ece, calibration_slope, calibration_intercept):
        for wrong in (1.2, -0.1, np.inf):
            with pytest.raises(ValueError, match=r"`scores` must be probabilities in \[0, 1\]"):
                measure(targets, np.array([0.5, wrong, 0.5]))
        measure(targets, np.array([0.5, 0.4, 7.0]))  # a masked score is nobody's business
    with pytest.raises(ValueError, match="`n_bins` must be 1 or more"):
        ece(targets, np.full(3, 0.5), n_bins=0)
