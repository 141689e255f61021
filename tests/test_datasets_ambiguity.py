"""No image gets the label of another: names that occur twice, other tables, misspelt columns, ids like numbers."""

import logging
import unicodedata

import cv2
import numpy as np
import pytest

from cxrdist.datasets import detect, import_dataset, read_facts
from cxrdist.datasets.codes import code, key
from cxrdist.datasets.tree import Tree, root_number
from cxrdist.errors import UserError
from tests.trees.own import own_facts, own_layout


def write(root, tables: dict[str, str], images=()):
    root.mkdir(parents=True, exist_ok=True)
    for name, text in tables.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    for number, image in enumerate(images):
        path = root / image
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (8 + number, 9), np.uint8)
        path.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
    return root


def test_files_of_one_name_in_many_folders_keep_their_own_labels(tmp_path):
    images = [f"images/PAT{number}/IM0001.png" for number in range(6)]
    lines = [f"C:\\export\\images\\PAT{number}\\IM0001.png,{number % 2}" for number in reversed(range(6))]
    write(tmp_path, {"labels.csv": "file,Fluid\n" + "\n".join(lines)}, images)
    found = import_dataset(own_facts(), tmp_path)
    assert {row.source: row.findings["effusion"] for row in found.rows} == {
        image: number % 2 for number, image in enumerate(images)
    }
    assert not found.rejects


def test_numbers_that_train_and_test_share_are_told_apart_by_their_folders(tmp_path):
    lines = {
        "train": '[{"file_name": "1.png", "syms": ["Mass"]}]',
        "test": '[{"file_name": "1.png", "syms": ["Effusion"]}]',
    }
    tables = {f"ChestX_Det_{part}.json": text for part, text in lines.items()}
    write(tmp_path, tables, ["test_data/1.png", "train_data/1.png"])
    found = import_dataset(read_facts("chestx_det"), tmp_path)
    assert {row.source: (row.findings["mass"], row.findings["effusion"]) for row in found.rows} == {
        "train_data/1.png": (1, 0),
        "test_data/1.png": (0, 1),
    }
    assert {row.split for row in found.rows if "test" in row.source} == {"test"}


def test_a_name_that_several_different_files_have_stops_the_import(tmp_path):
    write(tmp_path, {"labels.csv": "file,Fluid\nIM0001.png,1\n"}, ["a/IM0001.png", "b/IM0001.png"])
    with pytest.raises(UserError, match="2 different files in several folders") as caught:
        import_dataset(own_facts(), tmp_path)
    assert "IM0001" not in str(caught.value)
    (tmp_path / "b/IM0001.png").write_bytes((tmp_path / "a/IM0001.png").read_bytes())
    found = import_dataset(own_facts(), tmp_path)  # a copy of the same file
    assert [row.source for row in found.rows] == ["a/IM0001.png"]
    assert [(reject.source, reject.reason) for reject in found.rejects] == [("b/IM0001.png", "duplicate_row")]


def test_names_that_differ_in_case_alone_are_two_images(tmp_path):
    write(tmp_path, {"labels.csv": "file,Fluid\nA1.png,1\na1.png,0\n"}, ["A1.png", "a1.png"])
    if len(list(tmp_path.glob("*.png"))) < 2:
        pytest.skip("the disc does not tell capitals from small letters")
    found = import_dataset(own_facts(), tmp_path)
    assert {row.source: row.findings["effusion"] for row in found.rows} == {"A1.png": 1, "a1.png": 0}


def test_umlauts_in_either_spelling_are_one_name(tmp_path):
    name = "Brünn.png"
    disc, table = unicodedata.normalize("NFD", name), unicodedata.normalize("NFC", name)
    write(tmp_path, {"labels.csv": f"file,Fluid\n{table},1\n"}, [disc])
    assert len(import_dataset(own_facts(), tmp_path).rows) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"columns": {"patient": "hospitalid"}},
        {"findings": {"effusion": "Fluids"}},
        {"keep": {"fluids": ["1"]}},
        {"drop": {"hospitalid": ["H1"]}},
        {"columns": {"sex": "hospitalid"}},
        {"columns": {"age": "fluids"}},
        {"splits": {"column": "fluids", "values": {"1": "train"}}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_column_that_no_table_has_stops_the_import_and_tells_the_nearest(tmp_path, changes):
    write(tmp_path, {"labels.csv": "file,Fluid,hospital_id\na,1,H1\n"}, ["a.png"])
    with pytest.raises(UserError, match=r"must name a column of a table.*Did you mean"):
        import_dataset(own_facts(**changes), tmp_path)
    column = next(column for column in ("hospitalid", "fluids") if column in str(changes).lower())
    import_dataset(own_facts(**changes, optional_columns=[column]), tmp_path)


def test_a_column_that_may_be_in_an_absent_table_is_a_warning(tmp_path, caplog):
    write(tmp_path, {"labels.csv": "file,Fluid\na,1\n"}, ["a.png"])
    joins = [{"files": ["people.csv"], "on": ["file"], "required": False}]
    with caplog.at_level(logging.WARNING):
        found = import_dataset(own_facts(layout=own_layout(joins=joins), columns={"sex": "gender"}), tmp_path)
    assert found.rows[0].sex == "unknown" and "'gender'" in caplog.text and "people.csv" in caplog.text


def test_ids_that_look_like_numbers_stay_apart(tmp_path):
    ids = ["1234e567", "9999e999", "5e12", "50e11", "0012", "12"]
    lines = "".join(f"{number}.png,{one}\n" for number, one in enumerate(ids))
    labels = "".join(f"{one},{number % 2}\n" for number, one in enumerate(ids))
    images = [f"{number}.png" for number in range(len(ids))]
    write(tmp_path, {"labels.csv": "file,study\n" + lines, "more.csv": "study,Fluid\n" + labels}, images)
    found = import_dataset(own_facts(layout=own_layout(joins=[{"files": ["more.csv"], "on": ["study"]}])), tmp_path)
    assert [row.findings["effusion"] for row in found.rows] == [0, 1, 0, 1, 0, 1]
    assert len({key(one) for one in ids}) == len(ids) and key("12.0") == key("12") and code("5e12") == "5e12"


def test_joined_rows_that_differ_stop_the_import_unless_each_says_more(tmp_path):
    write(tmp_path, {"labels.csv": "file\na\n", "more.csv": "file,Fluid\na,0\na,1\n"}, ["a.png"])
    join = {"files": ["more.csv"], "on": ["file"]}
    with pytest.raises(UserError, match="rows that agree, got 1 with others"):
        import_dataset(own_facts(layout=own_layout(joins=[join])), tmp_path)
    both = {"coding": "columns", "others": 1}
    found = import_dataset(own_facts(layout=own_layout(joins=[join | {"repeats": "union"}]), labels=both), tmp_path)
    assert found.rows[0].findings["effusion"] == 1


def test_a_dataset_takes_its_own_tables_where_another_lies_nearer(tmp_path):
    cxr, pcxr = read_facts("vindr_cxr"), read_facts("vindr_pcxr")
    columns = {
        "adult": [name for source in cxr.findings.values() for name in source.names],
        "child": [name for source in pcxr.findings.values() for name in source.names],
    }
    tables = {}
    for folder, who in (("adults/1.0.0/annotations", "adult"), ("children", "child")):
        header = ",".join(["image_id", "rad_id", *columns[who]])
        for part in ("train", "test"):
            line = ",".join([f"{who}{part}", "R1", *("1" for _ in columns[who])])
            tables[f"{folder}/image_labels_{part}.csv"] = f"{header}\n{line}\n"
    images = [f"{folder}/{part}/{who}{part}.png" for folder, who in (("adults/1.0.0", "adult"), ("children", "child"))
              for part in ("train", "test")]  # fmt: skip
    write(tmp_path, tables, images)
    with pytest.raises(UserError, match="fits vindr_cxr, vindr_pcxr"):
        detect(tmp_path)
    assert {row.source for row in import_dataset(cxr, tmp_path).rows} == set(images[:2])
    assert {row.source for row in import_dataset(pcxr, tmp_path).rows} == set(images[2:])


def test_of_two_roots_with_the_same_files_the_first_counts(tmp_path):
    first = write(tmp_path / "z", {"labels.csv": "file,Fluid\na,1\n"}, ["a.png"])
    second = write(tmp_path / "a", {"labels.csv": "file,Fluid\na,0\n"}, ["b.png", "a.png"])
    found = import_dataset(own_facts(), [first, second])
    assert [(row.source, row.findings["effusion"]) for row in found.rows] == [("a.png", 1)]
    assert {reject.source for reject in found.rejects} == {"2:a.png", "2:b.png"}


def test_a_folder_whose_name_looks_like_a_root_is_one_of_the_first(tmp_path):
    write(tmp_path, {"labels.csv": "file,Fluid\na,1\n"}, ["2:images/a.png"])
    found = import_dataset(own_facts(), tmp_path)
    assert found.rows[0].path == tmp_path / "2:images/a.png" and found.rows[0].path.is_file()
    assert root_number("2:a") == "2:" and root_number("10:a") == "10:" and root_number("x:a") == ""


def test_official_splits_are_seen_where_each_folder_is_a_root(tmp_path):
    folders = {"train": "images-train/", "test": "images-test/"}
    tables = write(tmp_path / "t", {"labels.csv": "file,Fluid\na,1\nb,0\n"})
    roots = [tables, write(tmp_path / "images-train", {}, ["a.png"]), write(tmp_path / "images-test", {}, ["b.png"])]
    found = import_dataset(own_facts(splits={"folders": folders, "val_fraction": 0}), roots)
    assert {row.source: row.split for row in found.rows} == {"2:a.png": "train", "3:b.png": "test"}


def test_folders_that_are_alone_do_not_count_as_levels(tmp_path):
    home = tmp_path / "physionet.org/files/nih/1.0.0/data"
    write(home, {"tables/Data_Entry_2017.csv": "Image Index,Finding Labels\n"}, ["images/a.png"])
    assert detect(tmp_path).name == "nih14"
    assert any(path.endswith(".csv") for path in Tree([tmp_path]).near())


def test_a_study_without_an_image_in_the_list_is_a_reject_and_a_row_without_a_name_is_told(tmp_path, caplog):
    tables = {"labels.csv": "study,Fluid\ns1,1\ns2,0\n", "list.csv": "study,file\ns1,a\n,\n"}
    write(tmp_path, tables, ["a.png"])
    named = {"files": ["list.csv"], "on": ["study"]}
    found = import_dataset(
        own_facts(layout=own_layout(tables=[{"files": ["labels.csv"], "named_by": named}])), tmp_path
    )
    assert [row.source for row in found.rows] == ["a.png"]
    assert [(reject.source, reject.reason) for reject in found.rejects] == [("s2", "missing_file")]
    write(tmp_path, {"labels.csv": "file,Fluid\na,1\n,1\n"})
    with caplog.at_level(logging.WARNING):
        import_dataset(own_facts(), tmp_path)
    assert "1 rows" in caplog.text
