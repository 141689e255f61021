import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import false_discovery_control
from sklearn.metrics import confusion_matrix, f1_score, roc_auc_score
from sklearn.metrics import roc_curve as sklearn_roc_curve

from cxrdist.stats import (
    auroc,
    benjamini_hochberg,
    delong_test,
    macro,
    operating_point,
    paired_test,
    percentile_interval,
    roc_curve,
    youden_threshold,
)

# Few distinct values, so that ties within and between classes are the rule; and values where a difference underflows.
SCORES = st.sampled_from([0.0, 5e-324, 1e-300, 0.25, 0.5, 0.5 + 1e-16, 0.75, 1.0 - 1e-16, 1.0])
IMAGES = st.lists(st.tuples(st.booleans(), SCORES, st.integers(0, 4)), min_size=2, max_size=30)


def both_classes(targets, weights=None):
    weights = np.ones(len(targets)) if weights is None else weights
    return weights[targets == 1].sum() > 0 and weights[targets == 0].sum() > 0


@settings(max_examples=150, deadline=None)
@given(IMAGES)
def test_auroc_is_that_of_sklearn_and_a_weight_is_a_repeated_row(images):
    targets, scores, weights = (np.array(column) for column in zip(*images, strict=True))
    targets = targets.astype(float)
    if both_classes(targets):
        assert auroc(targets, scores) == pytest.approx(roc_auc_score(targets, scores), abs=1e-12)
    else:
        assert np.isnan(auroc(targets, scores))
    repeated = np.repeat(np.arange(len(targets)), weights)
    value = auroc(targets, scores, weights)
    if both_classes(targets, weights):
        assert value == pytest.approx(roc_auc_score(targets[repeated], scores[repeated]), abs=1e-12)
        assert value == auroc(targets[repeated], scores[repeated])
    else:
        assert np.isnan(value)


@pytest.mark.parametrize(
    ("targets", "scores", "expected"),
    [
        ([0, 0, 1, 1], [0.1, 0.2, 0.3, 0.4], 1.0),
        ([1, 1, 0, 0], [0.1, 0.2, 0.3, 0.4], 0.0),
        ([0, 1, 0, 1], [0.7, 0.7, 0.7, 0.7], 0.5),
        ([1, 0, 0, 0], [0.5, 0.1, 0.5, 0.9], 0.5),
        ([0, 1, np.nan, np.nan], [0.1, 0.2, 0.0, 0.9], 1.0),
    ],
    ids=["perfect", "reversed", "constant", "one positive", "masked take no part"],
)
def test_auroc_of_hand_worked_samples(targets, scores, expected):
    assert auroc(np.array(targets, dtype=float), np.array(scores)) == expected


def test_float_weights_agree_with_sklearn():
    rng = np.random.default_rng(3)
    targets, scores, weights = rng.integers(0, 2, 200).astype(float), rng.integers(0, 9, 200) / 9, rng.random(200)
    assert auroc(targets, scores, weights) == pytest.approx(
        roc_auc_score(targets, scores, sample_weight=weights), abs=1e-12
    )


@pytest.mark.parametrize(
    ("targets", "scores", "weights", "sentence"),
    [
        ([0, 1, -1], [0.1, 0.2, 0.3], None, "must be 0, 1, or NaN"),
        ([0, 1], [0.1, np.nan], None, "must be numbers, got 1 NaN"),
        ([0, 1], [0.1, 0.2, 0.3], None, "one shape"),
        ([0, 1], [0.1, 0.2], [1, -1], "must be 0 or more"),
        ([0, 1], [0.1, 0.2], [1], "must have the shape"),
    ],
)
def test_wrong_values_are_refused(targets, scores, weights, sentence):
    with pytest.raises(ValueError, match=sentence):
        auroc(np.array(targets, dtype=float), np.array(scores), None if weights is None else np.array(weights))


def test_macro_is_the_mean_of_included_findings_or_nothing():
    values = np.array([[0.5, np.nan, 1.0], [np.nan, 0.5, 0.5]])
    assert macro(values, np.array([True, False, True])) == pytest.approx([0.75, np.nan], nan_ok=True)
    assert np.isnan(macro(values, np.zeros(3, dtype=bool))).all()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([0.0, 1e-9, 0.001, 0.01, 0.02, 0.05, 0.5, 1.0]), min_size=1, max_size=20))
def test_benjamini_hochberg_is_that_of_scipy(p):
    assert benjamini_hochberg(np.array(p)) == pytest.approx(false_discovery_control(p, method="bh"), abs=1e-15)


def test_undefined_p_values_are_no_tests():
    q = benjamini_hochberg(np.array([0.01, np.nan, 0.04]))
    assert q[[0, 2]] == pytest.approx([0.02, 0.04])
    assert np.isnan(q[1])
    with pytest.raises(ValueError, match=r"`p` must be in \[0, 1\]"):
        benjamini_hochberg(np.array([1.2]))


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
def test_p_counts_the_observed_sample_and_both_sides(delta, expected):
    assert paired_test(delta) == pytest.approx(expected)


def test_interval_and_p_of_nothing_are_undefined():
    nothing = np.full(5, np.nan)
    assert np.isnan(paired_test(nothing))
    assert np.isnan(percentile_interval(nothing).low)
    with pytest.raises(ValueError, match="confidence_level"):
        percentile_interval(nothing, confidence_level=95)


def test_p_below_alpha_exactly_when_the_interval_excludes_zero():
    rng = np.random.default_rng(5)
    for shift in rng.normal(0, 3, 300):
        delta = rng.normal(shift, 1, 1999)
        bounds = percentile_interval(delta)
        p = paired_test(delta)
        if abs(p - 0.05) > 0.003:
            assert (p < 0.05) == (bounds.low > 0 or bounds.high < 0)


def placements_by_definition(targets, scores):
    """DeLong 1988, equations 3 to 5, pair by pair."""
    positive, negative = scores[targets == 1], scores[targets == 0]
    wins = (positive[:, None] > negative).astype(float) + 0.5 * (positive[:, None] == negative)
    return wins.mean(axis=1), wins.mean(axis=0), wins.mean()


@pytest.mark.parametrize("seed", range(5))
def test_delong_is_its_definition_evaluated_pair_by_pair(seed):
    rng = np.random.default_rng(seed)
    targets = (rng.random(120) < 0.3).astype(float)
    first = rng.integers(0, 15, 120) + 4 * targets
    second = 0.5 * first + rng.integers(0, 10, 120)
    (x1, y1, a1), (x2, y2, a2) = (placements_by_definition(targets, scores) for scores in (first, second))
    cov = np.cov(x1, x2) / len(x1) + np.cov(y1, y2) / len(y1)
    result = delong_test(targets, first, second)
    assert result.difference == pytest.approx(a1 - a2, abs=1e-12)
    assert result.standard_error == pytest.approx(np.sqrt(cov[0, 0] + cov[1, 1] - 2 * cov[0, 1]), rel=1e-10)
    alone = delong_test(targets, first, second, clusters=rng.permutation(120))
    assert alone.standard_error == pytest.approx(result.standard_error, rel=1e-12)


def test_delong_masks_and_averages_models():
    rng = np.random.default_rng(1)
    targets = (rng.random(80) < 0.4).astype(float)
    first, second = rng.random((2, 80)) + targets
    masked = np.r_[targets, [np.nan] * 5]
    padded = [np.r_[scores, rng.random(5)] for scores in (first, second)]
    assert delong_test(masked, *padded) == delong_test(targets, first, second)
    both = np.stack([first, second])
    assert delong_test(targets, both, second).difference == pytest.approx(
        (auroc(targets, first) - auroc(targets, second)) / 2
    )


def test_clustered_delong_sees_that_repeated_images_bring_nothing_new():
    rng = np.random.default_rng(2)
    targets = (rng.random(300) < 0.4).astype(float)
    first, second = rng.random((2, 300)) + 0.3 * targets
    thrice = [np.repeat(values, 3) for values in (targets, first, second)]
    honest = delong_test(*thrice, clusters=np.repeat(np.arange(300), 3)).standard_error
    assert honest == pytest.approx(delong_test(targets, first, second).standard_error, rel=1e-9)
    assert delong_test(*thrice).standard_error < 0.6 * honest


def test_delong_of_a_degenerate_sample_is_undefined():
    targets = np.array([1.0, 0, 0, 0])
    assert np.isnan(delong_test(targets, np.arange(4.0), np.arange(4.0)).p)
    targets = np.array([1.0, 1, 0, 0])
    same = delong_test(targets, targets, targets)
    assert (same.difference, same.p) == (0.0, 1.0)
    perfect = delong_test(targets, targets, np.zeros(4))
    assert perfect.difference == 0.5
    assert np.isnan(perfect.p)


@pytest.mark.parametrize("seed", range(4))
def test_threshold_is_the_best_of_sklearns_roc_and_rates_are_its_counts(seed):
    rng = np.random.default_rng(seed)
    targets = (rng.random(150) < 0.3).astype(float)
    scores = rng.integers(0, 30, 150) / 40 + 0.2 * targets
    fpr, tpr, _ = sklearn_roc_curve(targets, scores, drop_intermediate=False)
    ours = roc_curve(targets, scores)
    assert np.allclose(ours.false_positive_rate, fpr)
    assert np.allclose(ours.true_positive_rate, tpr)
    point = operating_point(targets, scores, youden_threshold(targets, scores))
    assert point.sensitivity + point.specificity - 1 == pytest.approx(np.max(tpr - fpr))
    called = scores >= point.threshold
    tn, fp, fn, tp = confusion_matrix(targets, called).ravel()
    assert (point.true_negative, point.false_positive, point.false_negative, point.true_positive) == (tn, fp, fn, tp)
    assert point.f1 == pytest.approx(f1_score(targets, called))
    assert point.accuracy == pytest.approx((tp + tn) / 150)
    assert (point.ppv, point.npv) == pytest.approx((tp / (tp + fp), tn / (tn + fn)))


def test_one_class_has_no_threshold_and_no_curve():
    assert roc_curve(np.ones(3), np.arange(3)) is None
    assert np.isnan(youden_threshold(np.array([0, 0, np.nan]), np.arange(3)))
    assert np.isnan(operating_point(np.zeros(3), np.arange(3), 1.0).sensitivity)
