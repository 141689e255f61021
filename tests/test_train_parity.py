"""Any number of ranks under any ZeRO stage trains the same weights, and goes on from what any other has written."""

import itertools
import os
import random
import signal
from pathlib import Path

import pytest
import torch
from engines import on_ranks
from helpers import finetune_tree, make_shards
from ranks import forks
from safetensors.torch import load_file

from cxrdist.config import override
from cxrdist.finetune.config import FinetuneConfig
from cxrdist.finetune.parts import read_parts
from cxrdist.finetune.run import _train
from cxrdist.train import loop
from cxrdist.train.checkpoints import checkpoint_name
from cxrdist.train.interrupt import Interrupted
from cxrdist.train.pieces import Reader
from cxrdist.train.run_folder import RunFolder
from cxrdist.world import World

pytestmark = pytest.mark.xdist_group("parity")
STEPS = 20
STAGES = (0, 1, 2, 3)
WORLDS = (1, 2, 4)
EACH = [(stage, size) for stage, size in itertools.product(STAGES, WORLDS) if size < 4 or stage in (0, 3)]
QUICK = [(0, 2), (1, 2), (2, 1), (3, 2)]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def reference(shards, tmp_path_factory):
    """Return the folder of the run on one rank at stage 0."""
    out = tmp_path_factory.mktemp("runs") / "reference"
    on_ranks(1, lambda world, device: run(shards, out, world, device, 0))
    return out


def config_of(shards: Path, stage: int, **changes) -> FinetuneConfig:
    tree = finetune_tree(shards, steps=STEPS, evaluate_every=STEPS, checkpoint_every=STEPS, log_every=1)
    tree = override(tree, {"train.zero_stage": stage, "train.ema_decay": 0.9, "train.global_batch_size": 8})
    return FinetuneConfig.build(override(tree, {k.replace("__", "."): v for k, v in changes.items()}), where="t")


def run(shards: Path, out: Path, world: World, device: torch.device, stage: int, stop_at: int = 0, **changes) -> None:
    """Make or continue the run in `out`; with `stop_at` the last rank gets a signal after so many steps."""
    if stop_at and world.rank == world.world_size - 1:
        step = loop._Run.optimizer_step

        def step_and_signal(self, state, batches):
            step(self, state, batches)
            if state.step == stop_at:
                os.kill(os.getpid(), signal.SIGTERM)

        loop._Run.optimizer_step = step_and_signal
    config = config_of(shards, stage, **changes).resolved()
    folder = RunFolder(out)
    folder.path.mkdir(parents=True, exist_ok=True)
    try:
        _train(config, folder, world, device)
    except Interrupted as stopped:
        assert stopped.step == stop_at


def states_of(out: Path) -> dict[str, torch.Tensor]:
    """Return all that the last checkpoint has: weights, their mean, the optimizer's."""
    reader = Reader(out / "checkpoints" / checkpoint_name(STEPS))
    kinds = ("weight", "ema", "exp_avg", "exp_avg_sq")
    return {f"{kind}/{name}": reader.full(name, kind).clone() for kind in kinds for name in reader.names(kind)}


def assert_close(out: Path, reference: Path) -> None:
    ours, theirs = states_of(out), states_of(reference)
    assert ours.keys() == theirs.keys()
    assert len(ours) > 40
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=2e-3, atol=5e-5, msg=lambda text, name=name: name + text)
    left, right = (load_file(folder / "model/model.safetensors") for folder in (out, reference))
    for name, value in left.items():
        torch.testing.assert_close(value, right[name], rtol=2e-3, atol=5e-5)


def assert_identical(out: Path, reference: Path) -> None:
    ours, theirs = states_of(out), states_of(reference)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    files = [(folder / "model/model.safetensors").read_bytes() for folder in (out, reference)]
    assert files[0] == files[1]


def check_same_weights(shards: Path, reference: Path, out: Path, stage: int, world_size: int) -> None:
    on_ranks(world_size, lambda world, device: run(shards, out, world, device, stage))
    assert_close(out, reference)


@forks
@pytest.mark.parametrize(("stage", "world_size"), QUICK)
def test_a_stage_trains_the_weights_of_plain_training(shards, reference, tmp_path, stage, world_size):
    check_same_weights(shards, reference, tmp_path, stage, world_size)


@forks
@pytest.mark.slow
@pytest.mark.parametrize(("stage", "world_size"), [one for one in EACH if one not in [(0, 1), *QUICK]])
def test_every_other_stage_and_world_trains_the_same_weights(shards, reference, tmp_path, stage, world_size):
    check_same_weights(shards, reference, tmp_path, stage, world_size)


def check_resume(shards: Path, reference: Path, out: Path, first: tuple[int, int], then: tuple[int, int]) -> None:
    (stage, world_size), (next_stage, next_world_size) = first, then
    on_ranks(world_size, lambda world, device: run(shards, out, world, device, stage, 7))
    assert not (out / "result.json").exists()
    on_ranks(next_world_size, lambda world, device: run(shards, out, world, device, next_stage))
    assert_close(out, reference)


@forks
@pytest.mark.parametrize(("first", "then"), [((3, 2), (0, 1)), ((0, 1), (2, 2)), ((1, 2), (3, 1))])
def test_a_run_goes_on_at_another_world_size_and_stage(shards, reference, tmp_path, first, then):
    check_resume(shards, reference, tmp_path, first, then)


@forks
@pytest.mark.slow
def test_a_run_goes_on_between_pairs_of_world_sizes_and_stages(shards, reference, tmp_path):
    """A ring through all ten in a random order: each is once resumed from and once resumed into."""
    seed = random.randrange(10**6)
    print(f"order drawn with seed {seed}")
    ring = random.Random(seed).sample(EACH, len(EACH))
    for number, (first, then) in enumerate(zip(ring, [*ring[1:], ring[0]], strict=True)):
        print(f"stage and ranks {first} -> {then}")
        check_resume(shards, reference, tmp_path / str(number), first, then)


@forks
@pytest.mark.parametrize(("stage", "world_size"), [(2, 2), pytest.param(3, 1, marks=pytest.mark.slow)])
def test_resumed_at_the_same_stage_and_world_size_is_the_same_to_the_bit(shards, tmp_path, stage, world_size):
    random_layers = {"model__args__proj_drop_rate": 0.1, "mixup": 0.4, "train__micro_batch_size": 2}
    for name, stop_at in (("whole", 0), ("parts", 7), ("parts", 13), ("parts", 0)):
        out = tmp_path / name
        on_ranks(
            world_size,
            lambda world, device, out=out, at=stop_at: run(shards, out, world, device, stage, at, **random_layers),
        )
    assert_identical(tmp_path / "parts", tmp_path / "whole")


def test_the_parts_of_a_run_do_not_depend_on_how_often_they_are_read(shards):
    config = config_of(shards, 0).resolved()
    first, second = (read_parts(config, told=False).build_task().state_dict() for _ in range(2))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
