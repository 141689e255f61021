"""A number that is not finite stops a run on every rank, and its batch shows where it came from."""

import json
import math
import re
import resource
import signal
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from ranks import forks, in_children, on_two_ranks
from safetensors.torch import load_file
from torch import nn

from cxrdist.data.loader import Batch
from cxrdist.data.order import Batching
from cxrdist.errors import UserError
from cxrdist.seeds import Purpose, derive
from cxrdist.train.config import OptimConfig, TrainConfig
from cxrdist.train.engine import build_engine, grad_norm, overflowed, process_group
from cxrdist.train.guard import MOST_SKIPPED, Guard, NotFiniteError, carried
from cxrdist.train.replay import replay
from cxrdist.train.run_folder import RunFolder
from cxrdist.train.state import Progress
from cxrdist.world import World

pytestmark = forks
SEED = 3
MICRO = 4


class Toy(nn.Module):
    """A convolution, batch norm, dropout and a head: what can hide or spread a bad number."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.embed = nn.Conv2d(1, 4, 3)
            self.norm = nn.BatchNorm2d(4)
            self.drop = nn.Dropout(0.2)
            self.head = nn.Linear(4, 2)

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        hidden = self.drop(self.norm(self.embed(batch["image"]))).relu().mean((2, 3))
        return {"loss": (self.head(hidden) - batch["target"]).square().mean()}


class SteepToy(Toy):
    """With a black image its loss is finite and the gradient is not: the slope of the root at nothing."""

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        loss = super().forward(batch)["loss"]
        brightest = batch["image"].amax((1, 2, 3))
        return {"loss": loss + (self.head.weight.square().sum() * brightest).sqrt().mean()}


def batches_of(step: int, rank: int, *, accumulation: int = 2) -> list[Batch]:
    rng = np.random.default_rng([step, rank])
    first = 100 * step + 10 * rank
    return [
        {
            "image": torch.from_numpy(rng.random((MICRO, 1, 8, 8), np.float32)),
            "target": torch.from_numpy(rng.random((MICRO, 2), np.float32)),
            "sample": torch.arange(first + MICRO * number, first + MICRO * (number + 1)),
            "seed": torch.arange(MICRO),
        }
        for number in range(accumulation)
    ]


def keys_of(numbers: np.ndarray) -> list[str]:
    return [f"key{number}" for number in numbers]


def run(
    folder: Path,
    *,
    world: World = World(),  # noqa: B008
    task: nn.Module | None = None,
    spoil: Callable[[int, list[Batch], nn.Module], object] = lambda *_: None,
    steps: int = 4,
    lr: float = 1e-3,
    **train: object,
) -> None:
    """Train as the loop does, with the guard after each step; rank 0 keeps the weights from before the last step."""
    config = TrainConfig(global_batch_size=MICRO * 2 * world.world_size, micro_batch_size=MICRO, **train)
    task = task or Toy()
    with process_group(world) as device:
        batching = Batching.plan(
            global_batch_size=config.global_batch_size, micro_batch_size=MICRO, world_size=world.world_size
        )
        optim = OptimConfig(lr=lr, clip=0)
        engine = build_engine(task, train=config, optim=optim, batching=batching, device=device)
        guard = Guard(RunFolder(folder), world, precision=config.precision, seed=SEED, keys=keys_of)
        for step in range(1, steps + 1):
            batches = batches_of(step, world.rank)
            spoil(step, batches, task)
            if world.is_main:
                torch.save(task.state_dict(), folder / "before.pt")
            weights = [piece.clone() for piece in pieces_of(task)]
            losses = []
            engine.train()
            for micro_step, batch in enumerate(batches):
                torch.manual_seed(derive(SEED, Purpose.STEP, step - 1, micro_step, world.rank))
                loss = engine(batch)["loss"]
                losses.append(float(loss.item()))
                engine.backward(carried(loss))
                engine.step()
            try:
                guard.check(step, losses, norm=grad_norm(engine), overflowed=overflowed(engine), batches=batches)
            except NotFiniteError:
                assert all(map(torch.equal, pieces_of(task), weights)), "the weights moved"
                raise


def pieces_of(task: nn.Module) -> list[torch.Tensor]:
    """Return what lies here of each parameter; under ZeRO 3 a parameter itself is empty or a gathered copy."""
    return [getattr(parameter, "ds_tensor", parameter).detach() for parameter in task.parameters()]


def again(folder: Path, task: nn.Module | None = None, **choice: int) -> list:
    task = task or Toy()
    task.load_state_dict(torch.load(folder / "before.pt", weights_only=True))
    return replay(folder, task, step=facts_of(folder)["step"] - 1, **choice)


def facts_of(folder: Path) -> dict:
    return json.loads((folder / "bad-batch/batch.json").read_text())


def spoil_image(step: int, rank: int, micro_step: int, sample: int, value: float = math.nan) -> Callable:
    """Return a change that puts one bad pixel into one image of one rank and step."""

    def spoil(now: int, batches: list[Batch], task: nn.Module) -> None:
        if now == step and batches[0]["sample"][0] // 10 % 10 == rank:
            batches[micro_step]["image"][sample, 0, 4, 4] = value

    return spoil


def test_a_loss_that_is_not_finite_makes_its_gradient_so_and_a_finite_one_keeps_its_bits():
    weight = torch.tensor([0.1, 0.7], requires_grad=True)
    masked = (weight * torch.tensor([1.0, 1.0])).sum() + torch.tensor(math.inf)
    masked.backward()
    assert weight.grad.isfinite().all()  # the case that nobody else would see
    weight.grad = None
    carried((weight * 1.0).sum() + torch.tensor(math.inf)).backward()
    assert weight.grad.isnan().all()
    for dtype in (torch.float32, torch.bfloat16):
        loss = (weight.to(dtype) / 3).square().sum()
        (plain,) = torch.autograd.grad(loss, weight, retain_graph=True)
        (passed,) = torch.autograd.grad(carried(loss), weight)
        assert torch.equal(carried(loss), loss)
        assert torch.equal(plain, passed)


def test_an_image_that_is_not_finite_stops_the_run_and_is_found_by_its_key(tmp_path):
    sentence = (
        "The loss must be finite, got nan at step 3 on rank 0; stopped before the optimizer step "
        "[samples key304, key305, key306, key307]. Its batch is in bad-batch: see where it began with --replay. "
        "Lower `optim.lr`."
    )
    with pytest.raises(NotFiniteError, match=re.escape(sentence)):
        run(tmp_path, spoil=spoil_image(3, 0, 1, 2))
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.glob("bad-batch/*")}
    assert modes == {"batch.json": 0o600, "rank-00000.safetensors": 0o600}  # images: their user's alone
    assert (tmp_path / "bad-batch").stat().st_mode & 0o777 == 0o700
    kept = load_file(tmp_path / "bad-batch/rank-00000.safetensors")
    batches = batches_of(3, 0)
    spoil_image(3, 0, 1, 2)(3, batches, Toy())
    for number, batch in enumerate(batches):
        for name, value in batch.items():
            torch.testing.assert_close(kept[f"{number}/{name}"], value, rtol=0, atol=0, equal_nan=True)
    (found,) = again(tmp_path)
    assert (found.step, found.rank, found.micro_step, found.samples) == (3, 0, 1, ["key306"])
    assert (found.module, found.module_input_finite) == ("embed", False)
    assert found.image["not_finite"] == 1
    assert "Samples not finite alone: 1 of 4 (key306)." in found.text()
    assert "Images: 1 values are not finite." in found.text()
    json.dumps(found.tree(), allow_nan=False)


@pytest.mark.parametrize(("zero_stage", "precision"), [(0, "fp32"), (0, "bf16"), (1, "fp32")])
def test_a_weight_that_is_not_finite_is_named_with_the_module_that_spread_it(tmp_path, zero_stage, precision):
    def spoil(step: int, batches: list[Batch], task: nn.Module) -> None:
        if step == 2:
            with torch.no_grad():
                task.head.weight[1, 2] = math.inf

    with pytest.raises(NotFiniteError, match=r"got inf at step 2 on rank 0.*key200, key201, .* key207\]"):
        run(tmp_path, spoil=spoil, zero_stage=zero_stage, precision=precision)
    found = again(tmp_path)
    assert len(found) == 2
    assert (found[0].module, found[0].module_input_finite) == ("head", True)
    assert found[0].weights == ["head.weight"]
    assert len(found[0].samples) == 4
    assert "First output not finite: head." in found[0].text()


@pytest.mark.parametrize(("zero_stage", "precision"), [(2, "fp32"), (3, "bf16"), (1, "fp16")])
def test_every_stage_and_precision_stops_at_the_same_step(tmp_path, zero_stage, precision):
    with pytest.raises(NotFiniteError, match=r"got nan at step 3 on rank 0.*key304, key305, key306, key307\]"):
        run(tmp_path, spoil=spoil_image(3, 0, 1, 2), zero_stage=zero_stage, precision=precision)


def test_a_gradient_that_is_not_finite_under_a_finite_loss_stops_the_run_too(tmp_path):
    def spoil(step: int, batches: list[Batch], task: nn.Module) -> None:
        if step == 2:
            batches[1]["image"][3] = 0

    with pytest.raises(NotFiniteError, match=r"The gradient must be finite, got a norm of (nan|inf) at step 2, "):
        run(tmp_path, task=SteepToy(), spoil=spoil)
    (found,) = again(tmp_path, SteepToy())
    assert math.isfinite(found.loss)
    assert found.loss == found.recorded_loss  # dropout included
    assert found.module is None
    assert found.operation in {"SqrtBackward0", "MulBackward0"}
    assert found.operation in found.text()
    assert "head.weight" in found.gradients
    assert found.samples == ["key207"]


def test_a_learning_rate_that_diverges_is_stopped_with_finite_weights(tmp_path):
    with pytest.raises(NotFiniteError, match="must be finite"):
        run(tmp_path, lr=1e25, steps=20)
    found = again(tmp_path)
    assert not found[0].weights  # large, but not infinite
    assert not found[0].finite
    assert str(found[0].loss) == str(found[0].recorded_loss)


def test_one_ranks_bad_image_stops_both_ranks_with_one_sentence(tmp_path):
    def work(world: World) -> None:
        with pytest.raises(NotFiniteError) as caught:
            run(tmp_path, world=world, spoil=spoil_image(2, 1, 0, 1, math.inf))
        (tmp_path / f"told-{world.rank}").write_text(str(caught.value))

    assert on_two_ranks(work) == [0, 0]
    told = [(tmp_path / f"told-{rank}").read_text() for rank in (0, 1)]
    assert told[0] == told[1]
    assert "at step 2 on rank 1; stopped" in told[0]
    assert "[samples key210, key211, key212, key213]" in told[0]
    assert {path.name for path in (tmp_path / "bad-batch").iterdir()} == {
        "batch.json", "rank-00000.safetensors", "rank-00001.safetensors",
    }  # fmt: skip
    assert facts_of(tmp_path)["world_size"] == 2
    (found,) = again(tmp_path)  # by itself it looks at the rank whose loss it was
    assert (found.rank, found.micro_step, found.samples) == (1, 0, ["key211"])
    (good,) = again(tmp_path, rank=0)
    assert good.finite
    assert good.loss == good.recorded_loss
    assert "Nothing here is not finite" in good.text()


def test_at_most_eight_samples_are_named(tmp_path):
    with process_group(World()):
        guard = Guard(RunFolder(tmp_path), World(), precision="fp32", seed=SEED, keys=keys_of)
        with pytest.raises(NotFiniteError, match=r"key106, key107 and 4 more\]"):
            guard.check(1, [math.nan] * 3, norm=math.nan, overflowed=True, batches=batches_of(1, 0, accumulation=3))


def test_fp16_may_overflow_for_a_while_but_not_for_ever_and_never_with_a_bad_loss(tmp_path):
    with process_group(World()):
        guard = Guard(RunFolder(tmp_path), World(), precision="fp16", seed=SEED, keys=keys_of)
        bad = {"norm": math.inf, "overflowed": True, "batches": batches_of(1, 0)}
        for step in range(1, MOST_SKIPPED):
            guard.check(step, [0.5, 0.5], **bad)
        guard.check(MOST_SKIPPED, [0.5, 0.5], **(bad | {"overflowed": False, "norm": 1.0}))
        for step in range(1, MOST_SKIPPED):
            guard.check(step, [0.5, 0.5], **bad)
        assert not (tmp_path / "bad-batch").exists()
        with pytest.raises(NotFiniteError, match=f"a norm of inf at step 99 and in the {MOST_SKIPPED - 1} steps"):
            guard.check(99, [0.5, 0.5], **bad)
        guard = Guard(RunFolder(tmp_path), World(), precision="fp16", seed=SEED, keys=keys_of)
        with pytest.raises(NotFiniteError, match=r"got inf at step 7 on rank 0.*or set `train.precision` to fp32"):
            guard.check(7, [0.5, math.inf], **bad)


def test_a_row_of_left_out_steps_goes_on_in_a_resumed_run(tmp_path):
    with process_group(World()):
        first = Guard(RunFolder(tmp_path), World(), precision="fp16", seed=SEED, keys=keys_of)
        bad = {"norm": math.inf, "overflowed": True, "batches": batches_of(1, 0)}
        for step in range(1, MOST_SKIPPED):
            first.check(step, [0.5, 0.5], **bad)
        progress = asdict(Progress(skipped=first.skipped))  # as a checkpoint has it
        resumed = Guard(RunFolder(tmp_path), World(), precision="fp16", seed=SEED, keys=keys_of)
        resumed.skipped = Progress(**json.loads(json.dumps(progress))).skipped
        with pytest.raises(NotFiniteError, match=f"and in the {MOST_SKIPPED - 1} steps before it"):
            resumed.check(MOST_SKIPPED, [0.5, 0.5], **bad)


def test_a_full_disk_hides_nothing_of_what_stopped_the_run(tmp_path):
    def work() -> None:
        with process_group(World()):
            guard = Guard(RunFolder(tmp_path), World(), precision="fp32", seed=SEED, keys=keys_of)
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            with pytest.raises(NotFiniteError, match=r"nan at step 5 on rank 0.*could not be kept \(File too large"):
                guard.check(5, [math.nan, 1.0], norm=math.nan, overflowed=True, batches=batches_of(5, 0))

    assert in_children(work) == [0]
    with pytest.raises(UserError, match="A replay needs the batch of a step that was not finite, got none"):
        replay(tmp_path, Toy(), step=4)


def test_a_replay_leaves_the_task_as_it_was_and_refuses_a_rank_that_is_not_there(tmp_path):
    with pytest.raises(NotFiniteError):
        run(tmp_path, spoil=spoil_image(1, 0, 0, 0))
    task = Toy()
    before = {name: value.clone() for name, value in task.state_dict().items()}
    replay(tmp_path, task, step=0)
    assert all(torch.equal(value, before[name]) for name, value in task.state_dict().items())
    with pytest.raises(UserError, match="`rank` must be one of the 1 of the run, got 4"):
        replay(tmp_path, task, step=0, rank=4)
    with pytest.raises(
        UserError, match=r"from before the bad step, of step 0, got that of step 4 .* with --resume auto"
    ):
        replay(tmp_path, task, step=4)
    (tmp_path / "bad-batch/rank-00000.safetensors").write_bytes(b"torn")
    with pytest.raises(UserError, match="needs the micro-batches of rank 0, got no readable rank-00000"):
        replay(tmp_path, task, step=0)
