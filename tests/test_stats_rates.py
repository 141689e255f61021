import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cxrdist.stats.rates import RATES, rate_at, rate_statistic
from cxrdist.stats.resample import Units

CELLS = st.integers(0, 5)


@settings(max_examples=100, deadline=None)
@given(CELLS, CELLS, CELLS, CELLS)
def test_a_rate_is_its_fraction_or_undefined(tp, fp, tn, fn):
    called = np.repeat([1.0, 1.0, 0.0, 0.0], [tp, fp, tn, fn])
    targets = np.repeat([1.0, 0.0, 0.0, 1.0], [tp, fp, tn, fn])
    fractions = {
        "sensitivity": (tp, tp + fn),
        "specificity": (tn, tn + fp),
        "ppv": (tp, tp + fp),
        "npv": (tn, tn + fn),
        "f1": (2 * tp, 2 * tp + fp + fn),
        "accuracy": (tp + tn, tp + fp + tn + fn),
    }
    for rate, (part, whole) in fractions.items():
        value = rate_at(rate, targets, called, 0.5)
        assert value == part / whole if whole else np.isnan(value)
    balanced, mcc = (rate_at(rate, targets, called, 0.5) for rate in ("balanced_accuracy", "mcc"))
    if tp + fn and tn + fp:
        assert balanced == (tp / (tp + fn) + tn / (tn + fp)) / 2
    else:
        assert np.isnan(balanced)
    if (tp + fn) and (tn + fp) and (tp + fp) and (tn + fn):
        assert mcc == pytest.approx(np.corrcoef(targets, called)[0, 1], abs=1e-14)
    else:
        assert np.isnan(mcc)


def test_counts_are_exact_whatever_the_order_of_images():
    rng = np.random.default_rng(0)
    targets, scores = rng.integers(0, 2, 500).astype(float), rng.random(500)
    weights, order = rng.integers(0, 60000, 500), rng.permutation(500)
    for rate in RATES:
        assert rate_at(rate, targets, scores, 0.3, weights) == rate_at(
            rate, targets[order], scores[order], 0.3, weights[order]
        )


def test_small_float_weights_give_the_same_rates():
    rng = np.random.default_rng(1)
    targets, scores, weights = rng.integers(0, 2, 50).astype(float), rng.random(50), rng.integers(1, 5, 50)
    for rate in RATES:
        value = rate_at(rate, targets, scores, 0.5, weights)
        assert rate_at(rate, targets, scores, 0.5, weights * 2.0**-400) == value


def test_an_image_at_the_threshold_is_called_and_no_threshold_is_no_rate():
    targets, scores = np.array([1.0, 0.0]), np.array([0.5, 0.25])
    assert rate_at("sensitivity", targets, scores, 0.5) == 1
    assert rate_at("sensitivity", targets, scores, np.nextafter(0.5, 1)) == 0
    assert rate_at("specificity", targets, scores, float("inf")) == 1
    for rate in RATES:
        assert np.isnan(rate_at(rate, targets, scores, float("nan")))


def test_an_unknown_rate_is_refused():
    with pytest.raises(ValueError, match="`rate` must be one of sensitivity"):
        rate_statistic("kappa", np.zeros(1), np.zeros(1), Units(np.zeros(1, dtype=int), 1), 0.5)
