"""Cells tested on other datasets: what is planned, predicted and kept; and dimensions, whose product are variants."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from helpers import make_shards, study_tree
from PIL import Image
from sklearn.metrics import roc_auc_score

from cxrdist.config import Tree, override, write_yaml
from cxrdist.errors import UsageError
from cxrdist.finetune.config import FinetuneConfig
from cxrdist.finetune.run import finetune, open_test
from cxrdist.study.config import StudyConfig
from cxrdist.study.external import evaluate_external, is_evaluated, others_of, predictions_file
from cxrdist.study.external_guards import check_external, find_leaks
from cxrdist.study.ledger import Ledger, claim
from cxrdist.study.plan import Plan, missing_weights, plan_study
from cxrdist.study.run import report_study
from cxrdist.train.run_folder import read_test_accesses
from cxrdist.world import World

TWO = {
    "protocol": {"full": {}, "probe": {"set": {"protocol.name": "probe", "optim.lr": 0.5}}},
    "size": {"8": {"set": {"train_images": 8, "optim": {"lr": 0.25}}}, "all": {}},
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("external")
    return {
        name: make_shards(root / name, patients=30 + 30 * seed, seed=seed, name=name) for seed, name in enumerate("abc")
    }


def tree_of(shards: dict[str, Path], **changes: object) -> Tree:
    """Return a study that trains on `a` alone; of `c` only PA images and effusion count."""
    of_c = {"findings": ["effusion"], "input.projection": "PA"}
    tree = study_tree(
        shards, targets=["a"], external="all", datasets__c__set=of_c, recipe__input__fit="crop", **changes
    )
    statistics = tree["statistics"] | {"metrics": ["auroc"]}
    return tree | {"stages": {}, "strategies": {"random": {}}, "statistics": statistics}


def study_of(tree: Tree) -> StudyConfig:
    return StudyConfig.build(tree, where="test")


def plan(tree: Tree, out: Path = Path("out")) -> Plan:
    return plan_study(study_of(tree), out)


def read(tree: Tree, folder: Path, *settings: str) -> StudyConfig:
    write_yaml(tree, folder / "study.yaml")
    return StudyConfig.read(folder / "study.yaml", settings)


@pytest.fixture(scope="module")
def trained(shards: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tree]:
    """Return a study folder with its cells trained and tested, and its tree; no other dataset was looked at."""
    out, tree = tmp_path_factory.mktemp("study"), tree_of(shards)
    ledger = Ledger(out / "ledger.jsonl")
    for job in plan(tree, out).cells:
        claim(job)
        finetune(FinetuneConfig.build(job.tree, where=job.name), job.folder, world=World())
        open_test(job.folder)
        ledger.append("done", job)
    return out, tree


def plainly(folder: Path, shards: Path, *, projection: str | None) -> dict[str, np.ndarray]:
    """Return image id -> probabilities of a saved model by timm and Pillow alone, over a split of 32 x 36 pixels."""
    net = timm.create_model(f"local-dir:{folder / 'model'}", pretrained=True).eval()
    mean, std = (np.array(net.pretrained_cfg[name])[:, None, None] for name in ("mean", "std"))
    index = pd.read_parquet(shards / "index.parquet").query("split == 'test'")
    found = {}
    for row in index[index["projection"] == projection].to_dict("records") if projection else index.to_dict("records"):
        with tarfile.open(shards / row["shard"]) as tar:
            data = tar.extractfile(f"{row['key']}.png").read()
        grey = np.asarray(Image.open(io.BytesIO(data)))[:, 2:34] / 255
        batch = torch.from_numpy((np.stack([grey] * 3) - mean) / std)[None].float()
        with torch.no_grad():
            found[row["image_id"]] = torch.sigmoid(net(batch))[0].numpy()
    return found


def test_other_datasets_are_predicted_as_the_saved_model_does_and_by_their_own_labels(trained, shards):
    out, tree = trained
    (job,) = plan(tree, out).externals
    assert job.name == "random--a--seed0--external" and not is_evaluated(job)
    evaluate_external(job)
    assert is_evaluated(job)
    names = json.loads((job.folder.parent / "model/config.json").read_text())["label_names"]
    for dataset, projection, findings in (("b", None, ["cardiomegaly", "effusion"]), ("c", "PA", ["effusion"])):
        table = pd.read_parquet(predictions_file(job, dataset)).set_index("image_id")
        expected = plainly(job.folder.parent, shards[dataset], projection=projection)
        assert set(table.index) == set(expected) and len(table) == len(expected)
        assert [name[2:] for name in table.columns if name.startswith("p_")] == findings
        index = pd.read_parquet(shards[dataset] / "index.parquet").set_index("image_id").loc[table.index]
        assert list(index["patient_id"]) == list(table["patient_id"])
        for name in findings:
            plain = [expected[image][names.index(name)] for image in table.index]
            np.testing.assert_allclose(table[f"p_{name}"], plain, atol=1e-5)
            assert list(table[f"y_{name}"]) == list(index[f"y_{name}"])
    # Opened once each, in the list that the cell's own test is in, after its step was chosen.
    accesses = read_test_accesses(job.folder.parent)
    assert [one.get("dataset") for one in accesses] == [None, "b", "c"]
    assert all(guard.passed for guard in check_external(plan(tree, out), find_leaks(study_of(tree), plan(tree, out))))


def test_a_dataset_named_later_is_looked_at_alone(trained, shards):
    out, tree = trained
    (first,) = plan(override(tree, {"external": ["b"]}), out).externals
    (both,) = plan(tree, out).externals
    assert first.key != both.key and others_of(first)["b"].key == others_of(both)["b"].key
    evaluate_external(both)
    before = predictions_file(both, "b").stat().st_mtime_ns
    assert is_evaluated(first), "what was made for more datasets serves fewer"
    # Other labels of `c` are another question, and `b` is not asked again.
    (changed,) = plan(override(tree, {"datasets.c.set.eval_labels": {"uncertain": "zeros"}}), out).externals
    assert not is_evaluated(changed)
    evaluate_external(changed)
    assert is_evaluated(changed) and not is_evaluated(both)
    assert predictions_file(both, "b").stat().st_mtime_ns == before
    # What a kill leaves is not taken for a result: the file that vouches is written last.
    (changed.folder / "c.json").unlink()
    assert not is_evaluated(changed)
    evaluate_external(both)


def test_nothing_shared_is_said_and_opens_nothing(trained):
    out, tree = trained
    narrow = override(tree, {"datasets.c.set.findings": ["pneumothorax"]})
    job = plan(narrow, out).externals[0]
    opened = len(read_test_accesses(job.folder.parent))
    evaluate_external(job)
    told = json.loads((job.folder / "c.json").read_text())
    assert (told["findings"], told["why"]) == ([], "no finding that both annotate")
    opened_now = [one["dataset"] for one in read_test_accesses(job.folder.parent)[opened:]]
    assert "c" not in opened_now and is_evaluated(job)


def test_report_shows_what_scikit_learn_finds_in_the_files(trained):
    out, tree = trained
    study = study_of(tree)
    (job,) = plan(tree, out).externals
    evaluate_external(job)
    Ledger(out / "ledger.jsonl").append("done", job)
    page = report_study(study, out)
    rows = pd.read_csv(page.parent / "external.csv").set_index("tested")
    for dataset in "bc":
        table = pd.read_parquet(predictions_file(job, dataset))
        names = [name[2:] for name in table.columns if name.startswith("p_")]
        areas = [roc_auc_score(table[f"y_{name}"], table[f"p_{name}"]) for name in names]
        assert rows.loc[dataset, "auroc"] == pytest.approx(np.mean(areas), abs=1e-12)
        assert rows.loc[dataset, "findings"].split() == names
    text = page.read_text()
    assert 'id="across"' in text and "a → b" in text


def test_cells_and_their_keys_are_the_same_with_and_without(shards):
    with_it, without = plan(tree_of(shards)), plan(override(tree_of(shards), {"external": None}))
    assert with_it.cells == without.cells and with_it.stages == without.stages
    assert without.externals == () and without.jobs == without.cells
    (job,) = with_it.externals
    assert job.needs == (with_it.cells[0].identity,) and job.resources.workers == 1
    assert missing_weights([job]) == {}
    # Moving the folders changes no key; another cell does.
    other = plan(override(tree_of(shards), {"recipe.optim.lr": 0.7})).externals[0]
    assert others_of(other)["b"].key != others_of(job)["b"].key
    with pytest.raises(UsageError, match=r"must be one of a, b, c, got 'd'"):
        plan(override(tree_of(shards), {"external": ["d"]}))


def test_a_tested_patient_that_was_trained_on_is_told(shards, tmp_path):
    """`twin` is `a` under another name: its training labels were learned, and `near` says that it shares images."""
    tree = override(tree_of(shards), {"datasets.twin": {"shards": str(shards["a"])}, "external": ["twin", "b"]})
    found = plan(tree, tmp_path)
    guards = {guard.name.split()[1]: guard for guard in check_external(found, find_leaks(study_of(tree), found))}
    assert not guards["model"].passed and "a → twin (random)" in guards["model"].detail
    assert "→ b" not in guards["model"].detail
    manifest = shards["b"] / "manifest.json"
    kept = manifest.read_text()
    try:
        for name, passed in (("rsna_pneumonia", False), ("vindr_cxr", True)):
            for folder, dataset in ((shards["b"], "nih14"), (shards["c"], name)):
                path = folder / "manifest.json"
                path.write_text(json.dumps(json.loads(path.read_text()) | {"dataset": dataset}))
            tree = override(tree_of(shards), {"targets": ["b"], "external": ["c"]})
            found = plan(tree, tmp_path)
            guard = check_external(found, find_leaks(study_of(tree), found))[0]
            assert guard.passed == passed
    finally:
        manifest.write_text(kept)
        path = shards["c"] / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"dataset": "c"}, indent=2) + "\n")


# Dimensions


def test_dimensions_are_the_product_of_their_values_in_the_files_order(shards):
    tree = study_tree(shards, dimensions=TWO)
    study = study_of(tree)
    assert list(study.ways()) == ["full-8", "full-all", "probe-8", "probe-all"]
    found = {job.name: job.tree for job in plan(tree).cells}
    assert len(found) == 2 * 3 * 4
    probe, full = found["ssl--a--probe-8--seed0"], found["random--b--full-all--seed0"]
    assert (probe["protocol"]["name"], probe["train_images"], probe["optim"]["lr"]) == ("probe", 8, 0.25)
    assert (full["protocol"]["name"], full["train_images"], full["optim"]["lr"]) == ("full", None, 1e-3)
    # A variant of the same meaning is the same work.
    same = study_tree(shards, variants={"x": {"set": {"protocol.name": "probe", "train_images": 8, "optim.lr": 0.25}}})
    keys = {job.name: job.key for job in plan(same).cells}
    assert keys["ssl--a--x--seed0"] == next(j.key for j in plan(tree).cells if j.name == "ssl--a--probe-8--seed0")


def test_limits_of_values_are_met_together(shards):
    limited = override(
        TWO, {"protocol.probe.strategies": ["ssl"], "size.8.datasets": ["a", "b"], "size.all.datasets": ["b", "c"]}
    )
    grid = study_of(study_tree(shards, dimensions=limited)).grid()
    assert {(s, d) for s, d, way, _ in grid if way == "probe-8"} == {("ssl", "a"), ("ssl", "b")}
    assert {d for _, d, way, _ in grid if way == "full-all"} == {"b", "c"}
    # Two values that no strategy has together are no variant, and each still has cells.
    apart = override(limited, {"size.8.strategies": ["random"]})
    assert "probe-8" not in study_of(study_tree(shards, dimensions=apart)).ways()
    none = override(apart, {"size.all.strategies": ["random"]})
    with pytest.raises(UsageError, match="A value of dimension 'protocol' must have a cell, got none for 'probe'"):
        study_of(study_tree(shards, dimensions=none))


def test_dimensions_that_cannot_be_are_told(shards):
    for changes, sentence in (
        ({"variants": {"x": {}}}, "`variants` must be left out where there are `dimensions`"),
        ({"dimensions.size": {"a--b": {}}}, "letters, digits"),
        ({"dimensions.size.8.set": {"seed": 3}}, "`dimensions.size.8.set` must leave out `seed`"),
        ({"dimensions.size.8.set": {"train_image": 3}}, "train_images"),
    ):
        with pytest.raises(UsageError, match=sentence):
            plan(override(study_tree(shards, dimensions=TWO), changes))
    alike = {"one": {"x-y": {}, "x": {}}, "two": {"z": {}, "y-z": {}}}
    with pytest.raises(UsageError, match="a name of its own, got 'x-y-z' 2 times"):
        plan(study_tree(shards, dimensions=alike))


def test_null_takes_a_value_out_and_a_number_is_a_name(shards, tmp_path):
    tree = study_tree(shards, dimensions={"size": {8: {"set": {"train_images": 8}}, "all": {}}})
    assert list(read(tree, tmp_path).ways()) == ["8", "all"]
    assert list(read(tree, tmp_path, "dimensions.size.8=null").ways()) == ["all"]
    assert list(read(tree, tmp_path, "dimensions=null", "dimensions={}").ways()) == [""]
    assert read(tree, tmp_path, "dimensions.size.8.set.train_images=4").ways()["8"].set["train_images"] == 4
    write_yaml(tree | {"debug": {"dimensions.size.all": None}}, tmp_path / "study.yaml")
    assert list(StudyConfig.read(tmp_path / "study.yaml", debug=True).ways()) == ["8"]


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("variants.prob.set.x=1", "Did you mean 'probe'"),
        ("strategies.sll.stage=ssl", "Did you mean 'ssl'"),
        ("datasets.d.set.train_images=1", "must be one of a, b, c, got 'd'"),
        ("stages.mae.pretrain.train.steps=1", "must be one of ssl, got 'mae'"),
        ("dimensions.size.500.set.train_images=1", "must be in the file, got 'size'"),
        ("variants.porbe=null", "Did you mean 'probe'"),
    ],
)
def test_part_of_what_a_study_has_not_cannot_be_set(shards, tmp_path, setting, told):
    tree = study_tree(shards, variants={"probe": {"set": {"protocol.name": "probe"}}})
    with pytest.raises(UsageError, match=told):
        read(tree, tmp_path, setting)
    assert "new" in read(tree, tmp_path, "variants.new={}", "variants.new.set.train_images=4").variants
