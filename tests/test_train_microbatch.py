"""The largest micro-batch that memory holds, the same on every rank; and the operations of a step."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from memory_process import Case
from torch import nn

from cxrdist.errors import UsageError, UserError
from cxrdist.train import microbatch
from cxrdist.train.batches import ALIKE, Source, plan_batches
from cxrdist.train.config import OptimConfig, TrainConfig
from cxrdist.train.dryrun import at_size, imagine, profile_pass
from cxrdist.train.engine import process_group
from cxrdist.train.flops import flops_per_image
from cxrdist.train.memory import GIB, MIB, plan_memory
from cxrdist.train.microbatch import candidates, choose_micro_batch
from cxrdist.train.run_folder import RunFolder, record_start
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


@pytest.mark.slow
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


def vit_flops(*, matrices: int, tokens: int, width: int, depth: int) -> int:
    """Return the operations of a forward and a backward pass of a vision transformer over one image.

    ``6 matrices tokens``: each weight of a matrix is in one multiplication and addition per token forward and in two
    backward (Kaplan et al. 2020, "Scaling Laws for Neural Language Models", section 2.1).  Attention multiplies N x N
    by N x D twice forward, and five times backward, of which one makes its weights again (Dao 2022).

    Args:
        matrices: Weights of the blocks' matrices.
        tokens: N, prefix tokens included.
        width: D.
        depth: Blocks.
    """
    return 6 * matrices * tokens + depth * 7 * 2 * tokens**2 * width


def block_matrices(net: nn.Module) -> int:
    return sum(p.numel() for name, p in net.named_parameters() if name.startswith("blocks.") and p.ndim == 2)


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
    counted = flops_per_image(case.task, case.batch, "fp32")
    assert counted is not None
    net: Any = imagine(case.task).model.net  # type: ignore[union-attr]
    tokens = net.patch_embed.num_patches + net.num_prefix_tokens
    by_formula = vit_flops(matrices=block_matrices(net), tokens=tokens, width=net.embed_dim, depth=len(net.blocks))
    assert counted == pytest.approx(by_formula, rel=0.02)
    assert counted / 1e12 == pytest.approx(tera, rel=0.03)


def test_a_task_whose_operations_cannot_be_counted_has_none_and_no_error() -> None:
    class LooksAtValues(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

        def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            loss = self.weight.sum()
            return {"loss": loss if loss.item() > 0 else -loss}

    def build(*, told: bool = False, loaded: bool = True) -> nn.Module:
        return LooksAtValues()

    assert flops_per_image(build, SMALL.batch, "fp32") is None


def test_what_is_imagined_reads_no_file_of_weights() -> None:
    asked: list[bool] = []

    def build(*, told: bool = False, loaded: bool = True) -> nn.Module:
        asked.append(loaded)
        return SMALL.task()

    assert flops_per_image(build, SMALL.batch, "fp32")
    choose_micro_batch(
        build, SMALL.batch, train=TrainConfig(global_batch_size=2), optim=OptimConfig(), world=World(),
        device=torch.device("cpu"), gather=lambda size: [size],
    )  # fmt: skip
    assert asked and not any(asked)


class Folder(RunFolder):
    """A run folder whose starts are written as runs write them."""

    def start(self, size: int, *, step: int = 0, ranks: int = 1, **changes: Any) -> None:
        train = TrainConfig(global_batch_size=48, **changes)
        division = {name: getattr(train, name) for name in ALIKE}
        record_start(self.path, step=step, world=World(0, ranks), device="cpu", micro_batch_size=size, **division)

    def begin(self) -> None:
        self.config.write_text("")
        self.checkpoints.mkdir()
        (self.checkpoints / "step-00000001").mkdir(exist_ok=True)

    def chosen(self, **changes: Any) -> int:
        """Return the size of a start now: 48, the largest, where it is chosen anew."""
        source = Source(lambda batching, step: iter(()), list, SMALL.batch)  # type: ignore[arg-type,return-value]
        return plan_batches(
            SMALL.task, source, train=TrainConfig(global_batch_size=48, micro_batch_size="auto", **changes),
            optim=OptimConfig(), folder=self, world=World(), device=torch.device("cpu"),
        ).micro_batch_size  # fmt: skip


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Folder]:
    monkeypatch.setattr(microbatch, "available_host_memory", lambda: 1000 * GIB)
    with process_group(World()):
        yield Folder(tmp_path)


def test_a_size_is_taken_again_only_of_a_start_of_this_run_that_was_alike(folder: Folder) -> None:
    folder.start(6)
    assert folder.chosen() == 48  # that run has left no checkpoint
    folder.start(12)
    folder.begin()
    assert folder.chosen() == 12
    folder.start(8, step=20, ranks=2)
    folder.start(4, step=30, zero_stage=2)
    assert folder.chosen() == 12
    assert folder.chosen(zero_stage=2) == 4
    assert folder.chosen(activation_checkpointing=True) == 48
    assert folder.chosen(precision="bf16") == 48


def test_a_size_of_another_run_that_died_in_the_folder_is_not_taken(folder: Folder) -> None:
    folder.start(6)  # its images may have been larger
    folder.start(24, ranks=2)
    folder.begin()
    assert folder.chosen() == 48
