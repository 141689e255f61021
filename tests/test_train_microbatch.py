"""The largest micro-batch that memory holds, the same on every rank; and the operations of a step."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from memory_process import Case

from cxrdist.errors import UsageError, UserError
from cxrdist.train import microbatch
from cxrdist.train.config import OptimConfig, TrainConfig
from cxrdist.train.dryrun import at_size, imagine, profile_pass
from cxrdist.train.flops import block_matrices, flops_per_image, vit_flops
from cxrdist.train.memory import GIB, MIB, plan_memory
from cxrdist.train.microbatch import candidates, choose_micro_batch
from cxrdist.world import World

SMALL = Case("small", image_size=64, args={"depth": 3})


def chosen(monkeypatch: pytest.MonkeyPatch, room: float, gather: Callable[[Any], list[Any]], **options: Any) -> int:
    monkeypatch.setattr(microbatch, "available_host_memory", lambda: int(room))
    return choose_micro_batch(
        SMALL.task,
        SMALL.batch,
        train=TrainConfig(global_batch_size=48),
        optim=OptimConfig(),
        world=World(),
        device=torch.device("cpu"),
        gather=gather,
        **options,
    )


def test_the_sizes_to_choose_from_are_the_divisors_of_a_ranks_share() -> None:
    assert candidates(96, 4) == [24, 12, 8, 6, 4, 3, 2, 1]
    assert candidates(96, 4, multiple_of=2) == [24, 12, 8, 6, 4, 2]
    with pytest.raises(UsageError, match="must be a multiple of 2, got 3"):
        candidates(12, 4, multiple_of=2)


def test_the_largest_that_fits_is_chosen_and_no_larger(monkeypatch: pytest.MonkeyPatch) -> None:
    train = TrainConfig(global_batch_size=48)

    def needs(size: int) -> int:
        passed = profile_pass(imagine(SMALL.task), SMALL.batch, size, precision="fp32")
        return plan_memory(imagine(SMALL.task), passed, train=train, optim=OptimConfig(), world_size=1).on_cpu

    def alone(value: Any) -> list[Any]:
        return [value]

    assert needs(48) > needs(24) > needs(12)
    for size in (48, 24, 12):
        assert chosen(monkeypatch, (needs(size) + MIB) / microbatch.HOST_SPARED, alone) == size
    assert chosen(monkeypatch, 1000 * GIB, alone, multiple_of=16) == 48
    with pytest.raises(UserError, match="micro-batch of 1 must fit"):
        chosen(monkeypatch, 16 * MIB, alone)


def test_every_rank_takes_the_size_of_the_one_with_least_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen(monkeypatch, 1000 * GIB, lambda size: [size, 6, 12]) == 6
    with pytest.raises(UserError, match="on rank 1"):
        chosen(monkeypatch, 1000 * GIB, lambda size: [size, 0])


def test_a_profile_is_linear_in_the_batch() -> None:
    task = imagine(SMALL.task)
    small, large, real = (profile_pass(task, SMALL.batch, images, precision="bf16") for images in (2, 4, 24))
    told = at_size(small, large, 24)
    assert told.activations == pytest.approx(real.activations, rel=0.02)
    assert told.peak(int) == pytest.approx(real.peak(int), rel=0.02)


def test_checkpointing_takes_less_memory_and_most_of_a_forward_pass_more() -> None:
    whole, again = imagine(Case("x").task), imagine(Case("x").task)
    again.model.net.set_grad_checkpointing(True)  # type: ignore[union-attr]
    profiles = [profile_pass(task, Case("x").batch, 8, precision="fp32") for task in (whole, again)]
    assert profiles[1].activations < 0.35 * profiles[0].activations
    # At most a third more; the last product of a block is not needed again.
    assert 1.2 < profiles[1].flops / profiles[0].flops < 4 / 3


@pytest.mark.parametrize(
    ("backbone", "args", "tera"),
    [
        ("vit_large_patch14_dinov2", {}, 0.485),
        # As in the figures of others: 40 blocks of width 1408, and a hidden layer 48 / 11 as wide.
        ("vit_giant_patch14_224", {}, 1.60),
    ],
)
def test_operations_are_those_of_the_formula_and_of_published_figures(
    backbone: str, args: dict[str, Any], tera: float
) -> None:
    case = Case("x", backbone, args=args)
    counted = flops_per_image(case.task, case.batch)
    net: Any = imagine(case.task).model.net  # type: ignore[union-attr]
    tokens = net.patch_embed.num_patches + net.num_prefix_tokens
    by_formula = vit_flops(matrices=block_matrices(net), tokens=tokens, width=net.embed_dim, depth=len(net.blocks))
    assert counted == pytest.approx(by_formula, rel=0.02)
    assert counted / 1e12 == pytest.approx(tera, rel=0.03)
