"""The chain from stored values to display, against numbers worked out by hand from PS3.3 C.11."""

import numpy as np
import pytest

from cxrdist.dicom.display import Lut, Window, display_table
from cxrdist.errors import ImageRejectedError

EVERY_VALUE = np.ones(4096, np.int64)


def test_linear_window_is_the_standards_formula():
    values = np.array([1018.0, 1018.5, 1024.0, 1030.0, 1038.0, 1040.0])
    # C.11.2.1.2.1 with c = 1024.5, w = 13: black at 1018 and below, white above 1030.
    expected = [0.0, 0.5 / 12, 0.5, 1.0, 1.0, 1.0]
    np.testing.assert_allclose(Window(1024.5, 13).apply(values), expected)


def test_linear_exact_window_is_the_standards_formula():
    # C.11.2.1.3.2 with c = 100, w = 40: 80 to 120.
    values = np.array([79.0, 80.0, 90.0, 100.0, 120.0, 121.0])
    np.testing.assert_allclose(Window(100, 40, "LINEAR_EXACT").apply(values), [0, 0, 0.25, 0.5, 1, 1])


def test_sigmoid_window_is_the_standards_formula():
    values = np.array([50.0, 100.0, 150.0, -1e9, 1e9])
    expected = [1 / (1 + np.exp(2.0)), 0.5, 1 / (1 + np.exp(-2.0)), 0.0, 1.0]
    np.testing.assert_allclose(Window(100, 100, "SIGMOID").apply(values), expected, atol=1e-12)


def test_linear_window_of_width_one_is_a_threshold():
    np.testing.assert_array_equal(Window(10, 1).apply(np.array([9.0, 9.5, 10.0])), [0, 0, 1])


def test_a_table_with_8_bit_entries_and_4096_inputs_does_not_wrap():
    table = Lut(0, 8, np.arange(4096, dtype=np.int64) // 16)
    shown = display_table(EVERY_VALUE, 0, voi=table).levels
    np.testing.assert_allclose(shown[[0, 255, 256, 4095]], [0, 15 / 255, 16 / 255, 1], rtol=1e-6)
    assert (np.diff(shown) >= 0).all()


def test_a_table_holds_its_ends_outside_its_inputs():
    table = Lut(100, 10, np.array([10, 500, 1023]))
    np.testing.assert_array_equal(table.apply(np.array([-5, 100, 101, 102, 4000])), [10, 10, 500, 1023, 1023])


def test_rescale_comes_before_the_window():
    shown = display_table(EVERY_VALUE, 0, modality=(2.0, -1000.0), voi=Window(0, 2000, "LINEAR_EXACT")).levels
    assert shown[500] == pytest.approx(0.5)  # 2 * 500 - 1000 = 0, the centre
    assert shown[250] == pytest.approx(0.25)


def test_the_window_is_applied_to_values_before_inversion():
    window = Window(1000, 2000, "LINEAR_EXACT")
    plain = display_table(EVERY_VALUE, 0, voi=window).levels
    inverted = display_table(EVERY_VALUE, 0, voi=window, invert=True).levels
    np.testing.assert_allclose(inverted, 1 - plain, atol=1e-6)
    assert inverted[4095] == 0 and inverted[0] == 1


@pytest.mark.parametrize("invert", [False, True])
def test_padding_is_black_and_in_no_statistics(invert):
    counts = np.zeros(4096, np.int64)
    counts[1000:2001] = 1
    counts[4000:4096] = 10**6
    table = display_table(counts, 0, invert=invert, padding=(4000, 4095))
    assert (table.levels[4000:] == 0).all()
    black, white = (2000, 1000) if invert else (1000, 2000)
    assert table.levels[black] == 0 and table.levels[white] == 1
    assert table.levels[1500] == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("window", [None, Window(100, 0), Window(100, 0.5), Window(float("nan"), 50), Window(9e6, 10)])
def test_without_a_usable_window_a_robust_range_is_shown(window):
    counts = np.zeros(4096, np.int64)
    counts[500:1500] = 100
    counts[4095] = 1  # one dead pixel does not make the image black
    table = display_table(counts, 0, voi=window)
    assert table.voi == "range"
    assert table.levels[505] < 0.01 and table.levels[1495] > 0.99
    assert table.levels[1000] == pytest.approx(0.5, abs=0.01)


def test_eight_bits_without_a_window_are_shown_as_they_are():
    counts = np.zeros(256, np.int64)
    counts[[40, 90, 200]] = 5
    table = display_table(counts, 0)
    assert table.voi == "none"
    np.testing.assert_allclose(table.levels, np.arange(256) / 255, rtol=1e-6)


def test_signed_values_are_looked_up_from_their_smallest():
    table = display_table(EVERY_VALUE, -2048, voi=Window(0, 4096, "LINEAR_EXACT"))
    assert table.levels[0] == 0 and table.levels[2048] == pytest.approx(0.5)


def test_an_image_of_padding_and_one_value_is_constant():
    counts = np.zeros(256, np.int64)
    counts[[0, 17]] = 50
    with pytest.raises(ImageRejectedError, match="constant_image"):
        display_table(counts, 0, padding=(0, 0))
