"""Variants, limited strategies, debug sizes and folders of weights: what they make of a study's plan."""

from pathlib import Path

import pytest
from helpers import make_shards, study_tree

from cxrdist.config import Tree, override, write_yaml
from cxrdist.errors import UsageError, UserError
from cxrdist.finetune.config import FinetuneConfig
from cxrdist.pretrain.config import PretrainConfig
from cxrdist.study.config import StudyConfig
from cxrdist.study.guards import check_study, describe_confounds
from cxrdist.study.jobs import Job
from cxrdist.study.plan import Plan, job_key, plan_study
from cxrdist.study.run import run_study, study_status

METHODS = ("mae", "simmim", "simclr", "moco_v2", "moco_v3", "byol", "swav", "dino", "dinov2", "supervised")
TWO = {"small": {"set": {"train_images": 8}}, "probe": {"set": {"protocol.name": "probe"}}}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("variants")
    return {name: make_shards(root / name, patients=20, seed=seed, name=name) for seed, name in enumerate("ab")}


def plan(tree: Tree, out: Path = Path("out")) -> Plan:
    return plan_study(StudyConfig.build(tree, where="test"), out)


def cells(tree: Tree) -> dict[str, Job]:
    return {job.name: job for job in plan(tree).cells}


def faults(tree: Tree) -> list[str]:
    with pytest.raises(UsageError) as caught:
        plan(tree)
    return str(caught.value).splitlines()


def read(tree: Tree, folder: Path, *settings: str, debug: bool = False) -> StudyConfig:
    write_yaml(tree, folder / "study.yaml")
    return StudyConfig.read(folder / "study.yaml", settings, debug=debug)


# Keys


def test_names_that_configurations_got_later_change_no_key_of_a_finished_study():
    """Where this fails by a new field whose default means what was before, the field belongs into `LATER`."""
    trained = job_key("train", FinetuneConfig.build({"shards": "x"}, where="test"), None, ["m"])
    pretrained = job_key("pretrain", PretrainConfig.build({"shards": ["x"]}, where="test"), None, ["m"])
    assert (trained, pretrained) == ("fc9872bce1834842", "4b6dc06fdbed540e")


def test_looking_at_a_pretraining_changes_no_key(shards):
    before = {job.name: job.key for job in plan(study_tree(shards)).jobs}
    looked = {"watch": {"shards": "a", "images": 64, "probes": ["knn"]}, "train.evaluate_every": 1}
    tree = study_tree(shards)
    tree["stages"]["ssl"]["pretrain"] |= looked
    assert {job.name: job.key for job in plan(tree).jobs} == before
    # A dataset of the study is known by its name there.
    assert plan(tree).stages[0].tree["watch"]["shards"] == str(shards["a"].resolve())


def test_a_pretraining_is_watched_on_all_folders_of_a_dataset(shards):
    both = [str(folder.resolve()) for folder in shards.values()]
    tree = study_tree(shards)
    tree["datasets"]["whole"] = {"shards": both}
    for given, expected in (("whole", both), (["b", both[0]], both[::-1]), (["a"], both[0])):
        tree["stages"]["ssl"]["pretrain"]["watch"] = {"shards": given}
        assert plan(tree).stages[0].tree["watch"]["shards"] == expected


# Variants


def test_study_without_variants_has_the_names_and_keys_it_had(shards):
    plain = cells(study_tree(shards))
    assert set(plain) == {f"{s}--{d}--seed0" for s in ("random", "ssl") for d in "ab"}
    assert {name: job.key for name, job in cells(study_tree(shards, variants={})).items()} == {
        name: job.key for name, job in plain.items()
    }
    # A variant that changes nothing is the same work under another name.
    named = cells(study_tree(shards, variants={"all": {}}))
    assert named["ssl--a--all--seed0"].key == plain["ssl--a--seed0"].key
    assert named["ssl--a--all--seed0"].folder.name == "ssl--a--all--seed0"


def test_every_strategy_has_a_cell_in_every_variant_of_every_dataset(shards):
    found = cells(study_tree(shards, variants=TWO, seeds=[0, 1]))
    assert set(found) == {
        f"{s}--{d}--{v}--seed{k}" for s in ("random", "ssl") for d in "ab" for v in TWO for k in (0, 1)
    }
    assert len({job.key for job in found.values()}) == len(found)
    assert {job.variant for job in found.values()} == set(TWO)


def test_variants_share_their_stages(shards):
    assert [job.key for job in plan(study_tree(shards, variants=TWO)).stages] == [
        job.key for job in plan(study_tree(shards)).stages
    ]


def test_recipe_yields_to_dataset_to_variant_to_strategy(shards):
    tree = study_tree(
        shards,
        recipe__train_images=2,
        datasets__a__set={"train_images": 4, "optim.lr": 0.1},
        variants={"v": {"set": {"train_images": 6, "optim.lr": 0.2, "model.args.depth": 3}}, "w": {}},
        strategies__ssl__set={"model": {"args": {"depth": 1}}, "optim.lr": 0.3},
    )

    def facts(name: str) -> tuple:
        job = cells(tree)[name].tree
        return job["train_images"], job["optim"]["lr"], job["model"]["args"]["depth"]

    plain = study_tree(shards)["recipe"]["model"]["args"]["depth"]
    assert facts("random--b--w--seed0")[0] == 2
    assert facts("random--a--w--seed0") == (4, 0.1, plain)
    assert facts("random--a--v--seed0") == (6, 0.2, 3)
    assert facts("ssl--a--v--seed0") == (6, 0.3, 1)


def test_variant_is_limited_to_strategies_and_datasets(shards):
    variants = {"full": {}, "probe": {"strategies": ["ssl"], "datasets": ["b"], "set": {"protocol.name": "probe"}}}
    assert set(cells(study_tree(shards, variants=variants))) == {
        *(f"{s}--{d}--full--seed0" for s in ("random", "ssl") for d in "ab"),
        "ssl--b--probe--seed0",
    }


def test_strategy_is_limited_to_datasets_and_its_stages_to_what_is_left(shards):
    tree = study_tree(shards, stages__other={"datasets": ["b"], "train": {}})
    tree = override(tree, {"strategies.other": {"stage_for": {"a": "other"}, "datasets": ["a"]}})
    found = cells(tree)
    assert [name for name in found if name.startswith("other")] == ["other--a--seed0"]
    tree = override(tree, {"strategies.ssl": {"stage": "other", "stage_for": {"b": "ssl"}, "datasets": ["a"]}})
    assert [job.name for job in plan(tree).stages] == ["other"]


def test_wrong_names_of_limits_are_told_at_once_with_the_nearest(shards):
    tree = study_tree(
        shards,
        targets=["a"],
        strategies__ssl__datasets=["b", "a"],
        variants={"probe": {"strategies": ["sssl"], "datasets": ["c"], "set": {"protocol.nam": "probe"}}},
    )
    (line, *others) = faults(tree)
    assert "A dataset of strategy 'ssl' must be one of a, got 'b'" in line
    assert "A dataset of variant 'probe' must be one of a, got 'c'" in line
    assert "A strategy of variant 'probe' must be one of random, ssl, got 'sssl'. Did you mean 'ssl'?" in line
    assert len(others) == 1 and "`protocol.nam` is unknown" in others[0]
    assert others[0].endswith("[in test, variants.probe.set]")


def test_name_of_a_variant_that_no_folder_can_have_is_refused(shards):
    assert "got 'a--b'" in faults(study_tree(shards, variants={"a--b": {}}))[0]


@pytest.mark.parametrize("name", ["shards", "seed", "model.weights"])
def test_variant_must_leave_out_what_the_study_sets(shards, name):
    assert faults(study_tree(shards, variants={"v": {"set": {name: 1}}}))[0].startswith(
        f"`variants.v.set` must leave out `{name}`"
    )


def test_part_that_limits_leave_without_a_cell_is_told(shards):
    tree = study_tree(shards, strategies__ssl__datasets=["a"], variants={"v": {"datasets": ["b"]}})
    line = "; ".join(faults(tree))
    assert "A strategy must have a cell, got none for 'ssl'" in line
    assert "A target must have a cell, got none for 'a'" in line


def test_recipe_is_compared_within_a_variant(shards, tmp_path):
    def guard(tree: Tree) -> tuple[bool, str]:
        study = StudyConfig.build(tree, where="test")
        found = {one.name: one for one in check_study(study, plan_study(study, tmp_path), [])}
        one = found["Every strategy has the same recipe and budget"]
        return one.passed, one.detail

    tree = study_tree(shards, variants={**TWO, "long": {"set": {"train.steps": 8}}})
    assert guard(tree)[0]
    assert guard(override(tree, {"strategies.ssl.set": {"train.steps": 4}})) == (
        False,
        "a, long: train.steps, b, long: train.steps",
    )


def test_confounds_that_many_rows_share_are_told_once(shards):
    tree = study_tree(shards, variants=TWO, strategies__random={"set": {"model.args.patch_size": 16}})
    (note,) = describe_confounds(plan(tree))
    assert note.startswith("a, small; a, probe; b, small; b, probe: `model.args.patch_size` differs")


# Datasets of several folders


def test_several_folders_are_one_dataset(shards, tmp_path):
    tree = study_tree({"both": shards["a"]}, datasets__both__shards=[str(shards["a"]), str(shards["b"])])
    job = plan(tree).cells[0]
    assert job.tree["shards"] == [str(shards[name].resolve()) for name in "ab"]
    assert job.key != plan(study_tree({"both": shards["a"]})).cells[0].key
    # A pretraining reads all of them, as if they were two datasets.
    assert plan(tree).stages[0].tree["shards"] == job.tree["shards"]
    study = StudyConfig.build(tree, where="test")
    assert all(guard.passed for guard in check_study(study, plan_study(study, tmp_path), []))


# Pretraining stages


@pytest.mark.parametrize("method", METHODS)
def test_stage_takes_any_method_and_shares_the_input_of_the_recipe(shards, method):
    stage = {"datasets": ["b"], "pretrain": {"method": {"name": method}, "train": {"steps": 2}}}
    shared = {"image_size": 64, "fit": "squash", "projection": "all", "workers": 3}
    tree = study_tree(shards, recipe__input={**shared, "augment": {"rotate": 3}}) | {"stages": {"ssl": stage}}
    (job,) = plan(tree).stages
    assert job.method == "pretrain" and job.tree["method"]["name"] == method
    assert {name: job.tree["input"][name] for name in shared} == shared
    assert job.tree["model"] == plan(tree).cells[0].tree["model"]
    PretrainConfig.build(job.tree, where="test")  # what a worker reads


@pytest.mark.parametrize(("method", "wrong"), [("dino", "prototypez"), ("moco_v2", "local_crops"), ("swav", "que")])
def test_wrong_name_of_a_method_is_told(shards, method, wrong):
    tree = study_tree(shards)
    tree["stages"]["ssl"]["pretrain"]["method"] = {"name": method, wrong: 3}
    assert any(line.startswith("`method") and wrong in line for line in faults(tree))


def test_stage_starts_from_a_file_of_weights_and_another_from_that_stage(shards, tmp_path):
    weights = tmp_path / "imagenet.safetensors"
    weights.write_bytes(b"weights")
    stages = {
        "first": {"datasets": ["a"], "pretrain": {"method": {"name": "moco_v2"}, "model.weights": weights.name}},
        "then": {"datasets": ["b"], "pretrain": {"method": {"name": "dino"}}, "start": "first"},
    }
    tree = study_tree(shards, stages=stages, strategies__ssl={"stage": "then"}, weights_root=str(tmp_path))
    first, then = plan(tree).stages
    assert first.tree["model"]["weights"] == str(weights)
    assert then.tree["model"]["weights"] == str(first.folder) and then.needs == (first.identity,)
    keys = [first.key, then.key]
    weights.write_bytes(b"others")
    assert all(before != job.key for before, job in zip(keys, plan(tree).stages, strict=True))


def test_labels_of_a_supervised_pretraining_are_labels(shards, tmp_path):
    def passed(method: str) -> bool:
        stage = {"datasets": ["a", "b"], "pretrain": {"method": {"name": method}}}
        study = StudyConfig.build(study_tree(shards) | {"stages": {"ssl": stage}}, where="test")
        found = {one.name: one for one in check_study(study, plan_study(study, tmp_path), [])}
        return found["No strategy was pretrained on the labels of its own target"].passed

    assert passed("simclr") and not passed("supervised")


# Weights


def test_relative_weights_are_in_their_folder_and_moving_it_changes_no_key(shards, tmp_path):
    found = []
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "w.safetensors").write_bytes(b"weights")
        tree = study_tree(
            shards, weights_root=str(tmp_path / folder), strategies__random__set={"model.weights": "w.safetensors"}
        )
        found.append(cells(tree)["random--a--seed0"])
        assert found[-1].tree["model"]["weights"] == str(tmp_path / folder / "w.safetensors")
    assert found[0].key == found[1].key


@pytest.mark.parametrize("weights", ["timm:resnet50.tv_in1k", "/elsewhere/w.safetensors"])
def test_names_and_whole_paths_of_weights_stay(shards, weights):
    tree = study_tree(shards, weights_root="root", strategies__random__set={"model.weights": weights})
    assert cells(tree)["random--a--seed0"].tree["model"]["weights"] == weights


def test_missing_weights_are_told_before_anything_starts_and_a_plan_needs_none(shards, tmp_path):
    tree = study_tree(
        shards,
        targets=["a"],
        weights_root=str(tmp_path / "weights"),
        strategies__random__set={"model.weights": "r.pt"},
        strategies__hub={"set": {"model.weights": "timm:resnet50.tv_in1k"}},
        stages__ssl__pretrain__model={"weights": "s.pt"},
    )
    study = StudyConfig.build(tree, where="test")
    assert len(study_status(study, tmp_path / "out").jobs("left")) == 4
    with pytest.raises(UserError) as caught:
        run_study(study, tmp_path / "out")
    sentence = str(caught.value)
    assert sentence.count("\n") == 0 and "set `weights_root`" in sentence
    assert (
        f"got none at '{tmp_path}/weights/s.pt' (for ssl); '{tmp_path}/weights/r.pt' (for random--a--seed0)" in sentence
    )
    assert not (tmp_path / "out" / "study.yaml").exists() and not (tmp_path / "out" / "ledger.jsonl").exists()


# Debug sizes


def test_debug_size_is_applied_before_settings_and_changes_no_key_unless_asked_for(shards, tmp_path):
    tree = study_tree(shards)
    sized = {**tree, "debug": {"recipe": {"train": {"steps": 2}}, "recipe.optim.lr": 0.5, "seeds": [3]}}
    plain = plan_study(read(sized, tmp_path), tmp_path)
    assert [job.key for job in plain.jobs] == [job.key for job in plan(tree).jobs]
    (first, *_) = plan_study(read(sized, tmp_path, "recipe.optim.lr=0.25", debug=True), tmp_path).cells
    assert (first.tree["train"]["steps"], first.tree["optim"]["lr"], first.seed) == (2, 0.25, 3)
    assert "debug" not in read(sized, tmp_path, debug=True).tree()


@pytest.mark.parametrize(
    "given",
    [
        {"model.weights": "w.pt"},
        {"model": {"weights": "w.pt"}},
        {"model": {"args": {"depth": 1}}, "model.weights": "w.pt"},
        {"model.weights": "w.pt", "model.args": {"depth": 1}},
    ],
)
@pytest.mark.parametrize(
    "debug",
    [
        {"strategies.random.set.model.weights": None},
        {"strategies": {"random": {"set": {"model.weights": None}}}},
        {"strategies": {"random": {"set": {"model": {"weights": None}}}}},
    ],
)
def test_null_in_a_debug_size_takes_weights_away_however_either_is_written(shards, tmp_path, given, debug):
    sized = {**study_tree(shards, strategies__random={"set": given}), "debug": debug}
    weights = [
        next(job for job in plan_study(read(sized, tmp_path, debug=one), tmp_path).cells if job.strategy == "random")
        for one in (False, True)
    ]
    assert [job.tree["model"]["weights"] is None for job in weights] == [False, True]


def test_null_in_a_debug_size_takes_parts_of_the_grid_away(shards, tmp_path):
    sized = study_tree(shards, variants={"full": {}, **TWO}, strategies__other={"set": {"optim.lr": 0.1}})
    sized["debug"] = {
        "variants.probe": None,
        "strategies.other": None,
        "datasets.b": None,
        "stages.ssl.datasets": ["a"],
    }
    found = plan_study(read(sized, tmp_path, debug=True), tmp_path)
    assert {job.name for job in found.cells} == {
        f"{s}--a--{v}--seed0" for s in ("random", "ssl") for v in ("full", "small")
    }
    assert len(plan_study(read(sized, tmp_path, "strategies.other=null"), tmp_path).cells) == 2 * 3 * 2


@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize(
    ("debug", "sentence"),
    [
        ({"recipe.train.stepz": 2}, "`train.stepz` is unknown. Did you mean 'steps'?"),
        ({"strategies.sssl.set.model.weights": None}, "A name in `debug.strategies` must be one of random, ssl, got"),
        ({"strategies.ssl.set": {"optim.lrr": 2}}, "`optim.lrr` is unknown. Did you mean 'lr'?"),
        ({"stages.ssl.pretrain.method.decoder_with": 2}, "decoder_with` is unknown. Did you mean 'decoder_width'?"),
        ({"ressources": {"workers": 1}}, "`ressources` is unknown. Did you mean 'resources'?"),
        ({"seeds": []}, "`seeds` must have at least 1 entry"),
    ],
)
def test_wrong_debug_size_is_told_whether_it_is_asked_for_or_not(shards, tmp_path, debug, sentence, asked):
    sized = {**study_tree(shards), "debug": debug}
    with pytest.raises(UsageError) as caught:
        read(sized, tmp_path, debug=asked)
    lines = str(caught.value).splitlines()
    assert len(lines) == 1 and sentence in lines[0]


def test_asking_for_a_debug_size_that_is_not_there_is_refused(shards, tmp_path):
    with pytest.raises(UsageError, match="`--debug` needs a file with a section `debug`"):
        read(study_tree(shards), tmp_path, debug=True)


def test_a_stage_that_is_watched_on_no_dataset_is_refused_before_anything_starts(shards):
    stage = {"datasets": ["b"], "pretrain": {"watch": {"shards": "bb"}}}
    study = StudyConfig.build(study_tree(shards, stages__ssl=stage), where="t")
    with pytest.raises(UsageError, match=r"`watch.shards` must be one of a, b, got 'bb'"):
        plan_study(study, Path("out"))


@pytest.mark.parametrize("seeds", [[0, 0], [1, -1]])
def test_seeds_that_are_not_different_numbers_are_refused(shards, seeds):
    with pytest.raises(UsageError, match="`seeds` must be different numbers of 0 or more"):
        StudyConfig.build(study_tree(shards, seeds=seeds), where="t")
