"""Looks at a pretraining: what they measure, what they leave as it is, and when they end a run."""

import json
import logging
import math
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from helpers import finetune_tree, make_shards
from ranks import forks, on_two_ranks
from scipy.optimize import minimize
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import KNeighborsClassifier
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cxrdist.config import override
from cxrdist.data.samples import Samples, read_samples
from cxrdist.errors import UserError
from cxrdist.pretrain import run as running
from cxrdist.pretrain.build import build_task
from cxrdist.pretrain.config import PretrainConfig, WatchConfig
from cxrdist.pretrain.run import pretrain
from cxrdist.pretrain.task import PretrainTask
from cxrdist.pretrain.watch.collapse import find_collapse
from cxrdist.pretrain.watch.pictures import GAP, SIDE, component_colours, picture_of
from cxrdist.pretrain.watch.probes import knn_scores, linear_scores, macro_auroc
from cxrdist.pretrain.watch.spread import Moments, Usage, feature_std, rankme
from cxrdist.pretrain.watch.watcher import Watcher
from cxrdist.train.engine import gather, process_group
from cxrdist.train.loop import train
from cxrdist.train.metrics import read_metrics
from cxrdist.train.run_folder import FREE, RunFolder, changes
from cxrdist.world import World

MAE = {"name": "mae", "decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2}
DINO = {
    "name": "dino",
    "hidden_width": 16,
    "bottleneck": 8,
    "prototypes": 32,
    "local_crops": {"count": 0},
}
SPREAD = {"feature_std", "rankme"}
PROBES = {"knn_auroc", "probe_auroc"}
OF_DINO = {"embedding_std", "agreement", "prototype_entropy", "prototype_information"}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("data"), patients=50)


def config_of(shards, method=MAE, **changes) -> PretrainConfig:
    tree = finetune_tree(shards, steps=8) | {"shards": [str(shards)], "method": method, "watch": {"pictures": 2}}
    return PretrainConfig.build(override(tree, {name.replace("__", "."): v for name, v in changes.items()}), where="t")


def looks_of(folder) -> dict[int, dict]:
    return {line["step"]: line for line in read_metrics(folder / "metrics.jsonl") if line["kind"] == "val"}


# Spread


def test_rankme_is_the_exponential_of_the_entropy_of_the_singular_values():
    rng = np.random.default_rng(0)
    for shape in ((40, 12), (12, 40)):
        features = rng.standard_normal(shape) @ np.diag(0.7 ** np.arange(shape[1]))
        singular = np.sqrt(np.clip(np.linalg.eigvalsh(features @ features.T), 0, None))
        shares = singular[singular > 1e-6] / singular.sum()
        assert rankme(features.astype(np.float32)) == pytest.approx(math.prod(shares**-shares), rel=1e-4)


def test_rankme_is_the_rank_of_orthogonal_features_and_one_on_a_line():
    features = np.zeros((60, 20), np.float32)
    for rank in (1, 7, 20):
        features[:, :rank] = np.eye(rank)[np.arange(60) % rank]
        groups = 60 / rank  # all singular values are equal where groups are
        expected = rank if groups.is_integer() else None
        assert rankme(features) == pytest.approx(expected or rank, rel=2e-2)
        features[:] = 0


@pytest.mark.parametrize("width", [8, 256])
def test_the_spread_of_isotropic_features_is_one_and_that_of_equal_ones_zero(width):
    rng = np.random.default_rng(width)
    features = rng.standard_normal((4000, width)).astype(np.float32)
    assert feature_std(features) == pytest.approx(1, abs=0.02)
    assert feature_std(7 * features) == pytest.approx(feature_std(features), rel=1e-6)  # lengths do not matter
    assert feature_std(np.tile(features[:1], (50, 1))) < 1e-7
    assert feature_std(features[:, :1] * features[:1]) > 0.5  # both ends of one line are far apart: RankMe tells
    assert rankme(features[:, :1] * features[:1]) == pytest.approx(1, abs=1e-2)


def test_the_spread_of_near_features_is_their_distance_from_the_mean():
    rng = np.random.default_rng(1)
    centre = np.ones(64) / 8
    for noise in (1e-1, 1e-3, 1e-5):
        features = centre + noise * rng.standard_normal((2000, 64)) / 8
        assert feature_std(features) == pytest.approx(noise, rel=0.03)


def test_sums_of_batches_are_those_of_all_rows():
    rows = torch.randn(30, 5, generator=torch.Generator().manual_seed(0))
    shares = (4 * rows).softmax(dim=1)
    moments, usage, whole = Moments(), Usage(), Usage()
    for part in (rows[:7], rows[7:8], rows[8:]):
        other = Moments()
        other.add(part)
        moments.join(other)
    for part in (shares[:20], shares[20:]):
        usage.add(part)
    whole.add(shares)
    unit = rows.double() / rows.double().norm(dim=1, keepdim=True)
    assert moments.std() == pytest.approx(float(unit.std(dim=0, correction=0).mean() * 5**0.5))
    mean = shares.double().mean(dim=0)
    entropy = -(mean * mean.log()).sum()
    given = -(shares.double() * shares.double().log()).sum(dim=1).mean()
    for values in (usage.values(), whole.values()):
        assert values["prototype_entropy"] == pytest.approx(float(entropy / math.log(5)), rel=1e-6)
        assert values["prototype_information"] == pytest.approx(float((entropy - given) / math.log(5)), rel=1e-5)


@pytest.mark.parametrize(
    ("shares", "entropy", "information"),
    [
        (torch.eye(4)[torch.arange(40) % 4], 1, 1),  # every image its own: all is told
        (torch.eye(4)[torch.zeros(40, dtype=torch.long)], 0, 0),  # one for all
        (torch.full((40, 4), 0.25), 1, 0),  # the same of each for all
    ],
)
def test_prototypes_tell_of_images_or_do_not(shares, entropy, information):
    usage = Usage()
    usage.add(shares)
    assert usage.values() == pytest.approx(
        {"prototype_entropy": entropy, "prototype_information": information}, abs=1e-6
    )


# Probes


def toy_features(images: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    targets = (rng.random((images, 2)) < 0.4).astype(np.float32)
    features = rng.standard_normal((images, 6)) * (1, 5, 0.1, 1, 1, 1) + 1.0
    features[:, :2] += targets * (1.0, 5.0)
    return features.astype(np.float32), targets


def test_neighbours_are_those_of_scikit_learn():
    (bank, taught), (features, _) = toy_features(80, 0), toy_features(30, 1)
    scores = knn_scores(bank, taught, features)
    for finding in range(2):
        theirs = KNeighborsClassifier(20, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07))
        expected = theirs.fit(bank, taught[:, finding]).predict_proba(features)[:, 1]
        np.testing.assert_allclose(scores[:, finding], expected, atol=1e-4)
    assert knn_scores(bank[:5], taught[:5], features).shape == (30, 2)  # fewer than 20


def test_the_linear_probe_minimises_its_stated_objective_and_leaves_unknown_targets_out():
    (bank, taught), (features, _) = toy_features(80, 2), toy_features(30, 3)
    taught[:10, 1] = np.nan
    scores = linear_scores(bank, taught, features)
    mean, std = bank.mean(axis=0, dtype=np.float64), bank.std(axis=0, dtype=np.float64)
    for finding in range(2):
        known = ~np.isnan(taught[:, finding])
        x, sign = (bank[known] - mean) / std, 2 * taught[known, finding] - 1

        def objective(w, x=x, sign=sign):  # a Gaussian prior of variance 1 / D on weights, none on the intercept
            return np.logaddexp(0, -sign * (x @ w[:-1] + w[-1])).sum() + 0.5 * 6 * np.square(w[:-1]).sum()

        w = minimize(objective, np.zeros(7), tol=1e-10).x
        np.testing.assert_allclose(scores[:, finding], (features - mean) / std @ w[:-1] + w[-1], atol=2e-2)


def test_the_score_is_the_mean_area_of_the_findings_with_both_values():
    features, targets = toy_features(60, 4)
    targets = np.column_stack([targets, np.ones(60)])
    scores = features[:, :3]
    expected = np.mean([roc_auc_score(targets[:, k], scores[:, k]) for k in range(2)])
    assert macro_auroc(targets, scores) == pytest.approx(expected)
    assert macro_auroc(targets[:, 2:], scores[:, 2:]) is None
    assert not linear_scores(features, targets[:, 2:], features).any()


# Pictures


def test_patches_of_two_kinds_have_two_colours_in_every_image():
    rng = np.random.default_rng(0)
    patches = 0.01 * rng.standard_normal((2, 4, 6, 16))
    patches[:, :, :3, 0] += 1
    colours = component_colours(patches.astype(np.float32)).astype(int)
    assert colours.shape == (2, 4, 6, 3)
    left, right = colours[:, :, :3, 0], colours[:, :, 3:, 0]
    assert abs(left.mean() - right.mean()) > 200
    assert max(left.std(), right.std()) < 10
    assert (component_colours(np.ones((1, 2, 2, 16), np.float32)) == 128).all()  # no noise in full colours


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_a_picture_has_the_grey_image_beside_its_patches(dtype):
    ramp = np.tile(np.linspace(0, 1, 64), (64, 1))
    images = np.stack([ramp, 1 - ramp])
    images = np.rint(255 * images).astype(np.uint8) if dtype == np.uint8 else images.astype(dtype)
    picture = picture_of(images, np.random.default_rng(0).standard_normal((2, 4, 4, 8)))
    assert picture.shape == (2 * SIDE + GAP, 2 * SIDE + GAP, 3)
    first, second = picture[:SIDE, :SIDE], picture[-SIDE:, :SIDE]
    assert (first[..., 0] == first[..., 2]).all()
    assert first[100, 5, 0] < 20
    assert first[100, -5, 0] > 235
    assert second[100, 5, 0] > 235
    assert (picture[:SIDE, -SIDE:].reshape(SIDE, SIDE, 3)[::56, ::56].std(axis=2) > 0).any()


# Runs


def test_a_run_tells_probes_and_pictures_at_its_first_step_and_whenever_it_is_due(shards, tmp_path):
    spoiled = make_shards(tmp_path / "data", patients=50)
    for sample in (test := read_samples([spoiled], "test", projection="all")).table.itertuples():
        with open(sample.tar, "r+b") as file:  # noqa: PTH123
            file.seek(sample.image_offset)
            file.write(b"\0" * 8)
    with pytest.raises(UserError, match="bytes it was packed with"):
        test.image(0)
    config = config_of(spoiled, watch__shards=str(spoiled))
    assert pretrain(config, tmp_path / "run", world=World()) is not None  # read no image of the test split
    looks = looks_of(tmp_path / "run")
    assert list(looks) == [0, 4, 8]
    for line in looks.values():
        assert line.keys() - {"step", "kind", "time"} == SPREAD | PROBES
        assert 0 < line["feature_std"] < 1 < line["rankme"] <= 32
        assert line["knn_auroc"] > 0.8 and line["probe_auroc"] > 0.8  # discs and bright edges: even at random
    pictures = sorted((tmp_path / "run/pictures").iterdir())
    assert [path.name for path in pictures] == [f"step-{step:08d}.png" for step in (0, 4, 8)]
    assert all(cv2.imread(str(path)).shape == (2 * SIDE + GAP, 2 * SIDE + GAP, 3) for path in pictures)
    board = EventAccumulator(str(tmp_path / "run/tb"), size_guidance={"images": 0})
    board.Reload()
    assert [event.step for event in board.Images("val/patches")] == [0, 4, 8]
    assert json.loads((tmp_path / "run/result.json").read_text())["score"] is None  # nothing is chosen by them


def test_looks_change_nothing_of_the_training(shards, tmp_path, monkeypatch):
    config = config_of(shards, DINO, watch__shards=str(shards), train__steps=5, train__evaluate_every=2)
    pretrain(config, tmp_path / "watched", world=World())
    assert list(looks_of(tmp_path / "watched")) == [0, 2, 4, 5]

    def unwatched(*given, **named):
        return train(*given, **named | {"validate": None, "validate_first": False})

    monkeypatch.setattr(running, "train", unwatched)
    pretrain(config, tmp_path / "alone", world=World())
    assert not looks_of(tmp_path / "alone")
    watched, alone = (tmp_path / name / "model/model.safetensors" for name in ("watched", "alone"))
    assert watched.read_bytes() == alone.read_bytes()


def look_once(config: PretrainConfig, folder: RunFolder, world: World) -> dict:
    with process_group(world) as device:
        task = build_task(config).eval()
        samples = read_samples(config.shards, "train")
        return Watcher(config, samples, folder, world, device, gather).validate(task, 2)


@forks
@pytest.mark.parametrize("labelled", [True, False])
def test_every_rank_gets_the_values_of_one(shards, tmp_path, labelled):
    config = config_of(shards, DINO, watch__shards=str(shards) if labelled else None, watch__images=33)
    one = look_once(config, RunFolder(tmp_path), World())
    picture = one.pop("patches")
    assert one.keys() == SPREAD | OF_DINO | (PROBES if labelled else set())
    assert picture.dtype == np.uint8

    def work(world: World) -> None:
        values = look_once(config, RunFolder(tmp_path), world)
        found = values.pop("patches", None)
        assert (found is not None) == world.is_main
        if found is not None:
            assert np.abs(found.astype(int) - picture).mean() < 2
        (tmp_path / str(world.rank)).write_text(json.dumps(values))

    assert on_two_ranks(work) == [0, 0]
    first, second = (json.loads((tmp_path / rank).read_text()) for rank in "01")
    assert first == second == pytest.approx(one, rel=1e-3)


def test_the_same_images_are_looked_at_every_time_and_no_more_than_asked_for(shards, tmp_path):
    seen = []
    for _ in range(2):
        config = config_of(shards, watch__images=32)
        watcher = Watcher(config, read_samples([shards], "train"), RunFolder(tmp_path), World(), "cpu", None)
        seen.append(list(watcher.images.samples.table["key"]))
    assert seen[0] == seen[1]
    assert len(set(seen[0])) == 32 < len(read_samples([shards], "train"))
    few = Samples(read_samples([shards], "train").table.head(5))
    assert len(Watcher(config_of(shards), few, RunFolder(tmp_path), World(), "cpu", None).images) == 5


def test_a_labelled_dataset_of_two_folders_is_looked_at_as_one(shards, tmp_path):
    other = make_shards(tmp_path / "other", patients=20, seed=1)
    config = config_of(shards, watch__shards=[str(shards), str(other)])
    watcher = Watcher(config, read_samples([shards], "train"), RunFolder(tmp_path), World(), "cpu", None)
    for images, split in ((watcher.bank, "train"), (watcher.images, "val")):
        expected = [set(read_samples([folder], split).table["key"]) for folder in (shards, other)]
        assert set(images.samples.table["key"]) == set.union(*expected)
        assert all(expected)


# Collapse


HEALTHY = {  # at the first look and the lowest of runs that kept what tells images apart, 20 to 240 steps
    "mae": ({"feature_std": 0.122, "rankme": 4.29}, {"feature_std": 0.0068, "rankme": 1.17}),
    "simmim": ({"feature_std": 0.0841, "rankme": 2.33}, {"feature_std": 0.0076, "rankme": 1.11}),
    "moco_v2": (
        {"feature_std": 0.0841, "rankme": 2.33, "embedding_std": 0.0808},
        {"feature_std": 0.0287, "rankme": 1.35, "embedding_std": 0.0242},
    ),
    "dino": (
        {"feature_std": 0.0841, "embedding_std": 0.0891, "prototype_entropy": 0.398, "prototype_information": 0.0103},
        {"feature_std": 0.0522, "embedding_std": 0.0015, "prototype_entropy": 0.803, "prototype_information": 1.05e-4},
    ),
}
BROKEN = [
    ("dino", {"prototype_information": 2.5e-7, "prototype_entropy": 1.0}, {"prototype_information": 9.5e-8}),  # T = 10
    ("dino", {"embedding_std": 0.089, "prototype_entropy": 0.9}, {"embedding_std": 0.0006}),  # T = 1
    ("dino", {"prototype_information": 0.01}, {"prototype_information": 5.3e-7}),  # momentum 0
    ("dino", {"prototype_entropy": 0.4}, {"prototype_entropy": 6.9e-6}),  # a centre that stands still
    ("simclr", {"embedding_std": 0.074}, {"embedding_std": 0.0025}),  # attraction alone
    ("mae", {"rankme": 3.4}, {"rankme": 1.02}),  # a learning rate of 1
    ("mae", {"feature_std": 0.14}, {"feature_std": 1e-5}),
]


@pytest.mark.parametrize("name", HEALTHY)
def test_no_alarm_at_the_lowest_values_of_good_runs(shards, name):
    first, lowest = HEALTHY[name]
    config = config_of(shards, {"name": name}, input__image_size=64)
    assert find_collapse(config, 20, lowest, first | {"step": 0}) is None
    assert find_collapse(config, 20, first, None) is None


@pytest.mark.parametrize(("name", "first", "values"), BROKEN)
def test_alarm_at_the_first_look_of_broken_runs(shards, name, first, values):
    fine = {"feature_std": 0.1, "rankme": 2.0}
    found = find_collapse(config_of(shards, {"name": name}), 20, fine | first | values, fine | first | {"step": 0})
    assert found is not None
    value = next(iter(values))
    assert f"`{value}` {values[value]:.2g} at step 20, after {first[value]:.2g} at step 0" in found.seen
    assert "`optim.lr`" in found.way_out
    assert ("`method.teacher_temperature`" in found.way_out) == (name == "dino")


def test_features_that_are_no_numbers_are_a_collapse(shards):
    found = find_collapse(config_of(shards), 3, {"feature_std": None, "rankme": None}, None)
    assert found is not None and found.seen == "Features must be finite numbers, got others at step 3."


def test_a_look_at_what_is_no_number_has_no_picture_and_ends_the_run(shards, tmp_path, monkeypatch):
    look, spoilt = PretrainTask.look, ["patches"]

    def look_at_nothing(task, images):
        seen = look(task, images)
        return replace(seen, **{one: torch.full_like(getattr(seen, one), torch.nan) for one in spoilt})

    monkeypatch.setattr(PretrainTask, "look", look_at_nothing)
    config = config_of(shards, watch__images=32, train__steps=1)
    assert look_once(config, RunFolder(tmp_path), World()).keys() == SPREAD
    spoilt.append("features")
    with pytest.raises(UserError, match=r"^Features must be finite numbers, got others at step 1\."):
        pretrain(config, tmp_path / "run", world=World())
    assert list(looks_of(tmp_path / "run")) == [0, 1]
    assert not (tmp_path / "run/pictures").exists()


def test_a_broken_temperature_ends_the_run_at_its_first_look_and_the_run_can_go_on_all_the_same(
    shards, tmp_path, caplog
):
    broken = DINO | {"first_teacher_temperature": 30.0, "teacher_temperature": 30.0}
    few = {"train__evaluate_every": 3, "train__steps": 4, "watch__pictures": 0, "watch__images": 32}
    config = config_of(shards, broken, **few)
    with pytest.raises(
        UserError, match=r"keep images apart, got `prototype_information` .* at step 3, .*collapse=warn"
    ):
        pretrain(config, tmp_path / "run", world=World())
    assert list(looks_of(tmp_path / "run")) == [0, 3]  # what was seen is written
    assert not (tmp_path / "run/pictures").exists()
    warned = config_of(shards, broken, **few, watch__collapse="warn")
    with caplog.at_level(logging.WARNING, logger="cxrdist"):
        assert pretrain(warned, tmp_path / "run", world=World(), resume="auto") is not None
    told = [line.getMessage() for line in caplog.records if "keep images apart" in line.getMessage()]
    assert len(told) == 2
    assert list(looks_of(tmp_path / "run")) == [0, 3, 4]


# What the configuration says


def test_how_a_run_is_watched_may_change_when_it_is_resumed():
    assert {f"watch.{name}" for name in WatchConfig.model_fields} <= set(FREE)
    assert not changes({"watch": {"collapse": "stop", "shards": None}}, {"watch": {"collapse": "warn", "shards": "a"}})


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"watch__findings": ["edema"]}, "A finding of these shards must be one of"),
        ({"watch__findings": ["cardiomegaly", "mass"]}, "got 'mass'"),
    ],
)
def test_a_finding_that_is_not_there_is_refused(shards, tmp_path, changed, sentence):
    config = config_of(shards, watch__shards=str(shards), **changed)
    with pytest.raises(UserError, match=sentence):
        Watcher(config, read_samples([shards], "train"), RunFolder(tmp_path), World(), "cpu", None)


def test_labels_of_one_value_are_refused_unless_there_is_no_probe(tmp_path, shards):
    one = make_shards(tmp_path / "one", patients=5)  # one patient validates
    samples = read_samples([shards], "train")

    def watcher(**changed):
        return Watcher(
            config_of(shards, watch__shards=str(one), **changed), samples, RunFolder(tmp_path), World(), "cpu", None
        )

    with pytest.raises(UserError, match=r"`watch.shards` must have a finding with both values"):
        watcher()
    with pytest.raises(UserError, match=r"`watch.findings` must have both values .* got one value of effusion"):
        watcher(watch__findings=["effusion"])
    assert watcher(watch__probes=[]).bank is None


@pytest.mark.parametrize(
    ("watched", "sentence"),
    [
        ({"shards": "/nowhere"}, "^`watch.shards`: A shard folder must exist, got '/nowhere'"),
        ({"findings": ["cardiomegalie"]}, "^`watch.findings`: "),
    ],
)
def test_what_is_not_there_to_be_watched_is_told_with_its_setting(shards, watched, sentence):
    config = PretrainConfig.build({"shards": [str(shards)], "watch": {"shards": str(shards), **watched}}, where="t")
    with pytest.raises(UserError, match=sentence):
        Watcher(config, read_samples([shards], "train"), None, World(), torch.device("cpu"), lambda piece: [piece])
