"""The order of samples is a pure function of (seed, step): independent of ranks, accumulation and restarts."""

import itertools
import random

import numpy as np
import pytest

from cxrdist.data.order import Batching, epoch_order, iter_positions, rank_share, sample_at
from cxrdist.errors import UsageError
from cxrdist.world import World

WORLD_SIZES = (1, 2, 3, 4, 8)


def random_cases(count: int, seed: int) -> list[tuple[int, int, int, int, int, int]]:
    """Return (N, world size, micro-batch, accumulation, seed, restart step) drawn from `seed`."""
    print(f"cases drawn with seed {seed}")
    rng = random.Random(seed)
    return [
        (rng.randint(1, 200), rng.choice(WORLD_SIZES), rng.randint(1, 6), rng.randint(1, 4), rng.randint(0, 9), s)
        for s in (rng.randint(0, 12) for _ in range(count))
    ]


def test_ranks_and_micro_steps_tile_each_global_batch():
    for _, world_size, micro, accumulation, _, step in random_cases(60, seed=1):
        size = world_size * micro * accumulation
        batching = Batching.plan(global_batch_size=size, micro_batch_size=micro, world_size=world_size)
        assert batching == Batching(size, micro, accumulation)
        positions = [
            position
            for rank, micro_step in itertools.product(range(world_size), range(accumulation))
            for position in batching.positions(step, micro_step, World(rank, world_size))
        ]
        assert sorted(positions) == list(range(step * size, (step + 1) * size))


def test_a_step_holds_the_same_samples_for_every_division_of_its_batch():
    rng = random.Random(2)
    for step in rng.sample(range(100), 10):
        batches = set()
        for world_size in WORLD_SIZES:
            for micro in (
                m for m in (1, 2, 3, 4, 6, 8, 12, 24) if (48 // world_size) % m == 0 and 48 % world_size == 0
            ):
                batching = Batching.plan(global_batch_size=48, micro_batch_size=micro, world_size=world_size)
                samples = [
                    sample_at(position, 77, seed=5)
                    for rank in range(world_size)
                    for positions in iter_positions(
                        batching, World(rank, world_size), start_step=step, stop_step=step + 1
                    )
                    for position in positions
                ]
                batches.add(tuple(sorted(samples)))
        assert len(batches) == 1


def test_every_epoch_holds_every_sample_once_whatever_the_batch():
    for n, world_size, micro, accumulation, seed, _ in random_cases(40, seed=3):
        size = world_size * micro * accumulation
        batching = Batching(size, micro, accumulation)
        steps = -(-3 * n // size)  # three epochs, the last batch begins a fourth
        read = [
            sample_at(position, n, seed)
            for rank in range(world_size)
            for positions in iter_positions(batching, World(rank, world_size), start_step=0, stop_step=steps)
            for position in positions
        ]
        assert len(read) == steps * size
        for epoch in range(3):
            assert sorted(sample for e, sample in read if e == epoch) == list(range(n))


def test_starting_at_any_step_gives_the_same_rest():
    for _, world_size, micro, accumulation, _, start in random_cases(40, seed=4):
        batching = Batching(world_size * micro * accumulation, micro, accumulation)
        world = World(world_size - 1, world_size)
        whole = list(iter_positions(batching, world, start_step=0, stop_step=13))
        rest = list(iter_positions(batching, world, start_step=start, stop_step=13))
        assert rest == whole[start * accumulation :]


def test_epochs_and_seeds_have_their_own_orders_that_nobody_can_change():
    orders = {tuple(epoch_order(50, seed, epoch).tolist()) for seed in (0, 1) for epoch in (0, 1, 2)}
    assert len(orders) == 6
    with pytest.raises(ValueError, match="read-only"):
        epoch_order(50, 0, 0)[0] = 1


def test_the_order_of_a_seed_is_what_it_always_was():
    # Part of the promise that a run can be repeated: a change here changes every published run.
    assert epoch_order(10, 0, 0).tolist() == GOLDEN_ORDER
    assert sample_at(23, 10, 7) == (2, GOLDEN_SAMPLE)


GOLDEN_ORDER = [9, 1, 3, 8, 7, 6, 0, 4, 2, 5]
GOLDEN_SAMPLE = 2


@pytest.mark.parametrize("world_size", WORLD_SIZES)
@pytest.mark.parametrize("n", [1, 2, 7, 8, 100])
def test_every_sample_is_evaluated_exactly_once(n, world_size):
    shares = [rank_share(n, World(rank, world_size)) for rank in range(world_size)]
    assert sorted(np.concatenate(shares).tolist()) == list(range(n))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize(
    ("size", "micro", "world_size", "said"),
    [
        (10, None, 4, "got 10 for 4 ranks. Nearest above: --set train.global_batch_size=12"),
        (3, None, 8, "Nearest above: --set train.global_batch_size=8"),
        (16, 3, 2, r"must divide the 8 images of each rank and step (`global_batch_size`=16 / 2 ranks), got 3."),
        (16, 32, 2, "got 32."),
    ],
)
def test_a_batch_that_cannot_be_divided_gives_a_sentence(size, micro, world_size, said):
    with pytest.raises(UsageError) as caught:
        Batching.plan(global_batch_size=size, micro_batch_size=micro, world_size=world_size)
    assert said in str(caught.value)
