"""Whole fine-tunings: what becomes the model, when a run ends, what a signal in a validation leaves."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from helpers import finetune_tree, make_shards
from safetensors.torch import load_file
from stopping import stopped_at

from cxrdist.config import override
from cxrdist.data.samples import read_samples
from cxrdist.errors import UsageError
from cxrdist.evaluate.predict import sigmoid
from cxrdist.finetune import run as finetune_run
from cxrdist.finetune.config import FinetuneConfig
from cxrdist.finetune.run import finetune, open_test
from cxrdist.models.folder import load_model
from cxrdist.stats.predictions import read_predictions
from cxrdist.train import batches
from cxrdist.train.interrupt import Interrupted
from cxrdist.train.loop import Outcome
from cxrdist.train.metrics import read_metrics
from cxrdist.train.pieces import Reader
from cxrdist.world import World

STEPS = 10


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("data"))


def train(shards: Path, out: Path, **changes) -> Outcome | None:
    tree = finetune_tree(shards, steps=STEPS, evaluate_every=4, checkpoint_every=5, log_every=1)
    tree = override(tree, {name.replace("__", "."): value for name, value in changes.items()})
    return finetune(FinetuneConfig.build(tree, where="t"), out, world=World(), resume="auto")


def validations(out: Path) -> list[dict]:
    return [line for line in read_metrics(out / "metrics.jsonl") if line["kind"] == "val"]


def probabilities(out: Path, split: str = "val") -> np.ndarray:
    told = pd.read_parquet(out / f"predictions/{split}.parquet")
    return told[[name for name in told.columns if name.startswith("p_")]].to_numpy()


def test_the_running_mean_is_validated_and_becomes_the_model(shards, tmp_path):
    plain, mean = tmp_path / "plain", tmp_path / "mean"
    train(shards, plain)
    outcome = train(shards, mean, train__ema_decay=0.7, train__keep_every=1, train__checkpoint_every=1)
    reader = Reader(mean / "checkpoints" / f"step-{outcome.chosen_step:08d}")
    model = load_file(mean / "model/model.safetensors")
    for name, tensor in model.items():
        assert torch.equal(tensor, reader.full(f"model.net.{name}", "ema"))
    # The mean does not touch the training: the weights of both runs are the same at every step.
    last = Reader(mean / "checkpoints/step-00000010"), Reader(plain / "checkpoints/step-00000010")
    assert all(torch.equal(last[0].full(n, "weight"), last[1].full(n, "weight")) for n in last[0].names("weight"))
    # And it is what the definition says, over the weights of all steps.
    name = "model.net.head.weight"
    expected = None
    for step in range(1, STEPS + 1):
        weight = Reader(mean / f"checkpoints/step-{step:08d}").full(name, "weight").double()
        expected = 0.7 * expected + 0.3 * weight if expected is not None else None
        if step == 1:
            expected = Reader(mean / "checkpoints/step-00000001").full(name, "ema").double()
    torch.testing.assert_close(last[0].full(name, "ema").double(), expected, rtol=1e-5, atol=1e-7)
    assert [line["loss"] for line in validations(mean)] != [line["loss"] for line in validations(plain)]


def test_training_stops_after_so_many_validations_that_are_no_better(shards, tmp_path):
    out = tmp_path / "run"
    outcome = train(shards, out, optim__lr=1e-12, train__evaluate_every=2, train__early_stopping=2)
    assert outcome.steps < STEPS
    assert outcome.steps - outcome.chosen_step == 4
    assert [line["step"] for line in validations(out)] == list(range(2, outcome.steps + 1, 2))
    (out / "result.json").unlink()  # as if killed right before it
    assert train(shards, out, optim__lr=1e-12, train__evaluate_every=2, train__early_stopping=2) == outcome


@pytest.mark.parametrize("ema", [None, 0.5])
def test_a_signal_in_a_validation_ends_it_and_it_is_made_when_the_run_goes_on(shards, tmp_path, monkeypatch, ema):
    whole, out = tmp_path / "whole", tmp_path / "run"
    train(shards, whole, train__ema_decay=ema)
    predict = finetune_run.predict_logits
    seen = []

    def predict_and_signal(*args, before_each, **options):
        def signalled() -> None:
            seen.append(1)
            if len(seen) == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            before_each()

        return predict(*args, before_each=signalled, **(options | {"batch_size": 2}))

    with monkeypatch.context() as patched:
        patched.setattr(finetune_run, "predict_logits", predict_and_signal)
        with pytest.raises(Interrupted, match="Stopped at step 4 with a checkpoint"):
            train(shards, out, train__ema_decay=ema)
    assert len(seen) == 2, "the rest of the validation was not waited for"
    assert validations(out) == []
    train(shards, out, train__ema_decay=ema)
    assert [line["step"] for line in validations(out)] == [4, 8, 10]
    files = [(folder / "model/model.safetensors").read_bytes() for folder in (out, whole)]
    assert files[0] == files[1]


def test_a_chosen_micro_batch_is_kept_when_the_run_goes_on(shards, tmp_path, monkeypatch):
    out = tmp_path / "run"
    monkeypatch.setattr(batches, "choose_micro_batch", lambda *_, **__: 4)
    with stopped_at(3):
        train(shards, out, train__micro_batch_size="auto")
    monkeypatch.setattr(batches, "choose_micro_batch", None)
    train(shards, out, train__micro_batch_size="auto")
    starts = [json.loads(line) for line in (out / "starts.jsonl").read_text().splitlines()]
    assert [start["micro_batch_size"] for start in starts] == [4, 4]


def test_an_odd_micro_batch_cannot_be_mixed(shards, tmp_path):
    with pytest.raises(UsageError, match="must be even with `mixup`"):
        train(shards, tmp_path, mixup=0.4, train__global_batch_size=9, train__micro_batch_size=3)


@pytest.mark.parametrize("name", ["lora", "probe", "head_then_full", "full"])
def test_whatever_is_trained_the_model_folder_is_a_plain_timm_network(shards, tmp_path, name):
    out = tmp_path / "run"
    train(shards, out, protocol={"name": name})
    open_test(out)
    net = timm.create_model(f"local-dir:{out / 'model'}", pretrained=True).eval()
    model, findings, _ = load_model(out)
    assert [key for key, value in net.state_dict().items() if not torch.equal(value, model.net.state_dict()[key])] == []
    assert not any("lora" in key for key in net.state_dict())
    assert probabilities(out, "test").shape[1] == len(findings) == 2


def test_neighbours_need_no_step_and_predict_from_the_model_folder(shards, tmp_path):
    out = tmp_path / "run"
    outcome = train(shards, out, protocol={"name": "knn", "knn": {"k": 5}})
    assert (outcome.steps, outcome.chosen_step) == (0, 0)
    assert outcome.score == validations(out)[0]["auroc_macro"] > 0.5
    assert not (out / "checkpoints").exists()
    open_test(out)
    assert probabilities(out, "test").min() >= 0
    model, _, _ = load_model(out)
    images = torch.zeros(3, 1, 32, 32, dtype=torch.uint8)
    with torch.no_grad():
        ours = sigmoid(model(images).numpy())
    assert ours.shape == (3, 2)
    assert train(shards, out, protocol={"name": "knn", "knn": {"k": 5}}) is None


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"input__image_size": 36, "model": {"backbone": "vit_tiny_patch16_224"}}, "multiple of the backbone's patch"),
        (
            {"model": {"backbone": "resnet10t"}, "train__micro_batch_size": 1},
            "micro-batches of 1 images, got 'Expected more than 1 value per channel",
        ),
        ({"model": {"backbone": "densenet121"}, "input__image_size": 16}, "got .*Output size is too small"),
    ],
)
def test_what_a_network_cannot_compute_is_a_sentence(shards, tmp_path, changes, sentence):
    tree = finetune_tree(shards, steps=2, evaluate_every=2, checkpoint_every=2)
    del tree["model"]
    tree = override(tree, {name.replace("__", "."): value for name, value in changes.items()})
    with pytest.raises(UsageError, match=sentence):
        finetune(FinetuneConfig.build(tree, where="t"), tmp_path / "run", world=World())


def test_two_shard_folders_are_one_dataset(tmp_path):
    folders = [make_shards(tmp_path / name, patients=30, seed=seed, name=name) for seed, name in enumerate("ab")]
    tree = finetune_tree(folders[0], steps=2, evaluate_every=2) | {"shards": [str(folder) for folder in folders]}
    assert finetune(FinetuneConfig.build(tree, where="t"), tmp_path / "run", world=World()) is not None
    predictions = read_predictions(open_test(tmp_path / "run"))
    alone = [read_samples([folder], "test").table["image_id"].tolist() for folder in folders]
    assert sorted(predictions.image_id) == sorted(alone[0] + alone[1])


def test_two_folders_that_map_labels_in_two_ways_are_no_dataset(tmp_path):
    folders = [make_shards(tmp_path / name, patients=30, name=name) for name in "ab"]
    manifest = folders[1] / "manifest.json"
    tree = json.loads(manifest.read_text(encoding="utf-8"))
    tree["policy"]["uncertain"] = "zeros" if tree["policy"]["uncertain"] != "zeros" else "ones"
    manifest.write_text(json.dumps(tree), encoding="utf-8")
    config = FinetuneConfig.build({"shards": [str(folder) for folder in folders]}, where="t")
    with pytest.raises(UsageError, match="must map labels alike"):
        config.resolved()
