"""Random crops: where they lie, what they show, and that nothing else decides it."""

import pickle
from dataclasses import replace
from typing import get_args

import cv2
import numpy as np
import pytest
import torch
from helpers import make_shards
from scipy.stats import kstest

from cxrdist.data.config import CropConfig, InputConfig, LocalCropsConfig
from cxrdist.data.crops import CropImages, DrawnCrop, change_levels, cut, draw_crop
from cxrdist.data.loader import training_batches
from cxrdist.data.order import Batching, sample_at
from cxrdist.data.samples import Samples, read_samples
from cxrdist.data.transforms import fit
from cxrdist.pretrain.build import example_batch
from cxrdist.pretrain.config import PretrainConfig
from cxrdist.pretrain.methods import Method
from cxrdist.pretrain.source import source_of
from cxrdist.pretrain.supervision import read_supervision
from cxrdist.seeds import Purpose, stream
from cxrdist.world import World

OFF = {"rotate": 0, "brightness": 0, "contrast": 0, "gamma": 1, "blur": 0, "noise": 0}
PLAIN = CropConfig(scale=(1, 1), ratio=(1, 1), **OFF)
WHOLE = DrawnCrop(0, 0, 1, 1, 0, False, 0, 1, 1, 0, 0)
FITS = ["pad", "crop", "squash"]
DTYPES = [np.uint8, np.uint16]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("crops"), patients=20)


@pytest.fixture(scope="module")
def samples(shards):
    return read_samples([shards], "train")


@pytest.fixture(scope="module")
def deep_samples(tmp_path_factory):
    return read_samples([make_shards(tmp_path_factory.mktemp("deep"), patients=12, bits=16)], "train")


def crop_images(samples: Samples, *, workers: int = 0, seed: int = 3, **options) -> CropImages:
    options = {"crops": CropConfig(), "local": LocalCropsConfig(count=3, size=16), **options}
    return CropImages(samples, InputConfig(image_size=24, workers=workers), seed, **options)


def read(images: CropImages, start: int, stop: int, world: World | None = None) -> list[dict]:
    world = world or World()
    batching = Batching(6, 6 // world.world_size // (1 + (world.world_size == 1)), 1 + (world.world_size == 1))
    return list(training_batches(images, batching, world, start_step=start, stop_step=stop))


def assert_same(left: list[dict], right: list[dict]) -> None:
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            assert torch.equal(one[name], other[name]), name


def draws(config: CropConfig, count: int, seed: int = 0) -> list[DrawnCrop]:
    return [draw_crop(config, stream(seed, Purpose.CROPS, 0, number, 0)) for number in range(count)]


# The same crops anywhere


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_workers_and_restarts_change_no_crop(samples):
    whole = read(crop_images(samples), 0, 5)  # 30 images: more than one epoch
    assert_same(read(crop_images(samples, workers=2), 0, 5), whole)
    assert_same(read(crop_images(samples, workers=2), 3, 5), whole[6:])


def test_ranks_share_the_batch_of_one_process(samples):
    alone = read(crop_images(samples), 0, 2)
    ranks = [read(crop_images(samples), 0, 2, World(rank, 2)) for rank in range(2)]
    for step in range(2):
        for name in alone[0]:
            one = torch.cat([alone[2 * step][name], alone[2 * step + 1][name]])
            assert torch.equal(one, torch.cat([ranks[0][step][name], ranks[1][step][name]])), name


def test_a_crop_alone_equals_the_crop_inside_the_loader(samples):
    images = crop_images(samples, workers=1)
    batch = read(images, 1, 2)[0]
    for place in range(3):
        epoch, sample = sample_at(6 + place, len(samples), 3)
        assert batch["sample"][place] == sample
        crops = [*batch["image"][place, :, 0], *batch["local"][place, :, 0]]
        for number, crop in enumerate(crops):
            config, size = (images.crops, 24) if number < 2 else (images.local, 16)
            rng = stream(3, Purpose.CROPS, epoch, sample, number)
            drawn = draw_crop(config, rng)
            alone = change_levels(cut(samples.image(sample), drawn, size, "pad"), drawn, rng)
            assert np.array_equal(crop.numpy(), alone)


def test_each_crop_of_each_image_in_each_epoch_is_another(samples):
    images = crop_images(samples)
    n = len(samples)
    items = [images[position] for position in range(2 * n)]
    large = torch.cat([item["image"] for item in items]).flatten(1)
    small = torch.cat([item["local"] for item in items]).flatten(1)
    assert len(large.unique(dim=0)) == 2 * 2 * n
    assert len(small.unique(dim=0)) == 3 * 2 * n
    assert len({int(item["seed"]) for item in items}) == 2 * n


def test_another_seed_gives_other_crops_and_another_order(samples):
    assert not torch.equal(crop_images(samples)[0]["image"], crop_images(samples, seed=4)[0]["image"])


def test_small_crops_change_no_large_crop(samples):
    with_small, without = crop_images(samples)[5], crop_images(samples, local=None)[5]
    assert torch.equal(with_small["image"], without["image"])
    assert "local" not in without
    assert "local" not in crop_images(samples, local=LocalCropsConfig(count=0))[5]


def test_a_pickled_copy_gives_the_same(samples):
    images = crop_images(samples, positives="patient")
    assert_same([pickle.loads(pickle.dumps(images))[7]], [images[7]])


def test_switching_one_change_off_leaves_the_draws_of_the_others():
    full = CropConfig(flip=True, blur=1)
    for name, value in {**OFF, "flip": False}.items():
        changes = {"rotate": "angle", "flip": "mirrored", "blur": "sigma"}.get(name, name)
        for with_it, without in zip(draws(full, 9), draws(full.model_copy(update={name: value}), 9), strict=True):
            assert replace(without, **{changes: getattr(with_it, changes)}) == with_it


# Where a crop lies


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("how", FITS)
@pytest.mark.parametrize("shape", [(40, 40), (40, 31), (17, 40), (1, 40)])
def test_the_whole_unchanged_square_is_what_fit_makes(shape, how, dtype):
    image = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype)
    drawn = draw_crop(PLAIN, stream(0, Purpose.CROPS))
    assert drawn == WHOLE
    for size in (16, 40, 57):
        crop = change_levels(cut(image, drawn, size, how), drawn, stream(0, Purpose.CROPS))
        square = fit(image, max(shape), "pad") if how == "pad" else image
        assert crop.dtype == dtype
        assert np.array_equal(crop, fit(square, size, how))


@pytest.mark.parametrize("how", FITS)
def test_the_least_turn_changes_nothing_but_rounding(how):
    noise = np.random.default_rng(0).integers(0, 256, (60, 44), np.uint8)
    side = 44 if how == "crop" else 60
    crop = cut(noise, replace(WHOLE, angle=1e-6), side, how).astype(int)
    upright = cut(noise, WHOLE, side, how)
    # Squashed, the narrow side grows: the two agree on where the pixels lie, not on the edges that are beyond them.
    inner = (slice(None), slice(1, -1)) if how == "squash" else (slice(None), slice(None))
    assert np.abs(crop - upright)[inner].max() <= 1


def blob(shape: tuple[int, int], x: float, y: float, deviation: float) -> np.ndarray:
    columns, rows = np.arange(shape[1]), np.arange(shape[0])[:, None]
    return np.rint(250 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * deviation**2))).astype(np.uint8)


def centroid(image: np.ndarray) -> tuple[float, float]:
    weights = image / image.sum()
    return float((weights.sum(0) * np.arange(image.shape[1])).sum()), float(
        (weights.sum(1) * np.arange(len(image))).sum()
    )


@pytest.mark.parametrize("rotate", [0, 30])
@pytest.mark.parametrize("how", FITS)
@pytest.mark.parametrize("shape", [(120, 90), (80, 200)])
def test_a_planted_marker_lands_where_the_drawn_crop_says(shape, how, rotate):
    config = CropConfig(scale=(0.4, 1), rotate=rotate, flip=True)
    height, width = shape
    rng = np.random.default_rng(5)
    for drawn in draws(config, 12):
        size = int(rng.integers(20, 130))
        x, y = rng.uniform(0.35, 0.65, 2) * (width, height)  # of the image, from its corner
        crop = cut(blob(shape, x - 0.5, y - 0.5, 4), drawn, size, how)
        # Into the square, in shares of its side, as complex numbers ...
        side = min(shape) if how == "crop" else max(shape)
        point = complex((x - width / 2) / side + 0.5, (y - height / 2) / side + 0.5)
        if how == "squash":
            point = complex(x / width, y / height)
        # ... and into the crop: turned back about its centre.
        centre = complex(drawn.left + drawn.width / 2, drawn.top + drawn.height / 2)
        turned = (point - centre) * np.exp(-1j * np.radians(drawn.angle))
        landed = np.array([turned.real / drawn.width, turned.imag / drawn.height])
        if drawn.mirrored:
            landed[0] *= -1
        expected = (landed + 0.5) * size - 0.5
        if np.abs(landed).max() > 0.3:  # cut off in part
            continue
        # Upright rectangles end on whole pixels of the image: half a pixel of it either way.
        whole = 0.7 * size / (min(drawn.width, drawn.height) * min(side, *shape)) if rotate == 0 else 0
        assert np.abs(np.array(centroid(crop)) - expected).max() < 0.15 + whole


@pytest.mark.parametrize(
    ("scale", "ratio"), [((0.3, 1), (0.8, 1.25)), ((0.05, 0.3), (0.1, 10)), ((1, 1), (2, 3)), ((0.5, 0.9), (0.2, 0.4))]
)
def test_no_crop_leaves_the_square(scale, ratio):
    for drawn in draws(CropConfig(scale=scale, ratio=ratio), 500):
        assert 0 <= drawn.left <= drawn.left + drawn.width <= 1 + 1e-12
        assert 0 <= drawn.top <= drawn.top + drawn.height <= 1 + 1e-12
        assert drawn.width * drawn.height <= scale[1] + 1e-12
        for how in FITS:
            bright = cut(np.full((9, 9), 200, np.uint8), replace(drawn, angle=0), 16, how)
            assert (bright == 200).all()  # nothing black came in


def test_the_share_of_the_area_is_uniform_whatever_the_ratio():
    for ratio in [(0.8, 1.25), (1, 1), (0.5, 2)]:
        areas = [drawn.width * drawn.height for drawn in draws(CropConfig(scale=(0.3, 1), ratio=ratio), 1500)]
        assert kstest(areas, "uniform", (0.3, 0.7)).pvalue > 0.01


def test_the_logarithm_of_the_ratio_is_uniform_where_all_ratios_fit():
    found = draws(CropConfig(scale=(0.1, 0.5), ratio=(0.5, 2)), 3000)
    logs = [np.log2(drawn.width / drawn.height) for drawn in found]
    assert kstest(logs, "uniform", (-1, 2)).pvalue > 0.01
    assert abs(np.corrcoef(logs, [drawn.width * drawn.height for drawn in found])[0, 1]) < 0.05


def test_ratios_that_do_not_fit_are_the_nearest_that_does():
    for drawn in draws(CropConfig(scale=(0.9, 1), ratio=(0.5, 2)), 300):
        assert 0.9 - 1e-9 <= drawn.width * drawn.height <= 1
    wide = draws(CropConfig(scale=(0.9, 1), ratio=(2, 3)), 300)
    assert all(drawn.width == 1 and abs(drawn.height - 0.5) < 1e-12 for drawn in wide)
    high = draws(CropConfig(scale=(0.9, 1), ratio=(0.2, 0.25)), 300)
    assert all(drawn.height == 1 and abs(drawn.width - 0.25) < 1e-12 for drawn in high)


def test_places_angles_and_mirrors_are_uniform():
    found = draws(CropConfig(scale=(0.25, 0.25), ratio=(1, 1), rotate=10, flip=True), 3000)
    assert kstest([drawn.left for drawn in found], "uniform", (0, 0.5)).pvalue > 0.01
    assert kstest([drawn.top for drawn in found], "uniform", (0, 0.5)).pvalue > 0.01
    assert kstest([drawn.angle for drawn in found], "uniform", (-10, 20)).pvalue > 0.01
    assert abs(np.mean([drawn.mirrored for drawn in found]) - 0.5) < 0.04


@pytest.mark.parametrize("angle", [0, 20])
@pytest.mark.parametrize("how", ["pad", "crop"])
def test_what_is_round_stays_round(how, angle):
    image = np.zeros((90, 150), np.uint8)
    cv2.circle(image, (75, 45), 30, 255, -1)
    crop = cut(image, DrawnCrop(0.1, 0.1, 0.8, 0.8, angle, False, 0, 1, 1, 0, 0), 64, how) > 127
    across, down = crop.any(axis=0).sum(), crop.any(axis=1).sum()
    side = 150 if how == "pad" else 90
    assert abs(across - down) <= 1
    assert abs(across - 61 * 64 / (0.8 * side)) <= 1.5


@pytest.mark.parametrize("angle", [0, 0.01, 7, 45])
def test_shrinking_is_antialiased(angle):
    stripes = np.zeros((300, 300), np.uint8)
    stripes[:, ::2] = 255  # one pixel wide: without antialiasing they would show as wide ones
    for size in (30, 50, 64):
        middle = cut(stripes, replace(WHOLE, left=0.2, top=0.2, width=0.6, height=0.6, angle=angle), size, "pad")
        assert middle.astype(float).std() < 25  # of 127
        assert abs(middle.mean() - 127.5) < 3


def test_a_turned_crop_is_as_sharp_as_an_upright_one():
    noise = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (400, 400), np.uint8), (0, 0), 1.5)
    for size in (100, 170, 300):
        upright, turned = (
            cut(noise, DrawnCrop(0.2, 0.2, 0.6, 0.6, angle, False, 0, 1, 1, 0, 0), size, "pad").astype(float)
            for angle in (0, 10)
        )
        assert 0.85 < turned.std() / upright.std() < 1.15


def slopes(image: np.ndarray, config: CropConfig, axis: int) -> list[float]:
    crops = [cut(image, drawn, 32, "pad")[8:24, 8:24].astype(float) for drawn in draws(config, 300)]
    return [np.diff(crop.mean(axis=1 - axis)).mean() for crop in crops]


def test_no_crop_is_upside_down_and_none_mirrored_unless_asked():
    ramp = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (64, 1))
    assert CropConfig().flip is LocalCropsConfig().flip is False
    for flip in (False, True):
        assert min(slopes(np.ascontiguousarray(ramp.T), CropConfig(flip=flip), 0)) > 0
    assert min(slopes(ramp, CropConfig(), 1)) > 0
    mirrored = np.array(slopes(ramp, CropConfig(flip=True), 1)) < 0
    assert 110 < mirrored.sum() < 190
    upright = np.array(slopes(ramp, CropConfig(flip=True, rotate=0), 1)) < 0
    assert np.array_equal(mirrored, upright)


# Batches


def test_sixteen_bits_stay_sixteen_bits(deep_samples):
    image = deep_samples.image(0)
    assert image.dtype == np.uint16
    smooth = cv2.resize(image, (60, 60), interpolation=cv2.INTER_LINEAR)
    rng = stream(0, Purpose.CROPS)
    drawn = draw_crop(CropConfig(blur=1), rng)
    crop = change_levels(cut(smooth, drawn, 48, "pad"), drawn, rng)
    assert crop.dtype == np.uint16
    assert len(np.unique(crop)) > 1000
    (batch,) = read(crop_images(deep_samples), 0, 1)[:1]
    assert batch["image"].dtype == batch["local"].dtype == torch.float32
    assert 0 <= batch["image"].min() < 0.5 < batch["image"].max() <= 1
    assert len(batch["image"][0].unique()) > 256


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_batches_have_the_named_shapes_and_types(samples, workers):
    batch = read(crop_images(samples, workers=workers), 0, 1)[0]
    shapes = {name: (tuple(value.shape), value.dtype) for name, value in batch.items()}
    assert shapes == {
        "image": ((3, 2, 1, 24, 24), torch.uint8),
        "local": ((3, 3, 1, 16, 16), torch.uint8),
        "target": ((3, 0), torch.float32),
        "sample": ((3,), torch.int64),
        "seed": ((3,), torch.int64),
    }
    assert all(value.is_contiguous() for value in batch.values())


METHODS = [method().name for method in get_args(get_args(Method)[0])]


@pytest.mark.parametrize("name", METHODS)
def test_the_example_to_plan_by_is_what_the_loader_gives(shards, samples, name):
    small = {"local_crops": {"count": 2, "size": 16}} if name in ("swav", "dino", "dinov2") else {}
    tree = {"shards": [shards], "method": {"name": name, **small}, "input": {"image_size": 64, "workers": 0}}
    config = PretrainConfig(**tree)
    supervision = read_supervision(config, samples) if name == "supervised" else None
    source = source_of(config, samples, World(), supervision=supervision)
    example = example_batch(config, 3)
    for loaded in (next(source.batches_from(Batching(3, 3, 1), 0)), source.example(3)):
        assert {name: (value.shape, value.dtype) for name, value in example.items()} == {
            name: (value.shape, value.dtype) for name, value in loaded.items()
        }


def test_the_example_of_sixteen_bits_is_what_the_loader_gives(tmp_path):
    deep = make_shards(tmp_path, patients=6, bits=16)
    config = PretrainConfig(shards=[deep], input={"image_size": 32, "workers": 0})
    loaded = next(source_of(config, read_samples([deep], "train"), World()).batches_from(Batching(2, 2, 1), 0))
    assert example_batch(config, 2)["image"].dtype == loaded["image"].dtype == torch.float32
