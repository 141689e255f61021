"""What shards/README.md says of fact files is so: its examples work, and it leaves no field out."""

import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from pydantic import BaseModel

from cxrdist.config import load_yaml, shipped
from cxrdist.datasets import detect, facts, import_dataset, layouts, read_facts
from cxrdist.errors import UserError
from tests.trees.files import ones, picture, reasons, table

TEXT = (shipped("shards") / "README.md").read_text(encoding="utf-8")
OWN = TEXT.split("### Your own hospital's data")[1].split("```yaml\n")[1].split("```")[0]


def write_exams(root, *, parquet=True):
    """Write the tree that the README describes: eight images, six with all that they need."""

    def exam(number, mrn, view="PA", sex="1", part="training", body="CHEST"):
        row = {"file": f"images/2021/A{number}_1.dcm", "accession": f"A{number}", "mrn": mrn, "view": view, "sex": sex}
        return row | {"born": "1950-03-01", "exam_date": "20210704", "body_part": body, "part": part}

    exams = [
        exam(1, "0042"),
        exam(2, "0042", "AP bed"),
        exam(3, "77", "LAT"),
        exam(4, "78", sex="2", part="tuning"),
        exam(5, "79", part="testing"),
        exam(6, "80", body="HAND"),
        exam(7, "81"),  # without grades
        exam(8, "82"),  # not on disk
    ]
    table(root / "exams.csv", list(exams[0]), exams)
    names = ["accession", "heart", "effusion_left", "effusion_right", "ptx_left", "ptx_right", "rib_fracture"]
    grades = [
        ["A1", 4, 0, 3, 0, 0, "no"],
        ["A2", 9, 2, 0, 0, 0, "yes"],
        ["A3", 0, 0, 0, 0, 0, "no"],
        ["A4", 0, 1, 0, 0, 0, "no"],
        ["A5", 0, 0, 0, 4, None, "no"],
        ["A6", 0, 0, 0, 0, 0, "no"],
        ["A8", 0, 0, 0, 0, 0, "no"],
    ]
    if parquet:
        columns = dict(zip(names, map(list, zip(*grades, strict=True)), strict=True))
        pq.write_table(pa.table(columns), root / "grades.parquet")
    else:
        rows = [
            {name: "" if value is None else str(value) for name, value in zip(names, row, strict=True)}
            for row in grades
        ]
        table(root / "grades.csv", names, rows)
    for number in range(1, 8):
        picture(root / f"images/2021/A{number}_1.dcm")
    picture(root / "images/2022/A9_1.dcm")  # in no table
    return 9


@pytest.mark.parametrize("parquet", [True, False])
def test_the_hospitals_data_of_the_readme_are_imported_as_it_says(tmp_path, parquet):
    named = write_exams(tmp_path / "raw", parquet=parquet)
    path = tmp_path / "wards.yaml"
    path.write_text(OWN if parquet else OWN.replace("grades.parquet", "grades.csv"), encoding="utf-8")
    found = import_dataset(read_facts(str(path)), tmp_path / "raw")
    assert len(found.rows) + len(found.rejects) == named
    assert reasons(found) == {
        "projection_filtered": 1, "excluded_by_source": 1, "no_label_row": 2, "missing_file": 1,
    }  # fmt: skip
    rows = {row.study: row for row in found.rows}
    assert {study: ones(row) for study, row in rows.items()} == {
        "A1": {"cardiomegaly", "effusion", "effusion_right"},
        "A2": {"fracture"},
        "A4": {"no_finding"},
        "A5": {"pneumothorax"},
    }
    second = rows["A2"].findings
    assert [second[name] for name in ("cardiomegaly", "effusion", "effusion_left", "effusion_right")] == [
        None,
        -1,
        -1,
        0,
    ]
    assert rows["A1"].patient == rows["A2"].patient == "0042"
    assert [rows[study].split for study in ("A1", "A4", "A5")] == ["train", "val", "test"]
    assert (rows["A2"].projection, rows["A2"].sex, rows["A2"].age, rows["A4"].sex) == ("AP", "F", 71, "M")
    any_degree = import_dataset(read_facts(str(path), variant="any_degree"), tmp_path / "raw")
    assert {row.study for row in any_degree.rows if row.findings["effusion_left"] == 1} == {"A2", "A4"}


def test_the_hospitals_data_are_no_public_dataset(tmp_path):
    write_exams(tmp_path)
    with pytest.raises(UserError, match="must hold a known dataset"):
        detect(tmp_path)


def test_every_file_that_the_readme_names_is_there():
    named = set(re.findall(r"`([a-z0-9_]+\.yaml)`", TEXT))
    assert named and not [name for name in named if not (shipped("shards") / name).is_file()]


@pytest.mark.parametrize("example", re.findall(r"```yaml\n(.*?)```", TEXT, flags=re.DOTALL))
def test_every_example_is_a_fact_file(example):
    assert facts.FactFile.build(load_yaml(example), where="README.md").has_patient_ids
    assert yaml.safe_load(example)["name"]


def test_the_readme_leaves_no_field_of_a_fact_file_out():
    known = set()
    for module in (facts, layouts):
        for model in vars(module).values():
            if isinstance(model, type) and issubclass(model, BaseModel) and model.__module__ == module.__name__:
                known |= set(model.model_fields)
    section = TEXT.split("## The shard folder")[0]
    told = set(re.findall(r"[a-z_]+", section))
    assert known - told <= {"variant", "changes"}  # written by the program
