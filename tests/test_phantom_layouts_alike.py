"""What holds for every layout: the same bytes in any order of drawing, files where the plan says, traps if asked."""

import pytest

from cxrdist.findings import check_names
from cxrdist.phantom import LAYOUTS, write, write_phantoms
from cxrdist.phantom.layouts import HOMES
from tests.phantoms import files_in, plan_of

CLUTTER = {".DS_Store", "Thumbs.db", "index.html", "__MACOSX"}
DRAWN = {".jpg", ".jpeg", ".png", ".dcm", ".dicom", ".img"}


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_same_bytes_are_written_in_whatever_order_images_are_drawn(name, tmp_path, monkeypatch):
    options = {"patients": 4, "size": 48, "seed": 8, "shown": False}
    write_phantoms(name, tmp_path / "there" / "set", **options)
    forwards = write._draw_all
    monkeypatch.setattr(write, "_draw_all", lambda plan, items, *rest: forwards(plan, items[::-1], *rest))
    write_phantoms(name, tmp_path / "back" / "set", **options)
    there, back = files_in(tmp_path / "there" / "set"), files_in(tmp_path / "back" / "set")
    assert set(there) == set(back)
    assert [path for path in there if there[path] != back[path]] == []


@pytest.mark.parametrize("name", LAYOUTS)
def test_without_traps_nothing_is_missing_and_nothing_lies_about(name, tmp_path):
    summary = write_phantoms(name, tmp_path, patients=17, size=48, traps=False, prevalence={}, shown=False)
    items, _ = plan_of(tmp_path)
    assert len(items) == summary.images >= 17, "enough for files to be lost and cut short, were there traps"
    assert len({item.path.lower() for item in items}) == len(items)
    assert not [item.path for item in items if not (tmp_path / item.path).is_file()]
    assert not CLUTTER & {path.name for path in tmp_path.rglob("*")}
    assert {(tmp_path / item.path).suffix.lower() for item in items} <= DRAWN


def test_codes_of_sites_are_distinct_but_for_the_forms_of_one_site():
    mimic = LAYOUTS["mimic_cxr"].code
    others = [layout.code for layout in LAYOUTS.values() if layout.code != mimic]
    assert len(set(others)) == len(others)
    assert list(HOMES) == [layout.name for layout in LAYOUTS.values()]
    check_names(sorted({finding for layout in LAYOUTS.values() for finding in layout.prevalence}))
