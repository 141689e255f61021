"""What a study's keys make of weights: their content counts, wherever it lies; a timm name stands for itself."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers import make_shards, study_tree
from safetensors.torch import save_file

from cxrdist.study.config import StudyConfig
from cxrdist.study.plan import plan_study


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    root = tmp_path_factory.mktemp("plan")
    return {name: make_shards(root / name, patients=20, seed=seed, name=name) for seed, name in enumerate("ab")}


def cell(shards, weights):
    tree = study_tree(shards, strategies__random={"set": {"model.weights": str(weights)}})
    plan = plan_study(StudyConfig.build(tree, where="test"), Path("out"))
    return next(job for job in plan.jobs if job.name == "random--a--seed0")


def write_folder(folder: Path, value: float) -> Path:
    """Write a model folder whose weights lie in two files."""
    folder.mkdir(parents=True)
    for k in range(2):
        save_file({f"w{k}": torch.full((2,), value + k)}, folder / f"model-{k}.safetensors")
    index = {"weight_map": {f"w{k}": f"model-{k}.safetensors" for k in range(2)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_every_file_of_a_model_folder_counts_and_its_place_does_not(shards, tmp_path):
    one = write_folder(tmp_path / "one", 1.0)
    moved = Path(shutil.copytree(one, tmp_path / "moved" / "there"))
    assert cell(shards, one).key == cell(shards, moved).key
    save_file({"w1": torch.ones(2)}, moved / "model-1.safetensors")
    assert cell(shards, one).key != cell(shards, moved).key


def test_a_timm_name_stays_a_name_for_the_worker_and_for_the_key(shards, tmp_path, monkeypatch):
    name = "timm:vit_tiny_patch16_224.augreg_in21k"
    before = cell(shards, name)
    assert before.tree["model"]["weights"] == name
    monkeypatch.chdir(tmp_path)
    assert cell(shards, name).key == before.key
    assert cell(shards, "timm:vit_tiny_patch16_224.augreg_in21k_ft_in1k").key != before.key


def test_a_path_is_made_absolute_for_a_worker_elsewhere(shards, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "mine", 1.0)
    assert cell(shards, "mine").tree["model"]["weights"] == str(tmp_path / "mine")
