import numpy as np
import pytest
from scipy.stats import norm

from cxrdist.stats.auroc import auroc
from cxrdist.stats.delong import delong_test


def make_scores(seed, n=90, levels=8):
    """Return targets and two models' scores; with few `levels`, ties within and between classes are the rule."""
    print(f"scores of seed {seed}")
    rng = np.random.default_rng(seed)
    targets = (rng.random(n) < 0.3).astype(float)
    targets[:2], targets[2:4] = 1, 0
    shared = rng.normal(size=n) + targets
    scores = [shared + effect * targets + rng.normal(size=n) for effect in (0.5, 0.0)]
    if levels:
        scores = [np.round(levels * one / np.ptp(one)) for one in scores]
    return targets, *scores


def win(positive, negative):
    """The kernel psi of DeLong 1988."""
    return 1.0 if positive > negative else 0.5 if positive == negative else 0.0


def components_in_loops(targets, scores):
    """DeLong 1988, components: of each positive its wins over all negatives, of each negative the reverse."""
    positive, negative = scores[targets == 1], scores[targets == 0]
    of_positive = np.array([sum(win(x, y) for y in negative) / len(negative) for x in positive])
    of_negative = np.array([sum(win(x, y) for x in positive) / len(positive) for y in negative])
    return of_positive, of_negative


def delong_in_loops(targets, first, second):
    """DeLong 1988: the difference and the variance of it, from both covariance matrices."""
    v10, v01 = zip(*(components_in_loops(targets, scores) for scores in (first, second)), strict=True)
    m, n = len(v10[0]), len(v01[0])
    theta = [x.mean() for x in v10]
    s10, s01 = np.zeros((2, 2)), np.zeros((2, 2))
    for r in range(2):
        for s in range(2):
            s10[r, s] = sum((v10[r][i] - theta[r]) * (v10[s][i] - theta[s]) for i in range(m)) / (m - 1)
            s01[r, s] = sum((v01[r][j] - theta[r]) * (v01[s][j] - theta[s]) for j in range(n)) / (n - 1)
    contrast = np.array([1, -1])
    return theta[0] - theta[1], contrast @ (s10 / m + s01 / n) @ contrast


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("levels", [None, 8, 2])
def test_delong_is_its_definition_in_loops_over_pairs(seed, levels):
    targets, first, second = make_scores(seed, levels=levels)
    difference, variance = delong_in_loops(targets, first, second)
    result = delong_test(targets, first, second)
    assert result.difference == pytest.approx(difference, abs=1e-12)
    assert result.standard_error == pytest.approx(np.sqrt(variance), abs=1e-12)
    assert result.p == pytest.approx(2 * norm.sf(abs(difference) / np.sqrt(variance)), abs=1e-12)


def obuchowski_in_loops(targets, first, second, clusters):
    """Obuchowski 1997: sums of components by cluster, and both models' covariance from them."""
    names = sorted(set(clusters))
    m, n = int((targets == 1).sum()), int((targets == 0).sum())
    theta, x, y = np.zeros(2), np.zeros((2, len(names))), np.zeros((2, len(names)))
    n_positive, n_negative = np.zeros(len(names)), np.zeros(len(names))
    for i, name in enumerate(names):
        n_positive[i] = sum(c == name and t == 1 for c, t in zip(clusters, targets, strict=True))
        n_negative[i] = sum(c == name and t == 0 for c, t in zip(clusters, targets, strict=True))
    for model, scores in enumerate((first, second)):
        of_positive, of_negative = components_in_loops(targets, scores)
        theta[model] = of_positive.mean()
        for i, name in enumerate(names):
            x[model, i] = sum(of_positive[clusters[targets == 1] == name])
            y[model, i] = sum(of_negative[clusters[targets == 0] == name])
    i10, i01, total = np.count_nonzero(n_positive), np.count_nonzero(n_negative), len(names)

    def covariance(r, s):
        def off(values, sizes, model, i):
            return values[model, i] - sizes[i] * theta[model]

        s10 = s01 = s11 = s11_other = 0.0
        for i in range(total):
            if n_positive[i]:
                s10 += i10 / ((i10 - 1) * m) * off(x, n_positive, r, i) * off(x, n_positive, s, i)
            if n_negative[i]:
                s01 += i01 / ((i01 - 1) * n) * off(y, n_negative, r, i) * off(y, n_negative, s, i)
            s11 += total / (total - 1) * off(x, n_positive, r, i) * off(y, n_negative, s, i)
            s11_other += total / (total - 1) * off(x, n_positive, s, i) * off(y, n_negative, r, i)
        return s10 / m + s01 / n + (s11 + s11_other) / (m * n)

    return theta[0] - theta[1], covariance(0, 0) + covariance(1, 1) - 2 * covariance(0, 1)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("levels", [None, 6])
def test_clustered_delong_is_obuchowskis_formulas_in_loops(seed, levels):
    targets, first, second = make_scores(seed, levels=levels)
    # Patients with positives only, negatives only, and both.
    clusters = np.array([f"p{i}" for i in np.random.default_rng(seed).integers(0, 30, len(targets))])
    difference, variance = obuchowski_in_loops(targets, first, second, clusters)
    result = delong_test(targets, first, second, clusters)
    assert result.difference == pytest.approx(difference, abs=1e-12)
    assert result.standard_error == pytest.approx(np.sqrt(variance), abs=1e-12)


def test_clusters_of_one_image_each_change_nothing():
    targets, first, second = make_scores(5)
    plain = delong_test(targets, first, second)
    alone = delong_test(targets, first, second, np.random.default_rng(5).permutation(len(targets)))
    assert alone.standard_error == pytest.approx(plain.standard_error, rel=1e-12)


def test_masked_images_take_no_part_nor_do_patients_who_have_no_other():
    targets, first, second = make_scores(6)
    clusters = np.arange(len(targets)) // 2
    masked = np.r_[targets, np.full(6, np.nan)]
    padded = [np.r_[scores, np.random.default_rng(6).random(6)] for scores in (first, second)]
    assert delong_test(masked, *padded) == delong_test(targets, first, second)
    others = np.r_[clusters, 900, 901, 902, 0, 1, 2]
    assert delong_test(masked, *padded, others) == delong_test(targets, first, second, clusters)


def test_several_files_of_a_model_mean_the_mean_of_their_aurocs():
    targets, first, second = make_scores(7)
    both = delong_test(targets, np.stack([first, second]), second)
    assert both.difference == pytest.approx((auroc(targets, first) - auroc(targets, second)) / 2, abs=1e-15)
    assert both.standard_error == pytest.approx(delong_test(targets, first, second).standard_error / 2, rel=1e-12)
    assert both.p == pytest.approx(delong_test(targets, first, second).p, rel=1e-9)


def test_scores_that_say_nothing_leave_the_error_of_one_auroc():
    targets, first, _ = make_scores(8)
    of_positive, of_negative = components_in_loops(targets, first)
    variance = np.var(of_positive, ddof=1) / len(of_positive) + np.var(of_negative, ddof=1) / len(of_negative)
    alone = delong_test(targets, first, np.zeros(len(targets)))
    assert alone.standard_error == pytest.approx(np.sqrt(variance), abs=1e-12)
    assert alone.difference == pytest.approx(auroc(targets, first) - 0.5, abs=1e-12)


def test_clustered_delong_sees_that_repeated_images_bring_nothing_new():
    targets, first, second = make_scores(9, n=300, levels=None)
    thrice = [np.repeat(values, 3) for values in (targets, first, second)]
    honest = delong_test(*thrice, clusters=np.repeat(np.arange(300), 3)).standard_error
    assert honest == pytest.approx(delong_test(targets, first, second).standard_error, rel=1e-9)
    assert delong_test(*thrice).standard_error < 0.6 * honest


def test_delong_of_a_degenerate_sample_is_undefined():
    targets = np.array([1.0, 0, 0, 0])
    assert np.isnan(delong_test(targets, np.arange(4.0), np.arange(4.0)).p)
    targets = np.array([1.0, 1, 0, 0])
    assert np.isnan(delong_test(targets, np.arange(4.0), np.arange(4.0), np.array([5, 5, 6, 7])).p)
    same = delong_test(targets, targets, targets)
    assert (same.difference, same.p) == (0.0, 1.0)
    perfect = delong_test(targets, targets, np.zeros(4))
    assert perfect.difference == 0.5
    assert np.isnan(perfect.p)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"first": np.zeros(3)}, "`targets` and `scores` must have one shape"),
        ({"second": np.zeros((2, 5))}, "`targets` and `scores` must have one shape"),
        ({"first": np.array([0, np.nan, 0, 0])}, "`scores` must be numbers, got 1 NaN"),
        ({"targets": np.array([0, 1, 2, 1])}, "`targets` must be 0, 1, or NaN for masked"),
        ({"clusters": np.arange(3)}, "`clusters` must have the shape"),
    ],
)
def test_wrong_shapes_and_values_are_refused(fault, message):
    right = {"targets": np.array([0, 1, 0, 1]), "first": np.arange(4.0), "second": np.arange(4.0)}
    with pytest.raises(ValueError, match=message):
        delong_test(**right | fault)
