import numpy as np
import pytest
from scipy.stats import norm, spearmanr, t

from cxrdist.stats.inference import paired_test
from cxrdist.stats.seeds import combine_seeds, mean_over_files, seed_multipliers


def study(seed, *, redraws=400, files=4, between=0.02, within=0.01):
    """Return theta (R, S) and point (S,): files that differ, patients that all of them share."""
    print(f"study of seed {seed}")
    rng = np.random.default_rng(seed)
    point = 0.8 + between * rng.normal(size=files)
    return point + within * rng.normal(size=(redraws, 1)), point


def test_a_strategy_is_the_mean_over_its_files_inside_each_redraw():
    theta, point = study(0)
    combined, mean = combine_seeds(theta, point, hierarchical=False, seed=0)
    np.testing.assert_allclose(combined, theta.mean(axis=1), rtol=0, atol=1e-15)
    assert mean == pytest.approx(point.mean(), abs=1e-15)


def test_hierarchical_redraws_shift_the_mean_by_the_documented_stream():
    theta, point = study(1, redraws=20, files=3)
    combined, mean = combine_seeds(theta, point, hierarchical=True, seed=7, train_seeds=[0, 1, 2])
    for r in range(20):
        # Written out without cxrdist: entropy words (seed, 12 = SEEDS, redraw, 1, the training seeds).
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([7, 12, r, 1, 0, 1, 2])))
        normal, spread = rng.standard_normal(3), rng.chisquare(2)
        shift = np.sum(normal * (point - point.mean())) / np.sqrt(3 * 2) / np.sqrt(spread / 2)
        assert combined[r] == pytest.approx(theta[r].mean() + shift, abs=1e-14)
    assert mean == pytest.approx(point.mean())


@pytest.mark.parametrize("files", [2, 3, 5, 10])
def test_seeds_shift_the_mean_as_students_t_does(files):
    point = study(2, files=files)[1]
    redraws = np.broadcast_to(point, (20_000, files))  # patients do not vary
    shift = combine_seeds(redraws, point, hierarchical=True, seed=0)[0] - point.mean()
    expected = t.ppf([0.025, 0.16, 0.5, 0.84, 0.975], files - 1) * point.std(ddof=1) / np.sqrt(files)
    error = point.std() * np.array([0.12 if files > 3 else 1.0, 0.05, 0.03, 0.05, 0.12 if files > 3 else 1.0])
    assert (np.abs(np.quantile(shift, [0.025, 0.16, 0.5, 0.84, 0.975]) - expected) < error).all()
    plain, _ = combine_seeds(redraws, point, hierarchical=False, seed=0)
    assert np.ptp(plain) == 0


def test_the_order_of_files_changes_no_bit():
    theta, point = study(8, files=5)
    rng = np.random.default_rng(0)
    for hierarchical in (False, True):
        settings = {"hierarchical": hierarchical, "seed": 0}
        plain, mean = combine_seeds(theta, point, train_seeds=[0, 1, 2, 3, 4], **settings)
        for _ in range(10):
            order = rng.permutation(5)
            other, at = combine_seeds(theta[:, order], point[order], train_seeds=order.tolist(), **settings)
            assert other.tobytes() == plain.tobytes()
            assert at == mean
            assert mean_over_files(theta[:, order], axis=1).tobytes() == mean_over_files(theta, axis=1).tobytes()


def test_strategies_with_equal_training_seeds_draw_the_same_ones_whatever_the_order_of_files():
    theta, point = study(3)
    first, _ = combine_seeds(theta, point, hierarchical=True, seed=0, strategy="a", train_seeds=[3, 1, 2, 0])
    order = [2, 0, 3, 1]
    # The second strategy is better by 0.01 with every seed: the paired difference must not vary at all.
    second, _ = combine_seeds(
        theta[:, order] + 0.01, point[order], hierarchical=True, seed=0, strategy="b", train_seeds=[2, 3, 0, 1]
    )
    np.testing.assert_allclose(second - first, 0.01, rtol=0, atol=1e-14)


@pytest.mark.parametrize("theirs", [{"train_seeds": [1, 2, 3, 4]}, {"strategy": "b"}])
def test_strategies_with_other_or_unknown_seeds_shift_independently(theirs):
    for ours in ({"train_seeds": [0, 1, 2, 3]}, {"strategy": "a"}):
        mine = seed_multipliers(4, 2000, seed=0, **ours)
        other = seed_multipliers(4, 2000, seed=0, **theirs)
        assert abs(spearmanr(mine[:, 0], other[:, 0]).statistic) < 0.1


def test_multipliers_depend_on_their_own_redraw_only():
    many = seed_multipliers(3, 50, seed=4, train_seeds=[5, 6, 7])
    np.testing.assert_array_equal(seed_multipliers(3, 10, seed=4, train_seeds=[5, 6, 7]), many[:10])
    assert (seed_multipliers(3, 50, seed=5, train_seeds=[5, 6, 7]) != many).all()


def test_several_columns_share_their_shifts():
    theta, point = study(4)
    columns, points = combine_seeds(
        np.stack([theta, 2 * theta], axis=2), np.stack([point, 2 * point], axis=1), hierarchical=True, seed=0
    )
    assert columns.shape == (400, 2)
    alone, _ = combine_seeds(theta, point, hierarchical=True, seed=0)
    np.testing.assert_allclose(columns, np.stack([alone, 2 * alone], axis=1), rtol=0, atol=1e-13)
    np.testing.assert_allclose(points, [point.mean(), 2 * point.mean()])


def test_a_redraw_is_undefined_where_a_file_is():
    theta, point = study(5, files=3)
    theta[:50, 1] = np.nan
    for hierarchical in (False, True):
        combined, _ = combine_seeds(theta, point, hierarchical=hierarchical, seed=0)
        np.testing.assert_array_equal(np.isnan(combined), np.arange(len(theta)) < 50)


def test_one_file_is_itself_and_tells_no_spread():
    theta, point = study(6, files=1)
    for hierarchical in (False, True):
        combined, mean = combine_seeds(theta, point, hierarchical=hierarchical, seed=0)
        np.testing.assert_array_equal(combined, theta[:, 0])
        assert mean == point[0]
    with pytest.raises(ValueError, match="`n_files` must be 2 or more, got 1"):
        seed_multipliers(1, 5, seed=0)


def test_files_that_do_not_differ_add_nothing():
    theta = np.broadcast_to(np.random.default_rng(0).normal(size=(50, 1)), (50, 3))
    point = np.full(3, 0.7)
    plain, both = (combine_seeds(theta, point, hierarchical=one, seed=0)[0] for one in (False, True))
    np.testing.assert_array_equal(both, plain)


@pytest.mark.slow
@pytest.mark.parametrize("files", [1, 2, 3, 5, 10])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_interval_holds_the_truth_over_other_patients_and_other_seeds(files, share):
    """`share` of the variance of the mean is between seeds; of one file nothing is told, and the interval fails."""
    studies, redraws, seed = 1000, 1999, 21
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    of_redraw = rng.normal(size=redraws) * np.sqrt(1 - share)
    held = no_difference = 0
    for _ in range(studies):
        point = rng.normal() * np.sqrt(1 - share) + rng.normal(size=files) * np.sqrt(share * files)
        theta, _ = combine_seeds(of_redraw[:, None] + point, point, hierarchical=True, seed=0, train_seeds=range(files))
        low, high = np.quantile(theta, [0.025, 0.975])
        held += low <= 0 <= high
        no_difference += paired_test(theta) > 0.05
    print(held / studies, no_difference / studies)
    if files == 1:
        expected = 2 * norm.cdf(1.96 * np.sqrt(1 - share)) - 1
        assert held / studies == pytest.approx(expected, abs=0.05)
    else:
        assert 0.93 < held / studies < 0.998
        assert 0.93 < no_difference / studies < 0.998


@pytest.mark.parametrize(
    ("theta", "point"), [((5, 3), (2,)), ((5,), ()), ((5, 0), (0,)), ((5, 3, 2), (3,)), ((5, 2, 2, 2), (2, 2, 2))]
)
def test_shapes_that_do_not_belong_together_are_refused(theta, point):
    with pytest.raises(ValueError, match="must have the shape"):
        combine_seeds(np.zeros(theta), np.zeros(point), hierarchical=True, seed=0)


@pytest.mark.parametrize("train_seeds", [[0, 1], [0, 0, 1], [-1, 0, 1]])
def test_training_seeds_that_cannot_be_are_refused(train_seeds):
    with pytest.raises(ValueError, match="`train_seeds` must be 3 different numbers"):
        combine_seeds(np.zeros((5, 3)), np.zeros(3), hierarchical=True, seed=0, train_seeds=train_seeds)
