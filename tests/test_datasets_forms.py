"""Forms that images, tables and words of a dataset can have: what a fact file says of each, on tables of a few rows."""

import json

import pytest

from cxrdist.datasets import UnknownLabelsError, import_dataset
from cxrdist.datasets.cells import read_cell
from cxrdist.datasets.layouts import Cell
from cxrdist.datasets.readers import header_of
from tests.trees.files import picture, reasons, table
from tests.trees.own import own_facts, own_layout


def test_one_image_may_be_named_by_a_part_of_a_column_and_lie_there_twice(tmp_path):
    rows = [{"file": f"CXR{name}", "Fluid": "1"} for name in ("1_1_IM-7", "2_IM-8", "3_IM-9")]
    table(tmp_path / "labels.csv", ["file", "Fluid"], rows)
    for name in ("png/CXR1_1_IM-7.png", "dcm/1/1_IM-7.dcm", "dcm/2/2_IM-8.dcm"):
        picture(tmp_path / name)
    image = [{"column": "file", "pattern": r"CXR(?:\d+_)?(\d+_IM-.*)"}, "file"]
    found = import_dataset(own_facts(layout=own_layout(image=image)), tmp_path)
    # The first way to name it wins; the other file is the same image, and is none of its own.
    assert [row.source for row in found.rows] == ["dcm/1/1_IM-7.dcm", "dcm/2/2_IM-8.dcm"]
    assert reasons(found) == {"missing_file": 1}


def test_a_cell_is_read_from_the_first_of_its_columns_that_says_something():
    cell = Cell(column="same", pattern=r"P(\d+)", otherwise=["name"])
    assert read_cell(cell, {"same": "P7", "name": "P8"}) == "7"
    assert read_cell(cell, {"same": "?", "name": "P8"}) == read_cell(cell, {"name": "P8"}) == "8"
    assert read_cell(cell, {"name": "x"}) is None


def test_a_word_counts_by_its_part_where_asked(tmp_path):
    table(tmp_path / "labels.csv", ["file", "Terms"], [{"file": "a", "Terms": "Fluid /lung;Mass/fluid"}])
    picture(tmp_path / "a.png")
    labels = {"coding": "tokens", "columns": ["Terms"], "separators": [";"], "unlisted": 0, "others": None}
    findings = {"effusion": "Fluid", "mass": "Mass", "nodule": "Fluid /lung"}
    whole, part = (
        import_dataset(own_facts(labels=labels | more, findings=findings), tmp_path).rows[0].findings
        for more in ({}, {"part": "[^/]*"})
    )
    assert list(whole.values()) == [0, 0, 1] and list(part.values()) == [1, 1, 0]


def test_images_that_are_labelled_alike_share_their_findings_and_strange_codes_count_each_time(tmp_path):
    rows = [{"file": f"{number}.png", "Fluid": code} for number, code in enumerate("1011")]
    table(tmp_path / "labels.csv", ["file", "Fluid"], rows)
    for row in rows:
        picture(tmp_path / row["file"])
    first, absent, *others = (row.findings for row in import_dataset(own_facts(), tmp_path).rows)
    assert all(found is first for found in others) and (first, absent) == ({"effusion": 1}, {"effusion": 0})
    table(tmp_path / "labels.csv", ["file", "Fluid"], [row | {"Fluid": "x"} for row in rows])
    with pytest.raises(UnknownLabelsError) as caught:
        import_dataset(own_facts(), tmp_path)
    assert caught.value.words == {"x": 4}


def test_images_are_kept_or_dropped_by_a_column_and_blank_cells_say_nothing(tmp_path):
    rows = [{"file": kind or "empty", "Fluid": "1", "kind": kind} for kind in ("CR", "CT", "scout", "")]
    table(tmp_path / "labels.csv", list(rows[0]), rows)
    for row in rows:
        picture(tmp_path / f"{row['file']}.png")
    found = import_dataset(own_facts(keep={"kind": ["cr", "scout"]}, drop={"kind": ["SCOUT"]}), tmp_path)
    assert [row.source for row in found.rows] == ["CR.png", "empty.png"]
    assert [reject.detail for reject in found.rejects] == ["another kind", "by kind"]


@pytest.mark.parametrize("blank", [{"a": ""}, {"a": "", "b": ""}])
def test_where_the_column_of_splits_is_blank_the_tables_own_split_counts(tmp_path, blank):
    splits = {"a": "test", "b": "val"} | blank
    rows = [{"file": name, "Fluid": "1", "part": part} for name, part in splits.items()]
    table(tmp_path / "labels.csv", list(rows[0]), rows)
    for name in splits:
        picture(tmp_path / f"{name}.png")
    layout = own_layout(tables=[{"files": ["labels.csv"], "split": "train"}])
    column = {"column": "part", "values": {"test": "test", "val": "val"}, "val_fraction": 0}
    found = import_dataset(own_facts(layout=layout, splits=column), tmp_path)
    assert {row.source[0]: row.split for row in found.rows} == {
        name: part if part else "train" for name, part in splits.items()
    }


@pytest.mark.parametrize("indent", [None, 2])
def test_the_columns_of_json_are_found_on_whatever_line_they_are(tmp_path, indent):
    (tmp_path / "labels.json").write_text(json.dumps([{"file": "a.png", "Fluid": 1}], indent=indent))
    assert header_of(tmp_path / "labels.json") == {"file", "fluid"}
    picture(tmp_path / "a.png")
    json_facts = own_facts(markers=[{"paths": ["*.json"]}], layout=own_layout(tables=[{"files": ["labels.json"]}]))
    found = import_dataset(json_facts, tmp_path)
    assert found.rows[0].findings == {"effusion": 1}


@pytest.mark.parametrize("order", [("images", "annotations", "categories"), ("annotations", "categories", "images")])
@pytest.mark.parametrize("indent", [None, 2])
def test_a_coco_file_is_joined_however_it_is_written(tmp_path, order, indent):
    parts = {
        "images": [{"id": 1, "file_name": "a.png"}],
        "categories": [{"id": 5, "name": "Fluid"}],
        "annotations": [{"id": 9, "image_id": 1, "category_id": 5, "bbox": [0, 0, 1, 1]}],
    }
    (tmp_path / "boxes.json").write_text(json.dumps({name: parts[name] for name in order}, indent=indent))
    table(tmp_path / "labels.csv", ["file_name"], [{"file_name": "a.png"}])
    picture(tmp_path / "a.png")
    join = {"files": ["boxes.json"], "on": ["file_name"]}
    layout = own_layout(image="file_name", joins=[join])
    labels = {"coding": "tokens", "columns": ["categories"], "separators": ["|"], "unlisted": 0}
    assert import_dataset(own_facts(layout=layout, labels=labels), tmp_path).rows[0].findings == {"effusion": 1}
