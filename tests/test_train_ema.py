"""The running mean of the weights, under every ZeRO stage."""

import pytest
import torch
from engines import STAGES, TinyTask, alone, batch_of, engine_of, on_ranks, step_once
from ranks import forks

from cxrdist.train.checkpoints import Checkpoints, Retention
from cxrdist.train.consolidate import consolidate, fill
from cxrdist.train.ema import EMA, Ema
from cxrdist.train.fragments import WEIGHT, fragments, live_weights
from cxrdist.train.pieces import Reader
from cxrdist.train.state import Progress, facts_of, pieces_on_rank, restore_state

DECAY = 0.8
DIVISIONS = [{"zero_stage": stage} for stage in STAGES] + [
    {"zero_stage": 2, "offload": "optimizer"},
    {"zero_stage": 3, "offload": "parameters", "precision": "bf16"},
    {"zero_stage": 1, "precision": "fp16", "micro_batch_size": 2},
]


def own_bits(engine) -> list[torch.Tensor]:
    return [tensor.clone() for fragment in fragments(engine) for tensor in fragment.tensors.values()]


@forks
@pytest.mark.parametrize("world_size", [1, 2])
def test_the_mean_is_what_its_formula_says_and_leaves_no_trace(world_size):
    def work(world, device):
        for division in DIVISIONS:
            with engine_of(world, device, task=TinyTask(dropout=0.1), **division) as engine:
                ema = Ema(engine, DECAY)
                mean = {name: value.double() for name, value in live_weights(engine)}
                for step in range(6):
                    step_once(engine, world, step)
                    ema.update()
                    for name, value in live_weights(engine):
                        mean[name] = DECAY * mean[name] + (1 - DECAY) * value.double()
                frozen = {name for name, one in engine.module.named_parameters() if not one.requires_grad}
                assert frozen == {"net.pos_embed"}  # is its own mean, and is not saved twice
                assert {f.name for f in ema.fragments()} == {f.name for f in fragments(engine)} - frozen
                for f in ema.fragments():
                    torch.testing.assert_close(
                        f.tensors[EMA].double(), mean[f.name].view(-1)[f.start : f.stop], rtol=1e-6, atol=1e-6
                    )
                before, outside = own_bits(engine), dict(live_weights(engine))
                with ema.applied():
                    inside = dict(live_weights(engine))
                    for name, value in inside.items():
                        torch.testing.assert_close(value.double(), mean[name], rtol=1e-6, atol=1e-6)
                    engine.eval()
                    with torch.no_grad():
                        logits = engine.module(batch_of(50))["logits"]
                    task = TinyTask().eval()
                    fill(task, inside)
                    with torch.no_grad():
                        torch.testing.assert_close(logits, task(batch_of(50))["logits"])
                assert all(torch.equal(a, b) for a, b in zip(own_bits(engine), before, strict=True))
                assert all(torch.equal(value, outside[name]) for name, value in live_weights(engine))
                step_once(engine, world, 6)

    on_ranks(world_size, work)


@pytest.mark.parametrize("stage", STAGES)
def test_a_validation_with_the_mean_does_not_change_the_training(stage):
    with alone() as (world, device):
        results = []
        for validated in (False, True):
            with engine_of(world, device, task=TinyTask(dropout=0.1), zero_stage=stage) as engine:
                ema = Ema(engine, DECAY)
                for step in range(4):
                    step_once(engine, world, step)
                    ema.update()
                    if validated:
                        with ema.applied(), torch.no_grad():
                            engine.eval()
                            engine.module(batch_of(50, device=device))
                            engine.module(batch_of(51, size=3, device=device))
                results.append((own_bits(engine), [f.tensors[EMA].clone() for f in ema.fragments()]))
        for one, other in zip(*results, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_the_masters_come_back_when_the_validation_fails(stage):
    with alone() as (world, device), engine_of(world, device, zero_stage=stage) as engine:
        ema = Ema(engine, DECAY)
        for step in range(2):
            step_once(engine, world, step)
            ema.update()
        before = [f.tensors[WEIGHT].clone() for f in fragments(engine)]
        means = [f.tensors[EMA].clone() for f in ema.fragments()]
        with pytest.raises(ZeroDivisionError), ema.applied():
            raise ZeroDivisionError
        assert all(torch.equal(a, f.tensors[WEIGHT]) for a, f in zip(before, fragments(engine), strict=True))
        assert all(torch.equal(a, f.tensors[EMA]) for a, f in zip(means, ema.fragments(), strict=True))


@forks
def test_a_mean_is_restored_in_another_division_and_goes_on():
    def write(world, device):
        with engine_of(world, device, zero_stage=2) as engine:
            ema = Ema(engine, DECAY)
            step_once(engine, world, 0)
            ema.update()
            return [(f.name, f.start, f.stop, f.tensors[EMA].clone()) for f in ema.fragments()]

    mean = {name: value.clone().view(-1) for name, value in TinyTask().named_parameters()}
    for rank in on_ranks(2, write):
        for name, start, stop, tensor in rank:
            mean[name].data[start:stop] = tensor
    with alone() as (world, device), engine_of(world, device, zero_stage=3) as engine:
        ema = Ema(engine, DECAY)
        ema.restore(lambda name, kind, start, stop: {EMA: mean}[kind][name].detach()[start:stop])
        for fragment in ema.fragments():
            assert torch.equal(fragment.tensors[EMA], mean[fragment.name][fragment.start : fragment.stop])
        before = [fragment.tensors[EMA].clone() for fragment in ema.fragments()]
        ema.update()
        for fragment, old, weight in zip(ema.fragments(), before, ema_order(engine), strict=True):
            torch.testing.assert_close(fragment.tensors[EMA], DECAY * old + (1 - DECAY) * weight)


def ema_order(engine) -> list[torch.Tensor]:
    """Return the weights in the order of the mean's fragments, which are of the trained ones."""
    trained = {name for name, parameter in engine.module.named_parameters() if parameter.requires_grad}
    return [f.tensors[WEIGHT] for f in fragments(engine) if f.name in trained]


def test_a_model_of_the_mean_has_the_weights_of_what_is_frozen(tmp_path):
    with alone() as (world, device), engine_of(world, device, zero_stage=3) as engine:
        ema = Ema(engine, DECAY)
        before = dict(live_weights(engine))
        step_once(engine, world, 0)
        ema.update()
        save = Checkpoints(tmp_path, rank=0, world_size=1, keep=Retention(), in_background=False, resumed=None)
        save.save(1, pieces_on_rank(engine, ema, world), facts_of(engine, Progress(step=1)))
        reader = Reader(tmp_path / "step-00000001")
        assert set(reader.names(WEIGHT)) - set(reader.names(EMA)) == {"net.pos_embed"}
        after, mean = dict(live_weights(engine)), consolidate(reader, EMA)
        assert mean.keys() == after.keys()
        assert torch.equal(mean["net.pos_embed"], after["net.pos_embed"])
        for name, value in mean.items():
            torch.testing.assert_close(value, DECAY * before[name] + (1 - DECAY) * after[name])
        fill(TinyTask(), mean)
        step_once(engine, world, 1)
        ema.update()
        assert restore_state(engine, ema, reader).step == 1
        assert all(torch.equal(f.tensors[EMA], mean[f.name].view(-1)[f.start : f.stop]) for f in ema.fragments())
