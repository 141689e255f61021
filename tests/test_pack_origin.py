"""Where an image came from, in the samples and in the index; folders of the format before that had no such columns."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import webdataset as wds
from pydicom.uid import JPEG2000Lossless

from cxrdist.data.samples import read_samples
from cxrdist.datasets.records import Import
from cxrdist.datasets.shard_format import SOURCE_COLUMNS, read_index, read_manifest
from cxrdist.errors import UserError
from cxrdist.pack import PackOptions, pack_rows
from cxrdist.pack.info import shard_info
from cxrdist.pack.plan import DatasetName
from cxrdist.pack.verify import verify_shards
from tests.helpers import make_dicom, make_import

ORIGINS = ("rsna", None, "bimcv_2")


def pack(found: Import, folder: Path) -> Path:
    options = PackOptions(size=32, id_key=folder / "id.key", samples_per_shard=7)
    pack_rows(DatasetName("toy", "Toy", "toy", "0" * 64), found, folder / "shards", options, shown=False)
    return folder / "shards"


def make_mixed(folder: Path) -> Import:
    """Return rows of three origins whose files are PNG, JPEG and DICOM."""
    rows = make_import(folder, images=24).rows
    for number, row in enumerate(rows):
        rows[number] = replace(row, origin=ORIGINS[number % 3])
        pixels = cv2.imread(str(row.path), cv2.IMREAD_UNCHANGED)
        if number % 4 == 1:
            make_dicom(row.path, pixels.astype(np.uint16) << 4, syntax=JPEG2000Lossless, BitsStored=12)
        elif number % 4 == 2:
            row.path.write_bytes(cv2.imencode(".jpg", pixels)[1].tobytes())
    return Import(rows, [])


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("origin")
    return pack(make_mixed(folder / "raw"), folder)


def as_format_1(shards: Path, out: Path) -> Path:
    """Return a copy of a folder without the columns and fields that came with format 2."""
    shutil.copytree(shards, out)
    pq.write_table(pq.read_table(out / "index.parquet").drop_columns(list(SOURCE_COLUMNS)), out / "index.parquet")
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["format_version"] = 1
    manifest["index_sha256"] = hashlib.sha256((out / "index.parquet").read_bytes()).hexdigest()
    (out / "manifest.json").write_text(json.dumps(manifest))
    return out


def test_origin_and_kind_are_in_the_sample_and_in_the_index(shards):
    assert not verify_shards(shards, shown=False)
    index = read_index(shards).set_index("key")
    assert str(index["bits"].dtype) == "Int8"
    counts = index["origin"].value_counts(dropna=False)
    assert {name: counts[name] for name in ("rsna", "bimcv_2")} == {"rsna": 8, "bimcv_2": 8}
    assert index["origin"].isna().sum() == 8
    kinds = index.groupby(["kind", "transfer_syntax", "bits"], dropna=False).size().to_dict()
    told = {tuple(None if pd.isna(part) else part for part in kind): count for kind, count in kinds.items()}
    assert told == {
        ("dicom", "JPEG 2000 Image Compression (Lossless Only)", 12): 6,
        ("jpeg", None, 8): 6,
        ("png", None, 8): 12,
    }
    seen = 0
    for path in shards.glob("*.tar"):
        for sample in wds.WebDataset(str(path), shardshuffle=False):
            source, line = json.loads(sample["json"])["source"], index.loc[sample["__key__"]]
            for name in SOURCE_COLUMNS:
                assert source.get(name) == (None if pd.isna(line[name]) else line[name])
            seen += 1
    assert seen == 24


def test_another_origin_in_the_index_than_in_the_sample_is_found(shards, tmp_path):
    broken = shutil.copytree(shards, tmp_path / "shards")
    table = pq.read_table(broken / "index.parquet")
    place = table.column_names.index("origin")
    other = table.column("origin").fill_null("sirm")
    pq.write_table(table.set_column(place, "origin", other), broken / "index.parquet")
    problems = [str(problem) for problem in verify_shards(broken, shown=False)]
    assert sum("the index and the JSON differ in origin" in problem for problem in problems) == 8


@pytest.mark.parametrize("word", ["Dr. O'Neil", "RSNA", "", "a" * 41, "x-y", "ö", "line\nbreak", "word\n"])
def test_an_origin_that_is_no_plain_word_is_refused_and_not_told(tmp_path, word):
    rows = make_import(tmp_path / "raw", images=4).rows
    rows[0] = replace(rows[0], origin=word)
    with pytest.raises(UserError, match=r"An origin must be a word of .* got 1 others \[in dataset toy\]") as error:
        pack(Import(rows, []), tmp_path)
    assert not word or word not in str(error.value)
    assert not (tmp_path / "shards").exists()


def test_rows_with_another_origin_are_another_pack(shards, tmp_path):
    found = make_mixed(tmp_path / "raw")
    pack(found, tmp_path)
    rows = [replace(found.rows[0], origin="sirm"), *found.rows[1:]]
    with pytest.raises(UserError, match="must hold one pack, got another: input files"):
        pack(Import(rows, []), tmp_path)


def test_a_folder_of_the_first_format_is_still_read_verified_and_counted(shards, tmp_path):
    old = as_format_1(shards, tmp_path / "old")
    assert read_manifest(old).format_version == 1
    now, then = read_index(shards), read_index(old)
    assert list(then.columns) == list(now.columns)
    assert list(then.dtypes) == list(now.dtypes)
    assert then[list(SOURCE_COLUMNS)].isna().all(axis=None)
    rest = [name for name in now.columns if name not in SOURCE_COLUMNS]
    pd.testing.assert_frame_equal(then[rest], now[rest])
    assert not verify_shards(old, shown=False)
    assert shard_info(old).splits["train"].samples == read_manifest(shards).splits["train"]
    both = read_samples([old, shards], "train", projection="all")
    assert np.array_equal(both.image(0), both.image(len(both) // 2))


def test_a_folder_of_this_format_without_the_columns_is_damaged(shards, tmp_path):
    old = as_format_1(shards, tmp_path / "old")
    manifest = json.loads((old / "manifest.json").read_text())
    (old / "manifest.json").write_text(json.dumps(manifest | {"format_version": 2}))
    with pytest.raises(UserError, match="must fit its manifest, got other columns"):
        read_index(old)
