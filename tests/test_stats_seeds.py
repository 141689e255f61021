import numpy as np
import pytest

from cxrdist.stats.seeds import combine_seeds, draw_files, seed_spread


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


def test_hierarchical_redraws_also_draw_files_by_the_documented_stream():
    theta, point = study(1, redraws=20, files=3)
    combined, mean = combine_seeds(theta, point, hierarchical=True, seed=7, train_seeds=[0, 1, 2])
    for r in range(20):
        # Written out without cxrdist: entropy words (seed, 12 = SEEDS, redraw, 1, the training seeds).
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([7, 12, r, 1, 0, 1, 2])))
        assert combined[r] == pytest.approx(np.mean([theta[r, file] for file in rng.integers(0, 3, 3)]), abs=1e-15)
    assert mean == pytest.approx(point.mean())


def test_hierarchical_interval_is_wider_by_the_spread_between_files():
    theta, point = study(2, redraws=20_000, files=5)
    plain, _ = combine_seeds(theta, point, hierarchical=False, seed=0)
    both, _ = combine_seeds(theta, point, hierarchical=True, seed=0)
    # Drawing S of S files adds their variance (over S, not S - 1) divided by S.
    assert both.var() == pytest.approx(plain.var() + point.var() / 5, rel=0.04)


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
def test_strategies_with_other_or_unknown_seeds_draw_independently(theirs):
    for ours in ({"train_seeds": [0, 1, 2, 3]}, {"strategy": "a"}):
        mine = draw_files(4, 2000, seed=0, **ours)
        other = draw_files(4, 2000, seed=0, **theirs)
        assert abs(np.corrcoef(mine[:, 0], other[:, 0])[0, 1]) < 0.1


def test_a_draw_depends_on_its_own_number_only():
    many = draw_files(3, 50, seed=4, train_seeds=[5, 6, 7])
    np.testing.assert_array_equal(draw_files(3, 10, seed=4, train_seeds=[5, 6, 7]), many[:10])
    assert (many.sum(axis=1) == 3).all()
    assert (draw_files(3, 50, seed=5, train_seeds=[5, 6, 7]) != many).any()


def test_several_columns_share_the_draws_of_files():
    theta, point = study(4)
    columns, points = combine_seeds(
        np.stack([theta, 2 * theta], axis=2), np.stack([point, 2 * point], axis=1), hierarchical=True, seed=0
    )
    assert columns.shape == (400, 2)
    alone, _ = combine_seeds(theta, point, hierarchical=True, seed=0)
    np.testing.assert_allclose(columns, np.stack([alone, 2 * alone], axis=1), rtol=0, atol=1e-14)
    np.testing.assert_allclose(points, [point.mean(), 2 * point.mean()])


def test_a_redraw_is_undefined_where_a_file_that_counts_is():
    theta, point = study(5, files=3)
    theta[:50, 1] = np.nan
    plain, _ = combine_seeds(theta, point, hierarchical=False, seed=0)
    assert np.isnan(plain[:50]).all()
    assert np.isfinite(plain[50:]).all()
    both, _ = combine_seeds(theta, point, hierarchical=True, seed=0)
    drawn = draw_files(3, len(theta), seed=0)[:, 1] > 0
    np.testing.assert_array_equal(np.isnan(both), drawn & (np.arange(len(theta)) < 50))


def test_one_file_is_itself_and_tells_no_spread():
    theta, point = study(6, files=1)
    for hierarchical in (False, True):
        combined, mean = combine_seeds(theta, point, hierarchical=hierarchical, seed=0)
        np.testing.assert_array_equal(combined, theta[:, 0])
        assert mean == point[0]
    spread = seed_spread(point)
    assert spread.n == 1
    assert np.isnan(spread.standard_deviation)
    assert spread.low == spread.high == spread.mean == point[0]


def test_spread_is_that_of_the_files_by_hand():
    spread = seed_spread(np.array([0.80, 0.82, 0.87]))
    assert (spread.n, spread.low, spread.high) == (3, 0.80, 0.87)
    assert spread.mean == pytest.approx(0.83)
    assert spread.standard_deviation == pytest.approx(np.sqrt((0.03**2 + 0.01**2 + 0.04**2) / 2))
    undefined = seed_spread(np.array([0.8, np.nan]))
    assert np.isnan([undefined.mean, undefined.standard_deviation, undefined.low, undefined.high]).all()


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
    with pytest.raises(ValueError, match="at least one file"):
        seed_spread(np.array([]))
