"""Grey levels of random crops: each change does what its name says, within its limits, in 8 and in 16 bits."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from scipy.stats import kstest

from cxrdist.data.config import CropConfig
from cxrdist.data.crops import DrawnCrop, change_levels, draw_crop
from cxrdist.seeds import Purpose, stream

WHOLE = DrawnCrop(0, 0, 1, 1, 0, False, 0, 1, 1, 0, 0)
DTYPES = [np.uint8, np.uint16]


def changed(image: np.ndarray, **changes: float) -> np.ndarray:
    return change_levels(image, replace(WHOLE, **changes), stream(0, Purpose.CROPS))


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_change_is_the_identity(dtype):
    every = np.arange(np.iinfo(dtype).max + 1, dtype=dtype).reshape(-1, 16)
    assert np.array_equal(changed(every), every)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gamma_keeps_order_black_and_white(dtype):
    every = np.arange(np.iinfo(dtype).max + 1, dtype=dtype)[None]
    darker, brighter = changed(every, gamma=1.5)[0].astype(int), changed(every, gamma=1 / 1.5)[0].astype(int)
    for levels in (darker, brighter):
        assert (np.diff(levels) >= 0).all()
        assert (levels[0], levels[-1]) == (0, every.max())
    assert (darker <= every[0]).all()
    assert (brighter >= every[0]).all()


def test_brightness_is_added_and_contrast_is_about_mid_grey():
    grey = np.array([[0, 51, 102, 153, 204, 255]], np.uint8)
    assert changed(grey, brightness=0.2).tolist() == [[51, 102, 153, 204, 255, 255]]
    assert changed(grey, brightness=-0.2).tolist() == [[0, 0, 51, 102, 153, 204]]
    assert changed(grey, contrast=0.5).tolist() == [[64, 89, 115, 140, 166, 191]]
    assert changed(grey, contrast=2.0)[0, [0, 5]].tolist() == [0, 255]


def test_drawn_changes_keep_to_their_limits():
    config = CropConfig()
    found = [draw_crop(config, stream(0, Purpose.CROPS, 0, number, 0)) for number in range(2000)]
    assert all(abs(drawn.brightness) <= 0.2 and abs(drawn.contrast - 1) <= 0.4 for drawn in found)
    assert all(1 / 1.5 <= drawn.gamma <= 1.5 and 0 <= drawn.noise <= 0.02 for drawn in found)
    assert kstest(np.log([drawn.gamma for drawn in found]), "uniform", (-np.log(1.5), 2 * np.log(1.5))).pvalue > 0.01
    sigmas = np.array([drawn.sigma for drawn in found])
    assert abs((sigmas > 0).mean() - 0.5) < 0.05
    assert kstest(sigmas[sigmas > 0], "uniform", (0.1, 1.9)).pvalue > 0.01


@pytest.mark.parametrize("dtype", DTYPES)
def test_blur_only_smooths_and_keeps_the_mean(dtype):
    top = np.iinfo(dtype).max
    noise = np.random.default_rng(0).integers(0, top, (224, 224), dtype)

    def variation(image: np.ndarray) -> float:
        return sum(np.abs(np.diff(image.astype(float), axis=axis)).sum() for axis in (0, 1))

    found = [changed(noise, sigma=sigma) for sigma in (0.0, 0.4, 0.8, 1.5, 2.0)]
    assert all(variation(more) < variation(less) for less, more in pairwise(found))
    for image in found:
        assert image.dtype == dtype
        assert abs(image.mean() - noise.mean()) < 0.005 * top


def test_blur_is_in_proportion_to_the_crop():
    for size in (112, 224, 448):
        point = np.zeros((size, size), np.uint16)
        point[size // 2, size // 2] = 65535
        spread = changed(point, sigma=2.0).astype(float)
        offsets = np.arange(size) - size // 2
        deviation = np.sqrt((spread.sum(axis=0) * offsets**2).sum() / spread.sum())
        assert abs(deviation / (2 * size / 224) - 1) < 0.05


@pytest.mark.parametrize("dtype", DTYPES)
def test_noise_has_the_drawn_deviation_and_no_mean(dtype):
    top = np.iinfo(dtype).max
    noise = (changed(np.full((224, 224), top // 2, dtype), noise=0.1).astype(float) - top // 2) / (0.1 * top)
    assert abs(noise.mean()) < 3 / 224
    assert abs(noise.std() - 1) < 0.01
    assert kstest(noise[::4, ::4].ravel(), "norm").statistic < 0.04  # the step of a grey level of 8 bits is 0.016
    assert abs(np.corrcoef(noise[:, 1:].ravel(), noise[:, :-1].ravel())[0, 1]) < 0.02
    for end in (0, top):  # nothing wraps round
        beyond = changed(np.full((64, 64), end, dtype), noise=0.02).astype(float) / top
        assert np.abs(beyond - end / top).max() < 0.2
