import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix, f1_score, roc_auc_score
from sklearn.metrics import roc_curve as sklearn_roc_curve

from cxrdist.stats.auroc import auroc
from cxrdist.stats.threshold import operating_point, roc_curve, youden_threshold

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
