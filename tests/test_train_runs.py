"""Whole runs on a CPU: what stops them, divides them or kills them changes nothing that they write."""

import json
import os
import random
import resource
import shutil
import signal
import sysconfig
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch._inductor.config
import yaml
from helpers import finetune_tree, make_shards
from ranks import fork, forks, in_children, kill, on_two_ranks, rank_works, wait
from safetensors.torch import load_file
from stopping import stopped_at
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cxrdist.config import override
from cxrdist.data.samples import read_samples
from cxrdist.errors import UsageError, UserError
from cxrdist.finetune.config import FinetuneConfig
from cxrdist.finetune.run import finetune, open_test, replay_bad_batch
from cxrdist.pretrain.config import PretrainConfig
from cxrdist.pretrain.run import pretrain
from cxrdist.stats.auroc import auroc
from cxrdist.train import checkpoints, commit, engine, loop, run_folder
from cxrdist.train.interrupt import Interrupted
from cxrdist.train.loop import Outcome
from cxrdist.train.run_folder import RunFolder
from cxrdist.world import World

on_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="states what a run on a CPU writes")
CHANGING = ("time", "samples_per_sec", "data_wait", "micro_step_s", "host_peak_gib")
STEPS = 10
DECODER = {"decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(shards, tmp_path_factory):
    """Return the folder of a run that nothing disturbed."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    train(shards, out)
    return out


def config_of(shards: Path, **changes) -> FinetuneConfig:
    tree = finetune_tree(shards, steps=STEPS, evaluate_every=4, checkpoint_every=3, log_every=1)
    tree["model"]["args"] |= {"drop_rate": 0.1, "proj_drop_rate": 0.1}  # random layers must resume as well
    return FinetuneConfig.build(override(tree, {name.replace("__", "."): v for name, v in changes.items()}), where="t")


def train(shards: Path, out: Path, *, world: World = World(), resume="auto", **changes) -> Outcome | None:  # noqa: B008
    return finetune(config_of(shards, **changes), out, world=world, resume=resume)


def lines_of(out: Path) -> list[dict]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in CHANGING} for line in lines]


def starts_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "starts.jsonl").read_text().splitlines()]


def assert_identical(out: Path, reference: Path) -> None:
    assert (out / "model/model.safetensors").read_bytes() == (reference / "model/model.safetensors").read_bytes()
    assert lines_of(out) == lines_of(reference)
    pd.testing.assert_frame_equal(*(pd.read_parquet(f / "predictions/val.parquet") for f in (out, reference)))
    results = [json.loads((folder / "result.json").read_text()) | {"time": 0} for folder in (out, reference)]
    assert results[0] == results[1]


def assert_close(out: Path, reference: Path, *, tolerance: float = 2e-4) -> None:
    for one, other in zip(lines_of(out), lines_of(reference), strict=True):
        assert (one["step"], one["kind"]) == (other["step"], other["kind"])
        assert one["loss"] == pytest.approx(other["loss"], rel=tolerance)
    left, right = (load_file(folder / "model/model.safetensors") for folder in (out, reference))
    for name, value in left.items():
        torch.testing.assert_close(value, right[name], rtol=tolerance, atol=tolerance)


def assert_complete_checkpoint(out: Path) -> None:
    """Assert that `latest`, if there is one, names a folder that loads."""
    name = checkpoints.latest_checkpoint(out / "checkpoints")
    if name is not None:
        assert not checkpoints.verify_checkpoint(out / "checkpoints", name)


@on_cpu
def test_a_run_leaves_what_its_readers_expect(whole):
    assert {path.name for path in whole.iterdir()} - {".lock"} == {
        "config.yaml", "environment.json", "metrics.jsonl", "tb", "checkpoints", "predictions", "model", "result.json",
        "starts.jsonl",
    }  # fmt: skip
    lines = lines_of(whole)
    assert [line["step"] for line in lines if line["kind"] == "train"] == list(range(1, STEPS + 1))
    assert [line["step"] for line in lines if line["kind"] == "val"] == [4, 8, 10]
    assert set(lines[0]) == {"step", "kind", "loss", "lr", "grad_norm"}
    assert {"loss", "auroc_macro", "auroc"} < set(next(line for line in lines if line["kind"] == "val"))
    environment = json.loads((whole / "environment.json").read_text())
    assert environment["world_size"] == 1
    assert [set(one) for one in environment["shard_manifests"]] == [{"name", "sha256"}]
    assert environment["shard_manifests"][0]["name"] == "toy"
    (start,) = starts_of(whole)
    assert (start["step"], start["world_size"], start["device"]) == (0, 1, "cpu")
    assert start["libraries"] == environment["libraries"]


def test_the_best_step_on_validation_becomes_the_model_and_last_and_best_are_kept(whole):
    scores = {line["step"]: line["auroc_macro"] for line in lines_of(whole) if line["kind"] == "val"}
    best = max(scores, key=lambda step: (scores[step], -step))
    result = json.loads((whole / "result.json").read_text())
    assert result["chosen_step"] == best
    assert result["score"] == scores[best]
    kept = {path.name for path in (whole / "checkpoints").glob("step-*")}
    assert kept == {checkpoints.checkpoint_name(best), checkpoints.checkpoint_name(STEPS)}
    assert not list((whole / "checkpoints").glob(".partial-*"))
    assert (whole / "checkpoints/latest").read_text().strip() == checkpoints.checkpoint_name(STEPS)


@on_cpu
def test_tensorboard_shows_the_tags_that_people_look_for(whole):
    board = EventAccumulator(str(whole / "tb")).Reload()
    assert set(board.Tags()["scalars"]) == {
        "train/loss", "train/lr", "train/grad_norm", "throughput/samples_per_sec", "time/data_wait",
        "time/micro_step_s", "memory/host_peak_gib",
        "val/loss", "val/auroc_macro", "val/auroc/cardiomegaly", "val/auroc/effusion",
    }  # fmt: skip
    assert [event.step for event in board.Scalars("val/auroc_macro")] == [4, 8, 10]


def test_the_same_run_again_is_the_same_to_the_bit(shards, whole, tmp_path):
    train(shards, tmp_path / "again", resume=None)
    assert_identical(tmp_path / "again", whole)


def test_reading_processes_change_nothing(shards, whole, tmp_path):
    train(shards, tmp_path / "workers", input__workers=2)
    assert_identical(tmp_path / "workers", whole)


@pytest.mark.parametrize(("at", "signum"), [(5, signal.SIGTERM), (6, signal.SIGINT), (8, signal.SIGUSR1)])
def test_stopped_by_a_signal_and_resumed_equals_undisturbed(shards, whole, tmp_path, at, signum):
    with stopped_at(at, signum):
        train(shards, tmp_path / "run")
    assert checkpoints.latest_checkpoint(tmp_path / "run/checkpoints") == checkpoints.checkpoint_name(at)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    train(shards, tmp_path / "run")
    assert_identical(tmp_path / "run", whole)
    assert [start["step"] for start in starts_of(tmp_path / "run")] == [0, at]


def kill_and_resume(shards: Path, whole: Path, folder: Path, *, kills: int, ranks: int = 1, **changes) -> None:
    """Kill runs at random moments, half of them inside the writing of a checkpoint, until all `kills` are done.

    Of several ranks one or all are killed; those that are left may still write their parts for a moment.
    """
    seed = random.randrange(10**6)
    print(f"moments drawn with seed {seed}")
    rng = random.Random(seed)
    inside = 0
    steps = []
    changes |= {"train__checkpoint_every": 1}
    for number in count():
        if not kills:
            break
        out = folder / f"run{number}"  # a new one each time: a run may come to its end unkilled
        while kills > 0 and not RunFolder(out).finished:
            operation, moment, workers = rng.randrange(1, 40), rng.uniform(0.02, 0.6 * ranks), rng.choice([0, 1])
            in_writing, victim, spared_s = rng.random() < 0.5, rng.randrange(ranks), rng.choice([0, 0.1, 0.3])

            def work(
                world, in_writing=in_writing, operation=operation, victim=victim, workers=workers, out=out
            ) -> None:
                if in_writing and world.rank == victim:
                    die_at_operation(operation)
                train(shards, out, world=world, input__workers=workers, **changes)

            children = [fork(one) for one in rank_works(ranks, work)]
            if in_writing:
                code = wait(children[victim])
            else:
                time.sleep(moment)
                code = kill(children[victim])
            if code != 0:
                time.sleep(spared_s)
            others = [child for rank, child in enumerate(children) if rank != victim]
            codes = [wait(child) if code == 0 else kill(child) for child in others]
            assert code in (0, -signal.SIGKILL)
            assert set(codes) <= ({0} if code == 0 else {0, 1, -signal.SIGKILL})  # 1: it has missed the dead one
            kills -= code != 0
            inside += in_writing and code != 0
            assert_complete_checkpoint(out)
            steps.append(int((checkpoints.latest_checkpoint(out / "checkpoints") or "-0").rpartition("-")[2]))
        if not RunFolder(out).finished:
            last = rank_works(ranks, lambda world, out=out: train(shards, out, world=world, **changes))
            assert in_children(*last) == [0] * ranks
        assert_identical(out, whole)
    print(f"{inside} of the kills were inside the writing of a checkpoint; steps reached: {steps}")


def die_at_operation(number: int) -> None:
    """Let this process die at its `number`-th operation on the disk for checkpoints."""
    done = 0

    def dying(operation: Callable) -> Callable:
        def counted(*args, **kwargs):
            nonlocal done
            done += any("checkpoints" in Path(arg).parts for arg in args if isinstance(arg, str | Path))
            if done == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return operation(*args, **kwargs)

        return counted

    commit.sync = dying(commit.sync)
    shutil.rmtree = dying(shutil.rmtree)
    for name in ("rename", "replace", "write_text", "open", "mkdir", "unlink"):
        setattr(Path, name, dying(getattr(Path, name)))


@forks
def test_killed_at_random_moments_and_resumed_equals_undisturbed(shards, whole, tmp_path):
    kill_and_resume(shards, whole, tmp_path, kills=8)


@forks
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_at_twenty_random_moments_and_resumed_equals_undisturbed(shards, whole, tmp_path):
    kill_and_resume(shards, whole, tmp_path, kills=20)


@forks
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_ranks_killed_at_twenty_random_moments_and_resumed_equal_undisturbed(shards, tmp_path):
    divided = {"train__zero_stage": 2, "train__ema_decay": 0.7}
    whole = tmp_path / "whole"
    assert on_two_ranks(lambda world: train(shards, whole, world=world, **divided)) == [0, 0]
    kill_and_resume(shards, whole, tmp_path, kills=20, ranks=2, **divided)


@forks
def test_a_folder_of_a_later_step_than_latest_is_not_kept_for_it(shards, whole, tmp_path, monkeypatch):
    """A kill between the renaming of the folder and of `latest`, then a stop at another step."""
    out = tmp_path / "run"

    def die(path: Path, target: Path) -> None:
        if target.name == "latest" and path.read_text().strip() == "step-00000006":
            os.kill(os.getpid(), signal.SIGKILL)
        path.rename(target)

    def work() -> None:
        Path.replace = die
        train(shards, out)

    assert in_children(work) == [-signal.SIGKILL]
    assert (out / "checkpoints/step-00000006").is_dir()
    assert checkpoints.latest_checkpoint(out / "checkpoints") == "step-00000004"
    monkeypatch.setattr(loop._Run, "validate", lambda *_: None)
    with stopped_at(5):
        train(shards, out)
    monkeypatch.undo()
    assert_complete_checkpoint(out)
    assert checkpoints.latest_checkpoint(out / "checkpoints") == "step-00000005"
    train(shards, out)
    assert_identical(out, whole)


def test_one_image_at_a_time_accumulated_equals_the_whole_batch(shards, tmp_path):
    plain = {"model__args__drop_rate": 0, "model__args__proj_drop_rate": 0}
    train(shards, tmp_path / "whole", **plain)
    train(shards, tmp_path / "parts", train__micro_batch_size=1, **plain)
    assert_close(tmp_path / "parts", tmp_path / "whole")


def test_a_run_resumed_with_another_accumulation_goes_on_as_before(shards, tmp_path):
    plain = {"model__args__drop_rate": 0, "model__args__proj_drop_rate": 0}
    train(shards, tmp_path / "whole", **plain)
    with stopped_at(5):
        train(shards, tmp_path / "run", **plain)
    train(shards, tmp_path / "run", train__micro_batch_size=2, **plain)
    assert_close(tmp_path / "run", tmp_path / "whole")


@forks
@pytest.mark.parametrize("zero_stage", [0, 1])
def test_two_ranks_train_like_one(shards, tmp_path, zero_stage):
    plain = {"model__args__drop_rate": 0, "model__args__proj_drop_rate": 0, "train__zero_stage": zero_stage}
    train(shards, tmp_path / "one", **plain)
    assert on_two_ranks(lambda world: train(shards, tmp_path / "two", world=world, resume=None, **plain)) == [0, 0]
    assert_close(tmp_path / "two", tmp_path / "one")
    predictions = [pd.read_parquet(tmp_path / name / "predictions/val.parquet") for name in ("one", "two")]
    assert list(predictions[0]["image_id"]) == list(predictions[1]["image_id"])


@forks
def test_two_ranks_stop_together_and_one_goes_on(shards, tmp_path):
    plain = {"model__args__drop_rate": 0, "model__args__proj_drop_rate": 0}
    train(shards, tmp_path / "whole", **plain)

    def work(world: World) -> None:
        if world.rank == 1:  # only one of them is told
            step = loop._Run.optimizer_step

            def step_and_signal(self, state, batches):
                if state.step == 4:
                    os.kill(os.getpid(), signal.SIGTERM)
                return step(self, state, batches)

            loop._Run.optimizer_step = step_and_signal
        with pytest.raises(Interrupted, match="step 5"):
            train(shards, tmp_path / "run", world=world, **plain)

    assert on_two_ranks(work) == [0, 0]
    train(shards, tmp_path / "run", **plain)
    assert_close(tmp_path / "run", tmp_path / "whole")


@forks
def test_both_ranks_refuse_what_rank_0_refuses(shards, whole):
    def work(world: World) -> None:
        with pytest.raises(UsageError, match="Continue it with --resume auto"):
            train(shards, whole, world=world, resume=None)

    assert on_two_ranks(work) == [0, 0]


def test_a_folder_with_a_run_is_refused_without_resume(shards, whole):
    with pytest.raises(UsageError, match="Continue it with --resume auto, or choose another folder") as caught:
        train(shards, whole, resume=None)
    assert caught.value.exit_code == 2


def test_a_finished_run_is_not_run_again(shards, whole):
    before = (whole / "model/model.safetensors").stat().st_mtime_ns
    assert train(shards, whole) is None
    assert (whole / "model/model.safetensors").stat().st_mtime_ns == before


def test_a_changed_configuration_is_refused_on_resume_and_named(shards, whole):
    with pytest.raises(UsageError, match=r"must keep its configuration, got optim\.lr: 0\.001 -> 0\.002; seed: 0 -> 1"):
        train(shards, whole, optim__lr=2e-3, seed=1)
    assert train(shards, whole, input__workers=1, train__keep_last=3, train__log_every=5) is None


def test_other_shards_under_the_same_name_are_refused_on_resume(shards, whole, tmp_path):
    other = make_shards(tmp_path, seed=1)
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    text = (out / "config.yaml").read_text().replace(str(shards), str(other))
    (out / "config.yaml").write_text(text)
    with pytest.raises(UsageError, match="must read the shards it began with, got others in toy"):
        train(other, out)


@forks
def test_a_second_process_is_kept_out_of_the_folder(shards, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "LOCK_WAIT_S", 0.3)
    out = tmp_path / "run"
    out.mkdir()
    ready, go = os.pipe(), os.pipe()

    def hold() -> None:
        with RunFolder(out)._locked():
            os.write(ready[1], b"x")
            os.read(go[0], 1)

    child = fork(hold)
    os.read(ready[0], 1)
    with pytest.raises(UserError, match="Another process is training in this folder"):
        train(shards, out)
    monkeypatch.setattr(run_folder, "LOCK_WAIT_S", 20)
    kill(child)  # and a dead one keeps nobody out
    train(shards, out)
    assert_identical(out, whole)


def test_a_loss_that_is_not_finite_stops_before_the_step_and_its_batch_can_be_looked_at(shards, tmp_path, monkeypatch):
    step = loop._Run.optimizer_step

    def poisoned(self, state, batches):
        if state.step == 7:
            with torch.no_grad():
                self.engine.module.model.net.head.bias.fill_(float("nan"))
        return step(self, state, batches)

    monkeypatch.setattr(loop._Run, "optimizer_step", poisoned)
    with pytest.raises(
        UserError, match=r"The loss must be finite, got nan at step 8 on rank 0; stopped before the"
    ) as e:
        train(shards, tmp_path / "run")
    assert "[samples " in str(e.value)
    assert "see where it began with --replay" in str(e.value)
    assert checkpoints.latest_checkpoint(tmp_path / "run/checkpoints") == "step-00000007"
    assert lines_of(tmp_path / "run")[-1]["step"] == 7
    (found,) = replay_bad_batch(tmp_path / "run")
    assert (found.step, found.rank, found.weights) == (8, 0, ["model.net.head.bias"])
    assert found.module == "model.net.head"


def test_bf16_trains_near_fp32_and_keeps_fp32_weights(shards, whole, tmp_path):
    train(shards, tmp_path / "run", train__precision="bf16")
    losses = [[line["loss"] for line in lines_of(f) if line["kind"] == "train"] for f in (tmp_path / "run", whole)]
    assert losses[0] != losses[1]
    assert np.allclose(losses[0], losses[1], rtol=0.05)
    assert {value.dtype for value in load_file(tmp_path / "run/model/model.safetensors").values()} == {torch.float32}


def test_training_learns_and_the_test_split_is_opened_by_its_own_command(shards, tmp_path):
    out = tmp_path / "run"
    train(shards, out, train__steps=60, train__evaluate_every=20, optim__lr=3e-3)
    losses = [line["loss"] for line in lines_of(out) if line["kind"] == "train"]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    assert json.loads((out / "result.json").read_text())["score"] > 0.75
    assert not (out / "predictions/test.parquet").exists()
    assert not (out / "test_accesses.jsonl").exists()
    test = pd.read_parquet(open_test(out))
    index = pd.read_parquet(shards / "index.parquet")
    assert sorted(test["image_id"]) == sorted(index.loc[index["split"] == "test", "image_id"])
    assert len(run_folder.read_test_accesses(out)) == 1


def test_the_test_split_stays_shut_until_training_has_ended(tmp_path):
    with pytest.raises(UserError, match="The test split is opened after training only"):
        open_test(tmp_path)


def test_findings_without_a_label_are_refused(shards, tmp_path):
    with pytest.raises(UserError, match="A finding of these shards must be one of"):
        train(shards, tmp_path / "a", findings=["edema"])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_half_zeroed_jpeg_stops_the_training_by_name(tmp_path, workers):
    shards = make_shards(tmp_path, format="jpeg")
    row = read_samples([shards], "train").table.iloc[5]
    with (shards / row["shard"]).open("r+b") as file:
        half = row["image_bytes"] // 2
        file.seek(row["image_offset"] + half)
        file.write(bytes(row["image_bytes"] - half))
    with pytest.raises(UserError) as caught:
        train(shards, tmp_path / "run", input__workers=workers)
    assert str(caught.value) == (
        f"A packed image must have the bytes it was packed with, got damaged ones [in {row['shard']}, "
        f"key {row['key']}]. Check the folder with `cxrdist shards verify`."
    )


def test_a_test_split_without_an_image_of_the_projection_is_told_before_training(tmp_path, caplog):
    shards = make_shards(tmp_path, patients=30)
    path = shards / "index.parquet"
    index = pq.read_table(path)
    held = pa.array([split != "test" for split in index["split"].to_pylist()])
    pq.write_table(index.set_column(index.column_names.index("frontal"), "frontal", held), path)
    with caplog.at_level("WARNING", logger="cxrdist"):
        train(shards, tmp_path / "run", train__steps=2)
    assert "The test split has no image of projection 'frontal', so this run cannot be tested [in toy]." in caplog.text
    assert (tmp_path / "run/result.json").is_file()


def test_two_folders_of_one_name_are_resumed(shards, tmp_path):
    other = make_shards(tmp_path / "other", seed=1)
    assert other.name == shards.name
    out = tmp_path / "run"
    tree = finetune_tree(shards, steps=2) | {"shards": [str(shards), str(other)], "method": DECODER}
    config = PretrainConfig.build(tree, where="t")
    assert pretrain(config, out, world=World()) is not None
    assert pretrain(config, out, world=World(), resume="auto") is None
    swapped = PretrainConfig.build(tree | {"shards": [str(other), str(shards)]}, where="t")
    (out / "config.yaml").write_text(yaml.safe_dump(swapped.tree()))
    with pytest.raises(UsageError, match="must read the shards it began with, got others in toy, toy"):
        pretrain(swapped, out, world=World(), resume="auto")


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"model__backbone": "vit_tiny_patch16_225"}, "must be a timm model"),
        ({"findings": ["edema"]}, "A finding of these shards must be one of"),
    ],
)
def test_a_run_that_failed_before_its_first_step_does_not_block_its_folder(shards, whole, tmp_path, wrong, sentence):
    out = tmp_path / "run"
    with pytest.raises(UserError, match=sentence):
        train(shards, out, resume=None, **wrong)
    train(shards, out, resume=None)
    assert_identical(out, whole)
    assert (out / "config.yaml").read_bytes() == (whole / "config.yaml").read_bytes()
    with pytest.raises(UsageError, match="Continue it with --resume auto"):
        train(shards, out, resume=None)


@forks
@pytest.mark.parametrize("spare", [3_000, 20_000])
def test_a_checkpoint_that_the_disk_does_not_take_is_a_sentence_and_the_one_before_is_whole(
    shards, whole, tmp_path, spare
):
    out = tmp_path / "run"
    save = checkpoints.Checkpoints.save

    def save_on_a_full_disk(self, step, *args, **options):
        if step == 6:  # the system lets no file grow beyond this, wherever the process writes
            resource.setrlimit(resource.RLIMIT_FSIZE, (spare, spare))
        save(self, step, *args, **options)

    def work() -> None:
        checkpoints.Checkpoints.save = save_on_a_full_disk
        with pytest.raises(
            UserError, match=r"A checkpoint must be writable, got .* \[in run\]\. The checkpoint before"
        ):
            train(shards, out, train__checkpoint_in_background=False)

    assert in_children(work) == [0]
    assert checkpoints.latest_checkpoint(out / "checkpoints") == "step-00000004"
    assert not list((out / "checkpoints").glob(".partial-*"))
    train(shards, out)
    assert_identical(out, whole)


@forks
def test_two_ranks_with_batch_norm_validate_the_model_that_they_save(shards, tmp_path):
    out = tmp_path / "run"
    tree = finetune_tree(shards, steps=4) | {"model": {"backbone": "resnet10t"}, "optim": {"lr": 1e-2}}
    config = FinetuneConfig.build(tree, where="t")
    assert on_two_ranks(lambda world: finetune(config, out, world=world)) == [0, 0]
    seen = [line["auroc"] for line in lines_of(out) if line["kind"] == "val"]
    told = pd.read_parquet(out / "predictions/val.parquet")
    saved = {name: auroc(told[f"y_{name}"].to_numpy(float), told[f"p_{name}"].to_numpy()) for name in seen[0]}
    assert saved == pytest.approx(seen[0], abs=1e-6)
    loss = next(line["loss"] for line in lines_of(out) if line["kind"] == "val")
    p, y = (np.stack([told[f"{kind}_{name}"].to_numpy(float) for name in seen[0]]) for kind in "py")
    assert -np.mean(np.log(np.where(y == 1, p, 1 - p))) == pytest.approx(loss, rel=1e-3)


@forks
def test_two_ranks_with_batch_norm_that_are_stopped_and_resumed_equal_undisturbed(shards, tmp_path):
    """Running statistics are each rank's own between two steps: a checkpoint must not change what follows it."""
    changes = {"train__steps": 6, "train__evaluate_every": 6, "train__checkpoint_every": 6, "optim__lr": 1e-2}
    tree = config_of(shards, **changes).tree() | {"model": {"backbone": "resnet10t"}}
    config = FinetuneConfig.build(tree, where="t")
    whole, out = tmp_path / "whole", tmp_path / "run"

    def stopped(world: World) -> None:
        step = loop._Run.optimizer_step

        def step_and_signal(self, state, batches):
            step(self, state, batches)
            if (world.rank, state.step) == (1, 3):
                os.kill(os.getpid(), signal.SIGTERM)

        loop._Run.optimizer_step = step_and_signal
        with pytest.raises(Interrupted, match="step 3"):
            finetune(config, out, world=world)

    assert on_two_ranks(lambda world: finetune(config, whole, world=world)) == [0, 0]
    assert on_two_ranks(stopped) == [0, 0]
    assert on_two_ranks(lambda world: finetune(config, out, world=world, resume="auto")) == [0, 0]
    assert_identical(out, whole)


def cannot_compile() -> str:
    """Return what inductor lacks to compile for a CPU, or nothing."""
    if not any(shutil.which(name) for name in ("g++", "clang++", os.environ.get("CXX", "c++"))):
        return "needs a C++ compiler"
    return "" if Path(sysconfig.get_path("include"), "Python.h").is_file() else "needs the headers of Python"


@forks
@pytest.mark.slow
@pytest.mark.skipif(bool(cannot_compile()), reason=cannot_compile())
def test_a_compiled_run_trains_like_one_that_is_not(shards, tmp_path):
    plain = {"model__args__drop_rate": 0, "model__args__proj_drop_rate": 0, "train__steps": 3}

    def work() -> None:  # in a process of its own: compiling leaves threads behind, and those of later tests fork
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(tmp_path / "cache")
        torch._inductor.config.compile_threads = 1
        train(shards, tmp_path / "compiled", train__compile=True, **plain)

    train(shards, tmp_path / "eager", **plain)
    assert in_children(work, timeout_s=280) == [0]
    assert list((tmp_path / "cache").rglob("*.cpp")), "nothing was compiled"
    assert_close(tmp_path / "compiled", tmp_path / "eager", tolerance=1e-3)


@forks
def test_ranks_agree_on_the_mean_of_their_buffers(tmp_path):
    def work(world: World) -> None:
        with engine.process_group(world):
            norm = torch.nn.BatchNorm1d(3)
            norm.running_mean.fill_(1 + world.rank)
            norm.num_batches_tracked.fill_(7 + world.rank)
            norm.register_buffer("constant", torch.tensor([world.rank]), persistent=False)
            engine.agree_on_buffers(norm)
            assert norm.running_mean.tolist() == [1.5] * 3
            assert norm.num_batches_tracked == 7
            assert norm.constant == world.rank

    assert on_two_ranks(work) == [0, 0]
