"""DeepSpeed's engine: what it is told, and that every division of the work computes the same."""

import copy
import gc
import json
import math
import sys
import weakref
from importlib import import_module

import pytest
import timm
import torch
from engines import BATCH, LR, STAGES, TinyTask, alone, batch_of, engine_of, on_ranks, step_once
from ranks import forks
from torch import nn

from cxrdist.data.order import Batching
from cxrdist.errors import UsageError
from cxrdist.models.build import build_model
from cxrdist.models.config import ModelConfig
from cxrdist.pretrain.batchnorm import join_batch_norm
from cxrdist.pretrain.mae import MaeTask
from cxrdist.pretrain.methods import MaeConfig
from cxrdist.train.config import OptimConfig, TrainConfig
from cxrdist.train.deepspeed_config import BUCKET
from cxrdist.train.engine import (
    _compile,
    _without,
    build_engine,
    checkpoint_activations,
    deepspeed_config,
    grad_norm,
    overflowed,
)
from cxrdist.train.fragments import fragments, live_weights, scalars
from cxrdist.train.optim import build_optimizer
from cxrdist.train.stepping import LossScale, loss_scaler_of

BATCHING = Batching.plan(global_batch_size=64, micro_batch_size=4, world_size=8)


def told(**train) -> dict:
    return deepspeed_config(TrainConfig(**train), OptimConfig(clip=3), BATCHING)


def test_what_deepspeed_would_load_in_vain_can_be_loaded_later(monkeypatch):
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    with _without("colorsys"), pytest.raises(ImportError):
        import_module("colorsys")
    loaded = import_module("colorsys")
    with _without("colorsys"):
        assert import_module("colorsys") is loaded


def test_deepspeed_is_told_exactly_this():
    plain = {
        "train_batch_size": 64,
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": 2,
        "gradient_clipping": 3,
        "zero_optimization": {"stage": 0},
        "torch_autocast": {"enabled": False, "dtype": "bfloat16", "lower_precision_safe_modules": []},
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }
    assert told() == plain
    buckets = {"reduce_bucket_size": BUCKET, "allgather_bucket_size": 8 * BUCKET}
    streams = {"overlap_comm": True, "contiguous_gradients": True}
    assert told(zero_stage=1, precision="bf16") == plain | {
        "zero_optimization": {"stage": 1} | buckets | streams,
        "torch_autocast": plain["torch_autocast"] | {"enabled": True},
    }
    host = {"device": "cpu", "pin_memory": True}
    assert told(zero_stage=3, precision="fp16", offload="parameters") == plain | {
        "zero_optimization": {"stage": 3, "offload_optimizer": host, "offload_param": host}
        | {"stage3_prefetch_bucket_size": 2 * BUCKET, "stage3_param_persistence_threshold": 100_000}
        | buckets
        | streams,
        "torch_autocast": plain["torch_autocast"] | {"enabled": True, "dtype": "float16"},
    }


def test_a_users_file_is_merged_key_by_key(tmp_path):
    path = tmp_path / "ds_config.json"
    path.write_text(
        json.dumps(
            {
                "train_batch_size": 64,
                "train_micro_batch_size_per_gpu": "auto",
                "optimizer": "auto",
                "fp16": {"enabled": False, "initial_scale_power": 16},
                "zero_optimization": {
                    "stage": 2,
                    "reduce_bucket_size": 5e8,
                    "allgather_bucket_size": "auto",
                    "offload_optimizer": {"pin_memory": False},
                    "offload_param": {"device": "none"},
                },
                "communication_data_type": "fp32",
            }
        )
    )
    ours, merged = (told(zero_stage=2, offload="optimizer", deepspeed=given) for given in (None, path))
    assert merged == ours | {
        "zero_optimization": ours["zero_optimization"]
        | {"reduce_bucket_size": 5e8, "offload_optimizer": {"device": "cpu", "pin_memory": False}}
        | {"offload_param": {"device": "none"}},
        "communication_data_type": "fp32",
    }


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"train_batch_size": 32}, r"'train_batch_size' must be 64, which `train.global_batch_size` decides, got 32"),
        ({"gradient_clipping": 1.0}, r"'gradient_clipping' must be 3.0, which `optim.clip` decides, got 1.0"),
        ({"optimizer": {"type": "Adam"}}, r"'optimizer' must be null, which `optim.name` decides, got"),
        ({"scheduler": {"type": "WarmupLR"}}, r"Leave it out and set `optim.schedule`"),
        ({"bf16": {"enabled": True}}, r"'bf16.enabled' must be false, which `train.precision` decides, got true"),
        ({"torch_autocast": {"dtype": "float16"}}, r"'torch_autocast.dtype' must be \"bfloat16\""),
        ({"zero_optimization": {"stage": 3}}, r"'zero_optimization.stage' must be 1, which `train.zero_stage` decides"),
        ({"zero_optimization": {"offload_optimizer": {"device": "nvme"}}}, r'must be "none", which `train.offload`'),
        ({"zero_optimization": {"round_robin_gradients": True}}, r"must not set 'zero_optimization.round_robin_gra"),
        ({"zero_optimisation": {}}, r"must not set 'zero_optimisation', .* Did you mean 'zero_optimization'\?"),
        ({"elasticity": {"enabled": True}}, r"must not set 'elasticity'"),
        ({"zero_optimization": 2}, r"'zero_optimization' must be an object, got 2"),
        ({"fp16": True}, r"'fp16' must be an object, got true"),
        ([], r"`train.deepspeed` must hold one JSON object, got a list"),
    ],
    ids=str,
)
def test_a_users_file_that_contradicts_the_run_is_refused_with_the_option_to_use(tmp_path, given, sentence):
    path = tmp_path / "ds_config.json"
    path.write_text(json.dumps(given))
    with pytest.raises(UsageError, match=sentence) as caught:
        told(zero_stage=1, deepspeed=path)
    assert "\n" not in str(caught.value)


def test_a_users_file_that_is_not_json_or_not_there_is_refused(tmp_path):
    path = tmp_path / "ds_config.json"
    with pytest.raises(UsageError, match="must be a JSON file that can be read"):
        told(deepspeed=path)
    path.write_text("{'stage': 1}")
    with pytest.raises(UsageError, match="must be a JSON file that can be read"):
        told(deepspeed=path)


@pytest.mark.parametrize("zero", [{"reduce_bucket_size": -1}, {"overlap_com": True}, {"contiguous_gradients": "x"}])
def test_what_deepspeed_does_not_understand_is_one_sentence(tmp_path, zero):
    path = tmp_path / "ds_config.json"
    path.write_text(json.dumps({"zero_optimization": zero}))
    with alone() as (_, device), pytest.raises(UsageError, match="must be what DeepSpeed understands, got") as caught:
        build_engine(
            TinyTask(),
            train=TrainConfig(zero_stage=1, deepspeed=path),
            optim=OptimConfig(),
            batching=Batching.plan(global_batch_size=8, micro_batch_size=None, world_size=1),
            device=device,
        )
    assert "\n" not in str(caught.value)
    assert next(iter(zero)) in str(caught.value)


def plain_run(steps: int, optim: OptimConfig) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Train without DeepSpeed, as torch's own documentation would."""
    task = TinyTask()
    optimizer = build_optimizer(optim, task)
    norms = []
    for step in range(steps):
        optimizer.zero_grad()
        task(batch_of(step))["loss"].backward()
        norms.append(float(nn.utils.clip_grad_norm_(task.parameters(), optim.clip)))
        optimizer.step()
    return {name: parameter.detach() for name, parameter in task.named_parameters()}, norms


@forks
@pytest.mark.parametrize("world_size", [1, 2])
def test_every_stage_and_world_reaches_the_weights_of_a_plain_loop(world_size):
    optim = OptimConfig(lr=LR)
    expected, norms = plain_run(20, optim)
    assert max(norms) > optim.clip > min(norms)

    def work(world, device):
        found = {}
        for stage in STAGES:
            for micro in (None, 1):
                with engine_of(world, device, zero_stage=stage, micro_batch_size=micro) as engine:
                    measured = []
                    for step in range(20 if micro is None else 8):
                        step_once(engine, world, step)
                        assert not overflowed(engine)
                        measured.append(grad_norm(engine))
                    found[stage, micro] = measured, dict(live_weights(engine))
        return found

    shorter, _ = plain_run(8, optim)
    for found in on_ranks(world_size, work):
        for (_, micro), (measured, weights) in found.items():
            assert measured == pytest.approx(norms[: len(measured)], rel=1e-3)
            for name, value in (expected if micro is None else shorter).items():
                torch.testing.assert_close(weights[name], value, rtol=1e-3, atol=2e-4)


@forks
def test_the_same_steps_are_the_same_to_the_bit():
    divisions = [{"zero_stage": stage, "precision": precision} for stage in STAGES for precision in ("fp32", "bf16")]

    def work(world, device):
        for division in divisions:
            found = []
            for _ in range(2):
                with engine_of(world, device, task=TinyTask(dropout=0.2), **division) as engine:
                    for step in range(3):
                        step_once(engine, world, step)
                    found.append(dict(live_weights(engine)))
            assert all(torch.equal(value, found[1][name]) for name, value in found[0].items()), division

    on_ranks(2, work)


DIVISIONS = [{"zero_stage": stage} for stage in STAGES] + [
    {"zero_stage": 0, "precision": "bf16"},
    {"zero_stage": 2, "precision": "bf16", "offload": "optimizer"},
    {"zero_stage": 3, "precision": "bf16", "offload": "parameters"},
]


@forks
@pytest.mark.parametrize(("bad", "clip"), [(math.nan, 0.0), (math.inf, 1.0)])
def test_a_gradient_that_is_not_finite_on_one_rank_reaches_the_weights_of_none(bad, clip):
    def work(world, device):
        for division in DIVISIONS:
            with engine_of(world, device, optim=OptimConfig(lr=LR, clip=clip), **division) as engine:
                step_once(engine, world, 0)
                assert math.isfinite(grad_norm(engine)), division
                before = [tensor.clone() for f in fragments(engine) for tensor in f.tensors.values()]
                batch = batch_of(1)
                batch["image"][-1] = bad  # the last rank's
                step_once(engine, world, 1, batch)
                assert overflowed(engine), division
                assert not math.isfinite(grad_norm(engine)), division
                after = [tensor for f in fragments(engine) for tensor in f.tensors.values()]
                assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True)), division
                assert scalars(engine)["step"] == 1
                step_once(engine, world, 2)
                assert not overflowed(engine), division
                assert all(torch.isfinite(value).all() for _, value in live_weights(engine)), division

    on_ranks(2, work)


@forks
@pytest.mark.slow
def test_fp16_lowers_its_scale_until_the_gradient_fits_and_then_trains_as_fp32_does():
    """The scale begins so high that the first steps overflow; it also doubles after every third good step.

    By SGD, to which the gradient's scale matters.
    """
    optim = OptimConfig(name="sgd", lr=0.05)

    def work(world, device):
        found = []
        for division in [{"zero_stage": stage} for stage in STAGES] + [{"zero_stage": 2, "offload": "optimizer"}]:
            with engine_of(world, device, optim=optim, precision="fp16", **division) as engine:
                scaler = loss_scaler_of(engine)
                scaler.cur_scale, scaler.grow_after = 2.0**30, 3
                skipped, scales, norms, step = 0, set(), [], 0
                while step < 10:
                    step_once(engine, world, step)
                    if overflowed(engine):
                        skipped += 1
                        assert scaler.good_steps == 0
                        continue
                    scales.add(scaler.cur_scale)
                    norms.append(grad_norm(engine))
                    step += 1
                assert skipped > 3
                assert len(scales) > 1
                assert scalars(engine)["loss_scale"] == scaler.cur_scale
                assert scalars(engine)["loss_scale_good_steps"] == scaler.good_steps
                found.append((norms, dict(live_weights(engine))))
        return found

    begin = dict(TinyTask().named_parameters())
    expected, norms = plain_run(10, optim)
    for found in on_ranks(2, work):
        for measured, weights in found:
            assert measured == pytest.approx(norms, rel=0.02)
            for name, value in expected.items():
                moved = (value - begin[name]).norm()
                assert (weights[name] - value).norm() <= 0.02 * moved + 1e-6, name


def test_the_scale_of_a_loss_grows_only_between_two_steps():
    scale = LossScale(initial=8, grow_after=2)
    loss = torch.tensor(1.0)
    for _ in range(2):
        assert scale.scale_loss(loss) == 8
        scale.update_scale(False)
        assert scale.cur_scale == 8
    assert [scale.scale_loss(loss).item() for _ in range(3)] == [16, 16, 16]
    scale.update_scale(True)
    assert scale.scale_loss(loss) == 8
    kept = LossScale()
    kept.restore(scale.state())
    assert kept.state() == scale.state()


def test_an_engine_leaves_nothing_for_the_next_one():
    def weights_of(world, device):
        with engine_of(world, device, zero_stage=1) as engine:
            for step in range(2):
                step_once(engine, world, step)
            return dict(live_weights(engine)), grad_norm(engine)

    linear = nn.functional.linear
    with alone() as (world, device):
        before = weights_of(world, device)
        with engine_of(world, device, zero_stage=3, precision="fp16") as engine:
            step_once(engine, world, 0)
            assert nn.functional.linear is not linear
        assert nn.functional.linear is linear
        after = weights_of(world, device)
    assert before[1] == after[1]
    assert all(torch.equal(value, after[0][name]) for name, value in before[0].items())


@pytest.mark.parametrize("stage", STAGES)
def test_a_released_engine_and_its_task_are_free(stage):
    with alone() as (world, device):
        task = TinyTask()
        with engine_of(world, device, task=task, zero_stage=stage) as engine:
            step_once(engine, world, 0)
            engine.eval()
            with torch.no_grad():
                engine.module(batch_of(1, device=device))
            held = [weakref.ref(one) for one in (task, engine, engine.optimizer, task.net.head.weight)]
        del task, engine
        gc.collect()
        assert [one() for one in held] == [None] * 4


@pytest.mark.parametrize("division", [{"zero_stage": s} for s in (0, 2, 3)] + [{"zero_stage": 3, "precision": "bf16"}])
def test_activations_computed_again_change_no_bit_with_dropout_either(division):
    with alone() as (world, device):
        found = []
        for again in (False, True):
            task = TinyTask(dropout=0.3)
            with engine_of(world, device, task=task, activation_checkpointing=again, **division) as engine:
                assert task.net.grad_checkpointing is again
                for step in range(3):
                    step_once(engine, world, step)
                found.append(dict(live_weights(engine)))
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


class Wrapped(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net


@pytest.mark.parametrize("name", ["inception_v3", None])
def test_a_network_that_cannot_compute_activations_again_is_named(name):
    net = nn.Linear(2, 2) if name is None else timm.create_model(name, num_classes=2)
    task = Wrapped(net)
    with (
        alone() as (world, device),
        pytest.raises(UsageError, match="needs a backbone that can compute its blocks again, got"),
        engine_of(world, device, task=task, activation_checkpointing=True),
    ):
        pass


@pytest.mark.parametrize(("kind", "momentum"), [(None, 0.1), ("joint", None)])
def test_activations_computed_again_are_counted_once_in_running_statistics(kind, momentum):
    found = []
    for again in (False, True):
        torch.manual_seed(0)
        task = Wrapped(timm.create_model("resnet10t", num_classes=2))
        for module in task.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = momentum
        if kind == "joint":
            join_batch_norm(task)
        if again:
            checkpoint_activations(task)
        for step in range(2):
            images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(step))
            task.net(images).square().mean().backward()
        task.eval()
        with torch.no_grad():
            task.net(images)
        found.append(task.state_dict())
        assert found[-1]["net.bn1.num_batches_tracked"] == 2
    assert [name for name, value in found[0].items() if not torch.equal(value, found[1][name])] == []


@pytest.mark.parametrize(("called", "graphs"), [("forward_features", 5), ("__call__", 1)])
def test_a_network_without_blocks_is_compiled_however_it_is_called(called, graphs, monkeypatch):
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    def compile_fast(module, **options):
        module._compiled_call_impl = torch.compile(module._call_impl, backend=backend)

    monkeypatch.setattr(nn.Module, "compile", compile_fast)
    net = timm.create_model("resnet10t", num_classes=2)
    plain, images = copy.deepcopy(net), torch.rand(2, 3, 32, 32)
    _compile(Wrapped(net))
    assert list(net.state_dict()) == list(plain.state_dict())
    for mode in (True, False):
        compiled.clear()
        found, expected = (getattr(one.train(mode), called)(images) for one in (net, plain))
        torch.testing.assert_close(found, expected)
        assert len(compiled) == graphs  # four layers and the stem, or all at once: nothing twice


@pytest.mark.parametrize("division", [{"zero_stage": 0}, {"zero_stage": 2, "activation_checkpointing": True}], ids=str)
def test_a_compiled_network_keeps_its_names_and_computes_the_same(division, monkeypatch):
    compiled = []

    def compile_fast(module, **options):  # inductor takes a minute to do what this shows
        compiled.append(module)
        module._compiled_call_impl = torch.compile(module._call_impl, backend="aot_eager")

    monkeypatch.setattr(nn.Module, "compile", compile_fast)
    with alone() as (world, device):
        found = []
        for chosen in (False, True):
            task = TinyTask()
            names = list(task.state_dict())
            with engine_of(world, device, task=task, compile=chosen, **division) as engine:
                for step in range(2):
                    step_once(engine, world, step)
                assert list(engine.module.state_dict()) == names
                found.append(dict(live_weights(engine)))
    assert compiled == [task.net, task.net.blocks]
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("micro_batch_size", [None, 2])
def test_evaluations_between_steps_change_nothing_under_zero_3(micro_batch_size):
    with alone() as (world, device):
        found = []
        for evaluated in (False, True):
            with engine_of(world, device, zero_stage=3, micro_batch_size=micro_batch_size) as engine:
                for step in range(4):
                    step_once(engine, world, step)
                    if evaluated:
                        engine.eval()
                        with torch.no_grad():
                            for size in (8, 3):
                                batch = batch_of(90, size=size, device=device)
                                assert engine.module(batch)["logits"].shape == (size, 2)
                found.append(dict(live_weights(engine)))
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


@forks
@pytest.mark.parametrize("division", [{"zero_stage": s, "activation_checkpointing": s > 1} for s in STAGES], ids=str)
def test_a_masked_autoencoder_with_its_frozen_head_trains_alike(division):
    args = {"patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
    config = ModelConfig(backbone="vit_tiny_patch16_224", args=args)
    decoder = MaeConfig(decoder_width=16, decoder_depth=1, decoder_heads=2)

    def build() -> MaeTask:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return MaeTask(build_model(config, num_classes=2, image_size=32, seed=0), decoder, fresh=True)

    def batch(step: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(step)
        return {"image": torch.rand(BATCH, 1, 32, 32, generator=generator), "seed": torch.arange(BATCH) + 10 * step}

    def work(world, device):
        with engine_of(world, device, task=build(), **division) as engine:
            for step in range(3):
                step_once(engine, world, step, batch(step))
            return dict(live_weights(engine))

    task = build()
    optimizer = build_optimizer(OptimConfig(lr=LR), task)
    for step in range(3):
        optimizer.zero_grad()
        task(batch(step))["loss"].backward()
        nn.utils.clip_grad_norm_([p for p in task.parameters() if p.requires_grad], OptimConfig().clip)
        optimizer.step()
    for weights in on_ranks(2, work):
        assert weights.keys() == {name for name, _ in task.named_parameters()}
        for name, parameter in task.named_parameters():
            torch.testing.assert_close(weights[name], parameter.detach(), rtol=1e-3, atol=1e-4)
