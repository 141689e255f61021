import numpy as np
import pytest
from scipy.stats import binomtest, chi2

from cxrdist.stats.mcnemar import mcnemar_test
from cxrdist.stats.resample import Units, whole_units


def make_calls(seed, n=200, patients=60):
    print(f"calls of seed {seed}")
    rng = np.random.default_rng(seed)
    targets = (rng.random(n) < 0.4).astype(float)
    first, second = (rng.random((2, n)) + 0.5 * targets > 0.7).astype(int)
    targets[::23] = np.nan
    return targets, first, second, whole_units(rng.integers(0, patients, n))


def discordant(targets, first, second):
    b = sum(f == t != s for t, f, s in zip(targets, first, second, strict=True) if not np.isnan(t))
    c = sum(s == t != f for t, f, s in zip(targets, first, second, strict=True) if not np.isnan(t))
    return b, c


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("masked", [None, 0.0, 1.0])
def test_p_of_single_images_is_the_exact_binomial_of_scipy(seed, masked):
    targets, first, second, _ = make_calls(seed)
    targets[targets == masked] = np.nan
    b, c = discordant(targets, first, second)
    result = mcnemar_test(targets, first, second)
    assert (result.first_only, result.second_only) == (b, c)
    assert result.p == pytest.approx(binomtest(b, b + c, 0.5).pvalue, rel=1e-12)
    assert result.difference == pytest.approx((b - c) / np.count_nonzero(~np.isnan(targets)), abs=1e-15)


def test_masking_negatives_compares_sensitivities_and_masking_positives_specificities():
    targets, first, second, _ = make_calls(5)
    for kept, right in ((1.0, 1), (0.0, 0)):
        only = np.where(targets == kept, targets, np.nan)
        rates = [np.mean(called[targets == kept] == right) for called in (first, second)]
        assert mcnemar_test(only, first, second).difference == pytest.approx(rates[0] - rates[1], abs=1e-15)


@pytest.mark.parametrize("seed", range(4))
def test_clustered_p_is_obuchowskis_variance_written_out(seed):
    targets, first, second, units = make_calls(seed)
    known = ~np.isnan(targets)
    names = sorted(set(units.of_image[known]))
    k = len(names)
    size, ours, theirs = np.zeros((3, k))
    for i, name in enumerate(names):
        for j in np.flatnonzero((units.of_image == name) & known):
            size[i] += 1
            ours[i] += first[j] == targets[j]
            theirs[i] += second[j] == targets[j]
    total = size.sum()
    pooled = (ours.sum() + theirs.sum()) / (2 * total)
    var_ours, var_theirs = (k / (k - 1) * np.sum((x - size * pooled) ** 2) / total**2 for x in (ours, theirs))
    covariance = k / (k - 1) * np.sum((ours - size * pooled) * (theirs - size * pooled)) / total**2
    difference = (ours.sum() - theirs.sum()) / total
    expected = chi2.sf(difference**2 / (var_ours + var_theirs - 2 * covariance), 1)
    assert mcnemar_test(targets, first, second, units).p == pytest.approx(expected, rel=1e-10)


def test_clustered_p_of_single_images_is_the_plain_chi_square():
    targets, first, second, _ = make_calls(6, n=4000)
    b, c = discordant(targets, first, second)
    n = np.count_nonzero(~np.isnan(targets))
    alone = Units(np.arange(len(targets)), len(targets))
    p = mcnemar_test(targets, first, second, alone).p
    assert p == pytest.approx(chi2.sf((n - 1) / n * (b - c) ** 2 / (b + c), 1), rel=1e-12)
    assert p == pytest.approx(chi2.sf((b - c) ** 2 / (b + c), 1), abs=1e-3)


def test_repeated_images_bring_nothing_new_to_the_clustered_test_only():
    targets, first, second, _ = make_calls(7)
    alone = Units(np.arange(len(targets)), len(targets))
    thrice = [np.repeat(values, 3) for values in (targets, first, second)]
    honest = mcnemar_test(*thrice, Units(np.repeat(alone.of_image, 3), alone.n))
    assert honest.p == pytest.approx(mcnemar_test(targets, first, second, alone).p, rel=1e-12)
    assert mcnemar_test(*thrice).p < mcnemar_test(targets, first, second).p


def test_clustered_p_is_about_uniform_where_models_are_exchangeable():
    rng = np.random.default_rng(8)
    of_image = np.repeat(np.arange(80), 3)
    units, p, naive = Units(of_image, 80), [], []
    for _ in range(300):
        # A patient's images are mostly called alike, by each model in its own way.
        calls = (rng.random((2, 80))[:, of_image] < 0.5) ^ (rng.random((2, 240)) < 0.1)
        p.append(mcnemar_test(np.ones(240), *calls, units).p)
        naive.append(mcnemar_test(np.ones(240), *calls).p)
    shares = [np.mean(np.array(p) <= level) for level in (0.05, 0.2, 0.5)]
    print(f"shares of p at most 0.05, 0.2, 0.5: {shares}")
    assert 0.02 <= shares[0] <= 0.09
    assert 0.13 <= shares[1] <= 0.27
    assert 0.42 <= shares[2] <= 0.58
    assert np.mean(np.array(naive) <= 0.05) > 0.12


def test_models_that_call_alike_do_not_differ_and_nothing_known_is_undefined():
    targets, first, _, units = make_calls(9)
    assert mcnemar_test(targets, first, first).p == mcnemar_test(targets, first, first, units).p == 1.0
    nothing = np.full(len(targets), np.nan)
    assert np.isnan(mcnemar_test(nothing, first, first).p)
    assert np.isnan(mcnemar_test(nothing, first, first, units).difference)
    one = Units(np.zeros(len(targets), dtype=int), 1)
    assert np.isnan(mcnemar_test(targets, first, 1 - first, one).p)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"first_called": np.zeros(3)}, r"`first_called` must have the shape \(N,\)"),
        ({"second_called": np.full(4, 0.7)}, "`second_called` must be 0 or 1"),
        ({"targets": np.array([0, 1, 2, 0])}, "`targets` must be 0 or 1"),
        ({"units": Units(np.zeros(3, dtype=int), 1)}, "`units` must be of the 4 images"),
    ],
)
def test_wrong_calls_are_refused(change, sentence):
    given = {"targets": np.array([0, 1, 1, 0.0]), "first_called": np.ones(4), "second_called": np.ones(4)} | change
    with pytest.raises(ValueError, match=sentence):
        mcnemar_test(**given)
