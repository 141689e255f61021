import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from cxrdist.stats.precision import average_precision, average_precision_statistic
from cxrdist.stats.resample import Units

# Few distinct values, so that ties within and between classes are the rule; and values where a difference underflows.
SCORES = st.sampled_from([-np.inf, 0.0, 5e-324, 0.25, 0.5, 0.5 + 1e-16, 1.0 - 1e-16, 1.0, np.inf])
IMAGES = st.lists(st.tuples(st.booleans(), SCORES, st.integers(0, 4)), min_size=1, max_size=30)


@settings(max_examples=150, deadline=None)
@given(IMAGES, st.integers(0, 2**32 - 1))
def test_average_precision_is_that_of_sklearn(images, seed):
    targets, scores, weights = (np.array(column) for column in zip(*images, strict=True))
    targets, scores = targets.astype(float), np.clip(scores, -9, 9)  # sklearn refuses infinite scores
    uneven = weights * np.random.default_rng(seed).random(len(weights))
    for given_weights in (None, weights, uneven):
        counted = np.ones(len(targets)) if given_weights is None else given_weights
        value = average_precision(targets, scores, given_weights)
        if counted[targets == 1].sum() > 0:
            assert value == pytest.approx(
                average_precision_score(targets, scores, sample_weight=given_weights), abs=1e-12
            )
        else:
            assert np.isnan(value)


def test_lanes_are_weights_of_patients():
    rng = np.random.default_rng(4)
    targets, scores = (rng.random(300) < 0.1).astype(float), rng.integers(0, 50, 300) / 50
    units = Units(rng.integers(0, 40, 300), 40)
    counts = units.draw(range(20), 3)
    for value, column in zip(average_precision_statistic(targets, scores, units).under(counts), counts.T, strict=True):
        weights = column[units.of_image]
        expected = average_precision_score(targets, scores, sample_weight=weights)
        assert value == pytest.approx(expected, abs=1e-12)
        repeated = np.repeat(np.arange(300), weights)
        assert value == pytest.approx(average_precision(targets[repeated], scores[repeated]), abs=1e-12)


@pytest.mark.parametrize(
    ("targets", "scores", "expected"),
    [
        ([0, 0, 1, 1], [0.1, 0.2, 0.3, 0.4], 1.0),
        ([1, 0, 0, 0], [0.4, 0.4, 0.4, 0.4], 0.25),
        ([0, 1, 0, 0], [0.9, 0.5, 0.1, 0.1], 0.5),
        ([1, 1], [0.1, 0.2], 1.0),
        ([0, 1, np.nan], [0.1, 0.2, 0.9], 1.0),
        ([0, 0], [0.1, 0.2], np.nan),
    ],
    ids=["perfect", "constant", "second of all", "positives alone", "masked take no part", "no positive"],
)
def test_average_precision_of_hand_worked_samples(targets, scores, expected):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert average_precision(np.array(targets), np.array(scores)) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(
    ("targets", "scores", "weights", "sentence"),
    [
        ([0, 1, -1], [0.1, 0.2, 0.3], None, "must be 0, 1, or NaN"),
        ([0, 1], [0.1, np.nan], None, "must be numbers, got 1 NaN"),
        ([0, 1], [0.1, 0.2, 0.3], None, "one shape"),
        ([0, 1], [0.1, 0.2], [1, np.inf], "must be 0 or more"),
        ([0, 1], [0.1, 0.2], [1], "must have the shape"),
    ],
)
def test_wrong_values_are_refused(targets, scores, weights, sentence):
    with pytest.raises(ValueError, match=sentence):
        average_precision(np.array(targets, dtype=float), np.array(scores), weights)
