"""Supervised pretraining: columns by dataset, the masked loss of the whole batch, a backbone that others start from."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from engines import on_ranks
from helpers import finetune_tree, make_shards, tiny_vit
from ranks import forks
from stopping import check_resumed_to_the_bit
from tiny_nets import tiny_model
from torch.nn.functional import binary_cross_entropy_with_logits

from cxrdist.config import override
from cxrdist.data.samples import read_samples
from cxrdist.datasets.shard_format import MANIFEST, read_manifest
from cxrdist.errors import UsageError, UserError
from cxrdist.finetune.config import FinetuneConfig
from cxrdist.finetune.run import finetune
from cxrdist.models.build import build_model
from cxrdist.models.config import ModelConfig
from cxrdist.models.folder import load_model
from cxrdist.models.weights import load_weights
from cxrdist.pretrain.build import build_task, example_batch
from cxrdist.pretrain.config import PretrainConfig
from cxrdist.pretrain.methods import SupervisedConfig
from cxrdist.pretrain.supervised import SupervisedTask
from cxrdist.pretrain.supervision import Supervision, datasets, imagine_supervision, read_supervision
from cxrdist.train.dryrun import imagine, profile_pass
from cxrdist.world import World


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two datasets of one folder name, the second smaller."""
    root = tmp_path_factory.mktemp("data")
    return [
        make_shards(root / "here", patients=40),
        make_shards(root / "there", patients=15, seed=1),
    ]


def config_of(shards, **changes) -> PretrainConfig:
    tree = finetune_tree(shards[0], steps=4) | {
        "shards": [str(folder) for folder in shards],
        "method": {"name": "supervised"},
    }
    return PretrainConfig.build(override(tree, {name.replace("__", "."): v for name, v in changes.items()}), where="t")


def changed(folder, to, **facts):
    """Return a copy of a shard folder whose manifest says something else."""
    shutil.copytree(folder, to)
    tree = json.loads((to / MANIFEST).read_text())
    (to / MANIFEST).write_text(json.dumps(tree | facts))
    return to


def test_each_dataset_has_its_own_columns_and_is_masked_in_the_others(two):
    supervision = read_supervision(config_of(two))
    assert supervision.columns == ["toy/cardiomegaly", "toy/effusion", "toy-2/cardiomegaly", "toy-2/effusion"]
    alone = [read_samples([folder], "train") for folder in two]
    first, second = (
        samples.targets(["cardiomegaly", "effusion"], read_manifest(folder).policy)
        for samples, folder in zip(alone, two, strict=True)
    )
    expected = np.full((len(first) + len(second), 4), np.nan, np.float32)
    expected[: len(first), :2], expected[len(first) :, 2:] = first, second
    np.testing.assert_array_equal(supervision.targets, expected)
    assert supervision.targets.dtype == np.float32
    assert supervision.known_share == (~np.isnan(expected)).mean()
    for column, values in enumerate(expected.T):
        assert supervision.pos_weight[column] == (values == 0).sum() / (values == 1).sum()
    assert read_supervision(config_of(two, method__class_weights="none")).pos_weight.tolist() == [1, 1, 1, 1]


def test_a_dataset_named_twice_has_its_columns_once(two, tmp_path):
    (tmp_path / "link").symlink_to(two[0])
    supervision = read_supervision(config_of([two[0], tmp_path / "link", two[0]]))
    once = read_supervision(config_of(two[:1]))
    assert supervision.columns == once.columns
    np.testing.assert_array_equal(supervision.targets, np.concatenate([once.targets] * 3))
    np.testing.assert_allclose(supervision.pos_weight, once.pos_weight)


def test_names_are_unique_also_where_a_folder_is_called_like_a_number_of_another(tmp_path):
    folders = [tmp_path / name for name in ("a/toy", "b/toy-2", "c/toy", "d/toy")]
    assert datasets(folders) == dict(zip(["toy", "toy-2", "toy-3", "toy-4"], folders, strict=True))


def test_labels_are_each_dataset_s_own_where_the_file_says_nothing(two, tmp_path):
    ones = changed(two[0], tmp_path / "ones", policy={"uncertain": "ones", "not_mentioned": "ignore"})
    plain, own = (read_supervision(config_of([folder])).targets[:, 1] for folder in (two[0], ones))
    values = read_samples([two[0]], "train").values(["effusion"])[:, 0]
    assert (values == -1).any() and np.isnan(values).any()
    assert np.isnan(plain[values == -1]).all() and (plain[np.isnan(values)] == 0).all()
    assert (own[values == -1] == 1).all() and np.isnan(own[np.isnan(values)]).all()
    both = read_supervision(config_of([two[0], ones], method__labels__uncertain="zeros")).targets
    assert (both[: len(values), 1][values == -1] == 0).all() and (both[len(values) :, 3][values == -1] == 0).all()
    assert np.isnan(both[len(values) :, 3][np.isnan(values)]).all()


def test_findings_that_are_made_of_others_are_left_out(two, tmp_path):
    derived = changed(two[0], tmp_path / "derived", derived=["cardiomegaly"])
    assert read_supervision(config_of([derived])).columns == ["derived/effusion"]


def test_a_finding_with_one_value_is_left_out_and_a_dataset_without_any_is_refused(two, tmp_path):
    folder = tmp_path / "flat"
    shutil.copytree(two[0], folder)
    table = pd.read_parquet(folder / "index.parquet")
    table["y_effusion"] = pd.array([0] * len(table), dtype="Int8")
    table.to_parquet(folder / "index.parquet", index=False)
    assert read_supervision(config_of([folder])).columns == ["flat/cardiomegaly"]
    table["y_cardiomegaly"] = pd.array([1] * len(table), dtype="Int8")
    table.to_parquet(folder / "index.parquet", index=False)
    with pytest.raises(UserError, match=r"must have a finding with both values .* got none \[in flat\]"):
        read_supervision(config_of([two[0], folder]))


def test_shares_of_readers_are_used_where_there_are_any(two, tmp_path):
    with pytest.raises(UsageError, match=r"`method.labels.soft` needs a dataset with shares of readers, got none"):
        read_supervision(config_of(two, method__labels__soft=True))
    folder = changed(two[0], tmp_path / "soft", soft=["effusion"])
    table = pd.read_parquet(folder / "index.parquet")
    table["s_effusion"] = np.float32(0.25)
    table.to_parquet(folder / "index.parquet", index=False)
    supervision = read_supervision(config_of([folder, two[1]], method__labels__soft=True))
    images = len(read_samples([folder], "train"))
    assert (supervision.targets[:images, 1] == 0.25).all()
    hard = read_supervision(config_of(two))
    np.testing.assert_array_equal(supervision.targets[images:, 2:], hard.targets[images:, 2:])
    np.testing.assert_array_equal(supervision.pos_weight, hard.pos_weight)


def mixed(images: int = 8) -> tuple[Supervision, dict[str, torch.Tensor]]:
    """Return targets of two datasets, of 2 and 3 findings, and a batch that begins with images of the first alone."""
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 2, (images, 5)).astype(np.float32)
    targets[: images // 2, 2:] = targets[images // 2 :, :2] = np.nan
    targets[0, 0] = np.nan
    pos_weight = np.array([1.0, 3.0, 0.5, 2.0, 1.5])
    supervision = Supervision(list("abcde"), targets, pos_weight, float((~np.isnan(targets)).mean()))
    pixels = torch.from_numpy(rng.integers(0, 256, (images, 1, 32, 32), np.uint8))
    return supervision, {"image": pixels, "target": torch.from_numpy(targets)}


def task_of(family: str, supervision: Supervision) -> SupervisedTask:
    model = tiny_model(family, findings=len(supervision.columns))
    return SupervisedTask(model, SupervisedConfig(), fresh=True, supervision=supervision)


def test_the_loss_is_the_mean_over_all_known_targets_weighed_by_class():
    supervision, batch = mixed()
    task = task_of("vit", supervision)
    logits = task.model(batch["image"])
    losses = []
    for image in range(8):
        for column in range(5):
            target = batch["target"][image, column]
            if not torch.isnan(target):
                weight = torch.tensor(supervision.pos_weight[column])
                losses.append(binary_cross_entropy_with_logits(logits[image, column], target, pos_weight=weight))
    torch.testing.assert_close(task(batch)["loss"], torch.stack(losses).mean())


def test_a_micro_batch_without_a_dataset_trains_the_other_heads_and_leaves_its_own():
    supervision, batch = mixed()
    task = task_of("vit", supervision)
    task({name: value[:4] for name, value in batch.items()})["loss"].backward()
    head = task.model.net.get_classifier()
    assert (head.weight.grad[2:] == 0).all() and (head.bias.grad[2:] == 0).all()
    assert (head.weight.grad[:2] != 0).any(dim=1).all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in task.parameters())


def test_the_mean_over_micro_batches_is_the_loss_of_the_batch():
    supervision, batch = mixed()
    task = task_of("vit", supervision)
    parts = [task({name: value[i : i + 2] for name, value in batch.items()})["loss"] for i in range(0, 8, 2)]
    torch.testing.assert_close(torch.stack(parts).mean(), task(batch)["loss"])


@forks
def test_the_mean_over_ranks_is_the_loss_of_the_whole_batch_and_its_gradient():
    supervision, batch = mixed()
    task = task_of("densenet", supervision)

    def part(world, device):
        share = {name: value[4 * world.rank : 4 * world.rank + 4] for name, value in batch.items()}
        loss = task(share)["loss"]
        loss.backward()
        return loss.item(), [p.grad for p in task.parameters()]

    (first, ours), (second, theirs) = on_ranks(2, part)
    loss = task(batch)["loss"]
    loss.backward()
    assert (first + second) / 2 == pytest.approx(loss.item(), rel=1e-5)
    for p, one, other in zip(task.parameters(), ours, theirs, strict=True):
        torch.testing.assert_close((one + other) / 2, p.grad, rtol=1e-3, atol=1e-5)


def test_a_run_stopped_and_resumed_is_the_run_uninterrupted_and_starts_a_fine_tuning(two, tmp_path):
    config = config_of(two)
    whole = check_resumed_to_the_bit(config, tmp_path)
    model, findings, facts = load_model(whole)
    assert findings == read_supervision(config).columns and facts["kind"] == "pretrain"
    assert model(torch.zeros(1, 1, 32, 32, dtype=torch.uint8)).shape == (1, 4)
    net = build_model(ModelConfig(**tiny_vit()), num_classes=4, image_size=32, seed=9).net
    head = net.get_classifier().weight.clone()
    report = load_weights(net, whole)
    assert report.missing == report.unexpected == report.misshapen == []
    assert torch.equal(net.get_classifier().weight, head)  # the backbone alone, also where the head would fit
    tree = finetune_tree(two[0], steps=2, evaluate_every=2)
    tree["model"]["weights"] = str(whole)
    assert finetune(FinetuneConfig.build(tree, where="t"), tmp_path / "tuned", world=World()) is not None


def test_the_task_of_a_run_is_the_one_it_reads_by_itself(two):
    config = config_of(two)
    given, read = (build_task(config, **more) for more in ({"supervision": read_supervision(config)}, {}))
    for (name, one), other in zip(given.state_dict().items(), read.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
    assert torch.equal(given.criterion.pos_weight, read.criterion.pos_weight)


def test_a_plan_needs_no_shards_but_takes_their_findings_where_they_are(two, tmp_path):
    config = config_of([two[0], tmp_path / "elsewhere"])
    supervision, notes = imagine_supervision(config)
    assert len(supervision.columns) == 2 + 14
    assert notes == ["The shards elsewhere are not here, so 14 findings of theirs are assumed."]
    task = imagine(lambda **given: build_task(config, **given))
    assert task.model.net.get_classifier().out_features == 16
    profile = profile_pass(task, lambda images: example_batch(config, images), 2, precision="bf16")
    assert profile.flops > 0 and profile.activations > 0
