"""What lies on the ranks, under every ZeRO stage, is the model and the optimizer's state, whole and once."""

import math

import pytest
import torch
from engines import STAGES, TinyTask, alone, batch_of, engine_of, on_ranks, step_once
from ranks import forks
from torch import nn

from cxrdist.train.config import OptimConfig
from cxrdist.train.consolidate import compare_with_live, consolidate, fill
from cxrdist.train.fragments import WEIGHT, fragments, live_weights, publish, restore, scalars

DIVISIONS = [{"zero_stage": stage} for stage in STAGES] + [
    {"zero_stage": 1, "offload": "optimizer"},
    {"zero_stage": 2, "offload": "optimizer"},
    {"zero_stage": 3, "offload": "parameters"},
]


def piece_list(engine) -> list[tuple]:
    """Return copies of this rank's fragments that can be sent to the test's process."""
    return [
        (f.name, f.shape, f.start, {kind: t.clone() for kind, t in f.tensors.items()}, f.shared)
        for f in fragments(engine)
    ]


def whole_tensors(ranks: list[list[tuple]]) -> dict[tuple[str, str], torch.Tensor]:
    """Join every rank's fragments; each number must be there exactly once, or on every rank where it is shared."""
    found: dict[tuple[str, str], torch.Tensor] = {}
    covered: dict[tuple[str, str], torch.Tensor] = {}
    for rank, pieces in enumerate(ranks):
        for name, shape, start, tensors, shared in pieces:
            for kind, tensor in tensors.items():
                numel = math.prod(shape)
                whole = found.setdefault((kind, name), torch.full((numel,), torch.nan)).view(-1)
                times = covered.setdefault((kind, name), torch.zeros(numel, dtype=torch.int64))
                assert start + len(tensor) <= numel
                if shared and rank:
                    assert torch.equal(whole[start : start + len(tensor)], tensor)
                    continue
                whole[start : start + len(tensor)] = tensor
                times[start : start + len(tensor)] += 1
                found[kind, name] = whole.view(shape)
    for place, times in covered.items():
        assert (times == 1).all(), place
    return found


@forks
@pytest.mark.parametrize("trained", ["", "qkv"], ids=["whole", "partial"])
@pytest.mark.parametrize("world_size", [1, 2])
def test_every_number_lies_on_the_ranks_exactly_once(world_size, trained):
    def work(world, device):
        found = []
        for division in DIVISIONS:
            with engine_of(world, device, task=TinyTask(trained=trained), **division) as engine:
                step_once(engine, world, 0)
                found.append((piece_list(engine), dict(live_weights(engine))))
        return found

    ranks = on_ranks(world_size, work)
    task = TinyTask(trained=trained)
    kinds = {n: {WEIGHT, "exp_avg", "exp_avg_sq"} if p.requires_grad else {WEIGHT} for n, p in task.named_parameters()}
    for number in range(len(DIVISIONS)):
        whole = whole_tensors([rank[number][0] for rank in ranks])
        for rank in ranks:
            assert {name: {k for k, n in whole if n == name} for _, name in whole} == kinds
            live = rank[number][1]
            assert list(live) == list(kinds)
            for name, value in live.items():
                assert torch.equal(value, whole[WEIGHT, name]), (DIVISIONS[number], name)


def checkpoint(ranks: list) -> dict[tuple[str, str], torch.Tensor]:
    return {place: tensor.reshape(-1) for place, tensor in whole_tensors(ranks).items()}


def reader_of(saved: dict[tuple[str, str], torch.Tensor]):
    return lambda name, kind, start, stop: saved[kind, name][start:stop]


@forks
@pytest.mark.slow
def test_a_checkpoint_of_any_division_goes_on_in_any_other():
    """Worlds of one and two, all stages: 64 pairs; where the division is the same, to the bit."""

    def write(world, device):
        found = {}
        for stage in STAGES:
            with engine_of(world, device, zero_stage=stage) as engine:
                for step in range(3):
                    step_once(engine, world, step)
                pieces, numbers = piece_list(engine), scalars(engine)
                for step in range(3, 5):
                    step_once(engine, world, step)
                found[stage] = (pieces, numbers, dict(live_weights(engine)))
        return found

    written = {world_size: on_ranks(world_size, write) for world_size in (1, 2)}
    saved = {
        (world_size, stage): (checkpoint([rank[stage][0] for rank in ranks]), ranks[0][stage][1])
        for world_size, ranks in written.items()
        for stage in STAGES
    }

    def read(world, device):
        found = {}
        for stage in STAGES:
            own = (world.world_size, stage)
            with engine_of(world, device, task=TinyTask(seed=7), zero_stage=stage) as engine:
                for source in sorted(saved, key=lambda source: source != own):  # into the fresh engine its own
                    tensors, numbers = saved[source]
                    assert numbers == {"step": 3.0}
                    restore(engine, reader_of(tensors), numbers)
                    assert torch.equal(
                        dict(live_weights(engine))["net.head.weight"].view(-1), tensors[WEIGHT, "net.head.weight"]
                    )
                    for step in range(3, 5):
                        step_once(engine, world, step)
                    found[source, stage] = dict(live_weights(engine))
        return found

    for world_size in (1, 2):
        (continued, *_) = on_ranks(world_size, read)
        for (source, stage), weights in continued.items():
            undisturbed = written[world_size][0][stage][2]
            for name, value in undisturbed.items():
                if source == (world_size, stage):
                    assert torch.equal(weights[name], value), (source, name)
                else:
                    torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(
    ("optim", "division"),
    [
        ({"name": "sgd"}, {"zero_stage": 0}),
        ({"name": "sgd"}, {"zero_stage": 2}),
        ({"name": "sgd", "momentum": 0}, {"zero_stage": 3}),
        ({"name": "lamb"}, {"zero_stage": 0}),
        ({"name": "lars", "final_weight_decay": 0.5}, {"zero_stage": 0}),
        ({}, {"zero_stage": 2, "offload": "optimizer"}),
        ({}, {"zero_stage": 3, "offload": "parameters"}),
        ({}, {"zero_stage": 0, "precision": "fp16"}),
        ({}, {"zero_stage": 3, "precision": "fp16"}),
        ({}, {"zero_stage": 1, "precision": "bf16", "micro_batch_size": 4}),
    ],
    ids=str,
)
def test_saved_restored_and_continued_is_the_same_to_the_bit(optim, division):
    optim = OptimConfig(lr=1e-3, **optim)
    with alone() as (world, device):
        with engine_of(world, device, optim=optim, **division) as engine:
            for step in range(3):
                step_once(engine, world, step)
            saved, numbers = checkpoint([piece_list(engine)]), scalars(engine)
            for step in range(3, 6):
                step_once(engine, world, step)
            undisturbed = piece_list(engine)
        with engine_of(world, device, task=TinyTask(seed=7), optim=optim, **division) as engine:
            restore(engine, reader_of(saved), numbers)
            assert scalars(engine) == numbers
            for step in range(3, 6):
                step_once(engine, world, step)
            for one, other in zip(piece_list(engine), undisturbed, strict=True):
                assert one[:3] == other[:3]
                assert one[3].keys() == other[3].keys()
                for kind, tensor in one[3].items():
                    assert torch.equal(tensor, other[3][kind]), (one[0], kind)


@pytest.mark.parametrize("stage", STAGES)
def test_a_state_made_before_the_first_step_changes_nothing(stage):
    with alone() as (world, device):
        results = []
        for early in (False, True):
            with engine_of(world, device, zero_stage=stage) as engine:
                if early:
                    assert all(not t.any() for f in fragments(engine) for k, t in f.tensors.items() if k != WEIGHT)
                    assert scalars(engine) == {"step": 0.0}
                for step in range(2):
                    step_once(engine, world, step)
                results.append(dict(live_weights(engine)))
        assert all(torch.equal(value, results[1][name]) for name, value in results[0].items())


@forks
@pytest.mark.parametrize("division", DIVISIONS, ids=str)
def test_what_is_written_to_the_masters_is_what_every_rank_computes_with(division):
    def work(world, device):
        with engine_of(world, device, **division) as engine:
            step_once(engine, world, 0)
            before = dict(live_weights(engine))
            for fragment in fragments(engine):
                fragment.tensors[WEIGHT].mul_(1.5)
            publish(engine)
            assert all(torch.equal(value, 1.5 * before[name]) for name, value in live_weights(engine))
            engine.eval()
            with torch.no_grad():
                logits = engine.module(batch_of(5))["logits"]
            return logits, dict(live_weights(engine))

    for logits, weights in on_ranks(2, work):
        task = TinyTask().eval()
        fill(task, weights)
        with torch.no_grad():
            torch.testing.assert_close(logits, task(batch_of(5))["logits"])


class Saved:
    def __init__(self, tensors):
        self.tensors = tensors

    def names(self, kind):
        return [name for k, name in self.tensors if k == kind]

    def full(self, name, kind):
        return self.tensors[kind, name]


def test_a_consolidated_model_is_the_live_one_bit_by_bit_and_a_changed_bit_is_named():
    class WithNorm(TinyTask):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, batch):
            return super().forward({**batch, "image": self.norm(batch["image"])})

    with alone() as (world, device), engine_of(world, device, task=WithNorm(), zero_stage=3) as engine:
        step_once(engine, world, 0)
        tensors = whole_tensors([piece_list(engine)])
        for name, buffer in engine.module.named_buffers():
            tensors["buffer", name] = buffer.cpu().clone()
        tensors = {place: t for place, t in tensors.items() if place[1] not in ("mean", "std")}
        whole = consolidate(Saved(tensors))
        assert compare_with_live(engine, whole) == []
        assert compare_with_live(engine, None) == []
        whole["net.head.bias"][0] = torch.nextafter(whole["net.head.bias"][0], torch.tensor(1.0))
        whole["norm.num_batches_tracked"] += 1
        del whole["net.cls_token"]
        whole["more"] = torch.zeros(1)
        assert compare_with_live(engine, whole) == [
            "net.cls_token", "net.head.bias", "norm.num_batches_tracked", "more",
        ]  # fmt: skip
