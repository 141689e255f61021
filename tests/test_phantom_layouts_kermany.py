"""A drawn Kermany set: folders by class, kinds in the names, restarting numbers, a copy inside the copy, children."""

import re

import pytest
from PIL import Image

from cxrdist.phantom import write_phantoms
from cxrdist.phantom.acquisition import Beam
from cxrdist.phantom.draw import draw_exam_picture
from cxrdist.phantom.people import Key, draw_child, draw_exam, draw_patient
from cxrdist.phantom.shapes import frontal_shape
from tests.phantoms import files_in, plan_of

NAME = (
    r"chest_xray/(train|val|test)/(?:PNEUMONIA/person(\d+)_(bacteria|virus)_\d+"
    r"|NORMAL/(?:NORMAL2-)?IM-(\d+)-0001(?:-\d+)?)\.jpeg"
)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("kermany")
    write_phantoms("kermany", root, patients=40, size=48, shown=False)
    return root


def test_the_folder_and_the_name_say_what_is_drawn(root):
    items, _ = plan_of(root)
    kinds = set()
    for item in items:
        found = re.fullmatch(NAME, item.path)
        assert found, item.path
        kind = {"bacteria": "bacterial_pneumonia", "virus": "viral_pneumonia", None: None}[found[3]]
        assert set(item.findings) == ({kind} if kind else set())
        assert ("pneumonia" in item.labels) == ("/PNEUMONIA/" in item.path) == (kind is not None)
        kinds.add((found[1], kind))
        assert item.projection == "AP" and 12 <= item.facts["months"] < 72
    assert len(kinds) >= 8, "every part has all kinds, but perhaps for one in val"


def test_numbers_restart_in_test_and_run_on_from_train_to_val(root):
    people: dict[tuple[str, str, str], set[int]] = {}
    for item in plan_of(root)[0]:
        found = re.fullmatch(NAME, item.path)
        number = found[2] or found[4]
        people.setdefault((found[1], "ill" if found[2] else "well", number), set()).add(item.key.patient)
    assert all(len(patients) == 1 for patients in people.values())
    parts = {part: {key[1:] for key in people if key[0] == part} for part in ("train", "val", "test")}
    assert parts["train"] & parts["test"]
    assert not parts["train"] & parts["val"]
    assert len(parts["val"]) == 4


def test_the_copy_inside_the_copy_is_whole_and_the_fork_files_are_there(root):
    files = files_in(root / "chest_xray")
    outer = {path for path in files if path.startswith(("train/", "val/", "test/")) and path.endswith("jpeg")}
    inner = {path.removeprefix("chest_xray/") for path in files if path.startswith("chest_xray/") and "jpeg" in path}
    items = {item.path.removeprefix("chest_xray/") for item in plan_of(root)[0]}
    assert inner == items and len(items - outer) == 1
    same = [path for path in outer if files[path] == files[f"chest_xray/{path}"]]
    assert len(same) == len(outer) - 1, "one is cut short"
    assert [path for path in files if path.startswith("__MACOSX/") and "/._" in path]


def test_a_few_files_are_in_colour(root):
    modes = [Image.open(path).mode for path in sorted((root / "chest_xray" / "chest_xray").rglob("*.jpeg"))]
    assert set(modes) == {"L", "RGB"} and modes.count("RGB") < 0.2 * len(modes)


def test_a_small_child_has_a_shorter_chest_and_a_larger_heart_than_an_adult():
    ratios, heights = [], []
    for number in range(12):
        key = Key(0, 12, number)
        adult, child, older = draw_patient(key), draw_child(key, 10), draw_child(key, 110)
        shapes = [frontal_shape(draw_exam(key, patient, "PA", {})) for patient in (adult, child, older)]
        ratios.append([shape.cardiothoracic_ratio for shape in shapes])
        heights.append([max(shape.domes) / shape.thorax_width for shape in shapes])
        assert child.age == 0 and older.age == 9 and child.sex == adult.sex
    grown, small, tall = (sum(row[k] for row in ratios) for k in range(3))
    assert small > tall > grown
    assert max(row[1] for row in ratios) <= 0.54
    grown, small, tall = (sum(row[k] for row in heights) for k in range(3))
    assert small < tall < grown


def test_a_bacterial_pneumonia_fills_one_side_and_a_viral_one_streaks_both():
    def change(number: int, finding: str) -> tuple[float, float]:
        key = Key(0, 12, number)
        child = draw_child(key, 40)
        ill, well = (
            draw_exam_picture(draw_exam(key, child, "PA", found), Beam(attenuation=0.12), shape=(64, 64))
            for found in ({finding: 0.9}, {})
        )
        gain = ill - well
        return float(gain[16:48, 8:28].mean()), float(gain[16:48, 36:56].mean())

    for number in range(4):
        one = sorted(change(number, "bacterial_pneumonia"))
        both = sorted(change(number, "viral_pneumonia"))
        assert one[1] > 0.02 and one[0] < 0.3 * one[1]
        assert both[0] > 0.003 and both[0] > 0.3 * both[1]
