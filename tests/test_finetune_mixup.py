"""Mixup: pairs of the stream, whoever reads them, and known only where both are."""

import numpy as np
import pytest
import torch

from cxrdist.data.order import Batching
from cxrdist.errors import UsageError
from cxrdist.finetune.mixup import check_mixup, mixed_known_share, mixup
from cxrdist.seeds import Purpose, derive
from cxrdist.world import World

GLOBAL = 24


def stream_of(positions: range) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return images, targets and seeds as the loader gives them for these positions."""
    images, targets, seeds = [], [], []
    for position in positions:
        rng = np.random.default_rng(position)
        images.append(torch.from_numpy(rng.integers(0, 256, (1, 4, 4), dtype=np.uint8)))
        targets.append(torch.from_numpy(np.where(rng.random(3) < 0.3, np.nan, rng.random(3) < 0.5).astype(np.float32)))
        seeds.append(derive(0, Purpose.MASK, 0, position))
    return torch.stack(images), torch.stack(targets), torch.tensor(seeds)


@pytest.mark.parametrize(("ranks", "micro"), [(1, 2), (1, 24), (2, 12), (2, 4), (3, 8), (3, 2), (4, 6), (12, 2)])
def test_the_global_batch_is_mixed_alike_however_it_is_divided(ranks, micro):
    batching = Batching.plan(global_batch_size=GLOBAL, micro_batch_size=micro, world_size=ranks)
    check_mixup(batching)
    step = 3
    whole = mixup(*stream_of(range(step * GLOBAL, (step + 1) * GLOBAL)), 0.4)
    images, targets = torch.empty_like(whole[0]), torch.empty_like(whole[1])
    for rank in range(ranks):
        for micro_step in range(batching.accumulation):
            positions = batching.positions(step, micro_step, World(rank=rank, world_size=ranks))
            rows = slice(positions.start - step * GLOBAL, positions.stop - step * GLOBAL)
            images[rows], targets[rows] = mixup(*stream_of(positions), 0.4)
    assert torch.equal(images, whole[0])
    assert torch.equal(targets.nan_to_num(-1), whole[1].nan_to_num(-1))


def test_a_pair_is_mixed_with_one_lambda_and_keeps_its_sum():
    images, targets, seeds = stream_of(range(40))
    plain = images.float() / 255
    mixed, soft = mixup(images, targets, seeds, 1.0)
    torch.testing.assert_close(mixed[::2] + mixed[1::2], plain[::2] + plain[1::2])
    for even in range(0, 40, 2):
        a, b = plain[even], plain[even + 1]
        share = ((mixed[even] - b) * (a - b)).sum() / ((a - b) ** 2).sum()
        torch.testing.assert_close(mixed[even], share * a + (1 - share) * b, atol=1e-5, rtol=0)
        known = ~torch.isnan(targets[even] + targets[even + 1])
        assert torch.equal(~torch.isnan(soft[even]), known)
        assert torch.equal(~torch.isnan(soft[even + 1]), known)
        expected = share * targets[even] + (1 - share) * targets[even + 1]
        torch.testing.assert_close(soft[even][known], expected[known], atol=1e-4, rtol=0)


def test_images_of_bytes_and_of_floats_are_mixed_alike():
    images, targets, seeds = stream_of(range(8))
    from_bytes, _ = mixup(images, targets, seeds, 0.3)
    from_floats, _ = mixup(images.float() / 255, targets, seeds, 0.3)
    assert torch.equal(from_bytes, from_floats)
    assert from_bytes.min() >= 0
    assert from_bytes.max() <= 1


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_lambda_is_drawn_from_the_beta_distribution(alpha):
    n = 4000
    images = torch.tensor([0.0, 1.0]).repeat(n // 2).view(n, 1, 1, 1)
    seeds = torch.tensor([derive(7, Purpose.MASK, 0, position) for position in range(n)])
    mixed, _ = mixup(images, torch.zeros(n, 1), seeds, alpha)
    shares = mixed[1::2].flatten().numpy()
    assert shares.mean() == pytest.approx(0.5, abs=0.03)
    assert shares.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)


def test_the_share_to_expect_known_is_that_of_random_pairs():
    rng = np.random.default_rng(0)
    targets = np.where(rng.random((4000, 2)) < [0.1, 0.6], np.nan, 1.0)
    mixed = targets[::2] + targets[1::2]
    assert mixed_known_share(targets) == pytest.approx((~np.isnan(mixed)).mean(), abs=0.02)


def test_a_micro_batch_that_divides_a_pair_is_refused():
    batching = Batching.plan(global_batch_size=6, micro_batch_size=3, world_size=2)
    with pytest.raises(
        UsageError, match=r"`train\.micro_batch_size` must be even with `mixup`, which mixes pairs, got 3"
    ):
        check_mixup(batching)
