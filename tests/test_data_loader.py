"""From shards to tensors: the same for any number of workers and any start; labels by policy; damage by name."""

import itertools
import shutil

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from helpers import make_import, make_shards

from cxrdist.data import samples as samples_module
from cxrdist.data.config import AugmentConfig, InputConfig
from cxrdist.data.loader import EvaluationImages, TrainingImages, evaluation_batches, training_batches
from cxrdist.data.order import Batching, sample_at
from cxrdist.data.samples import Samples, choose_findings, read_samples
from cxrdist.data.transforms import augment, fit
from cxrdist.errors import UserError
from cxrdist.findings import LabelPolicy
from cxrdist.pack import PackOptions, pack_rows
from cxrdist.pack.plan import DatasetName
from cxrdist.seeds import Purpose, stream
from cxrdist.world import World

NAMES = ["cardiomegaly", "effusion"]
NONE = AugmentConfig(rotate=0, shift=0, zoom=(1, 1), brightness=0, contrast=0)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def jpeg_shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("jpeg")
    options = PackOptions(size=40, format="jpeg", id_key=folder / "id.key")
    rows = make_import(folder, images=24)
    pack_rows(DatasetName("grey", "Grey", "grey", "0" * 64), rows, folder / "shards", options, shown=False)
    return folder / "shards"


@pytest.fixture(scope="module")
def deep_shards(tmp_path_factory):
    """Return a folder of 16-bit PNG shards, packed from smooth 16-bit sources."""
    folder = tmp_path_factory.mktemp("deep")
    rows = make_import(folder, images=8)
    ramp = np.arange(40 * 40, dtype=np.uint16).reshape(40, 40) * 37
    for number, row in enumerate(rows.rows):
        cv2.imwrite(str(row.path), ramp + np.uint16(number))
    options = PackOptions(size=40, format="png", bits=16, id_key=folder / "id.key", projection="all")
    pack_rows(DatasetName("deep", "Deep", "deep", "0" * 64), rows, folder / "shards", options, shown=False)
    return folder / "shards"


def training(samples: Samples, *, seed: int = 3, **config) -> TrainingImages:
    settings = InputConfig(image_size=32, **{"workers": 0, **config})
    return TrainingImages(samples, samples.targets(NAMES, LabelPolicy()), settings, seed)


def read(images: TrainingImages, start: int, stop: int) -> list[dict]:
    return list(training_batches(images, Batching(6, 3, 2), World(), start_step=start, stop_step=stop))


def assert_same(left: list[dict], right: list[dict]) -> None:
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        assert one.keys() == other.keys() == {"image", "target", "sample", "seed"}
        for name in one:
            assert torch.equal(one[name].nan_to_num(7), other[name].nan_to_num(7)), name


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_workers_and_restarts_change_no_tensor(shards, workers):
    samples = read_samples([shards], "train")
    whole = read(training(samples), 0, 14)  # 84 images: more than one epoch
    assert_same(read(training(samples, workers=workers), 0, 14), whole)
    assert_same(read(training(samples, workers=workers), 5, 14), whole[10:])


def test_augmentation_alone_equals_augmentation_inside_the_loader(shards):
    samples = read_samples([shards], "train")
    batch = read(training(samples, workers=1), 8, 9)[1]
    for place, position in enumerate(range(8 * 6 + 3, 9 * 6)):
        epoch, sample = sample_at(position, len(samples), 3)
        image = fit(samples.image(sample), 32, "pad")
        alone = augment(image, AugmentConfig(), stream(3, Purpose.AUGMENT, epoch, sample))
        assert batch["sample"][place] == sample
        assert np.array_equal(batch["image"][place, 0].numpy(), alone)
        assert not np.array_equal(alone, image)


def test_an_image_is_augmented_anew_in_every_epoch(shards):
    images = training(read_samples([shards], "train"))
    n = len(images.samples)
    first = {int(images[p]["sample"]): images[p] for p in range(n)}
    second = {int(images[p]["sample"]): images[p] for p in range(n, 2 * n)}
    assert all(not torch.equal(first[s]["image"], second[s]["image"]) for s in first)
    assert all(first[s]["seed"] != second[s]["seed"] for s in first)


def test_evaluation_changes_no_image_and_sees_each_once(shards):
    samples = read_samples([shards], "val")
    config = InputConfig(image_size=32, workers=0)
    images = EvaluationImages(samples, samples.targets(NAMES, LabelPolicy()), config)
    seen = [batch for rank in range(3) for batch in evaluation_batches(images, 4, World(rank, 3))]
    order = torch.cat([batch["sample"] for batch in seen])
    assert sorted(order.tolist()) == list(range(len(samples)))
    pixels = torch.cat([batch["image"] for batch in seen])
    for place, sample in enumerate(order.tolist()):
        assert np.array_equal(pixels[place, 0].numpy(), fit(samples.image(sample), 32, "pad"))


def test_images_are_not_mirrored_unless_asked():
    image = np.tile(np.arange(0, 256, 8, dtype=np.uint8), (32, 1))
    assert AugmentConfig().flip is False
    rise = [np.diff(augment(image, AugmentConfig(), stream(0, Purpose.AUGMENT, s))[16, 8:24].astype(int)).sum()
            for s in range(50)]  # fmt: skip
    assert min(rise) > 0
    mirrored = NONE.model_copy(update={"flip": True})
    results = [augment(image, mirrored, stream(0, Purpose.AUGMENT, s)) for s in range(50)]
    assert all(np.array_equal(r, image) or np.array_equal(r, image[:, ::-1]) for r in results)
    assert 10 < sum(np.array_equal(r, image) for r in results) < 40


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_no_augmentation_is_the_identity(dtype):
    image = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (32, 32), dtype)
    assert np.array_equal(augment(image, NONE, stream(0, Purpose.AUGMENT)), image)


def test_switching_one_change_off_leaves_the_draws_of_the_others():
    image = np.full((16, 16), 100, np.uint8)
    with_rotation = AugmentConfig(rotate=10, shift=0, zoom=(2, 2))
    without = AugmentConfig(rotate=0, shift=0, zoom=(2, 2))
    one, other = (augment(image, config, stream(1, Purpose.AUGMENT, 2)) for config in (with_rotation, without))
    assert np.array_equal(one, other)  # a constant image shows brightness and contrast only


@pytest.mark.parametrize("shape", [(1, 100), (100, 1), (3, 1000), (64, 64), (200, 50), (33, 32), (5, 7)])
@pytest.mark.parametrize("how", ["pad", "crop", "squash"])
def test_any_shape_becomes_the_square(shape, how):
    image = np.full(shape, 200, np.uint8)
    square = fit(image, 32, how)
    assert square.shape == (32, 32)
    assert square.dtype == np.uint8
    assert square.flags.c_contiguous
    if how == "pad":
        assert square.any(axis=1 if shape[0] >= shape[1] else 0).all()  # the long side spans the square
        ratio = min(shape) / max(shape)
        assert (square == 200).sum() == 32 * max(1, round(32 * ratio))
        assert np.isin(square, (0, 200)).all()
    else:
        assert (square == 200).all()


def test_padding_and_cropping_are_centred_and_keep_the_aspect():
    image = np.zeros((40, 80), np.uint8)
    cv2.circle(image, (40, 20), 10, 255, -1)
    rows, columns = (np.flatnonzero((fit(image, 40, "pad") > 127).any(axis=axis)) for axis in (1, 0))
    assert abs(len(rows) - len(columns)) <= 1
    assert abs(rows.mean() - 19.5) <= 1
    assert abs(columns.mean() - 19.5) <= 1
    assert np.array_equal(fit(image, 40, "crop"), image[:, 20:60])


def test_shrinking_is_antialiased_also_when_the_other_side_grows():
    stripes = np.zeros((16, 512), np.uint8)
    stripes[:, ::2] = 255  # one pixel wide: without antialiasing all black or all white
    squashed = fit(stripes, 32, "squash")
    assert 120 < squashed.min() <= squashed.max() < 135


def test_a_sixteen_bit_shard_keeps_more_than_256_levels(deep_shards):
    samples = read_samples([deep_shards], "train", projection="all")
    assert samples.image(0).dtype == np.uint16
    images = EvaluationImages(samples, samples.values([]), InputConfig(image_size=40, workers=0))
    (batch,) = evaluation_batches(images, 8, World())
    assert batch["image"].dtype == torch.float32
    assert len(batch["image"][0].unique()) > 1000
    assert 0 <= batch["image"].min() < batch["image"].max() <= 1
    augmented = TrainingImages(samples, samples.values([]), InputConfig(image_size=40, workers=0), 0)[0]["image"]
    assert len(augmented.unique()) > 256


@pytest.mark.parametrize("workers", [0, 1])
def test_eight_and_sixteen_bits_in_one_batch_are_on_one_scale(shards, deep_shards, workers):
    samples = read_samples([shards, deep_shards], "val", projection="all")
    images = EvaluationImages(samples, samples.values([]), InputConfig(image_size=32, workers=workers))
    (batch,) = evaluation_batches(images, len(samples), World())
    assert batch["image"].dtype == torch.float32
    for pixels, sample in zip(batch["image"], batch["sample"].tolist(), strict=True):
        packed = fit(samples.image(sample), 32, "pad")
        assert np.array_equal(pixels[0].numpy(), packed.astype(np.float32) / np.iinfo(packed.dtype).max)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("part", ["all", "half", "cut"])
def test_damaged_bytes_name_the_shard_and_the_key_and_nothing_else(jpeg_shards, tmp_path, workers, part):
    broken = tmp_path / "broken"
    shutil.copytree(jpeg_shards, broken)
    samples = read_samples([broken], "val")
    row = samples.table.iloc[2]
    whole = samples.image(2)
    with (broken / row["shard"]).open("r+b") as file:
        file.seek(row["image_offset"])
        data = file.read(row["image_bytes"])
        begin = 0 if part == "all" else len(data) // 2
        damaged = data[:begin] + bytes(len(data) - begin)
        decoded = cv2.imdecode(np.frombuffer(damaged, np.uint8), cv2.IMREAD_UNCHANGED)
        if part == "half":  # it is an image still, of something else
            assert decoded.shape == whole.shape
            assert not np.array_equal(decoded, whole)
        if part == "cut":
            file.truncate(row["image_offset"] + begin)
        else:
            file.seek(row["image_offset"])
            file.write(damaged)
    images = EvaluationImages(samples, samples.values([]), InputConfig(image_size=32, workers=workers))
    with pytest.raises(UserError) as caught:
        list(evaluation_batches(images, 4, World()))
    assert str(caught.value) == (
        f"A packed image must have the bytes it was packed with, got damaged ones "
        f"[in {row['shard']}, key {row['key']}]. Check the folder with `cxrdist shards verify`."
    )


def test_a_missing_shard_is_a_sentence(shards, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(shards, broken)
    samples = read_samples([broken], "val")
    (broken / samples.table["shard"].iloc[0]).unlink()
    with pytest.raises(UserError, match=r"A shard must be readable, got 'No such file or directory' \[toy-val"):
        samples.image(0)


def test_more_shards_than_open_files_are_read(shards, monkeypatch):
    monkeypatch.setattr(samples_module, "MAX_OPEN", 1)
    samples = read_samples([shards], "train")
    assert samples.table["shard"].nunique() > 1
    for sample in (0, len(samples) - 1, 0, len(samples) - 1):
        assert samples.image(sample).shape == (32, 36)
    assert len(samples_module._descriptors) == 1


def test_a_drawn_subset_holds_whole_patients_and_is_part_of_a_larger_one(shards):
    samples = read_samples([shards], "train")
    per_patient = samples.table.groupby("patient_id").size()
    drawn = [samples.draw(images, seed=1).table for images in (1, 5, 17, 30, len(samples))]
    for table, images in zip(drawn, (1, 5, 17, 30, len(samples)), strict=True):
        assert images <= len(table) < images + per_patient.max()
        counts = table.groupby("patient_id").size()
        assert (counts == per_patient[counts.index]).all()
    for small, large in itertools.pairwise(drawn):
        assert set(small["key"]) <= set(large["key"])
    assert set(samples.draw(17, seed=2).table["key"]) != set(drawn[2]["key"])
    with pytest.raises(UserError, match=f"at most the {len(samples)} images that are there, got {len(samples) + 1}"):
        samples.draw(len(samples) + 1, seed=1)


def test_projections_and_splits_are_chosen(shards):
    frontal, pa, ap = (read_samples([shards], "train", projection=p) for p in ("frontal", "PA", "AP"))
    assert set(pa.table["projection"]) == {"PA"}
    assert len(frontal) == len(pa) + len(ap)
    assert set(frontal.table["split"]) == {"train"}
    with pytest.raises(UserError, match=r"Split 'nosplit' must hold images of projection 'PA', got none \[in toy\]"):
        read_samples([shards], "nosplit", projection="PA")


def test_a_finding_that_one_of_two_datasets_lacks_is_not_mentioned_there(shards, deep_shards):
    both = read_samples([deep_shards, shards], "train", projection="all")
    alone = read_samples([deep_shards], "train", projection="all")
    assert np.array_equal(both.values(NAMES)[: len(alone)], alone.values(NAMES), equal_nan=True)
    table = both.table.assign(y_edema=pd.array([1] * len(alone) + [None] * (len(both) - len(alone)), dtype="Int8"))
    edema = Samples(table).values(["edema"])[:, 0]
    assert (edema[: len(alone)] == 1).all()
    assert np.isnan(edema[len(alone) :]).all()


def test_a_finding_that_is_not_annotated_is_refused_with_the_nearest(shards):
    with pytest.raises(UserError, match=r"A finding of these shards must be one of .* got 'edema'"):
        read_samples([shards], "train").values(["edema"])


def labelled(**columns: list) -> Samples:
    return Samples(pd.DataFrame({f"y_{name}": pd.array(values, dtype="Int8") for name, values in columns.items()}))


N = None
FOUR = {"edema": [1, 0, -1, N, N], "no_finding": [0, 0, 0, 0, 1]}


@pytest.mark.parametrize(
    ("policy", "targets"),
    [
        ({}, [1, 0, N, 0, 0]),
        ({"uncertain": "ones"}, [1, 0, 1, 0, 0]),
        ({"uncertain": "zeros", "not_mentioned": "ignore"}, [1, 0, 0, N, N]),
        ({"not_mentioned": "zeros_if_no_finding"}, [1, 0, N, N, 0]),
        ({"uncertain": "zeros", "uncertain_by_finding": {"edema": "ones"}}, [1, 0, 1, 0, 0]),
        ({"uncertain": "zeros", "uncertain_by_finding": {"effusion": "ones"}}, [1, 0, 0, 0, 0]),
    ],
)
def test_a_policy_maps_the_four_values(policy, targets):
    mapped = labelled(**FOUR).targets(["edema"], LabelPolicy(**policy))[:, 0]
    assert mapped.dtype == np.float32
    assert [None if np.isnan(value) else value for value in mapped] == targets


def test_findings_are_chosen_where_both_splits_have_both_values_under_their_policies():
    train = labelled(edema=[1, 0, 0], mass=[1, 1, N], nodule=[0, 0, 0], effusion=[1, 0, 0], hernia=[0, 1, 1])
    val = labelled(edema=[0, 1, 0], mass=[1, 0, 1], nodule=[0, 1, 0], effusion=[0, -1, 0])
    ignore, ones = LabelPolicy(not_mentioned="ignore"), LabelPolicy(uncertain="ones", not_mentioned="ignore")
    assert choose_findings(train, val, ignore) == ["edema"]
    assert choose_findings(train, val, ones) == ["edema", "effusion"]
    assert choose_findings(train, val, ones, ignore) == ["edema"]
    assert choose_findings(train, val, LabelPolicy()) == ["edema", "mass"]
