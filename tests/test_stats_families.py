import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.multitest import multipletests

from cxrdist.stats.families import adjust, adjust_redrawn, benjamini_hochberg, max_t

KNOTS = [0.0, 5e-324, 1e-9, 0.001, 0.01, 0.02, 0.05, 0.5, 1 - 2**-53, 1.0]
P_VALUES = st.lists(st.sampled_from(KNOTS) | st.floats(0, 1), min_size=1, max_size=40)


STATSMODELS = {"bh": "fdr_bh", "by": "fdr_by", "holm": "holm"}


@settings(max_examples=150, deadline=None)
@given(P_VALUES)
def test_adjusted_p_values_are_those_of_statsmodels(p):
    for method, name in STATSMODELS.items():
        np.testing.assert_allclose(adjust(p, method), multipletests(p, method=name)[1], rtol=0, atol=1e-12)
    assert adjust(p, "none").tolist() == p


@pytest.mark.parametrize("method", STATSMODELS)
@pytest.mark.parametrize("seed", range(3))
def test_adjusted_p_values_of_a_large_family_with_holes_are_those_of_statsmodels(method, seed):
    print(f"family of seed {seed}")
    rng = np.random.default_rng(seed)
    # Redraws give p-values in steps, hence many ties; some tests are undefined, which statsmodels does not know.
    p = rng.integers(1, 1002, 5000) / 1001 * rng.choice([1e-300, 1e-6, 1.0], 5000)
    p[rng.integers(0, 5000, 60)] = np.repeat([0.0, 1.0, np.nan], 20)
    tested = ~np.isnan(p)
    q = adjust(p, method)
    theirs = multipletests(p[tested], method=STATSMODELS[method])[1]
    np.testing.assert_allclose(q[tested], theirs, rtol=1e-12, atol=0)
    assert np.isnan(q[~tested]).all()


@settings(max_examples=50, deadline=None)
@given(P_VALUES)
def test_methods_are_ordered_by_what_they_promise(p):
    assert (adjust(p, "none") <= adjust(p, "bh")).all()
    assert (adjust(p, "bh") <= adjust(p, "by") + 1e-15).all()
    assert (adjust(p, "bh") <= adjust(p, "holm") + 1e-15).all()


@pytest.mark.parametrize("method", ["bh", "by", "holm", "none"])
def test_undefined_p_values_are_no_tests(method):
    q = adjust(np.array([0.01, np.nan, 0.04]), method)
    assert q[[0, 2]].tolist() == adjust(np.array([0.01, 0.04]), method).tolist()
    assert np.isnan(q[1])
    assert np.isnan(adjust(np.full(2, np.nan), method)).all()
    assert adjust(np.empty(0), method).shape == (0,)


def test_wrong_families_are_refused():
    for wrong in (1.2, -0.1):
        with pytest.raises(ValueError, match=r"`p` must be in \[0, 1\]"):
            benjamini_hochberg(np.array([0.5, wrong]))
    with pytest.raises(ValueError, match="`method` must be one of bh, by, holm, none, got 'bonferroni'"):
        adjust(np.array([0.5]), "bonferroni")
    for shape in ((10,), (10, 2)):
        with pytest.raises(ValueError, match=r"the shapes \(R, M\) and \(M,\)"):
            max_t(np.zeros(shape), np.zeros(3))


def make_redraws(seed, *, n_tests, correlation=0.8, effect=2.0, n_resamples=999):
    """Return the (R, M) redraws and (M,) points of differences of unlike scale that move together."""
    print(f"redraws of seed {seed}")
    rng = np.random.default_rng(seed)
    scale = rng.uniform(0.01, 3, n_tests)
    shared, own = np.sqrt(correlation), np.sqrt(1 - correlation)
    noise = shared * rng.normal(size=(n_resamples, 1)) + own * rng.normal(size=(n_resamples, n_tests))
    point = scale * (effect * rng.random(n_tests) + shared * rng.normal() + own * rng.normal(size=n_tests))
    return point + scale * noise, point


def unadjusted(delta, point):
    """The symmetric p of each test on its own."""
    return (np.count_nonzero(np.abs(delta - point) >= np.abs(point), axis=0) + 1) / (len(delta) + 1)


def max_t_by_loop(delta, point):
    """Step-down as Romano & Wolf 2005 have it, as p-values, with one loop for each word of it."""
    n_resamples, n_tests = delta.shape
    t = [abs(point[m]) / np.std(delta[:, m]) for m in range(n_tests)]
    order = sorted(range(n_tests), key=lambda m: -t[m])
    p, worst = np.empty(n_tests), 0.0
    for step, m in enumerate(order):
        rest = order[step:]
        exceeding = 1
        for r in range(n_resamples):
            exceeding += max(abs(delta[r, i] - point[i]) / np.std(delta[:, i]) for i in rest) >= t[m]
        worst = max(worst, exceeding / (n_resamples + 1))
        p[m] = worst
    return p


@pytest.mark.parametrize("seed", range(3))
def test_max_t_is_its_definition_in_loops(seed):
    delta, point = make_redraws(seed, n_tests=6, n_resamples=99)
    assert max_t(delta, point).tolist() == max_t_by_loop(delta, point).tolist()


@pytest.mark.parametrize("seed", range(5))
def test_max_t_of_one_test_is_its_own_p_and_of_many_never_below(seed):
    delta, point = make_redraws(seed, n_tests=9)
    alone = unadjusted(delta, point)
    for m in range(9):
        assert max_t(delta[:, [m]], point[[m]]).tolist() == [alone[m]]
    assert (max_t(delta, point) >= alone).all()
    assert (max_t(delta, point) > alone).any()


def test_max_t_of_copies_of_one_test_is_that_tests_p_where_holm_pays_for_each():
    delta, point = make_redraws(11, n_tests=1, effect=4.0)
    copies = max_t(np.repeat(delta, 8, axis=1) * np.arange(1, 9), np.repeat(point, 8) * np.arange(1, 9))
    alone = unadjusted(delta, point)[0]
    assert copies == pytest.approx(np.full(8, alone), abs=1e-3)
    assert adjust(np.full(8, alone), "holm")[0] == pytest.approx(min(8 * alone, 1))


def test_max_t_is_stronger_than_holm_for_tests_that_move_together():
    stronger, weaker = 0, 0
    for seed in range(20):
        delta, point = make_redraws(seed, n_tests=14, correlation=0.9)
        ours, holm = max_t(delta, point), adjust(unadjusted(delta, point), "holm")
        stronger += np.count_nonzero(ours < holm)
        weaker += np.count_nonzero(ours > holm + 0.01)
    assert stronger > 150
    assert weaker < 10


def test_max_t_holds_the_family_wise_error_and_the_largest_p_is_not_wasted():
    rng = np.random.default_rng(12)
    smallest = []
    for _ in range(400):
        noise = np.sqrt(0.7) * rng.normal(size=(200, 1)) + np.sqrt(0.3) * rng.normal(size=(200, 7))
        smallest.append(max_t(noise[1:] + noise[0], noise[0]).min())
    shares = [np.mean(np.array(smallest) <= level) for level in (0.05, 0.2)]
    print(f"shares of smallest p at most 0.05, 0.2: {shares}")
    assert 0.025 <= shares[0] <= 0.085
    assert 0.14 <= shares[1] <= 0.26


def test_max_t_does_not_depend_on_scale_sign_or_order():
    delta, point = make_redraws(13, n_tests=6)
    p = max_t(delta, point)
    scale = np.array([2.0, -1, 0.5, 4, -8, 1])
    assert max_t(delta * scale, point * scale).tolist() == p.tolist()
    order = np.array([3, 1, 5, 0, 2, 4])
    assert max_t(delta[:, order], point[order]).tolist() == p[order].tolist()


def test_undefined_tests_are_no_tests_and_undefined_redraws_take_the_next():
    delta, point = make_redraws(14, n_tests=4)
    p = max_t(delta, point)
    holed, named = np.insert(delta, 2, np.nan, axis=1), np.insert(point, 2, 0.5)
    assert max_t(holed, named)[[0, 1, 3, 4]].tolist() == p.tolist()
    assert np.isnan(max_t(holed, named)[2])
    assert np.isnan(max_t(np.insert(delta, 2, 0.1, axis=1), np.insert(point, 2, np.nan))[2])
    assert np.isnan(max_t(np.full((9, 2), np.nan), np.zeros(2))).all()
    gaps, filled = delta.copy(), delta.copy()
    gaps[[4, 5, 998], 1] = np.nan
    filled[[4, 5, 998], 1] = delta[[6, 6, 0], 1]
    assert max_t(gaps, point).tolist() == max_t(filled, point).tolist()


def test_half_undefined_rare_test_costs_the_others_little():
    delta, point = make_redraws(15, n_tests=5, correlation=0.3)
    rare = delta.copy()
    rare[np.random.default_rng(15).random(len(rare)) < 0.5, 2] = np.nan
    assert max_t(rare, point) == pytest.approx(max_t(delta, point), abs=0.05)


def test_test_without_spread_changes_no_other():
    delta, point = make_redraws(16, n_tests=3)
    p = max_t(delta, point)
    noise = 1e-16 * np.random.default_rng(0).integers(-1, 2, len(delta))
    for column, value, expected in ((noise, 0.0, 1.0), (0.25 + noise, 0.25, 1 / 1000), (0 * noise, 9.0, 1 / 1000)):
        both = max_t(np.column_stack([delta, column]), np.r_[point, value])
        assert both[:3].tolist() == p.tolist()
        assert both[3] == pytest.approx(expected)


def test_a_family_from_redraws_is_adjusted_by_p_or_by_the_largest_and_never_below_p():
    rng = np.random.default_rng(3)
    point = np.array([0.1, 0.02, np.nan])
    delta = point + 0.03 * rng.normal(size=(200, 3)) ** 2
    p = np.array([0.01, 0.9, np.nan])
    np.testing.assert_array_equal(adjust_redrawn(p, delta, point, "holm"), adjust(p, "holm"))
    np.testing.assert_array_equal(adjust_redrawn(p, delta, point, "max_t"), np.maximum(p, max_t(delta, point)))
