"""Two ranks compute what one process computes on their joint batch: losses, gradients, batch norm, queue, codes."""

import pytest
import torch
import torch.distributed
from paired import CONFIGS, paired_batch, paired_task
from ranks import forks, on_two_ranks
from timm.layers import BatchNormAct2d
from torch import nn

from cxrdist.pretrain.batchnorm import join_batch_norm
from cxrdist.train.dryrun import imagine, profile_pass
from cxrdist.world import World

pytestmark = forks
TASKS = [("simclr", "densenet"), ("simclr", "vit"), ("moco_v2", "densenet"), ("moco_v3", "densenet")]
TASKS += [("moco_v3", "vit"), ("byol", "densenet"), ("swav", "densenet")]
NORMS = {
    "features": (lambda: nn.BatchNorm1d(3), (8, 3)),
    "maps": (lambda: nn.BatchNorm2d(3, momentum=None), (8, 3, 2, 5)),
    "no weights": (lambda: nn.BatchNorm1d(3, affine=False), (8, 3)),
    "no statistics": (lambda: nn.BatchNorm2d(3, track_running_stats=False), (8, 3, 4, 4)),
    "activated": (lambda: BatchNormAct2d(3), (8, 3, 4, 4)),
}


def step_of(method: str, family: str, world: World) -> dict[str, object]:
    """Return a rank's loss, gradients, and what is saved after a step and a half, on its part of the batch."""
    task, batch = paired_task(method, family), paired_batch(method, 8)
    size = 8 // world.world_size
    part = {name: value[world.rank * size : (world.rank + 1) * size] for name, value in batch.items()}
    task.at_step(5, 10, None)
    loss = task(part)["loss"]
    loss.backward()
    task.after_step(5, 10)
    buffers = {name: value.clone() for name, value in task.named_buffers()}
    later = task(part)["loss"]  # the teacher has moved, the queue has keys
    gradients = {name: p.grad for name, p in task.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), "later": later.detach(), "gradients": gradients, "buffers": buffers}


def norm_of(kind: str, world: World) -> dict[str, object]:
    """Return what a batch norm makes of a rank's part of a batch, and the gradients of a sum over its output."""
    build, shape = NORMS[kind]
    torch.manual_seed(3)
    norm = build().double()
    names = list(norm.state_dict())
    join_batch_norm(norm)
    assert list(norm.state_dict()) == names
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    size = 8 // world.world_size
    own = slice(world.rank * size, (world.rank + 1) * size)
    made = {}
    for _ in range(2):
        values, weights = torch.randn(shape).double(), torch.randn(shape).double()
        given = (3 * values + values[:1]).clone()[own].requires_grad_()
        output = norm(given)
        (output * weights[own]).sum().backward()
        made = {"output": output.detach(), "given": given.grad, "weights": [p.grad for p in norm.parameters()]}
    norm.eval()
    return made | {"buffers": dict(norm.named_buffers()), "eval": norm(given).detach()}


def everything(world: World) -> dict[str, dict[str, object]]:
    made = {"-".join(which): step_of(*which, world) for which in TASKS}
    return made | {kind: norm_of(kind, world) for kind in NORMS}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Return what one process finds, and what each of two ranks does."""
    folder = tmp_path_factory.mktemp("ranks")

    def work(world: World) -> None:
        torch.distributed.init_process_group("gloo", rank=world.rank, world_size=world.world_size)
        torch.save(everything(world), folder / str(world.rank))
        imagine_alone(world)
        torch.distributed.destroy_process_group()

    assert on_two_ranks(work) == [0, 0]
    return everything(World()), *(torch.load(folder / str(rank)) for rank in range(2))


def imagine_alone(world: World) -> None:
    """One rank alone may ask for the shapes of a step: nothing is sent."""
    if world.is_main:
        task = imagine(lambda loaded: paired_task("byol", apart=False))
        profile_pass(task, lambda images: paired_batch("byol", images), 2, precision="fp32")
    torch.distributed.barrier()


@pytest.mark.parametrize("which", ["-".join(which) for which in TASKS])
def test_loss_gradients_and_buffers_of_two_ranks_are_those_of_the_joint_batch(found, which):
    alone, *ranks = (one[which] for one in found)
    for loss in ("loss", "later"):
        mean = sum(rank[loss] for rank in ranks) / 2
        torch.testing.assert_close(mean, alone[loss], rtol=1e-5, atol=1e-5)
    scale = max(float(gradient.abs().max()) for gradient in alone["gradients"].values())
    for name, expected in alone["gradients"].items():
        mean = sum(rank["gradients"][name] for rank in ranks) / 2
        torch.testing.assert_close(
            mean, expected, rtol=1e-3, atol=1e-4 * scale, msg=lambda said, n=name: f"{n}: {said}"
        )
    assert alone["gradients"].keys() == ranks[0]["gradients"].keys()
    for name, expected in alone["buffers"].items():
        assert torch.equal(ranks[0]["buffers"][name], ranks[1]["buffers"][name]), name
        torch.testing.assert_close(ranks[0]["buffers"][name], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", list(NORMS))
def test_batch_norm_of_two_ranks_is_that_of_the_joint_batch(found, kind):
    alone, *ranks = (one[kind] for one in found)
    for name in ("output", "given", "eval"):
        if name != "eval" or kind != "no statistics":
            torch.testing.assert_close(torch.cat([rank[name] for rank in ranks]), alone[name], rtol=1e-9, atol=1e-9)
    for *parts, expected in zip(*(one["weights"] for one in (*ranks, alone)), strict=True):
        torch.testing.assert_close(sum(parts), expected, rtol=1e-9, atol=1e-9)
    for name, expected in alone["buffers"].items():
        assert torch.equal(ranks[0]["buffers"][name], ranks[1]["buffers"][name])
        torch.testing.assert_close(ranks[0]["buffers"][name], expected, rtol=1e-9, atol=1e-9)


def test_every_method_is_compared_on_two_ranks():
    assert {method for method, _ in TASKS} == CONFIGS.keys()
