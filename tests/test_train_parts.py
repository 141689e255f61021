"""The parts of training: what the engine is told, the schedule, the loss, the metrics."""

import json
import math

import numpy as np
import pytest
import torch
from helpers import make_shards
from sklearn.metrics import log_loss, roc_auc_score
from torch import nn

from cxrdist.data.config import InputConfig
from cxrdist.data.loader import EvaluationImages
from cxrdist.data.samples import read_samples
from cxrdist.errors import UserError
from cxrdist.evaluate.predict import predict_logits, sigmoid, validation_values
from cxrdist.findings import LabelPolicy
from cxrdist.finetune.config import FinetuneConfig
from cxrdist.finetune.parts import own_findings
from cxrdist.finetune.task import FinetuneTask
from cxrdist.models.build import build_model
from cxrdist.models.config import ModelConfig
from cxrdist.train.checkpoints import latest_checkpoint
from cxrdist.train.config import OptimConfig
from cxrdist.train.engine import process_group
from cxrdist.train.loss_config import LossConfig
from cxrdist.train.losses import MultiLabelLoss, balanced_weights
from cxrdist.train.metrics import MetricsLog, read_metrics
from cxrdist.train.optim import build_optimizer, lr_at
from cxrdist.train.run_folder import RunFolder
from cxrdist.world import World

NAMES = ["cardiomegaly", "effusion"]


def test_the_learning_rate_rises_linearly_and_falls_by_a_cosine():
    config = OptimConfig(lr=2.0, warmup=0.1, final_lr=0.1)
    rates = [lr_at(config, step, 100) for step in range(101)]
    assert rates[:10] == pytest.approx([0.2 * (step + 1) for step in range(10)])
    for step in range(10, 101):
        cosine = (1 + math.cos(math.pi * (step - 10) / 90)) / 2
        assert rates[step] == pytest.approx(2.0 * (0.1 + 0.9 * cosine))
    assert rates[100] == pytest.approx(0.2)
    assert lr_at(OptimConfig(schedule="constant", warmup=0), 99, 100) == OptimConfig().lr
    assert lr_at(OptimConfig(warmup=0.9), 0, 1) == OptimConfig().lr


def test_only_matrices_decay():
    net = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    net[2].weight.requires_grad_(False)
    groups = build_optimizer(OptimConfig(weight_decay=0.3), net).param_groups
    assert [(group["weight_decay"], len(group["params"])) for group in groups] == [(0.3, 1), (0.0, 4)]


def test_the_loss_is_the_masked_weighted_cross_entropy():
    rng = np.random.default_rng(0)
    targets = rng.choice([0.0, 1.0, np.nan], (40, 2), p=[0.5, 0.3, 0.2]).astype(np.float32)
    weights = balanced_weights(targets)
    model = build_model(ModelConfig(backbone="resnet18"), num_classes=2, image_size=32, seed=0).eval()
    loss = MultiLabelLoss(LossConfig(), pos_weight=weights, known_share=float((~np.isnan(targets)).mean()))
    task = FinetuneTask(model, loss=loss)
    images = torch.from_numpy(rng.integers(0, 256, (40, 1, 32, 32), np.uint8))
    with torch.no_grad():
        probabilities = sigmoid(model(images).numpy())
        loss = float(task({"image": images, "target": torch.from_numpy(targets)})["loss"])
    terms = [
        -(weights[k] * math.log(p) if targets[n, k] == 1 else math.log(1 - p))
        for (n, k), p in np.ndenumerate(probabilities)
        if not np.isnan(targets[n, k])
    ]
    assert loss == pytest.approx(np.mean(terms), rel=1e-5)
    assert {name for name, _ in task.named_buffers()} >= {"loss.pos_weight"}
    assert "pos_weight" not in task.state_dict()


def test_the_loss_of_a_batch_is_the_mean_over_its_parts_whatever_is_masked():
    targets = torch.tensor([[1, float("nan")], [0, 1], [float("nan")] * 2, [1, 0]])
    model = build_model(ModelConfig(backbone="resnet18"), num_classes=2, image_size=32, seed=0).eval()
    loss = MultiLabelLoss(LossConfig(), pos_weight=np.array([2.0, 3.0]), known_share=0.625)
    task = FinetuneTask(model, loss=loss)
    images = torch.randint(0, 256, (4, 1, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        whole = task({"image": images, "target": targets})["loss"]
        parts = [task({"image": images[n : n + 1], "target": targets[n : n + 1]})["loss"] for n in range(4)]
    torch.testing.assert_close(whole, torch.stack(parts).mean())


def test_positive_weights_are_negatives_over_positives_of_known_targets():
    nan = np.nan
    targets = np.array([[1, 0, nan], [0, 0, 1], [0, nan, nan], [0, 0, 1]])
    assert balanced_weights(targets).tolist() == [3.0, 1.0, 0.0]


def test_validation_values_agree_with_scikit_learn():
    rng = np.random.default_rng(1)
    targets = rng.integers(0, 2, (200, 3)).astype(np.float32)
    logits = (targets + rng.standard_normal((200, 3))).round(1).astype(np.float32)  # with ties
    targets[rng.random((200, 3)) < 0.1] = np.nan
    targets[:, 2] = 0
    values = validation_values(logits, targets, ["edema", "mass", "hernia"])
    known = ~np.isnan(targets)
    for k, name in enumerate(("edema", "mass")):
        area = roc_auc_score(targets[known[:, k], k], logits[known[:, k], k])
        assert values["auroc"][name] == pytest.approx(area, abs=1e-12)
    assert values["auroc"]["hernia"] is None
    assert values["auroc_macro"] == pytest.approx(np.mean([values["auroc"]["edema"], values["auroc"]["mass"]]))
    assert values["loss"] == pytest.approx(log_loss(targets[known], sigmoid(logits[known])), rel=1e-6)


def test_an_undefined_mean_is_null_in_json():
    values = validation_values(np.zeros((4, 1), np.float32), np.zeros((4, 1), np.float32), ["edema"])
    assert values["auroc_macro"] is None
    json.dumps(values, allow_nan=False)


@pytest.mark.parametrize("world_size", [1, 2, 3, 40])
def test_logits_are_in_the_order_of_the_samples_for_any_number_of_ranks(tmp_path_factory, world_size):
    shards = make_shards(tmp_path_factory.mktemp("data"), patients=40)
    samples = read_samples([shards], "val")
    images = EvaluationImages(samples, samples.targets(NAMES, LabelPolicy()), InputConfig(image_size=32, workers=0))
    calls = [0]

    def forward(batch: dict) -> torch.Tensor:
        calls[-1] += 1
        return batch["image"].float().mean((1, 2, 3))[:, None].expand(-1, 2)

    pieces = []

    def collect(piece: object) -> list:
        pieces.append(piece)
        return pieces

    for rank in range(world_size):
        result = predict_logits(
            forward, images, batch_size=3, device=torch.device("cpu"), world=World(rank, world_size), gather=collect
        )
        calls.append(0)
    by_hand = [float(images[n]["image"].float().mean()) for n in range(len(samples))]
    assert result[:, 0] == pytest.approx(by_hand)
    assert sum(len(rows) for rows, _ in filter(None, pieces)) == len(samples)
    assert len(set(calls[:-1])) == 1, "under ZeRO 3 a rank that calls once more would wait for ever"


def test_probabilities_do_not_overflow():
    assert sigmoid(np.array([-2000.0, 0.0, 2000.0])).tolist() == [0.0, 0.5, 1.0]


def test_a_resumed_log_takes_back_later_and_torn_lines(tmp_path):
    folder = RunFolder(tmp_path)
    log = MetricsLog(folder, step=0, enabled=True)
    for step in (1, 2, 3):
        log.write(step, "train", {"loss": 1.0 / step})
    log.close()
    with folder.metrics.open("a") as file:
        file.write('{"step": 4, "kind": "tra')
    assert [line["step"] for line in read_metrics(folder.metrics)] == [1, 2, 3]
    log = MetricsLog(folder, step=2, enabled=True)
    log.write(3, "train", {"loss": 7.0})
    log.close()
    assert [(line["step"], line["loss"]) for line in read_metrics(folder.metrics)] == [(1, 1.0), (2, 0.5), (3, 7.0)]


def test_latest_that_names_nothing_is_a_sentence(tmp_path):
    assert latest_checkpoint(tmp_path) is None
    (tmp_path / "latest").write_text("step-00000003\n")
    with pytest.raises(UserError, match="`latest` must name a checkpoint that is there, got 'step-00000003'"):
        latest_checkpoint(tmp_path)


def test_several_ranks_need_to_know_where_rank_0_is(monkeypatch):
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with (
        pytest.raises(UserError, match="MASTER_ADDR and MASTER_PORT must say where rank 0 is, got none for 2 ranks"),
        process_group(World(0, 2)),
    ):
        pass


def test_findings_that_are_made_of_others_are_left_out_unless_named(tmp_path):
    shards = make_shards(tmp_path, patients=24)
    config = FinetuneConfig.build({"shards": shards}, where="x")
    assert own_findings(config, NAMES) == NAMES
    path = shards / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(manifest | {"derived": ["effusion"]}), encoding="utf-8")
    assert own_findings(config, NAMES) == ["cardiomegaly"]


def test_labels_that_a_run_does_not_set_follow_the_packed_datasets_default(tmp_path):
    shards = make_shards(tmp_path, patients=6)
    path = shards / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest["policy"] = {"uncertain": "ones", "not_mentioned": "ignore"}
    path.write_text(json.dumps(manifest), encoding="utf-8")
    config = FinetuneConfig.build({"shards": shards, "labels": {"uncertain": "zeros"}}, where="x")
    resolved = config.resolved()
    assert resolved.labels == LabelPolicy(uncertain="zeros", not_mentioned="ignore")
    assert resolved.evaluation_policy() == LabelPolicy(uncertain="ignore", not_mentioned="ignore")
    assert FinetuneConfig.build(resolved.tree(), where="x").resolved() == resolved
