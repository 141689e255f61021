"""Shares of readers, from the rows to the loss: training may use them, everything that is judged goes by yes and no."""

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import webdataset as wds
from torch import nn

from cxrdist.data.config import InputConfig
from cxrdist.data.loader import EvaluationImages, TrainingImages
from cxrdist.data.samples import choose_findings, read_samples
from cxrdist.datasets.records import Import
from cxrdist.datasets.shard_format import read_index, read_manifest
from cxrdist.errors import UsageError, UserError
from cxrdist.findings import LabelPolicy
from cxrdist.finetune.config import FinetuneConfig
from cxrdist.finetune.parts import Parts
from cxrdist.finetune.run import finetune
from cxrdist.finetune.task import FinetuneTask
from cxrdist.pack import PackOptions, pack_rows
from cxrdist.pack.plan import DatasetName
from cxrdist.pack.verify import verify_shards
from cxrdist.train.loss_config import LossConfig
from cxrdist.train.losses import MultiLabelLoss, balanced_weights
from cxrdist.world import World
from tests.helpers import finetune_tree, make_import, make_shards

NAMES = ["cardiomegaly", "effusion"]
SHARES = (0.0, 1 / 3, 0.5, 2 / 3, 1.0)
SOFT = LabelPolicy(soft=True)


def pack(found: Import, folder: Path, name: str = "shards") -> Path:
    options = PackOptions(size=32, format="png", id_key=folder / "id.key", samples_per_shard=20, projection="all")
    pack_rows(DatasetName("toy", "Toy", "toy", "0" * 64), found, folder / name, options, shown=False)
    return folder / name


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Return a folder where two of three images have a share of readers for effusion, whatever their value."""
    folder = tmp_path_factory.mktemp("soft")
    rows = make_import(folder / "raw", images=60).rows
    shares = itertools.cycle(SHARES)
    for number, row in enumerate(rows):
        if number % 3:
            rows[number] = replace(row, soft={"effusion": next(shares)})
    return pack(Import(rows, []), folder)


def test_shares_are_in_the_samples_that_have_them_and_in_the_index(shards):
    assert not verify_shards(shards, shown=False)
    assert read_manifest(shards).soft == ["effusion"]
    index = read_index(shards).set_index("key")
    assert [name for name in index.columns if name.startswith("s_")] == ["s_effusion"]
    assert index["s_effusion"].dtype == np.float32
    assert index["s_effusion"].isna().sum() == 20
    assert index["s_effusion"].value_counts().to_dict() == {np.float32(share): 8 for share in SHARES}
    for path in shards.glob("*.tar"):
        for sample in wds.WebDataset(str(path), shardshuffle=False):
            fields, share = json.loads(sample["json"]), index.loc[sample["__key__"], "s_effusion"]
            assert ("soft" in fields) is not math.isnan(share)
            assert math.isnan(share) or np.float32(fields["soft"]["effusion"]) == share


def test_a_dataset_without_shares_has_no_column_for_them(tmp_path):
    shards = pack(make_import(tmp_path / "raw", images=4), tmp_path)
    assert read_manifest(shards).soft == []
    assert not [name for name in read_index(shards).columns if name.startswith("s_")]


def test_rows_with_other_shares_are_another_pack(tmp_path):
    found = make_import(tmp_path / "raw", images=4)
    pack(found, tmp_path)
    with pytest.raises(UserError, match="must hold one pack, got another: input files"):
        pack(Import([replace(row, soft={"effusion": 0.5}) for row in found.rows], []), tmp_path)


def test_another_share_in_the_index_than_in_the_sample_is_found(tmp_path):
    found = make_import(tmp_path / "raw", images=4)
    shards = pack(Import([replace(row, soft={"effusion": 1 / 3}) for row in found.rows], []), tmp_path)
    table = pq.read_table(shards / "index.parquet")
    place = table.column_names.index("s_effusion")
    table = table.set_column(place, "s_effusion", pa.array([0.5] * len(table), pa.float32()))
    pq.write_table(table, shards / "index.parquet")
    told = [str(problem) for problem in verify_shards(shards, shown=False)]
    assert sum("the index and the JSON differ in s_effusion" in problem for problem in told) == 4


def test_training_takes_shares_where_they_are_and_values_elsewhere(shards):
    samples = read_samples([shards], "train", projection="all")
    table = samples.table
    hard = samples.targets(NAMES, SOFT)
    soft = samples.training_targets(NAMES, SOFT)
    assert set(np.unique(hard[~np.isnan(hard)])) == {0, 1}
    assert np.array_equal(hard, samples.targets(NAMES, LabelPolicy()), equal_nan=True)
    assert np.array_equal(hard, samples.training_targets(NAMES, LabelPolicy()), equal_nan=True)
    assert np.array_equal(soft[:, 0], hard[:, 0], equal_nan=True), "cardiomegaly has no shares"
    there = table["s_effusion"].notna().to_numpy()
    assert np.array_equal(soft[there, 1], table["s_effusion"].to_numpy()[there])
    assert np.array_equal(soft[~there, 1], hard[~there, 1], equal_nan=True)
    assert 0 < there.sum() < len(there)
    batch = TrainingImages(samples, soft, InputConfig(image_size=32, workers=0), 0)[0]
    assert batch["target"][1] == soft[int(batch["sample"]), 1]


def test_a_share_wins_over_a_masked_value(tmp_path):
    rows = make_import(tmp_path / "raw", images=8).rows
    rows = [replace(row, split="train", findings={"effusion": -1}, soft={"effusion": 0.5}) for row in rows]
    samples = read_samples([pack(Import(rows, []), tmp_path)], "train", projection="all")
    assert np.isnan(samples.targets(["effusion"], SOFT)).all()
    assert (samples.training_targets(["effusion"], SOFT) == 0.5).all()


def test_shares_over_two_folders_are_kept_where_they_are(shards, tmp_path):
    plain = pack(make_import(tmp_path / "raw", images=12, seed=1), tmp_path)
    both, alone = (read_samples(folders, "train", projection="all") for folders in ([plain, shards], [shards]))
    targets = both.training_targets(NAMES, SOFT)
    assert np.array_equal(targets[-len(alone) :], alone.training_targets(NAMES, SOFT), equal_nan=True)
    first = targets[: -len(alone)]
    assert np.array_equal(first, both.targets(NAMES, SOFT)[: -len(alone)], equal_nan=True)


def test_asking_for_shares_where_there_are_none_is_a_sentence(tmp_path, shards):
    toy = read_samples([make_shards(tmp_path, patients=10)], "train")
    with pytest.raises(UserError, match=r"`labels.soft` needs shards with shares of readers, got none .* by `mean`"):
        toy.training_targets(NAMES, SOFT)
    with pytest.raises(UserError, match=r"`labels.soft` needs shards with shares"):
        read_samples([shards], "train", projection="all").training_targets(["cardiomegaly"], SOFT)


def test_findings_and_class_weights_go_by_values(shards):
    train, val = (read_samples([shards], split, projection="all") for split in ("train", "val"))
    assert choose_findings(train, val, SOFT) == choose_findings(train, val, LabelPolicy())
    config = FinetuneConfig.build(finetune_tree(shards) | {"labels": {"soft": True}}, where="x")
    weights = balanced_weights(train.targets(NAMES, LabelPolicy()))
    parts = Parts(config, train, val, NAMES, train.training_targets(NAMES, SOFT), val.targets(NAMES, SOFT))
    assert np.allclose(parts.build_task().loss.pos_weight.numpy(), weights)


def test_the_loss_towards_a_share_is_the_mean_of_the_losses_of_its_readers():
    logits = torch.tensor([[0.3], [-1.2]])

    class Fixed(nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return logits

    def loss(targets: list[float]) -> float:
        task = FinetuneTask(Fixed(), loss=MultiLabelLoss(LossConfig(), pos_weight=np.array([2.5]), known_share=1.0))
        return float(task({"image": torch.zeros(2), "target": torch.tensor(targets)[:, None]})["loss"])

    votes = [(1.0, 0.0), (0.0, 1.0), (0.0, 1.0)]
    assert loss([1 / 3, 2 / 3]) == pytest.approx(np.mean([loss(list(vote)) for vote in votes]))


def test_a_run_with_soft_labels_trains_on_them_and_is_judged_by_values(shards, tmp_path, monkeypatch):
    seen: dict[type, list[np.ndarray]] = {TrainingImages: [], EvaluationImages: []}

    def record(kind: type) -> None:
        begin = kind.__init__

        def recorded(self, *args, **options):
            begin(self, *args, **options)
            seen[kind].append(self.targets)

        monkeypatch.setattr(kind, "__init__", recorded)

    for kind in seen:
        record(kind)
    tree = finetune_tree(shards, steps=1) | {"labels": {"soft": True}, "findings": NAMES}
    tree["input"]["projection"] = "all"
    finetune(FinetuneConfig.build(tree, where="x"), tmp_path / "run", world=World())
    assert seen[TrainingImages]
    assert seen[EvaluationImages]
    for targets in seen[TrainingImages]:
        assert {0.5, np.float32(1 / 3)} <= set(targets[:, 1].tolist())
    for targets in seen[EvaluationImages]:
        assert set(targets[~np.isnan(targets)]) == {0, 1}


def test_soft_labels_of_validation_and_test_are_refused():
    tree = {"shards": "s", "labels": {"soft": True, "uncertain": "ones"}}
    assert FinetuneConfig.build(tree, where="x").evaluation_policy() == LabelPolicy()
    with pytest.raises(UsageError, match=r"`eval_labels` must not have `soft` true: a metric needs a yes or a no"):
        FinetuneConfig.build(tree | {"eval_labels": {"soft": True}}, where="x")
