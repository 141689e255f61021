"""The compiled loops: exact, without overflow, and each lane by itself."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cxrdist.dispatch import process_map, thread_map
from cxrdist.stats.auroc import auroc, auroc_statistic
from cxrdist.stats.kernels import weighted_sums
from cxrdist.stats.precision import average_precision_statistic
from cxrdist.stats.resample import Units, redraw, whole_units

PREPARE = [auroc_statistic, average_precision_statistic]
COUNTS = st.sampled_from([0, 0, 1, 1, 2, 9, 1000, 32768, 65535])


def make_sample(seed, n=400, patients=60, levels=40):
    rng = np.random.default_rng(seed)
    targets = (rng.random(n) < 0.2).astype(float)
    scores = (rng.integers(0, levels, n) + 8 * targets) / levels
    targets[rng.random(n) < 0.1] = np.nan
    return targets, scores, Units(rng.integers(0, patients, n), patients)


def auroc_pair_by_pair(targets, scores, weights):
    """The definition, in Python's whole numbers."""
    twice = pairs = 0
    for i in np.flatnonzero(targets == 1):
        for j in np.flatnonzero(targets == 0):
            both = int(weights[i]) * int(weights[j])
            twice += both * (2 if scores[i] > scores[j] else int(scores[i] == scores[j]))
            pairs += both
    return twice / (2 * pairs) if pairs else float("nan")


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0.0, 1.0, np.nan]), st.integers(0, 6), COUNTS), min_size=1, max_size=25))
def test_auroc_is_a_count_of_pairs_whatever_the_counts(images):
    """Large counts leave narrow sums after a few images, small ones never: both ways meet here."""
    targets, scores, weights = (np.array(column) for column in zip(*images, strict=True))
    statistic = auroc_statistic(targets, scores, Units(np.arange(len(images)), len(images)))
    lanes = np.stack([weights, np.minimum(weights, 3), np.ones_like(weights)], axis=1).astype(np.uint16)
    for b, value in enumerate(statistic.under(lanes)):
        assert value == pytest.approx(auroc_pair_by_pair(targets, scores, lanes[:, b]), abs=1e-15, nan_ok=True)
    for b, value in enumerate(statistic.under(lanes.astype(np.float64))):
        assert value == pytest.approx(auroc_pair_by_pair(targets, scores, lanes[:, b]), abs=1e-14, nan_ok=True)


@pytest.mark.parametrize("kind", [np.uint16, np.float64])
@pytest.mark.parametrize("prepare", PREPARE)
def test_a_lane_has_the_same_bits_alone_and_beside_any_others(prepare, kind):
    targets, scores, units = make_sample(1)
    rng = np.random.default_rng(2)
    counts = (
        units.draw(range(131), 0) if kind == np.uint16 else rng.random((units.n, 131)) * 10.0 ** rng.integers(-9, 9)
    )
    counts[:, 7] = 60000 // units.n
    statistic = prepare(targets, scores, units)
    together = statistic.under(counts)
    assert len(np.unique(together)) > 100
    for width in (1, 2, 3, 8, 17, 64):
        apart = [statistic.under(counts[:, first : first + width]) for first in range(0, 131, width)]
        assert np.array_equal(np.concatenate(apart), together)
    assert np.array_equal(statistic.under(np.asfortranarray(counts)), together)


def test_values_of_columns_do_not_change_when_one_column_is_huge():
    targets, scores, units = make_sample(3)
    counts = units.draw(range(8), 0)
    statistic = auroc_statistic(targets, scores, units)
    alone = statistic.under(counts)
    counts = np.c_[counts, np.full(units.n, 65535, dtype=np.uint16)]
    assert np.array_equal(statistic.under(counts)[:-1], alone)
    assert statistic.under(counts)[-1] == auroc(targets, scores)


@pytest.mark.parametrize("prepare", PREPARE)
def test_redraws_are_the_same_in_threads_processes_and_groups_of_any_size(prepare):
    targets, scores, units = make_sample(4)
    columns = [prepare(targets, scores, units), prepare(targets, -scores, units)]
    expected = redraw(columns, units, n_resamples=50, seed=5)
    for together in (1, 7, 64):
        found = redraw(columns, units, n_resamples=50, seed=5, map=thread_map(3), together=together)
        assert np.array_equal(found, expected)


def test_redraws_are_the_same_in_processes():
    targets, scores, units = make_sample(4)
    columns = [prepare(targets, scores, units) for prepare in PREPARE]
    expected = redraw(columns, units, n_resamples=30, seed=5)
    assert np.array_equal(redraw(columns, units, n_resamples=30, seed=5, map=process_map(2), together=16), expected)


def test_a_statistic_pickles_and_reads_arrays_that_may_not_be_written():
    targets, scores, units = make_sample(6)
    counts = units.draw(range(5), 0)
    for prepare in PREPARE:
        statistic = prepare(targets, scores, units)
        expected = statistic.under(counts)
        again = pickle.loads(pickle.dumps(statistic))
        for array in (again.units, again.groups, counts):
            array.flags.writeable = False
        assert np.array_equal(again.under(counts), expected)
        counts.flags.writeable = True


@pytest.mark.parametrize("seed", range(2))
def test_sums_do_not_overflow_at_the_largest_weight_taken(seed):
    """65,537 images of weight 65,535 are 2^32 - 1 together; equal weights change no AUROC."""
    rng = np.random.default_rng(seed)
    n = 65537
    targets = (rng.random(n) < 0.5).astype(float)
    scores = rng.random(n) if seed else np.round(rng.random(n), 2)
    units = Units(np.arange(n), n)
    most = np.full((n, 2), 65535, dtype=np.uint16)
    most[:, 1] = 1
    for prepare in PREPARE:
        largest, smallest = prepare(targets, scores, units).under(most)
        assert largest == pytest.approx(smallest, abs=1e-14)
    perfect = auroc_statistic(targets, targets, units).under(most)
    assert perfect.tolist() == [1.0, 1.0]
    with pytest.raises(ValueError, match="must be at most 4294967295, got 65535 x 65538"):
        more = np.r_[targets, 1.0]
        auroc_statistic(more, more, Units(np.arange(n + 1), n + 1)).under(np.full((n + 1, 1), 65535, dtype=np.uint16))


def test_weights_above_the_narrow_type_are_taken_as_they_are():
    targets, scores = np.array([1.0, 0, 1, 0]), np.array([0.3, 0.2, 0.1, 0.1])
    weights = np.array([70000, 3, 2, 70001])
    assert auroc(targets, scores, weights) == auroc_pair_by_pair(targets, scores, weights)
    assert auroc(targets, scores, weights.astype(float)) == auroc_pair_by_pair(targets, scores, weights)


@pytest.mark.parametrize("kind", [np.uint16, np.float64])
def test_weighted_sums_add_unit_after_unit(kind):
    rng = np.random.default_rng(8)
    counts = rng.integers(0, 5, (50, 9)).astype(kind)
    values = rng.normal(size=(50, 4)) * 10.0 ** rng.integers(-8, 8, (50, 4))
    values[rng.random((50, 4)) < 0.3] = 0
    expected = np.zeros((4, 9))
    for p in range(50):
        expected += values[p][:, None] * counts[p].astype(float)
    assert np.array_equal(weighted_sums(counts, values), expected)
    assert np.array_equal(weighted_sums(counts[:, 3:4], values)[:, 0], expected[:, 3])


@pytest.mark.parametrize(
    ("counts", "sentence"),
    [
        (np.ones((3, 2), dtype=np.int64), "uint16 or float64"),
        (np.ones(3), r"\(P, B\)"),
        (np.ones((2, 2)), "a row for each of 3 units, got 2"),
    ],
)
def test_counts_that_a_kernel_would_misread_are_refused(counts, sentence):
    units = Units(np.arange(3), 3)
    for prepare in PREPARE:
        with pytest.raises(ValueError, match=sentence):
            prepare(np.array([1.0, 0, 1]), np.arange(3.0), units).under(counts)


def test_units_beyond_the_counts_are_refused():
    for units in (Units(np.array([0, 3]), 3), Units(np.array([-1, 0]), 3)):
        with pytest.raises(ValueError, match=r"must be in \[0, 3\)"):
            auroc_statistic(np.array([1.0, 0]), np.arange(2.0), units)
    with pytest.raises(ValueError, match="must be those of 2 images"):
        auroc_statistic(np.array([1.0, 0]), np.arange(2.0), whole_units(np.arange(3)))


def test_no_images_and_no_redraws_are_no_error():
    for prepare in PREPARE:
        assert np.isnan(prepare(np.zeros(0), np.zeros(0), Units(np.zeros(0, dtype=np.int64), 2)).under(np.ones((2, 1))))
        assert prepare(np.array([1.0, 0]), np.arange(2.0), Units(np.arange(2), 2)).under(np.ones((2, 0))).shape == (0,)
