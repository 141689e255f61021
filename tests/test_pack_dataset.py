"""From a dataset's folder to shards, through the real importers."""

import json
import os
import re
import runpy
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from cxrdist.config import shipped
from cxrdist.data.samples import count_samples, read_samples
from cxrdist.datasets import read_facts
from cxrdist.datasets.shard_format import read_index, read_manifest
from cxrdist.errors import UserError
from cxrdist.pack import PackOptions, pack_dataset, repair_dataset
from cxrdist.pack.info import read_rejects
from cxrdist.pack.verify import verify_shards
from tests.test_datasets_tables import make_chexpert

REAL = os.environ.get("CXRDIST_REALDATA", "")


@pytest.fixture
def kermany(tmp_path):
    """A tree as Kaggle gives it, with noise for images."""
    rng = np.random.default_rng(0)
    root = tmp_path / "chest_xray"
    for pool, patients in (("train", 40), ("test", 8)):
        for kind in ("NORMAL", "PNEUMONIA"):
            folder = root / pool / kind
            folder.mkdir(parents=True)
            for patient in range(patients // 2):
                name = f"IM-{patient:04}-0001" if kind == "NORMAL" else f"person{patient}_virus_{patient}"
                cv2.imwrite(str(folder / f"{name}.jpeg"), rng.integers(0, 256, (48, 60), np.uint8))
    return root


def test_a_dataset_is_packed_verified_and_repaired(kermany, tmp_path):
    facts = read_facts("kermany")
    key = tmp_path / "id.key"
    bad = kermany / "train" / "NORMAL" / "IM-0003-0001.jpeg"
    bad.write_bytes(bad.read_bytes()[:200])
    manifest = pack_dataset(facts, kermany, tmp_path / "shards", PackOptions(size=32, id_key=key), shown=False)
    assert manifest.rows == 48 == manifest.samples + 1
    assert manifest.rejects == {"unreadable": 1}
    assert manifest.splits["test"] == 8
    assert set(manifest.findings) == {"pneumonia", "bacterial_pneumonia", "viral_pneumonia", "no_finding"}
    index = read_index(tmp_path / "shards")
    assert list(index["y_pneumonia"] + index["y_no_finding"]) == [1] * 47
    assert set(index["projection"]) == {"AP"}
    assert not verify_shards(tmp_path / "shards", shown=False)
    assert [line["reason"] for line in read_rejects(tmp_path / "shards")] == ["unreadable"]
    broken = tmp_path / "shards" / manifest.shards[0].name
    whole = broken.read_bytes()
    broken.write_bytes(whole[:-1000])
    repair_dataset(facts, kermany, tmp_path / "shards", id_key=key, shown=False)
    assert broken.read_bytes() == whole


def test_repair_refuses_another_source_than_the_one_packed(kermany, tmp_path):
    facts = read_facts("kermany")
    options = PackOptions(size=32, id_key=tmp_path / "id.key", max_reject=1)
    manifest = pack_dataset(facts, kermany, tmp_path / "shards", options, shown=False)
    (tmp_path / "shards" / manifest.shards[0].name).unlink()
    next((kermany / "train" / "NORMAL").iterdir()).write_bytes(b"changed")
    with pytest.raises(UserError, match=r"must hold one pack, got another: input files"):
        repair_dataset(facts, kermany, tmp_path / "shards", id_key=tmp_path / "id.key", shown=False)


def test_the_example_for_readers_of_shards_works(kermany, tmp_path, monkeypatch, capsys):
    options = PackOptions(size=32, id_key=tmp_path / "id.key")
    pack_dataset(read_facts("kermany"), kermany, tmp_path / "shards" / "kermany", options, shown=False)
    text = (shipped("shards") / "README.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    (tmp_path / "example.py").write_text(example)
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(tmp_path / "example.py"))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == read_manifest(tmp_path / "shards" / "kermany").splits["train"]
    assert lines[0].startswith("i")


def test_a_chexpert_test_image_without_a_view_column_is_frontal_and_read(tmp_path):
    make_chexpert(tmp_path / "raw", test=True)
    rng = np.random.default_rng(0)
    for path in (tmp_path / "raw").rglob("*.jpg"):
        cv2.imwrite(str(path), rng.integers(0, 256, (48, 60), np.uint8))
    key = tmp_path / "id.key"
    for number, projection in enumerate(("frontal", "all")):
        shards = tmp_path / f"shards{number}"
        options = PackOptions(size=32, id_key=key, projection=projection, max_reject=1.0)
        pack_dataset(read_facts("chexpert"), tmp_path / "raw", shards, options, shown=False)
        assert not verify_shards(shards, shown=False)
        index = read_index(shards)
        test = index[index["split"] == "test"]
        assert (list(test["projection"]), list(test["frontal"])) == (["unknown"], [True])
        assert set(index.loc[~index["frontal"], "projection"]) == (set() if projection == "frontal" else {"lateral"})
        assert len(read_samples([shards], "test", projection="frontal")) == 1
        assert count_samples(shards, "test", projection="PA") == 0


@pytest.mark.realdata
@pytest.mark.skipif(not REAL, reason="CXRDIST_REALDATA is not set")
def test_real_radiographs_all_become_samples_or_rejects(tmp_path):
    source = Path(REAL) / "kermany" / "chest_xray"
    files = [file for folder in sorted(source.glob("*/*")) for file in sorted(folder.iterdir())[:10]]
    for file in files:
        copy = tmp_path / "raw" / file.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
    options = PackOptions(size=128, id_key=tmp_path / "id.key")
    manifest = pack_dataset(read_facts("kermany"), tmp_path / "raw", tmp_path / "shards", options, shown=False)
    assert len(files) == 60 == manifest.rows == manifest.samples + sum(manifest.rejects.values())
    assert not verify_shards(tmp_path / "shards", shown=False)
    told = "".join(path.read_bytes().decode("latin-1") for path in (tmp_path / "shards").iterdir())
    assert not [file.name for file in files if file.stem in told]
    assert json.loads((tmp_path / "shards" / "manifest.json").read_text())["complete"]
