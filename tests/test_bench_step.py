"""`bench step` compares equals: same batches, same steps, same weights.  How long anything takes is not tested."""

import json
from dataclasses import asdict
from functools import partial

import numpy as np
import pytest
import torch

from cxrdist.bench import step as bench
from cxrdist.bench.machine import matmul_rate
from cxrdist.bench.step import WARM_UP_STEPS, BareLoop, StepOptions, bench_step, build_task
from cxrdist.cli.main import run
from cxrdist.data.order import Batching
from cxrdist.models.config import ModelConfig
from cxrdist.train.flops import flops_per_image

TINY = ModelConfig(backbone="vit_tiny_patch16_224", args={"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2})
CPU = torch.device("cpu")


def options(**changes) -> StepOptions:
    return StepOptions(**{"model": TINY, "image_size": 32, "batch": 4, "steps": 4, **changes})


def weights(task: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in task.parameters()])


@pytest.mark.parametrize("changes", [{}, {"precision": "bf16"}, {"activation_checkpointing": True}], ids=str)
def test_both_sides_reach_the_same_weights_after_the_same_steps(monkeypatch, changes):
    ends = []
    difference = bench._weight_difference
    monkeypatch.setattr(bench, "_weight_difference", lambda *tasks: ends.append(tasks) or difference(*tasks))
    result = bench_step(options(**changes))
    ((ours, bare),) = ends
    start = weights(build_task(options()))
    moved = weights(bare) - start
    assert float(moved.abs().max()) > 3e-4  # seven steps of 1e-4
    assert float((weights(ours) - weights(bare)).abs().max()) < 0.05 * float(moved.abs().max())
    assert result.weight_difference < (1e-6 if changes.get("precision") is None else 1e-4)


def test_a_result_adds_up_and_is_json():
    result = bench_step(options(steps=5, block=2))
    assert json.loads(json.dumps(asdict(result)))["ratio"] == result.ratio
    assert (result.rounds, result.block) == (3, 2)
    assert result.ratio_quartiles[0] <= result.ratio <= result.ratio_quartiles[1]
    assert result.ratio_interval[0] <= result.ratio <= result.ratio_interval[1]
    for side in (result.ours, result.bare):
        assert side.images_per_s == pytest.approx(4 / side.step_s)
        assert side.flops_share == pytest.approx(side.images_per_s * result.flops_per_image / result.matmul_flops)
    assert result.machine["threads"] == torch.get_num_threads() and result.machine["device"] == "cpu"


def test_sides_take_turns_on_the_same_batches_and_change_places(monkeypatch):
    events: list[tuple[str, int]] = []
    monkeypatch.setattr(BareLoop, "step", lambda self, batch: events.append(("bare", int(batch["sample"][0]))))
    chosen = options(steps=6, block=2)
    task = build_task(chosen)
    turns = bench._Turns(chosen, task, BareLoop(build_task(chosen), chosen, CPU), CPU)
    with pytest.raises(bench._Measured):
        for batch in turns(Batching(4, 4, 1), 0):
            events.append(("ours", int(batch["sample"][0])))  # noqa: PERF401 - both sides write here
    sides = [side for side, _ in events]
    first, second = ["ours"] * 2 + ["bare"] * 2, ["bare"] * 2 + ["ours"] * 2
    assert sides == ["ours"] * WARM_UP_STEPS + ["bare"] * WARM_UP_STEPS + first + second + first
    ours, bare = ([sample for side, sample in events if side == which] for which in ("ours", "bare"))
    assert ours == bare and len(set(ours)) == bench.DIFFERENT_BATCHES
    assert np.array(turns.ours_s).shape == np.array(turns.bare_s).shape == (3, 2)


def test_the_bare_loop_is_the_textbook_step():
    chosen = options()
    loop, task = BareLoop(build_task(chosen), chosen, CPU), build_task(chosen).train()
    matrices = [parameter for parameter in task.parameters() if parameter.ndim > 1]
    optimizer = torch.optim.AdamW(task.parameters(), lr=1e-4, weight_decay=0.0)
    batches = bench._make_batches(chosen, pinned=False)
    for batch in batches:
        loop.step(batch)
        before = [matrix.detach().clone() for matrix in matrices]
        optimizer.zero_grad()
        task(batch)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(task.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():  # decoupled decay, of matrices but not of tokens and positions
            for name, parameter in task.named_parameters():
                if parameter.ndim > 1 and "pos_embed" not in name and "cls_token" not in name:
                    old = next(value for value, matrix in zip(before, matrices, strict=True) if matrix is parameter)
                    parameter.sub_(1e-4 * 0.05 * old)
    torch.testing.assert_close(weights(loop.task), weights(task), rtol=1e-5, atol=1e-6)


def test_flops_are_those_of_the_published_model():
    chosen = StepOptions(ModelConfig(backbone="vit_small_patch16_224"))
    # 4.6 billion multiplications and additions for one image forward (Touvron et al. 2021); backward is twice that.
    turns = bench._Turns(chosen, build_task(chosen), BareLoop(build_task(chosen), chosen, CPU), CPU)
    build = partial(bench._build, chosen, turns.task)
    assert flops_per_image(build, turns.example, "fp32") == pytest.approx(3 * 2 * 4.6e9, rel=0.03)


def test_the_measured_rate_is_of_this_world():
    assert 1e8 < matmul_rate(CPU, torch.float32, side=64) < 1e14


@pytest.fixture
def command(capsys):
    def run_bench(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            run(["bench", *map(str, arguments)])
        captured = capsys.readouterr()
        return ended.value.code, captured.out, captured.err

    return run_bench


def test_the_command_prints_a_table_or_json(command):
    small = ("step", "--backbone", "resnet10t", "--image-size", 32, "--batch", 2, "--steps", 2)
    code, out, _ = command(*small, "--json")
    told = json.loads(out)
    assert code == 0 and told["options"]["batch"] == 2 and told["rounds"] == 2 and told["machine"]["torch"]
    code, out, _ = command(*small)
    assert code == 0 and "bare PyTorch" in out and "cxrdist / bare: " in out


def test_wrong_values_are_sentences(command):
    code, _, err = command("step", "--precision", "bf17")
    assert code == 2 and "`--precision` must be one of fp32, bf16, fp16, got 'bf17'. Did you mean" in err
    code, _, err = command("step", "--backbone", "resnet_10t")
    assert code == 2 and "must be a timm model, got 'resnet_10t'. Did you mean 'resnet10t'?" in err


def test_only_what_is_built_is_listed(command):
    _, out, _ = command("--help")
    listed = out.partition("Commands")[2]
    assert "step" in listed and "bootstrap" in listed and not any(name in listed for name in ("pack", "loader"))
