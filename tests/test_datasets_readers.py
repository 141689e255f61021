"""Tables in every form, joined to the images' own rows; several roots; variants and changed facts."""

import gzip
import json
import os

import cv2
import numpy as np
import pandas as pd
import pytest
import yaml

from cxrdist.datasets import UnknownLabelsError, fact_hash, import_dataset, read_facts
from cxrdist.datasets.cells import read_age
from cxrdist.datasets.codes import code
from cxrdist.datasets.columns import columns_read
from cxrdist.datasets.facts import Age
from cxrdist.datasets.layouts import TableFile
from cxrdist.datasets.readers import header_of, read_table
from cxrdist.datasets.tree import Tree, walk
from cxrdist.errors import UsageError, UserError
from cxrdist.pack import PackOptions
from cxrdist.pack.dataset import pack_dataset, packed_facts, repair_dataset
from tests.trees.own import OWN, own_facts, own_layout


def tree(root, text: str, images=(), name="labels.csv"):
    root.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text, encoding="utf-8")
    for image in images:
        path = root / image
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(len(str(image))).integers(0, 256, (24, 20), np.uint8)
        path.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
    return root


ROWS = [{"image": "a.png", "patient": "216840111366964012819207061112010307142602253", "n": "1.0"}, {"image": "b.png"}]


def test_the_same_rows_come_out_of_csv_parquet_json_and_json_lines(tmp_path):
    frame = pd.DataFrame(ROWS, columns=["image", "patient", "n"])
    frame.rename(columns={"n": " N "}).to_csv(tmp_path / "t.csv", index=False)
    frame.to_parquet(tmp_path / "t.parquet")
    (tmp_path / "t.json").write_text(json.dumps(ROWS), encoding="utf-8")
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, ROWS)), encoding="utf-8")
    (tmp_path / "lines.json").write_text("\n".join(map(json.dumps, ROWS)), encoding="utf-8")
    with gzip.open(tmp_path / "z.csv.gz", "wt") as file:
        file.write((tmp_path / "t.csv").read_text(encoding="utf-8"))
    for path in sorted(tmp_path.iterdir()):
        assert list(read_table(path)) == ROWS, path.name
        assert {"image", "patient", "n"} <= header_of(path), path.name
        assert list(read_table(path, columns={"image": set()})) == [{"image": "a.png"}, {"image": "b.png"}]


def test_lists_in_json_are_joined_and_coco_gives_an_image_its_categories(tmp_path):
    (tmp_path / "a.json").write_text(
        json.dumps([{"f": "1.png", "syms": ["Mass", "Mass", "Nodule"], "boxes": [[1, 2]]}])
    )
    assert list(read_table(tmp_path / "a.json")) == [{"f": "1.png", "syms": "Mass|Nodule"}]
    coco = {
        "images": [{"id": 7, "file_name": "tb/a.png"}, {"id": 8, "file_name": "b.png"}],
        "categories": [{"id": 1, "name": "Active"}, {"id": 2, "name": "Old"}],
        "annotations": [{"image_id": 7, "category_id": k, "bbox": [0, 0, 1, 1]} for k in (2, 1, 2)],
    }
    (tmp_path / "c.json").write_text(json.dumps(coco))
    assert list(read_table(tmp_path / "c.json", columns={"file_name": set(), "categories": set()})) == [
        {"file_name": "tb/a.png", "categories": "Old|Active"},
        {"file_name": "b.png"},
    ]


def test_lines_that_are_no_table_are_read_by_pattern_and_a_strange_one_is_an_error(tmp_path):
    how = TableFile(files=["t.txt"], lines=[r"(?P<who>.+) (?P<image>\S+) (?P<label>\S+) (?P<source>\S+)"])
    (tmp_path / "t.txt").write_text(
        "COVID 949 COVID(949).png positive sirm\n12 x.png negative rsna\n", encoding="utf-8"
    )
    assert [row["who"] + ">" + row["image"] for row in read_table(tmp_path / "t.txt", how)] == [
        "COVID 949>COVID(949).png",
        "12>x.png",
    ]
    (tmp_path / "t.txt").write_text("Mustermann\n", encoding="utf-8")
    with pytest.raises(UserError, match="got 1 that are not") as caught:
        list(read_table(tmp_path / "t.txt", how))
    assert "Mustermann" not in str(caught.value)


def test_xml_is_read_by_path_and_cannot_name_itself_into_gigabytes(tmp_path):
    how = TableFile.model_validate(
        {
            "files": ["*.xml"],
            "xml": {"record": ".//parentImage", "cells": {"image": "@id", "who": "/uId@id", "m": "/MeSH/major"}},
        }
    )
    terms = "<MeSH><major>A/b</major><major>C</major></MeSH>"
    report = f'<e><uId id="CXR1"/>{terms}<parentImage id="p1"/><parentImage id="p2"/></e>'
    (tmp_path / "1.xml").write_text(report, encoding="utf-8")
    assert list(read_table(tmp_path / "1.xml", how)) == [
        {"image": image, "who": "CXR1", "m": "A/b|C"} for image in ("p1", "p2")
    ]
    bomb = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;">]><e><parentImage id="&b;"/></e>'
    for text in (bomb, "<e><unclosed>", "\x00"):
        (tmp_path / "1.xml").write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match="without entities"):
            list(read_table(tmp_path / "1.xml", how))


def test_tables_join_on_ids_in_any_spelling_and_rows_without_a_partner_are_rejects(tmp_path):
    images = [f"{name}.png" for name in "abcd"]
    tree(tmp_path, "file,subject\na,10\nb,11.0\nc,12\nd,\n", images)
    tree(tmp_path, "subject,Fluid,Fluid2\n10.0,1,x\n11,0,\n11,0,\n", name="more.csv")
    join = {"files": ["more.csv"], "on": ["subject"], "unmatched": "reject"}
    found = import_dataset(own_facts(layout=own_layout(joins=[join])), tmp_path)
    assert {row.source: row.findings["effusion"] for row in found.rows} == {"a.png": 1, "b.png": 0}
    assert {(reject.source, reject.reason) for reject in found.rejects} == {
        ("c.png", "no_label_row"),
        ("d.png", "no_label_row"),
    }
    kept = import_dataset(own_facts(layout=own_layout(joins=[join | {"unmatched": "keep"}])), tmp_path)
    assert {row.source: row.findings["effusion"] for row in kept.rows}["c.png"] is None
    (tmp_path / "more.csv").unlink()
    with pytest.raises(UserError, match="further `--root`"):
        import_dataset(own_facts(layout=own_layout(joins=[join])), tmp_path)
    assert import_dataset(own_facts(layout=own_layout(joins=[join | {"required": False}])), tmp_path).rows


def test_a_row_per_box_adds_up_and_rows_of_several_patients_are_a_reject(tmp_path):
    tree(tmp_path, "file,who,Fluid\na,1,0\na,1,1\nb,1,0\nb,2,0\nc,3,0\n", ["a.png", "b.png", "c.png"])
    found = import_dataset(own_facts(layout=own_layout(repeats="union"), columns={"patient": "who"}), tmp_path)
    assert {row.source: row.findings["effusion"] for row in found.rows} == {"a.png": 1, "c.png": 0}
    assert [(reject.source, reject.detail) for reject in found.rejects] == [("b.png", "of several patients")]


def test_readers_give_shares_and_their_majority(tmp_path):
    lines = "a,r1,1\na,r2,0\na,r3,1\na,r3,0\nb,r1,0\nb,r2,1\nb,r3,0\nc,r1,1\nc,r2,0\n"
    tree(tmp_path, "file,reader,Fluid\n" + lines, ["a.png", "b.png", "c.png"])
    found = import_dataset(own_facts(layout=own_layout(readers="mean", reader="reader")), tmp_path)
    rows = {row.source: row for row in found.rows}
    assert [rows[f"{name}.png"].findings["effusion"] for name in "abc"] == [1, 0, -1]
    assert [rows[f"{name}.png"].soft["effusion"] for name in "abc"] == pytest.approx([2 / 3, 1 / 3, 1 / 2])


def test_codes_of_one_finding_can_differ_and_findings_can_be_made_of_others(tmp_path):
    tree(tmp_path, "file,left,right,well\na,1,4,0\nb,2,1,1\nc,,1,\nd,9,1,0\n", [f"{name}.png" for name in "abcd"])
    ordinal = {"coding": "columns", "values": {"1": 0, "2": 0, "3": 1, "4": 1}, "others": None}
    findings = {
        "nodule": "left",
        "mass": "right",
        "effusion": ["left", "right"],
        "no_finding": {"names": ["well"], "values": {"0": 0, "1": 1}},
        "lung_opacity": {"any_of": ["effusion"], "relation": "≈"},
        "pleural_other": {"none_of": ["effusion"]},
    }
    found = import_dataset(own_facts(labels=ordinal, findings=findings), tmp_path)
    values = {row.source[0]: tuple(row.findings[name] for name in findings) for row in found.rows}
    assert values == {
        "a": (0, 1, 1, 0, 1, 0),
        "b": (0, 0, 0, 1, 0, 1),
        "c": (None, 0, None, None, None, None),
        "d": (None, 0, None, 0, None, None),
    }
    assert list(found.rows[0].findings) == list(findings)
    with pytest.raises(UsageError, match="one of names, none_of, any_of"):
        own_facts(findings={"effusion": {"names": ["left"], "none_of": ["effusion"]}})


def test_words_that_stand_alone_open_a_report_or_are_no_label(tmp_path):
    cells = [
        "['normal']",
        "['normal', 'scoliosis']",
        "[' pneumonia', 'unchanged']",
        "['unchanged']",
        "[]",
        "",
        "['exclude']",
    ]
    lines = [f'{number},"{cell}"' for number, cell in enumerate(cells)]
    tree(tmp_path, "file,Labels\n" + "\n".join(lines), [f"{number}.png" for number in range(len(cells))])
    tokens = {"coding": "tokens", "columns": ["Labels"], "python_list": True, "unlisted": 0}
    tokens |= {"open": ["unchanged"], "exclude": ["exclude"], "others": None}
    findings = {"pneumonia": "pneumonia", "no_finding": {"names": ["normal"], "alone": True}}
    found = import_dataset(own_facts(labels=tokens, findings=findings), tmp_path)
    values = {row.source[0]: (row.findings["pneumonia"], row.findings["no_finding"]) for row in found.rows}
    assert values == {"0": (0, 1), "1": (0, 0), "2": (1, 0), "3": (None, None)}
    assert {(reject.source[0], reject.reason) for reject in found.rejects} == {
        ("4", "no_label_row"),
        ("5", "no_label_row"),
        ("6", "excluded_by_source"),
    }


def test_images_may_lie_in_another_root_or_beside_the_first(tmp_path):
    tables = tree(tmp_path / "site/labels-1.0", "file,Fluid\na,1\nb,0\n")
    pictures = tree(tmp_path / "site/pictures-2/deep", "", ["a.png"], name="x.txt").parent
    tree(tmp_path / "site/pictures-2", "", ["b.png"], name="x.txt")
    for found in (
        import_dataset(own_facts(), [tables, pictures]),
        import_dataset(own_facts(beside=["pictures*"]), tables),
        import_dataset(own_facts(beside=["pictures*"]), [tables, pictures]),
    ):
        assert [row.source for row in found.rows] == ["2:b.png", "2:deep/a.png"] and not found.rejects
        assert all(row.path.is_file() for row in found.rows)
    assert len(import_dataset(own_facts(), tables).rejects) == 2
    # A link inside one root to the other holds the same files once more: no image counts twice.
    with pytest.raises(UsageError, match="existing folder"):
        import_dataset(own_facts(), [tables, tmp_path / "gone"])


def test_only_columns_that_the_facts_name_come_into_memory(tmp_path):
    tree(tmp_path, "file,Fluid,Report,PatientName\na,1,long text,Mustermann\n", ["a.png"])
    assert set(columns_read(own_facts())) == {"file", "fluid"}
    rows = import_dataset(own_facts(), tmp_path).rows
    assert len(rows) == 1 and "Mustermann" not in repr(rows)


def test_splits_come_from_folders_or_are_put_aside(tmp_path):
    images = [f"{part}/{number}.png" for part in ("images-train", "images-test") for number in range(60)]
    images = [image.replace("test/", "test/t") for image in images]
    tree(tmp_path, "file,Fluid\n" + "".join(f"{image.split('/')[1]},1\n" for image in images), images)
    folders = {"train": "images-train/", "test": "images-test/"}
    found = import_dataset(own_facts(splits={"folders": folders, "val_fraction": 0.3}), tmp_path)
    assert {row.split for row in found.rows if "test" in row.source} == {"test"}
    assert {row.split for row in found.rows if "train" in row.source} == {"train", "val"}
    carved = import_dataset(own_facts(splits={"folders": folders, "official": False, "test_fraction": 0.4}), tmp_path)
    assert {row.split for row in carved.rows if "images-test" in row.source} == {"train", "val", "test"}


def test_a_pipe_is_no_image_and_is_not_waited_for(tmp_path):
    tree(tmp_path, "file,Fluid\na,1\n", ["a.png"])
    os.mkfifo(tmp_path / "b.png")
    (tmp_path / "c.png").symlink_to(tmp_path / "gone.png")
    assert list(walk(tmp_path)) == ["a.png", "c.png", "labels.csv"]
    assert Tree([tmp_path]).files == ["a.png", "c.png", "labels.csv"]


@pytest.mark.parametrize(
    ("text", "at", "expected"),
    [
        ("1950", "20120307", 62),
        ("19500101", "2012-03-07", 62),
        ("2018", "2012", None),
        ("x", "2012", None),
        ("1900", "2012", 90),
    ],
)
def test_ages_are_taken_from_the_year_of_birth(text, at, expected):
    assert read_age(Age(column="b", born=True, at="d"), {"b": text, "d": at}) == expected


@pytest.mark.parametrize(
    ("text", "years"), [("85 or more", 85), ("24yrs", 24), ("030Y", 30), ("12 years", 12), ("?", None)]
)
def test_ages_are_read_in_peoples_spelling(text, years):
    assert read_age(Age(column="a"), {"a": text}) == years


def test_numbers_are_one_code_in_any_spelling_and_long_ids_stay_text():
    assert code("1.0") == code(" 1") == "1" and code("Nan") == "nan" and code("1_0") == "1_0"
    assert code("216840111366964012") != code("216840111366964013")


def test_a_variant_and_a_changed_fact_change_the_hash_and_are_packed_and_repaired(tmp_path):
    raw = tree(
        tmp_path / "raw", "file,Fluid\n" + "".join(f"{n},{n % 3}\n" for n in range(12)), [f"{n}.png" for n in range(12)]
    )
    path = tmp_path / "mine.yaml"
    changed = {**OWN, "labels": {"coding": "columns", "values": {"0": 0, "1": 1, "2": 1}}}
    changed["variants"] = {"strict": {"about": "Grade 1 is absent.", "labels.values": {"1": 0}}}
    path.write_text(yaml.safe_dump(changed), encoding="utf-8")
    strict = read_facts(str(path), variant="strict", changes={"splits.seed": 5})
    assert strict.labels.values == {"0": 0, "1": 0, "2": 1} and strict.splits.seed == 5
    options = PackOptions(id_key=tmp_path / "k/id.key", size=16, max_reject=1.0)
    manifest = pack_dataset(strict, raw, tmp_path / "shards", options, shown=False)
    assert (manifest.variant, manifest.title) == ("strict", "Mine (strict)")
    (tmp_path / "shards" / manifest.shards[0].name).unlink()
    again = packed_facts(tmp_path / "shards", name=str(path), id_key=options.id_key)
    assert fact_hash(again) == fact_hash(strict) != fact_hash(read_facts(str(path)))
    assert repair_dataset(again, raw, tmp_path / "shards", id_key=options.id_key, shown=False) == manifest
    with pytest.raises(UsageError, match="Did you mean 'strict'"):
        read_facts(str(path), variant="strikt")


def test_unknown_labels_are_listed_in_a_private_file_and_not_in_the_message(tmp_path):
    raw = tree(tmp_path / "raw", "file,Fluid\na,Mustermann\n", ["a.png"])
    options = PackOptions(id_key=tmp_path / "k/id.key")
    with pytest.raises(UserError, match=r"mine\.unknown_labels\.txt") as caught:
        pack_dataset(own_facts(), raw, tmp_path / "shards", options, shown=False)
    assert not isinstance(caught.value, UnknownLabelsError) and "Mustermann" not in str(caught.value)
    private = tmp_path / "k/mine.unknown_labels.txt"
    assert private.read_text(encoding="utf-8") == "1\tMustermann\n" and private.stat().st_mode & 0o777 == 0o600
