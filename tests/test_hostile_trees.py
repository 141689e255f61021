"""Tables and folders that are damaged, or built to lead astray: a pack, or one clear sentence.

Nothing outside the roots is read because a table names it.  Links are followed: people link folders together.
"""

import gzip
import inspect
import json
import os
import random
import socket
import sys
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from cxrdist.datasets import FactFile, detect, import_dataset
from cxrdist.datasets.shard_format import read_manifest
from cxrdist.errors import UserError
from cxrdist.pack import PackOptions, pack_dataset, pack_rows
from cxrdist.pack.plan import DatasetName
from tests.damage import damaged

FACTS = {
    "name": "toy",
    "title": "Toy",
    "home": "",
    "licence": "",
    "coding": "",
    "markers": [{"paths": ["images"]}],
    "layout": {
        "kind": "table",
        "tables": [{"files": ["exams.csv", "exams.parquet", "exams.json", "exams.tsv"]}],
        "image": "file",
        "joins": [{"files": ["patients.csv"], "on": ["patient"], "required": False}],
    },
    "columns": {"patient": "patient", "projection": "view", "age": "years"},
    "projections": {"*": "PA"},
    "labels": {"coding": "tokens", "columns": ["labels"], "separators": ["|"], "unlisted": 0},
    "findings": {"effusion": "Effusion", "no_finding": "Normal"},
    "splits": {"val_fraction": 0.2, "test_fraction": 0.2},
    "namespace": "toy",
}
HEADER = "file,patient,view,labels,comment"


def facts(**changes) -> FactFile:
    return FactFile.build({**FACTS, **changes}, where="the test")


def make_tree(root: Path, *, images: int = 6, table: str | None = None) -> Path:
    """Write images of noise with a table that names them."""
    rng = np.random.default_rng(0)
    (root / "images").mkdir(parents=True)
    lines = [HEADER]
    for number in range(images):
        cv2.imwrite(str(root / "images" / f"i{number}.png"), rng.integers(0, 256, (24, 20), np.uint8))
        lines.append(f"i{number}.png,p{number},PA,{'Effusion' if number % 2 else 'Normal'},text {number}")
    (root / "exams.csv").write_text("\n".join(lines) + "\n" if table is None else table)
    return root


def pack(root: Path, out: Path, what: FactFile | None = None):
    options = PackOptions(size=16, format="png", id_key=out.parent / "id.key", max_reject=1.0)
    return pack_dataset(what or facts(), root, out, options, shown=False)


def packed_or_told(root: Path, out: Path, what: FactFile | None = None) -> str:
    """Return what the user is told; any other exception is a failure of the test."""
    try:
        manifest = pack(root, out, what)
    except UserError as error:
        message = str(error)
        assert len(message) < 1000 and message[0].isupper() and message.rstrip().endswith((".", "]", ")")), message
        return message
    assert manifest.samples + sum(manifest.rejects.values()) == manifest.rows
    return ""


LINE = "i0.png,p0,PA,Normal,x\n"
TABLES = {
    "nul": f"{HEADER}\n{LINE}i1.png,p\0 1,P\0A,Normal,\0\n".encode(),
    "latin": f"{HEADER}\n{LINE}i1.png,M\xfcller,PA,Normal,\xe9\n".encode("latin-1"),
    "no_text": HEADER.encode() + b"\n" + bytes(range(256)) * 4,
    "utf16": f"{HEADER}\n{LINE}".encode("utf-16"),
    "long_cell": f"{HEADER}\n{LINE}i1.png,p1,PA,Normal,{'A' * 10**6}\n".encode(),
    "long_patient": f"{HEADER}\n{LINE}i1.png,{'A' * 10**6},PA,Normal,x\n".encode(),
    "long_label": f"{HEADER}\n{LINE}i1.png,p1,PA,{'Normal|' * 10**5},x\n".encode(),
    "long_file": f"{HEADER}\n{LINE}{'A' * 10**5}.png,p1,PA,Normal,x\n{'a/' * 10**4}x,p1,PA,Normal,x\n".encode(),
    "header_twice": f"{HEADER},file,labels\n{LINE.strip()},i1.png,Effusion\n".encode(),
    "header_again": f"{HEADER}\n{LINE}{HEADER}\n".encode(),
    "header_alone": HEADER.encode(),
    "no_header": LINE.encode(),
    "no_image_column": b"name,labels\ni0.png,Normal\n",
    "no_label_column": b"file,patient\ni0.png,p0\n",
    "blank_header": b",,,\ni0.png,p0,PA,Normal\n",
    "wide": ("file,labels," + ",".join(map(str, range(20000))) + "\ni0.png,Normal" + ",1" * 20000 + "\n").encode(),
    "short_lines": f"{HEADER}\ni0.png\n\n,\n,,,,,,,,,,,,\ni1.png,p1,PA,Normal\n".encode(),
    "open_quote": f'{HEADER}\n{LINE}"i1.png,p1,PA,Normal\n'.encode() + LINE.encode() * 1000,
    "quotes": f'{HEADER}\n{LINE}"i1"".png",p"1,PA,"Normal"",x\n'.encode(),
    "mac": f"{HEADER}\n{LINE}".replace("\n", "\r").encode(),
    "formulas": f"{HEADER}\n{LINE}=cmd|' /C calc'!A0,@SUM(1),+1,Normal,=1+1\n".encode(),
    "empty": b"",
    "blank": b"\n\n \n",
    "html": b"<!DOCTYPE html><html><body>Sign in, file</body></html>",
}


@pytest.mark.parametrize("name", TABLES)
def test_a_strange_table_is_packed_or_told_of(tmp_path, name):
    root = make_tree(tmp_path / "root")
    (root / "exams.csv").write_bytes(TABLES[name])
    told = packed_or_told(root, tmp_path / "out")
    known = {
        "nul",
        "latin",
        "long_cell",
        "long_patient",
        "long_file",
        "header_twice",
        "wide",
        "short_lines",
        "formulas",
    }
    if name in known:
        assert not told
        assert read_manifest(tmp_path / "out").samples >= 1


@pytest.mark.parametrize("form", ["csv", "csv.gz", "parquet", "json", "jsonl"])
def test_a_table_damaged_anywhere_is_packed_or_told_of(tmp_path, form):
    seed = 20240612
    print(f"seed {seed}")
    rng = random.Random(seed)
    root = make_tree(tmp_path / "root")
    table = pd.read_csv(root / "exams.csv")
    (root / "exams.csv").unlink()
    path = root / f"exams.{form.replace('jsonl', 'json')}"
    if form == "csv.gz":
        path.write_bytes(gzip.compress(table.to_csv(index=False).encode(), mtime=0))
    elif form == "parquet":
        table.to_parquet(path)
    elif form.startswith("json"):
        table.to_json(path, orient="records", lines=form == "jsonl")
    else:
        table.to_csv(path, index=False)
    assert not packed_or_told(root, tmp_path / "whole")
    whole = path.read_bytes()
    for number in range(300):
        way, data = damaged(whole, [whole], rng)
        path.write_bytes(data)
        try:
            import_dataset(facts(), root)
        except UserError as error:
            assert len(str(error)) < 1000
        except Exception as error:
            raise AssertionError(f"{form} {number} {way}") from error


@pytest.mark.parametrize(
    "named",
    ["../secret.png", "../../secret.png", "images/../../secret.png", "{outside}/secret.png", "..\\secret.png",
     "2:secret.png", "//secret.png", "secret", "./../secret.png", "file://{outside}/secret.png", "/etc/passwd",
     "~/secret.png", "%2e%2e/secret.png", "C:\\secret.png", "$HOME/secret.png"],
)  # fmt: skip
def test_no_table_reaches_an_image_outside_of_the_root(tmp_path, named):
    cv2.imwrite(str(tmp_path / "secret.png"), np.eye(30, dtype=np.uint8) * 255)
    line = f'"{named.format(outside=tmp_path)}",p9,PA,Normal,x'
    root = make_tree(tmp_path / "root")
    (root / "exams.csv").write_text((root / "exams.csv").read_text().replace("\ni", "\nimages/i") + line + "\n")
    for parts in (1, 2):
        found = import_dataset(facts(layout={**FACTS["layout"], "match_parts": parts}), root)
        assert len(found.rows) == 6 and [reject.reason for reject in found.rejects] == ["missing_file"]
        assert all(row.path.resolve().is_relative_to(root.resolve()) for row in found.rows)


def test_tables_outside_of_the_root_are_not_read_either(tmp_path):
    (tmp_path / "patients.csv").write_text("patient,years\np0,66\n")
    root = make_tree(tmp_path / "root")
    assert [row.age for row in import_dataset(facts(), root).rows] == [None] * 6
    wild = facts(layout={**FACTS["layout"], "tables": [{"files": ["../exams.csv"]}]})
    (tmp_path / "exams.csv").write_text((root / "exams.csv").read_text())
    (root / "exams.csv").unlink()
    with pytest.raises(UserError, match="must have a table"):
        import_dataset(wild, root)


def test_pipes_sockets_and_devices_are_no_images_and_nobody_waits_for_them(tmp_path):
    root = make_tree(tmp_path / "root")
    os.mkfifo(root / "images" / "pipe.png")
    os.mkfifo(root / "patients.csv")
    os.mkfifo(root / "exams.parquet")
    (root / "images" / "zero.png").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(root / "images" / "socket.png"))
        (root / "exams.csv").write_text(
            (root / "exams.csv").read_text() + "pipe.png,p,PA,Normal,x\nzero.png,p,PA,Normal,x\n"
        )
        manifest = pack(root, tmp_path / "out")
    assert manifest.samples == 6 and manifest.rejects == {"missing_file": 2}


def test_an_image_that_becomes_a_pipe_after_the_import_is_a_reject(tmp_path):
    root = make_tree(tmp_path / "root")
    found = import_dataset(facts(), root)
    (root / "images" / "i3.png").unlink()
    os.mkfifo(root / "images" / "i3.png")
    (root / "images" / "i4.png").unlink()
    (root / "images" / "i4.png").mkdir()
    options = PackOptions(size=16, id_key=tmp_path / "id.key", max_reject=1.0)
    manifest = pack_rows(DatasetName("toy", "Toy", "toy", "0" * 64), found, tmp_path / "out", options, shown=False)
    assert manifest.samples == 4 and manifest.rejects == {"unreadable": 2}


def test_links_that_lead_in_circles_or_nowhere_are_passed_over(tmp_path):
    root = make_tree(tmp_path / "root")
    (root / "again").symlink_to(root)
    (root / "images" / "up").symlink_to("..")
    (root / "images" / "self.png").symlink_to("self.png")
    (root / "images" / "gone.png").symlink_to("nowhere.png")
    (root / "patients.csv").symlink_to("nowhere.csv")
    (root / "exams.csv").write_text(
        (root / "exams.csv").read_text() + "gone.png,p,PA,Normal,x\nself.png,p,PA,Normal,x\n"
    )
    assert not packed_or_told(root, tmp_path / "out")
    manifest = read_manifest(tmp_path / "out")
    assert manifest.samples == 6 and manifest.rejects["missing_file"] + manifest.rejects.get("unreadable", 0) == 2


def test_folders_with_the_names_of_files_are_told_of(tmp_path):
    root = make_tree(tmp_path / "root")
    (root / "exams.csv").unlink()
    (root / "exams.csv").mkdir()
    (root / "images" / "i9.png").mkdir()
    assert "must have a table" in packed_or_told(root, tmp_path / "out")
    with pytest.raises(UserError):
        detect(root)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("what", ["exams.csv", "images/i0.png", "images", "notes"])
def test_what_may_not_be_read_is_a_reject_or_told_of(tmp_path, what):
    root = make_tree(tmp_path / "root")
    (root / "notes").mkdir()
    (root / what).chmod(0)
    try:
        told = packed_or_told(root, tmp_path / "out")
    finally:
        (root / what).chmod(0o700)
    if what == "images/i0.png":
        assert read_manifest(tmp_path / "out").rejects == {"unreadable": 1}
    else:
        assert told


def test_names_that_are_no_unicode_are_packed_and_found_again(tmp_path):
    root = make_tree(tmp_path / "root")
    raw = os.fsencode(root / "images") + b"/\xff\xfe\x80.png"
    Path(os.fsdecode(raw)).write_bytes((root / "images" / "i0.png").read_bytes())
    strange = root / "images" / "a\nb\t'\"; rm -rf.png"
    cv2.imwrite(str(strange), np.eye(30, dtype=np.uint8) * 255)
    (root / "exams.csv").write_text(
        (root / "exams.csv").read_text() + '"a\nb\t\'""; rm -rf.png",p7,PA,Normal,x\n', newline=""
    )
    assert not packed_or_told(root, tmp_path / "out")
    assert read_manifest(tmp_path / "out").samples == 7
    mapped = pd.read_parquet(tmp_path / "toy.idmap.parquet")["source"]
    assert len(mapped) == 8


def test_folders_that_are_too_deep_are_told_of(tmp_path):
    root = make_tree(tmp_path / "root")
    (root / ("d/" * 300)).mkdir(parents=True)
    assert not packed_or_told(root, tmp_path / "out")
    usual = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 200)
    try:
        told = packed_or_told(root, tmp_path / "again")
    finally:
        sys.setrecursionlimit(usual)
    assert "deep" in told


@pytest.mark.parametrize(
    "text", ["[" * 10**5, '{"a":' * 10**5, "[1, 2]", '[{"file": {"a": []}}]', "1e999999", '"x"', "null", "\ufeff[]"]
)
def test_strange_json_is_told_of(tmp_path, text):
    root = make_tree(tmp_path / "root")
    (root / "exams.csv").unlink()
    (root / "exams.json").write_text('{"file": "i0.png"}\n' if text == "x" else text)
    assert packed_or_told(root, tmp_path / "out")


def test_xml_that_names_itself_into_gigabytes_is_told_of(tmp_path):
    root = make_tree(tmp_path / "root")
    layout = {
        **FACTS["layout"],
        "tables": [{"files": ["*.xml"], "xml": {"record": "image", "cells": {"file": "name"}}}],
    }
    entities = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10 if n else "lol"}">' for n in range(10))
    for text in (f"<!DOCTYPE x [{entities}]><x><image><name>&l9;</name></image></x>", "<x>" * 10**5, "<x", "\0" * 99):
        (root / "exams.xml").write_text(text)
        assert packed_or_told(root, tmp_path / "out", facts(layout=layout))


def test_unknown_labels_are_counted_and_their_words_kept_in_a_private_file(tmp_path):
    root = make_tree(tmp_path / "root", table=f"{HEADER}\ni0.png,p0,PA,Jane Doe has it|Normal,x\n")
    told = packed_or_told(root, tmp_path / "out")
    assert "1 unknown" in told and "jane" not in told.lower() and "toy.unknown_labels.txt" in told
    private = tmp_path / "toy.unknown_labels.txt"
    assert "jane doe has it" in private.read_text().lower()
    assert private.stat().st_mode & 0o777 == 0o600
    assert json.dumps(told)
