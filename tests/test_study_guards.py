"""Each guard fails when its rule is broken, and only then.  Run folders hold what guards read and no more."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from helpers import make_shards, study_tree

from cxrdist.config import Tree, override
from cxrdist.datasets.shard_format import INDEX
from cxrdist.report import Guard
from cxrdist.study.config import StudyConfig
from cxrdist.study.guards import check_study, describe_confounds
from cxrdist.study.plan import plan_study
from cxrdist.train.run_folder import record_test_access, write_json

DISJOINT = "No patient is in two splits of a dataset"
OVERLAP = "No known overlap between pretraining and test data"
SHARED = "No test or validation patient was trained on in a stage"
OWN_LABELS = "No strategy was pretrained on the labels of its own target"
TEST_LAST = "Test splits are opened after the step is chosen"
BUDGET = "Every strategy has the same recipe and budget"
PROJECTION = "Projection alone says little about the findings of a"


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("guards")
    return {name: make_shards(root / name, patients=30, seed=seed, name=name) for seed, name in enumerate("ab")}


@pytest.fixture
def shards(packed: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    """Return shard folders of this test alone, whose findings have nothing to do with the projection."""
    copies = {name: Path(shutil.copytree(folder, tmp_path / "shards" / name)) for name, folder in packed.items()}
    for folder in copies.values():
        edit(folder, lambda index: mix(index, ["y_cardiomegaly", "y_effusion"]))
    return copies


def edit(folder: Path, change: Callable[[pd.DataFrame], None]) -> None:
    """Change the index of a shard folder, its columns' types kept."""
    index = pd.read_parquet(folder / INDEX, dtype_backend="numpy_nullable")
    change(index)
    index.to_parquet(folder / INDEX, index=False)


def mix(index: pd.DataFrame, columns: list[str]) -> None:
    """Give half of the images of each split and projection each finding."""
    alternating = index.groupby(["split", "projection"]).cumcount() % 2
    for column in columns:
        index[column] = alternating.astype("Int8")


def guards(tree: Tree, out: Path, *, late: tuple[str, ...] = (), unseen: tuple[str, ...] = ()) -> dict[str, Guard]:
    """Return the guards by name, after every cell has ended.

    The training of `late` ones ended after their test was opened; nobody noted that those of `unseen` were.
    """
    study = StudyConfig.build(tree, where="test")
    plan = plan_study(study, out)
    for job in plan.cells:
        job.folder.mkdir(parents=True)
        if job.name not in unseen:
            record_test_access(job.folder, {"split": "test"})
        time = 1e12 if job.name in late else 0.0
        write_json(job.folder / "result.json", {"time": time, "findings": job.tree["findings"]})
    return {guard.name: guard for guard in check_study(study, plan, plan.cells)}


def failed(found: dict[str, Guard]) -> set[str]:
    return {name for name, guard in found.items() if not guard.passed}


def test_sound_study_passes_every_guard(shards, tmp_path):
    found = guards(study_tree(shards), tmp_path)
    assert failed(found) == set()
    assert {DISJOINT, OVERLAP, SHARED, OWN_LABELS, TEST_LAST, BUDGET, PROJECTION} <= found.keys()
    assert all(guard.detail for guard in found.values())


def test_patient_in_two_splits(shards, tmp_path):
    def change(index: pd.DataFrame) -> None:
        patients = {split: index.loc[index["split"] == split, "patient_id"].iloc[0] for split in ("train", "test")}
        index["patient_id"] = index["patient_id"].replace(patients["test"], patients["train"])

    edit(shards["b"], change)
    # The masked autoencoder reads b's training split, so its cell on b has met the patient too.
    found = guards(study_tree(shards), tmp_path)
    assert failed(found) == {DISJOINT, SHARED}
    assert found[DISJOINT].detail == "b: 1 patients in two splits"


def test_test_patient_in_the_training_split_of_a_stage(shards, tmp_path):
    index = pd.read_parquet(shards["a"] / INDEX)
    patient = index.loc[index["split"] == "test", "patient_id"].iloc[0]

    def change(other: pd.DataFrame) -> None:
        first = other.loc[other["split"] == "train", "patient_id"].iloc[0]
        other["patient_id"] = other["patient_id"].replace(first, patient)

    edit(shards["b"], change)
    found = guards(study_tree(shards), tmp_path)
    assert failed(found) == {SHARED}
    assert found[SHARED].detail == "ssl on a: 1 patients"


def test_stage_with_the_labels_of_its_target(shards, tmp_path):
    tree = study_tree(shards, stages__labels={"datasets": ["a"], "train": {}})
    tree = override(tree, {"strategies.supervised": {"stage": "labels"}})
    found = guards(tree, tmp_path)
    assert failed(found) == {OWN_LABELS}
    assert found[OWN_LABELS].detail == "supervised on a"


def test_labels_of_the_target_two_stages_back(shards, tmp_path):
    tree = study_tree(shards, stages__labels={"datasets": ["a"], "train": {}}, stages__ssl__start="labels")
    found = guards(tree, tmp_path)
    assert failed(found) == {OWN_LABELS}
    assert found[OWN_LABELS].detail == "ssl on a"


def test_other_stage_for_the_dataset_mends_it(shards, tmp_path):
    tree = study_tree(
        shards, stages__one={"datasets": ["a"], "train": {}}, stages__two={"datasets": ["b"], "train": {}}
    )
    tree = override(tree, {"strategies.supervised": {"stage": "one", "stage_for": {"a": "two"}}})
    assert failed(guards(tree, tmp_path)) == set()


def test_same_dataset_packed_twice_is_an_overlap(packed, shards, tmp_path):
    again = Path(shutil.copytree(shards["a"], tmp_path / "again"))
    edit(again, lambda index: index.__setitem__("patient_id", "x" + index["patient_id"]))
    found = guards(study_tree({"a": shards["a"], "b": again}), tmp_path)
    assert failed(found) == {OVERLAP}
    assert "ssl on a starts from b" in found[OVERLAP].detail


def test_test_split_opened_before_the_training_had_ended(shards, tmp_path):
    found = guards(study_tree(shards), tmp_path, late=("ssl--a--seed0",))
    assert failed(found) == {TEST_LAST}
    assert found[TEST_LAST].detail == "ssl--a--seed0 was opened before"


def test_test_predictions_without_a_record_of_an_opening(shards, tmp_path):
    found = guards(study_tree(shards), tmp_path, unseen=("random--b--seed0",))
    assert failed(found) == {TEST_LAST}
    assert found[TEST_LAST].detail == "random--b--seed0 has test predictions and no record of an opening"


@pytest.mark.parametrize("change", [{"train.steps": 40}, {"optim.lr": 0.1}, {"train.global_batch_size": 4}])
def test_another_budget_for_one_strategy(shards, tmp_path, change):
    found = guards(study_tree(shards, strategies__random={"set": change}), tmp_path)
    assert failed(found) == {BUDGET}
    assert next(iter(change)) in found[BUDGET].detail


def test_another_budget_for_one_dataset_is_fair(shards, tmp_path):
    assert failed(guards(study_tree(shards, datasets__a__set={"train.steps": 40}), tmp_path)) == set()


def by_projection(index: pd.DataFrame) -> None:
    index["y_effusion"] = (index["projection"] == "AP").astype("Int8")


def test_finding_that_the_projection_gives_away(shards, tmp_path):
    edit(shards["a"], by_projection)
    found = guards(study_tree(shards), tmp_path)
    assert failed(found) == {PROJECTION}
    assert "an AUROC of 1.000 for effusion" in found[PROJECTION].detail
    assert "`input.projection`" in found[PROJECTION].detail


def test_finding_that_no_cell_predicts_is_not_judged(shards, tmp_path):
    edit(shards["a"], by_projection)
    assert failed(guards(study_tree(shards, recipe__findings=["cardiomegaly"]), tmp_path)) == set()


def test_projection_is_judged_on_the_images_of_the_cells(shards, tmp_path):
    def mark_laterals(index: pd.DataFrame) -> None:
        # Frontal images tell nothing; laterals, which no cell reads, would give the finding away.
        index["projection"] = ["lateral" if number % 3 == 0 else "PA" for number in range(len(index))]
        mix(index, ["y_effusion"])
        index.loc[index["projection"] == "lateral", "y_effusion"] = 1
        if "frontal" in index:
            index["frontal"] = index["projection"] == "PA"

    edit(shards["a"], mark_laterals)
    assert failed(guards(study_tree(shards), tmp_path / "frontal")) == set()
    everything = study_tree(shards, recipe__input__projection="all")
    assert failed(guards(everything, tmp_path / "all")) == {PROJECTION}


def test_projection_is_judged_under_the_label_policies_of_the_cells(shards, tmp_path):
    def doubt(index: pd.DataFrame) -> None:
        index.loc[(index["split"] == "test") & (index["projection"] == "AP"), "y_effusion"] = -1
        index.loc[(index["split"] == "train") & (index["projection"] == "AP"), "y_effusion"] = 1

    edit(shards["a"], doubt)
    # Uncertain ones are masked in test, and one projection is left: nothing to tell apart.
    assert failed(guards(study_tree(shards), tmp_path / "masked")) == set()
    ones = study_tree(shards, recipe__eval_labels={"uncertain": "ones"})
    assert failed(guards(ones, tmp_path / "ones")) == {PROJECTION}


def test_validation_patient_of_a_supervised_stage_is_one_that_it_learned_from(shards, tmp_path):
    index = pd.read_parquet(shards["a"] / INDEX)
    patient = index.loc[index["split"] == "test", "patient_id"].iloc[0]

    def change(other: pd.DataFrame) -> None:
        first = other.loc[other["split"] == "val", "patient_id"].iloc[0]
        other["patient_id"] = other["patient_id"].replace(first, patient)

    edit(shards["b"], change)
    assert failed(guards(study_tree(shards), tmp_path / "ssl")) == set()
    tree = study_tree(shards, targets=["a"], stages__labels={"datasets": ["b"], "train": {}})
    found = guards(override(tree, {"strategies.supervised": {"stage": "labels"}}), tmp_path / "labels")
    assert failed(found) == {SHARED}
    assert found[SHARED].detail == "supervised on a: 1 patients"


def test_unfinished_cells_stop_no_guard(shards, tmp_path):
    study = StudyConfig.build(study_tree(shards), where="test")
    found = {guard.name: guard for guard in check_study(study, plan_study(study, tmp_path), [])}
    assert failed(found) == set() and PROJECTION not in found


def test_strategies_that_are_the_same_are_named(shards, tmp_path):
    tree = study_tree(shards, strategies__ssl__stage_for={"b": None}, strategies__other={"set": {"optim.lr": 0.1}})
    notes = describe_confounds(plan_study(StudyConfig.build(tree, where="test"), tmp_path))
    assert notes == ["b: random, ssl have the same configuration and the same start; they compare nothing."]


def test_another_patch_size_is_named_as_a_confound(shards, tmp_path):
    tree = study_tree(shards, strategies__random={"set": {"model.args.patch_size": 16}})
    notes = describe_confounds(plan_study(StudyConfig.build(tree, where="test"), tmp_path))
    assert len(notes) == 1 and notes[0].startswith("a; b: ")
    assert "`model.args.patch_size` differs between strategies (random: 16, ssl: 8)" in notes[0]
