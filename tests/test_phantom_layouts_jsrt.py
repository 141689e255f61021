"""A drawn JSRT: headerless words that hold film density, and tables that say where the nodule lies."""

from dataclasses import replace

import numpy as np
import pytest

from cxrdist.dicom import PixelHints, RawImage, read_radiograph
from cxrdist.phantom import write_phantoms
from cxrdist.phantom.layouts import jsrt
from tests.phantoms import plan_of

PLACES = {"r.upper lobe", "l.upper lobe", "r.middl e lobe", "l.upper lobe(S5)", "r.lower lobe", "l.lower lobe"}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("jsrt")
    write_phantoms("jsrt", root, patients=10, size=128, difficulty=0.0, seed=2, shown=False)
    return root


def words(path) -> np.ndarray:
    assert path.stat().st_size == 2 * 2048 * 2048
    return np.fromfile(path, ">u2").reshape(2048, 2048)


def nodule_rows(root) -> list[list[str]]:
    text = (root / "Clinical_Information" / "CLNDAT_EN.txt").read_bytes().decode()
    return [line.split("\t") for line in text.removesuffix("\r\n").split("\r\n")]


def test_files_are_twelve_bits_in_big_endian_words_of_film_density(root):
    for item in plan_of(root)[0]:
        stored = words(root / item.path)
        assert 2000 < stored.max() < 4096
        spine = stored[900:1100, 980:1060].mean()
        lungs = [stored[800:1000, a : a + 200].mean() for a in (500, 1350)]
        assert max(lungs) > spine + 300, "bone is small, air is large"


def test_a_reader_that_is_told_the_shape_sees_bright_bones(root):
    hints = PixelHints(raw=RawImage(2048, 2048, 12), invert=True)
    for item in plan_of(root)[0][::3]:
        shown = read_radiograph(root / item.path, hints=hints).pixels
        np.testing.assert_allclose(shown, 1 - words(root / item.path) / 4095, atol=0.01)
        assert shown[900:1100, 980:1060].mean() > 0.55
        assert shown[20:60, 20:60].mean() < shown[900:1100, 980:1060].mean()


def test_names_are_numbered_by_kind_and_the_case_of_the_suffix_differs(root):
    items, _ = plan_of(root)
    for item in items:
        folder, name = item.path.split("/")
        assert (folder, name[:5]) == (
            ("Nodule154images", "JPCLN") if "nodule" in item.labels else ("NonNodule93images", "JPCNN")
        )
        assert int(name[5:8]) == item.facts["number"]
    assert {item.path[-3:] for item in items} == {"IMG", "img"}


def test_the_table_says_where_the_one_nodule_lies_and_how_large_it_is(root, tmp_path):
    rows = nodule_rows(root)
    items, order = plan_of(root)
    ill = [item for item in items if "nodule" in item.findings]
    assert [row[0] for row in rows] == [f"JPCLN{number:03d}.IMG" for number in range(1, len(ill) + 1)]
    for item, row in zip(ill, rows, strict=True):
        _, subtlety, size, age, sex, x, y, verdict, place, diagnosis = row
        assert 1 <= int(subtlety) <= 5 and 5 <= int(size) <= 60 and sex in ("Female", "Male")
        assert age == "?" or 18 <= int(age) <= 92
        assert verdict in ("malignant", "benign") and place in PLACES and diagnosis
        assert (int(x) < 1024) == place.startswith("r")
        jsrt.write_image(replace(item, findings={}), order, tmp_path / "well.IMG")
        dense = words(tmp_path / "well.IMG").astype(float) - words(root / item.path)
        down, across = np.nonzero(dense > 0.5 * np.quantile(dense, 0.9999))
        radius = int(size) / 0.175 / 2
        assert np.hypot(np.median(across) - int(x), np.median(down) - int(y)) < 0.4 * radius + 8
        assert 0.4 * radius < np.hypot(down - int(y), across - int(x)).max() < 2 * radius + 16


def test_ages_may_be_unknown_and_the_table_of_the_others_is_short(root):
    text = (root / "Clinical_Information" / "CNNDAT_EN.TXT").read_bytes().decode()
    rows = [line.split("\t") for line in text.removesuffix("\r\n").split("\r\n")]
    assert all(len(row) == 4 and row[3] == "non-nodule" for row in rows)
    assert "?" in {row[1] for row in rows} | {row[3] for row in nodule_rows(root)}
    assert len(rows) + len(nodule_rows(root)) == 10
