import numpy as np
import pytest

from cxrdist.stats.inference import equivalence, non_inferiority, paired_test
from cxrdist.stats.intervals import percentile_interval


@pytest.mark.parametrize(
    ("delta", "expected"),
    [
        (np.full(999, 0.1), 0.001),
        (np.full(999, -0.03), 0.001),
        (np.full(999, -0.05), 1.0),
        (np.full(999, -0.2), 1.0),
        (np.r_[np.full(49, -1.0), np.full(950, 1.0)], 0.05),
        (np.r_[np.full(49, -1.0), np.full(950, 1.0), np.nan], 0.05),
    ],
)
def test_non_inferiority_counts_the_redraws_that_lose_the_margin_or_more(delta, expected):
    assert non_inferiority(delta, 0.05) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("delta", "expected"),
    [
        (np.zeros(999), 0.001),
        (np.full(999, 0.05), 1.0),
        (np.full(999, -0.05), 1.0),
        (np.r_[np.full(9, -1.0), np.full(19, 1.0), np.zeros(971)], 0.02),
        (np.r_[np.full(19, -1.0), np.full(9, 1.0), np.zeros(971), np.nan], 0.02),
    ],
)
def test_equivalence_is_the_worse_of_two_one_sided_tests(delta, expected):
    assert equivalence(delta, 0.05) == pytest.approx(expected)
    assert equivalence(-delta, 0.05) == pytest.approx(expected)
    assert equivalence(delta, 0.05) == max(non_inferiority(delta, 0.05), non_inferiority(-delta, 0.05))


def test_claims_are_those_of_the_interval_of_level_one_minus_two_alpha():
    rng = np.random.default_rng(2)
    claimed = 0
    for shift in rng.normal(0, 0.04, 300):
        delta = rng.normal(shift, 0.02, 1999)
        bounds = percentile_interval(delta, confidence_level=0.9)
        for p, inside in (
            (non_inferiority(delta, 0.05), bounds.low > -0.05),
            (equivalence(delta, 0.05), bounds.low > -0.05 and bounds.high < 0.05),
        ):
            if abs(p - 0.05) > 0.003:
                assert (p < 0.05) == inside
                claimed += inside
    assert claimed > 100


def test_false_claims_at_the_margin_are_as_rare_as_alpha():
    # The first model is worse by just the margin; a redraw spreads about a study as the study about the truth.
    rng = np.random.default_rng(3)
    studies = rng.normal(-0.05, 0.02, 1000)
    p = [non_inferiority(rng.normal(study, 0.02, 499), 0.05) for study in studies]
    share = np.mean(np.array(p) <= 0.05)
    print(f"share of p at most 0.05: {share}")
    assert 0.03 <= share <= 0.07


def test_paired_test_is_twice_the_smaller_side_and_at_most_one():
    delta = np.random.default_rng(4).normal(0.5, 1, 999)
    sides = [(np.count_nonzero(s * delta <= 0) + 1) / 1000 for s in (1, -1)]
    assert paired_test(delta) == pytest.approx(2 * min(sides), abs=1e-15)
    assert paired_test(np.zeros(9)) == 1.0


def test_nothing_defined_means_no_p():
    nothing = np.full(5, np.nan)
    assert np.isnan([paired_test(nothing), non_inferiority(nothing, 0.1), equivalence(nothing, 0.1)]).all()


@pytest.mark.parametrize("test", [non_inferiority, equivalence])
@pytest.mark.parametrize("margin", [0.0, -0.01, np.nan, np.inf])
def test_margin_that_is_no_positive_number_is_refused(test, margin):
    with pytest.raises(ValueError, match="`margin` must be a number above 0"):
        test(np.zeros(5), margin)


@pytest.mark.parametrize(
    ("delta", "expected"),
    [
        (np.full(999, 0.1), 0.002),
        (np.full(999, -0.1), 0.002),
        (np.zeros(999), 1.0),
        (np.r_[np.full(9, -1.0), np.full(990, 1.0)], 0.02),
        (np.r_[np.full(9, -1.0), np.full(990, 1.0), np.nan], 0.02),
    ],
)
def test_paired_test_counts_the_observed_sample_and_both_sides(delta, expected):
    assert paired_test(delta) == pytest.approx(expected)


def test_paired_p_is_below_alpha_exactly_when_the_interval_excludes_zero():
    rng = np.random.default_rng(5)
    for shift in rng.normal(0, 3, 300):
        delta = rng.normal(shift, 1, 1999)
        bounds = percentile_interval(delta)
        p = paired_test(delta)
        if abs(p - 0.05) > 0.003:
            assert (p < 0.05) == (bounds.low > 0 or bounds.high < 0)
