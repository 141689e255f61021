from concurrent.futures import ThreadPoolExecutor
from itertools import product
from multiprocessing import get_context

import numpy as np
import pytest
from scipy.stats import kstest, rankdata

from cxrdist.stats.permutation import permutation_test
from cxrdist.stats.resample import Units, whole_units


def make_pair(seed, *, patients=40, effects=(1.0, 1.0), levels=None, masked=0.1):
    """Return targets, both models' scores and patients of one to three images, which a patient's images share."""
    print(f"pair of seed {seed}")
    rng = np.random.default_rng(seed)
    of_image = np.repeat(np.arange(patients), rng.integers(1, 4, patients))
    n = len(of_image)
    targets = (rng.random(patients) < 0.4)[of_image].astype(float)
    targets[:2], targets[-2:] = 1, 0
    noise = rng.normal(size=(3, patients))[:, of_image] + 0.5 * rng.normal(size=(3, n))
    scores = [effect * targets + noise[0] + own for effect, own in zip(effects, noise[1:], strict=True)]
    if levels:
        scores = [np.floor(levels * rankdata(one) / (n + 1)) for one in scores]
    targets[2:-2][rng.random(n - 4) < masked] = np.nan
    return targets, *scores, whole_units(of_image)


def difference_after(swapped, targets, first, second, units):
    """The difference of AUROCs, pair by pair, after swapping the ranks of the `swapped` (P,) patients."""
    known = ~np.isnan(targets)
    ranks = np.stack([rankdata(first[known]), rankdata(second[known])])
    of_image = np.asarray(swapped, dtype=bool)[units.of_image[known]]
    ours, theirs = np.where(of_image, ranks[::-1], ranks)
    return auroc_by_pairs(targets[known], ours) - auroc_by_pairs(targets[known], theirs)


def auroc_by_pairs(targets, scores):
    return np.mean(np.sign(scores[targets == 1][:, None] - scores[targets == 0]) + 1) / 2


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("levels", [None, 5])
def test_p_is_that_of_a_plain_loop_over_the_documented_stream(seed, levels):
    pair = make_pair(seed, patients=12, levels=levels)
    units = pair[-1]
    observed = abs(difference_after(np.zeros(units.n), *pair))
    as_large = 1
    for number in range(150):
        # The stream without cxrdist: entropy words (seed, 11 = PERMUTATION, number).
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, 11, number])))
        as_large += abs(difference_after(rng.integers(0, 2, units.n, np.uint8), *pair)) >= observed - 1e-12
    assert permutation_test(*pair, n_permutations=150, seed=seed) == as_large / 151


@pytest.mark.parametrize("seed", range(3))
def test_p_comes_near_that_of_all_swaps_there_are(seed):
    pair = make_pair(seed, patients=7, effects=(2.0, 0.0), levels=6, masked=0.0)
    observed = abs(difference_after(np.zeros(7), *pair))
    exact = np.mean([abs(difference_after(s, *pair)) >= observed - 1e-12 for s in product((0, 1), repeat=7)])
    p = permutation_test(*pair, n_permutations=4000, seed=seed)
    print(f"p {p}, of all {exact}")
    assert p == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 4000) + 1e-3)


def test_p_is_uniform_where_models_are_exchangeable_and_patients_have_several_images():
    p, naive = [], []
    for study in range(300):
        targets, first, second, units = make_pair(1000 + study, patients=60)
        p.append(permutation_test(targets, first, second, units, n_permutations=99, seed=study))
        alone = Units(np.arange(len(targets)), len(targets))
        naive.append(permutation_test(targets, first, second, alone, n_permutations=99, seed=study))
    # A p of 99 permutations is one of 100 steps; spread it over its step.
    spread = np.array(p) - np.random.default_rng(0).random(300) / 100
    print(kstest(spread, "uniform"), np.mean(np.array(p) <= 0.05), np.mean(np.array(naive) <= 0.05))
    assert kstest(spread, "uniform").pvalue > 0.01
    assert np.mean(np.array(p) <= 0.05) <= 0.09
    assert np.mean(np.array(naive) <= 0.05) > 0.09


def test_models_that_differ_are_told_apart_and_scales_do_not_matter():
    targets, first, second, units = make_pair(3, patients=150, effects=(3.0, 0.0))
    p = permutation_test(targets, first, second, units, n_permutations=999, seed=0)
    assert p == 1 / 1000
    stretched = permutation_test(targets, np.exp(first), 1e6 + 7 * second, units, n_permutations=999, seed=0)
    assert stretched == permutation_test(targets, second, first, units, n_permutations=999, seed=0) == p


def test_models_that_rank_alike_do_not_differ_and_one_class_is_undefined():
    targets, first, second, units = make_pair(4)
    assert permutation_test(targets, first, 2 * first + 1, units, n_permutations=50, seed=0) == 1.0
    for one_class in (0.0, 1.0, np.nan):
        only = np.full(len(targets), one_class)
        assert np.isnan(permutation_test(only, first, second, units, n_permutations=50, seed=0))


def test_files_of_a_model_are_swapped_each_with_its_partner():
    targets, first, second, units = make_pair(5, effects=(1.6, 1.0))
    alone = permutation_test(targets, first, second, units, n_permutations=199, seed=1)
    copies = permutation_test(targets, np.stack([first] * 3), np.stack([second] * 3), units, n_permutations=199, seed=1)
    assert copies == alone
    _, other, another, _ = make_pair(5, effects=(1.0, 1.0), levels=4)
    both = [np.stack([first, other]), np.stack([second, another])]
    observed = difference_after(np.zeros(units.n), targets, first, second, units)
    observed += difference_after(np.zeros(units.n), targets, other, another, units)
    as_large = 1
    for number in range(99):
        swapped = np.random.Generator(np.random.PCG64(np.random.SeedSequence([1, 11, number])))
        swapped = swapped.integers(0, 2, units.n, np.uint8)
        moved = sum(difference_after(swapped, targets, a, b, units) for a, b in zip(*both, strict=True))
        as_large += abs(moved) >= abs(observed) - 1e-12
    assert permutation_test(targets, *both, units, n_permutations=99, seed=1) == as_large / 100


def test_p_is_the_same_in_threads_and_in_another_process():
    pair = make_pair(6)
    plain = permutation_test(*pair, n_permutations=150, seed=2)
    with ThreadPoolExecutor(2) as threads, get_context("spawn").Pool(1) as process:
        for elsewhere in (threads.map, process.map):
            assert permutation_test(*pair, n_permutations=150, seed=2, map=elsewhere) == plain


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"n_permutations": 0}, "`n_permutations` must be 1 or more, got 0"),
        ({"second": np.zeros((2, 4))}, "`first` and `second` must have one shape"),
        ({"first": np.zeros(3), "second": np.zeros(3)}, "`first` and `second` must have one shape"),
        ({"units": Units(np.zeros(3, dtype=int), 1)}, "`units` must be of the 4 images"),
        ({"targets": np.array([0, 1, 2, 0.0])}, "0, 1"),
        ({"first": np.array([0.1, np.nan, 0.3, 0.2])}, "`scores` must be numbers"),
    ],
)
def test_wrong_input_is_refused(change, sentence):
    given = {
        "targets": np.array([0, 1, 1, 0.0]),
        "first": np.arange(4.0),
        "second": np.arange(4.0),
        "units": Units(np.arange(4), 4),
        "n_permutations": 5,
    } | change
    with pytest.raises(ValueError, match=sentence):
        permutation_test(**given, seed=0)
