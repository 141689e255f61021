import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import bootstrap

from cxrdist.stats.intervals import Interval, acceleration, interval, percentile_interval, raised_interval

METHODS = ["percentile", "basic", "bca"]


def third_moment(x, axis=-1):
    """A skewed statistic, so that bias and acceleration are not 0."""
    return np.mean(np.asarray(x) ** 3, axis=axis)


def largest_share(x, axis=-1):
    """A statistic of few values, so that most redraws tie with each other and with the point."""
    return np.mean(np.asarray(x) > 1, axis=axis)


def without_each(x, statistic):
    return np.array([statistic(np.delete(x, i)) for i in range(len(x))])


def of_scipy(x, statistic, theta, method, level):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = bootstrap(
            (x,),
            statistic,
            n_resamples=0,
            bootstrap_result=SimpleNamespace(bootstrap_distribution=theta),
            method=method,
            confidence_level=level,
        )
    return tuple(map(float, result.confidence_interval))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("level", [0.5, 0.95, 0.99])
@pytest.mark.parametrize("statistic", [np.mean, third_moment, largest_share, np.var])
@pytest.mark.parametrize("seed", range(3))
def test_bounds_are_those_of_scipy_on_the_very_same_redraws(method, level, statistic, seed):
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    x = rng.exponential(size=(17, 40, 9)[seed])
    theta = statistic(x[rng.integers(0, len(x), (499, len(x)))], axis=-1)
    bounds = interval(
        theta, method=method, confidence_level=level, point=statistic(x), jackknife=without_each(x, statistic)
    )
    np.testing.assert_allclose(
        [bounds.low, bounds.high], of_scipy(x, statistic, theta, method, level), rtol=1e-12, atol=1e-12
    )


def test_redraw_that_ties_with_the_point_is_half_below_it():
    theta = np.array([0.1, 0.5, 0.5, 0.5, 0.9])
    same = interval(theta, method="bca", point=0.5, jackknife=np.arange(5.0), confidence_level=0.8)
    plain = percentile_interval(theta, confidence_level=0.8)
    assert (same.low, same.high) == pytest.approx((plain.low, plain.high), abs=1e-12)
    assert interval(theta, method="bca", point=0.4, jackknife=np.arange(5.0)).low < same.low


@pytest.mark.parametrize("method", METHODS)
def test_undefined_redraws_and_left_out_units_are_left_out(method):
    rng = np.random.default_rng(3)
    theta, left = rng.normal(0.1, 1, 200), rng.exponential(size=30)
    holed = np.insert(theta, [0, 50, 200], np.nan)
    bounds = interval(theta, method=method, point=0.0, jackknife=left)
    assert interval(holed, method=method, point=0.0, jackknife=np.r_[np.nan, left, np.nan]) == bounds
    assert bounds.low < bounds.high


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("point", [0.75, 0.75 + 1e-16, 0.75 - 2e-16])
def test_redraws_that_are_all_equal_give_an_interval_without_width(method, point):
    # A perfect model on a finding: also the mean over files may round otherwise than its redraws.
    bounds = interval(np.full(99, 0.75), method=method, point=point, jackknife=np.full(20, 0.75))
    assert bounds.low == bounds.high == pytest.approx(0.75, abs=1e-15)


@pytest.mark.parametrize("left", [np.full(9, 0.3), np.array([np.nan, 0.2]), np.array([]), np.full(9, np.nan)])
def test_jackknife_that_says_nothing_means_no_acceleration(left):
    assert acceleration(left) == 0.0
    theta = np.random.default_rng(4).normal(size=99)
    flat = interval(theta, method="bca", point=0.0, jackknife=np.tile([-1.0, 1.0], 10))
    assert interval(theta, method="bca", point=0.0, jackknife=left) == flat


def test_jackknife_that_differs_by_rounding_only_means_no_acceleration():
    left = np.full(50, 0.7)
    left[3] = np.nextafter(0.7, 1)
    assert acceleration(left) == 0.0


def test_acceleration_of_tiny_influences_keeps_its_digits():
    left = np.random.default_rng(5).exponential(size=100)
    assert acceleration(0.5 + 1e-9 * left) == pytest.approx(acceleration(left), rel=1e-5)
    assert acceleration(1e-120 * left) == pytest.approx(acceleration(left), rel=1e-12)
    outlier = np.r_[np.zeros(1000), -1.0]
    assert acceleration(outlier) == pytest.approx(1 / 6, rel=1e-2)


def test_acceleration_of_one_stratum_of_all_is_that_without_strata():
    left = np.random.default_rng(8).exponential(size=40)
    assert acceleration(left, (np.arange(40),)) == acceleration(left)
    assert acceleration(left, (np.arange(40)[::-1],)) == pytest.approx(acceleration(left), rel=1e-12)


def test_acceleration_within_strata_is_that_of_a_difference_of_two_samples():
    # The mean of one sample less that of another: influences are deviations from its mean (Davison & Hinkley 5.3.2).
    rng = np.random.default_rng(9)
    x, y = rng.exponential(size=30), 5 + rng.normal(size=12)
    left = np.r_[without_each(x, np.mean) - y.mean(), x.mean() - without_each(y, np.mean)]
    dx, dy = (x - x.mean()) / 30, -(y - y.mean()) / 12
    expected = (np.sum(dx**3) + np.sum(dy**3)) / (6 * (np.sum(dx**2) + np.sum(dy**2)) ** 1.5)
    strata = (np.arange(30), np.arange(30, 42))
    assert acceleration(left, strata) == pytest.approx(expected, rel=1e-10)
    theta = rng.normal(size=99)
    bounds = interval(theta, method="bca", point=0.0, jackknife=left, strata=strata)
    assert bounds != interval(theta, method="bca", point=0.0, jackknife=left)


def test_how_far_strata_lie_apart_does_not_matter_to_the_acceleration():
    left, strata = np.random.default_rng(10).exponential(size=30), (np.arange(20), np.arange(20, 30))
    apart = left + np.r_[np.zeros(20), np.full(10, 7.0)]
    assert acceleration(apart, strata) == pytest.approx(acceleration(left, strata), rel=1e-9)
    assert abs(acceleration(apart) - acceleration(left)) > 0.01
    alone = np.r_[left, 100.0]
    assert acceleration(alone, (*strata, np.array([30]))) == acceleration(left, strata)
    holed = np.r_[left, np.nan]
    assert acceleration(holed, (strata[0], np.arange(20, 31))) == acceleration(left, strata)


def test_bca_where_the_point_is_outside_all_redraws_is_undefined():
    # As with the calibration error, which every redraw raises: no bias correction reaches such a point.
    theta = np.linspace(0.1, 0.2, 99)
    bounds = interval(theta, method="bca", point=0.05, jackknife=np.arange(9.0))
    assert np.isnan([bounds.low, bounds.high]).all()
    assert np.isnan(interval(theta, method="bca", point=np.nan, jackknife=np.arange(9.0)).low)
    assert np.isnan(interval(theta, method="basic", point=np.nan).high)


@pytest.mark.parametrize("method", METHODS)
def test_interval_of_no_defined_redraw_is_undefined(method):
    bounds = interval(np.full(5, np.nan), method=method, point=0.5, jackknife=np.arange(3.0))
    assert np.isnan([bounds.low, bounds.high]).all()


def test_percentile_interval_is_the_method_of_that_name():
    theta = np.random.default_rng(6).normal(size=101)
    assert percentile_interval(theta, confidence_level=0.9) == interval(theta, confidence_level=0.9)
    assert percentile_interval(np.arange(101.0), confidence_level=0.9) == Interval(
        pytest.approx(5.0), pytest.approx(95.0)
    )


def test_bca_holds_a_skewed_truth_more_evenly_than_the_percentile_interval():
    # The variance of 25 exponential numbers is 1; percentile intervals of so skewed a number miss it mostly above.
    rng = np.random.default_rng(7)
    missed = dict.fromkeys(("percentile", "bca"), 0)
    for _ in range(300):
        x = rng.exponential(size=25)
        theta = np.var(x[rng.integers(0, 25, (399, 25))], axis=-1)
        for method in missed:
            bounds = interval(theta, method=method, point=np.var(x), jackknife=without_each(x, np.var))
            missed[method] += bounds.high < 1
    print(missed)
    assert missed["bca"] < 0.85 * missed["percentile"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"method": "bcaa"}, "`method` must be one of percentile, basic, bca, got 'bcaa'"),
        ({"confidence_level": 95}, r"`confidence_level` must be in \(0, 1\), got 95"),
        ({"method": "basic"}, "`point` must be given for the method 'basic'"),
        ({"method": "bca", "point": 0.5}, "`jackknife` must be given for the method 'bca'"),
    ],
)
def test_wrong_settings_are_refused(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        interval(np.arange(5.0), **change)


def test_raised_interval_is_the_basic_one_of_squares_down_to_zero_and_up_to_the_point():
    theta = np.linspace(0.3, 0.5, 101)
    bounds = raised_interval(theta, point=0.4, confidence_level=0.9)
    low, high = np.quantile(theta**2, [0.05, 0.95])
    assert bounds.low == pytest.approx(np.sqrt(2 * 0.16 - high))
    assert bounds.high == pytest.approx(np.sqrt(2 * 0.16 - low))
    assert raised_interval(theta, point=0.25, confidence_level=0.9) == Interval(0.0, 0.25)
    shifted = np.r_[np.full(50, -5.0), theta]
    assert raised_interval(shifted, point=0.4) == raised_interval(np.maximum(shifted, 0), point=0.4)
    holed = np.insert(theta, 3, np.nan)
    assert raised_interval(holed, point=0.4, confidence_level=0.9) == bounds
    for nothing in (raised_interval(np.full(3, np.nan), point=0.4), raised_interval(theta, point=np.nan)):
        assert np.isnan([nothing.low, nothing.high]).all()
