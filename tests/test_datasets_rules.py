"""Rules that a fact file can switch on: study tables, borrowed images, patients in two splits, ages that run on."""

import pytest

from cxrdist.datasets import FactFile, import_dataset
from cxrdist.errors import UserError
from tests.trees.files import picture, reasons, table
from tests.trees.own import own_facts, own_layout


def by_study(**more) -> FactFile:
    tables = [{"files": ["labels.csv"], "named_by": {"files": ["images.csv"], "on": ["study"]}}]
    return own_facts(layout={"kind": "table", "tables": tables, "image": "file", **more}, columns={"study": "study"})


def test_a_row_that_speaks_of_a_study_is_each_of_its_images(tmp_path):
    table(tmp_path / "labels.csv", ["study", "Fluid"], [{"study": "7", "Fluid": "1"}, {"study": "9.0", "Fluid": "0"}])
    named = [{"file": "a.png", "study": "7"}, {"file": "b.png", "study": "7"}, {"file": "c.png", "study": "9"}]
    table(tmp_path / "images.csv", ["file", "study"], [*named, {"file": "d.png", "study": "8"}])
    for name in "abcd":
        picture(tmp_path / f"{name}.png")
    found = import_dataset(by_study(), tmp_path)
    assert {row.source: row.findings["effusion"] for row in found.rows} == {"a.png": 1, "b.png": 1, "c.png": 0}
    assert reasons(found) == {"no_label_row": 1}


def test_the_table_that_names_the_images_must_be_there(tmp_path):
    table(tmp_path / "labels.csv", ["study", "Fluid"], [{"study": "7", "Fluid": "1"}])
    with pytest.raises(UserError, match=r"must have a table images\.csv with columns study"):
        import_dataset(by_study(), tmp_path)


@pytest.mark.parametrize(("overwrite", "value"), [(False, 0), (True, 1)])
def test_a_joined_tables_cells_replace_those_of_the_images_row_where_asked(tmp_path, overwrite, value):
    table(tmp_path / "labels.csv", ["file", "Fluid"], [{"file": "a.png", "Fluid": "0"}])
    table(tmp_path / "second.csv", ["file", "Fluid"], [{"file": "a.png", "Fluid": "1"}])
    picture(tmp_path / "a.png")
    join = {"files": ["second.csv"], "on": ["file"], "overwrite": overwrite}
    found = import_dataset(own_facts(layout=own_layout(joins=[join])), tmp_path)
    assert found.rows[0].findings == {"effusion": value}


def test_images_of_another_dataset_beside_its_own_are_passed_over_where_asked(tmp_path):
    table(tmp_path / "labels.csv", ["file", "Fluid"], [{"file": "a.png", "Fluid": "1"}])
    for name in "ab":
        picture(tmp_path / f"{name}.png")
    assert reasons(import_dataset(own_facts(), tmp_path)) == {"no_label_row": 1}
    borrowed = own_facts(layout=own_layout(unnamed="ignore"))
    found = import_dataset(borrowed, tmp_path)
    assert ([row.source for row in found.rows], found.rejects) == (["a.png"], [])


@pytest.mark.parametrize(("crossing", "kept"), [("keep", "abcde"), ("reject", "bcde")])
def test_a_patient_who_is_held_out_does_not_train_where_asked(tmp_path, crossing, kept):
    rows = [("a", "1", "train"), ("b", "1", "test"), ("c", "2", "train"), ("d", "3", "val"), ("e", "1", "test")]
    lines = [{"file": f"{n}.png", "who": who, "part": part, "Fluid": "1"} for n, who, part in rows]
    table(tmp_path / "labels.csv", ["file", "who", "part", "Fluid"], lines)
    for name in "abcde":
        picture(tmp_path / f"{name}.png")
    splits = {"column": "part", "values": {"train": "train", "val": "val", "test": "test"}, "crossing": crossing}
    found = import_dataset(own_facts(columns={"patient": "who"}, splits=splits), tmp_path)
    assert "".join(row.source[0] for row in found.rows) == kept
    assert reasons(found) == ({} if crossing == "keep" else {"excluded_by_source": 1})


@pytest.mark.parametrize(
    ("told", "since", "now", "age"),
    [("60", "2150", "21520304", 62), ("91", "2150", "2150", 90), ("60", "", "2150", None), ("60", "2150", "", None)],
)
def test_an_age_told_for_one_year_runs_on_to_the_examination(tmp_path, told, since, now, age):
    row = {"file": "a.png", "Fluid": "1", "age": told, "year": since, "date": now}
    table(tmp_path / "labels.csv", list(row), [row])
    picture(tmp_path / "a.png")
    columns = {"age": {"column": "age", "since": "year", "at": "date"}}
    assert import_dataset(own_facts(columns=columns), tmp_path).rows[0].age == age


def test_rows_are_chosen_by_numbers_in_any_spelling(tmp_path):
    rows = [{"file": f"{fold}.png", "Fluid": "1", "Fold": f"{fold}.0"} for fold in range(3)]
    table(tmp_path / "labels.csv", list(rows[0]), rows)
    for fold in range(3):
        picture(tmp_path / f"{fold}.png")
    tables = [{"files": ["labels.csv"], "where": {"Fold": ["0", "2"]}}]
    found = import_dataset(own_facts(layout={"kind": "table", "tables": tables, "image": "file"}), tmp_path)
    assert [row.source for row in found.rows] == ["0.png", "2.png"]


@pytest.mark.parametrize(("either", "values"), [(False, [None, 1, None]), (True, [0, 1, None])])
def test_columns_of_different_releases_stand_for_one_finding(tmp_path, either, values):
    rows = [{"file": "a.png", "Fluid": "0"}, {"file": "b.png", "Water": "1"}, {"file": "c.png"}]
    table(tmp_path / "labels.csv", ["file", "Fluid", "Water"], rows)
    for name in "abc":
        picture(tmp_path / f"{name}.png")
    found = import_dataset(own_facts(findings={"effusion": {"names": ["Fluid", "Water"], "either": either}}), tmp_path)
    assert [row.findings["effusion"] for row in found.rows] == values
