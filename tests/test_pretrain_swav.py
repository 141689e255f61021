"""SwAV: swapped prediction against the paper written out and lightly's loss, small crops, frozen prototypes."""

import math
import secrets

import pytest
import torch
from lightly.loss import SwaVLoss
from paired import CONFIGS, paired_batch, paired_task
from tiny_nets import tiny_model

from cxrdist.data.config import LocalCropsConfig
from cxrdist.errors import UsageError
from cxrdist.pretrain.paired import direction
from cxrdist.pretrain.projection import Prototypes
from cxrdist.pretrain.swav import SwavTask, swapped

PAPER = {"temperature": 0.1, "epsilon": 0.05, "iterations": 3}


def plain_codes(scores: torch.Tensor, epsilon: float, iterations: int) -> list[list[float]]:
    """Appendix A of the paper, entry by entry: prototypes and images divided by their sums in turn."""
    n, p = scores.shape
    q = [[math.exp(float(scores[i, j]) / epsilon) for j in range(p)] for i in range(n)]
    for _ in range(iterations):
        for j in range(p):
            total = sum(q[i][j] for i in range(n))
            for i in range(n):
                q[i][j] /= total * p
        for i in range(n):
            total = sum(q[i])
            q[i] = [value / (total * n) for value in q[i]]
    return [[value * n for value in row] for row in q]


def plain_loss(crops: list[torch.Tensor]) -> torch.Tensor:
    """Equation 6 of the paper, as a mean over images, pairs of crops and large crops."""
    losses = []
    for t in range(2):
        codes = plain_codes(crops[t].detach(), PAPER["epsilon"], PAPER["iterations"])
        for v in range(len(crops)):
            if v == t:
                continue
            for i in range(len(crops[t])):
                exps = torch.exp(crops[v][i] / PAPER["temperature"])
                losses.append(-sum(q * torch.log(e / exps.sum()) for q, e in zip(codes[i], exps, strict=True)))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("crops", [2, 5])
def test_loss_and_gradient_are_those_of_the_paper_and_of_lightly(crops):
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    given = torch.rand(crops, 6, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    single, double, other = (
        given.clone().requires_grad_(),
        given.double().requires_grad_(),
        given.clone().requires_grad_(),
    )
    made, expected = swapped(list(single), large=2, **PAPER), plain_loss(list(double))
    lightly = SwaVLoss()(list(other[:2]), list(other[2:]))
    for loss in (made, expected, lightly):
        loss.backward()
    torch.testing.assert_close(made.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(made, lightly.squeeze(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(single.grad.double(), double.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(single.grad, other.grad, rtol=1e-4, atol=1e-6)


def test_codes_of_large_crops_are_predicted_from_every_other_crop():
    task, batch = paired_task("swav", "vit"), paired_batch("swav", 4)
    made = task.loss(batch)
    crops = [*batch["image"].unbind(1), *batch["local"].unbind(1)]
    large = direction(task.embed(torch.cat(crops[:2]))).chunk(2)
    small = direction(task.embed(torch.cat(crops[2:]))).chunk(3)
    weight = direction(task.prototypes.weight)
    with torch.no_grad():
        expected = plain_loss([embedding @ weight.T for embedding in (*large, *small)])
    torch.testing.assert_close(made.detach(), expected, rtol=1e-4, atol=1e-5)
    without = {name: value for name, value in batch.items() if name != "local"}
    assert task.loss(without).isfinite() and not torch.equal(task.loss(without), made)


def test_prototypes_are_held_in_the_first_steps_only():
    task, batch = paired_task("swav"), paired_batch("swav", 4)  # for a quarter of the steps
    moved = []
    for step in range(8):
        task.zero_grad()
        task.at_step(step, 8, None)
        task.loss(batch).backward()
        moved.append(bool(task.prototypes.weight.grad.any()))
        assert task.head.layers[0].weight.grad.any()
    assert moved == [False, False, True, True, True, True, True, True]


def test_the_length_of_a_prototype_is_no_matter():
    torch.manual_seed(0)
    prototypes, given = Prototypes(4, 3, std=1.0), direction(torch.randn(5, 4))
    before = prototypes(given)
    with torch.no_grad():
        prototypes.weight.mul_(torch.tensor([[0.1], [3.0], [7.0]]))
    torch.testing.assert_close(prototypes(given), before)
    assert before.abs().max() <= 1 + 1e-6


def test_a_look_tells_the_share_of_each_prototype():
    task, batch = paired_task("swav").eval(), paired_batch("swav", 4)
    with torch.no_grad():
        look = task(batch | {"image": batch["image"][:, 0]})["look"]
    assert look.prototypes.shape == (4, 10)
    torch.testing.assert_close(look.prototypes.sum(dim=1), torch.ones(4))
    nearest = (direction(look.embedding) @ direction(task.prototypes.weight).T).argmax(dim=1)
    assert torch.equal(look.prototypes.argmax(dim=1), nearest)


def test_small_crops_that_are_no_multiple_of_the_patch_are_refused():
    for count, size, family in ((2, 24, "vit"), (0, 96, "vit"), (2, 18, "densenet")):
        config = CONFIGS["swav"].model_copy(update={"local_crops": LocalCropsConfig(count=count, size=size)})
        SwavTask(tiny_model(family), config, fresh=True)
    config = CONFIGS["swav"].model_copy(update={"local_crops": LocalCropsConfig(count=2, size=18)})
    with pytest.raises(UsageError, match=r"`method.local_crops.size` must be a multiple .* got 18. Nearest: 16,"):
        SwavTask(tiny_model("vit"), config, fresh=True)
