"""What pretraining asks of the engine: teachers, shared buffers and divisions, under every ZeRO stage."""

import copy
import os
import signal
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from engines import BATCH, LR, STAGES, TinyTask, alone, batch_of, engine_of, on_ranks, step_once
from ranks import forks
from torch import nn

from cxrdist.data.loader import on_device
from cxrdist.data.order import Batching
from cxrdist.errors import UsageError, UserError
from cxrdist.pretrain.config import PretrainConfig
from cxrdist.pretrain.coupled import check_division, divisor
from cxrdist.pretrain.teacher import follow, half_cosine
from cxrdist.train import loop
from cxrdist.train.batches import Source
from cxrdist.train.checkpoints import checkpoint_name
from cxrdist.train.config import OptimConfig, TrainConfig
from cxrdist.train.consolidate import fill
from cxrdist.train.dryrun import by_itself, profile_pass
from cxrdist.train.engine import agree_on_buffers, forward_buffers
from cxrdist.train.fragments import live_weights
from cxrdist.train.interrupt import Interrupted
from cxrdist.train.microbatch import _pass
from cxrdist.train.pieces import Reader
from cxrdist.train.run_folder import RunFolder
from cxrdist.world import World

STEPS = 4
DIVISIONS = [{"zero_stage": stage} for stage in STAGES] + [
    {"zero_stage": 2, "offload": "optimizer", "precision": "bf16"},
    {"zero_stage": 3, "offload": "parameters", "precision": "bf16"},
    {"zero_stage": 1, "precision": "fp16", "micro_batch_size": 2},
    {"zero_stage": 3, "small_buckets": False},  # every parameter lies gathered on every rank between the steps
]


class Pair(nn.Module):
    """A student that learns its teacher's answer less a running mean of it, and a queue of answers."""

    agreed = ("queue",)

    def __init__(self, *, seed: int = 0, dropout: float = 0.0) -> None:
        super().__init__()
        self.student = TinyTask(seed=seed, dropout=dropout).net
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.register_buffer("queue", torch.zeros(3, 2))
        self.register_buffer("centre", torch.zeros(2))

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        answer = self.student(batch["image"]).float()
        with torch.no_grad():
            wanted = self.teacher(batch["image"]).float()
            if self.training:
                self.centre.lerp_(wanted.mean(0), 0.1)
        return {"loss": (answer - batch["target"]).square().mean() + (answer - wanted + self.centre).square().mean(),
                "student": answer, "teacher": wanted}  # fmt: skip

    def momentum(self, step: int, steps: int) -> float:
        return half_cosine(0.6, 1.0, step, steps)

    def after_step(self, step: int, steps: int) -> None:
        follow(self.teacher, self.student, self.momentum(step, steps))
        self.queue.add_(1)


@forks
@pytest.mark.parametrize(("world_size", "divisions"), [(1, DIVISIONS[:4:3]), (2, DIVISIONS)])
def test_a_teacher_follows_the_weights_of_its_step_and_is_what_every_rank_computes_with(world_size, divisions):
    def work(world, device):
        found = []
        for division in divisions:
            with engine_of(world, device, task=Pair(), **division) as engine:
                begin = dict(live_weights(engine))
                expected = {name: value for name, value in begin.items() if name.startswith("teacher.")}
                for step in range(STEPS):
                    step_once(engine, world, step)
                    engine.module.after_step(step, STEPS)
                    now = dict(live_weights(engine))
                    momentum = half_cosine(0.6, 1.0, step, STEPS)
                    for name, value in expected.items():
                        new = momentum * value + (1 - momentum) * now[name.replace("teacher.", "student.")]
                        torch.testing.assert_close(now[name], new, rtol=1e-6, atol=1e-7, msg=f"{division} {name}")
                        expected[name] = now[name]
                moved = [not torch.equal(value, begin[name]) for name, value in expected.items()]
                assert sum(moved) == len(moved) - 1, division  # all but the position embeddings, which are frozen
                engine.eval()
                with torch.no_grad():
                    answers = engine.module(batch_of(50))
                whole = Pair(seed=7).eval()
                fill(whole, {**now, **dict(engine.module.named_buffers())})
                with torch.no_grad():
                    again = whole(batch_of(50))
                for name in ("student", "teacher"):
                    torch.testing.assert_close(answers[name], again[name], msg=f"{division} {name}")
                found.append(now)
        return found

    for reference, *others in on_ranks(world_size, work):
        for division, weights in zip(divisions[1:], others, strict=True):
            for name, value in weights.items() if "precision" not in division else ():
                torch.testing.assert_close(value, reference[name], rtol=1e-3, atol=2e-4, msg=f"{division} {name}")


def source_of(world: World) -> Source:
    def batches_from(batching: Batching, first: int) -> Iterator[dict[str, torch.Tensor]]:
        size = batching.micro_batch_size
        for step in range(first, STEPS):
            for part in range(batching.accumulation):
                start = (world.rank * batching.accumulation + part) * size
                batch = {**batch_of(step), "sample": torch.arange(BATCH)}
                yield {name: value[start : start + size] for name, value in batch.items()}

    return Source(batches_from, lambda numbers: [str(one) for one in numbers], lambda size: batch_of(0, size=size))


def run(
    out: Path,
    world: World,
    device: torch.device,
    *,
    stop_at: int = 0,
    dropout: float = 0.0,
    build_task: Any = None,
    **train: Any,
) -> dict[str, torch.Tensor]:
    """Make or continue a run; return the chosen task's state, or nothing after a stop."""
    step = loop._Run.optimizer_step

    def step_and_signal(self, state, batches):
        step(self, state, batches)
        if state.step == stop_at and world.rank == world.world_size - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    loop._Run.optimizer_step = step_and_signal
    out.mkdir(exist_ok=True)

    def build_pair(*, told: bool = False, loaded: bool = True) -> Pair:
        return Pair(dropout=dropout)

    try:
        _, task = loop.train(
            build_task or build_pair,
            config=TrainConfig(steps=STEPS, global_batch_size=BATCH, log_every=1, **train),
            optim=OptimConfig(lr=LR, final_weight_decay=0.4),
            seed=0,
            source=source_of(world),
            validate=None,
            folder=RunFolder(out),
            world=world,
            device=device,
        )
    except Interrupted as stopped:
        assert stopped.step == stop_at
        return {}
    finally:
        loop._Run.optimizer_step = step
    return task.state_dict()


@forks
@pytest.mark.parametrize(("stage", "world_size"), [(3, 2), (1, 2), (0, 1)])
def test_two_steps_and_two_are_four_to_the_bit_with_the_teacher(tmp_path, stage, world_size):
    def work(world, device):
        whole = run(tmp_path / "whole", world, device, zero_stage=stage, dropout=0.2)
        assert not run(tmp_path / "parts", world, device, zero_stage=stage, dropout=0.2, stop_at=2)
        return whole, run(tmp_path / "parts", world, device, zero_stage=stage, dropout=0.2)

    for whole, parts in on_ranks(world_size, work):
        assert [name for name in whole if not torch.equal(whole[name], parts[name])] == []
        saved = Reader(tmp_path / "parts/checkpoints" / checkpoint_name(STEPS))
        for name in ("teacher.head.weight", "student.head.weight"):
            assert torch.equal(whole[name], saved.full(name, "weight"))
        begin = Pair()
        assert not torch.equal(whole["teacher.head.weight"], begin.teacher.head.weight)
        assert not torch.equal(whole["teacher.head.weight"], whole["student.head.weight"])
        assert whole["queue"].unique().tolist() == [STEPS]


def test_a_resumed_run_is_set_to_training_as_a_fresh_one_is(tmp_path):
    told = []

    class Telling(Pair):
        def train(self, mode: bool = True):
            told.append(mode)
            return super().train(mode)

    def build_task(*, told=False, loaded=True):
        return Telling()

    with alone() as (world, device):
        for stop_at in (2, 0):
            told.clear()
            run(tmp_path / "run", world, device, build_task=build_task, stop_at=stop_at)
            assert True in told


def test_what_is_read_by_value_stays_on_the_host():
    batch = {"image": torch.zeros(2, 1, 4, 4), "sample": torch.arange(2), "seed": torch.arange(2)}
    moved = on_device(batch, torch.device("meta"))
    assert moved["image"].is_meta
    assert moved["seed"].tolist() == moved["sample"].tolist() == [0, 1]


@forks
def test_a_teacher_goes_on_at_another_stage_and_world_size(tmp_path):
    (reference,) = on_ranks(1, lambda world, device: run(tmp_path / "whole", world, device))
    parts = tmp_path / "parts"
    on_ranks(2, lambda world, device: run(parts, world, device, zero_stage=3, stop_at=1))
    on_ranks(1, lambda world, device: run(parts, world, device, zero_stage=0, stop_at=2))
    on_ranks(2, lambda world, device: run(parts, world, device, zero_stage=2, stop_at=3))
    (state,) = on_ranks(1, lambda world, device: run(parts, world, device, zero_stage=3))
    for name, value in state.items():
        torch.testing.assert_close(value, reference[name], rtol=1e-3, atol=2e-4, msg=name)


@forks
def test_ranks_leave_each_other_s_agreed_buffers_alone(tmp_path):
    def work(world, device):
        task = nn.Module()
        task.agreed = ("queue", "centre")
        task.centre, task.centred = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
        task.register_buffer("queue", torch.zeros(2))
        for buffer in task.buffers():
            buffer.fill_(world.rank)
        names = {id(buffer): name for name, buffer in task.named_buffers()}
        assert {names[id(buffer)].split(".")[0] for buffer in forward_buffers(task)} == {"centred"}
        agree_on_buffers(task)
        return {name: buffer.tolist() for name, buffer in task.named_buffers()}

    for rank, buffers in enumerate(on_ranks(2, work)):
        assert buffers["queue"] == [rank] * 2
        assert buffers["centre.running_mean"] == [rank] * 3
        assert buffers["centred.running_mean"] == [0.5] * 3
        assert buffers["centred.num_batches_tracked"] == 0


def test_a_step_that_fails_leaves_buffers_as_they_were(tmp_path):
    class Failing(Pair):
        def forward(self, batch):
            output = super().forward(batch)
            failed = self.training and self.queue[0, 0] == 2
            return {**output, "loss": output["loss"] * (torch.nan if failed else 1)}

    def build_task(*, told=False, loaded=True):
        return Failing()

    with alone() as (world, device):
        whole = run(tmp_path / "whole", world, device)
        with pytest.raises(UserError, match="must be finite"):
            run(tmp_path / "failed", world, device, build_task=build_task)
        stopped = run(tmp_path / "stopped", world, device, stop_at=2)
    assert not stopped and whole["queue"].unique().tolist() == [STEPS]
    failed, good = (Reader(tmp_path / f"{name}/checkpoints" / checkpoint_name(2)) for name in ("failed", "stopped"))
    for name in ("centre", "queue"):
        assert torch.equal(failed.full(name, "buffer"), good.full(name, "buffer"))


def test_a_trial_knows_no_other_rank():
    """One may be done with a size before others are, or never come to it."""
    joined = []

    class Together(Pair):
        def forward(self, batch):
            joined.append(torch.distributed.is_initialized())
            return super().forward(batch)

    with alone():
        for kind in (RuntimeError, None):
            with suppress(RuntimeError), by_itself():
                assert not torch.distributed.is_initialized()
                if kind is not None:
                    raise kind
            assert torch.distributed.is_initialized()
        profile_pass(Together(), lambda size: batch_of(0, size=size), 4, precision="fp32")
        _pass(Together(), batch_of(0), TrainConfig(), torch.device("cpu"), beside=1)
        assert joined == [False, False]


@pytest.mark.parametrize(("accumulate", "world_size", "divisible"), [(False, 4, 8), (False, 1, 32), (True, 4, 1)])
def test_a_rank_computes_its_share_at_once_where_images_are_compared(accumulate, world_size, divisible):
    tree = {"shards": ["toy"], "method": {"name": "byol", "accumulate": accumulate}}
    config = PretrainConfig.build({**tree, "train": {"global_batch_size": 32}}, where="t")
    assert divisor(config, world_size) == divisible
    share = 32 // world_size
    check_division(config, Batching.plan(global_batch_size=32, micro_batch_size=share, world_size=world_size))
    divided = Batching.plan(global_batch_size=32, micro_batch_size=share // 2, world_size=world_size)
    with pytest.raises(UsageError, match=f"must be all {share} images .* 'byol'") if not accumulate else nullcontext():
        check_division(config, divided)
    alone = PretrainConfig.build({"shards": ["toy"]}, where="t")
    assert divisor(alone, world_size) == 1
    check_division(alone, divided)


@pytest.mark.parametrize(
    ("method", "train", "rule"),
    [
        ("dino", {"ema_decay": 0.99}, "`train.ema_decay` must be null with method 'dino', whose teacher is"),
        ("moco_v2", {"ema_decay": 0.99}, "`train.ema_decay` must be null with method 'moco_v2'"),
        (
            "mae",
            {"early_stopping": 3},
            "`train.early_stopping` must be null in a pretraining, which has no score to stop by, got 3",
        ),
        (
            "simclr",
            {"keep_best": 2},
            "`train.keep_best` must be left out in a pretraining, which has no score that makes a step the best, got 2",
        ),
    ],
)
def test_what_would_do_nothing_in_a_pretraining_is_refused(method, train, rule):
    with pytest.raises(UsageError, match=rule):
        PretrainConfig.build({"shards": ["toy"], "method": {"name": method}, "train": train}, where="t")


def test_methods_without_a_teacher_may_keep_a_running_mean():
    for method in ("mae", "simmim", "simclr", "swav", "supervised"):
        tree = {"shards": ["toy"], "method": {"name": method}, "train": {"ema_decay": 0.99}}
        assert PretrainConfig.build(tree, where="t").train.ema_decay == 0.99
