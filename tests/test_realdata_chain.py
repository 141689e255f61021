"""The whole chain on real radiographs, small: pack, study, report."""

import json
import os
import re
from pathlib import Path

import pandas as pd
import pytest

from cxrdist.config import override, read_yaml, shipped
from cxrdist.datasets import detect
from cxrdist.pack import PackOptions
from cxrdist.pack.dataset import pack_dataset
from cxrdist.study.config import StudyConfig
from cxrdist.study.run import run_study

FOLDERS = {"kermany": "kermany", "nih14": "nih_cxr14_64px", "covid_chestxray": "covid_chestxray"}


@pytest.fixture(scope="module")
def realdata() -> Path:
    if "CXRDIST_REALDATA" not in os.environ:
        pytest.skip("CXRDIST_REALDATA does not say where real radiographs are")
    return Path(os.environ["CXRDIST_REALDATA"])


def thinned(folder: Path, out: Path, every: int) -> Path:
    """Link one of `every` radiographs of a dataset into `out`, and all of its tables."""
    radiographs = sorted(path for path in folder.rglob("*.jp*g") if path.is_file())
    left_out = {path for number, path in enumerate(radiographs) if number % every}
    for path in folder.rglob("*"):
        if path.is_file() and path not in left_out:
            place = out / path.relative_to(folder)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(path)
    return out


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.realdata
def test_real_radiographs_become_a_report_without_a_blank_cell(realdata, tmp_path):
    for name, folder in FOLDERS.items():
        raw = realdata / folder
        if name == "kermany":  # most of the time is the reading of its files, each as large as the next
            raw = thinned(raw, tmp_path / "raw" / name, every=5)
        facts = detect(raw)
        assert facts.name == name
        options = PackOptions(size=64, id_key=tmp_path / "private" / "id.key")
        manifest = pack_dataset(facts, raw, tmp_path / "shards" / name, options, shown=False)
        assert manifest.rows == manifest.samples + sum(manifest.rejects.values())

    changes = {
        "shards_root": str(tmp_path / "shards"),
        "datasets.nih14.set.findings": ["effusion", "infiltration"],
        "statistics.n_resamples": 200,
        "stages.ssl.pretrain.train.steps": 10,
        "recipe.train": {"steps": 10, "global_batch_size": 16, "evaluate_every": 10, "checkpoint_every": 10},
        "stages.labels-kermany.train": {"findings": ["pneumonia"], "train_images": 100},
        "stages.labels-nih14.train": {"train_images": 100},
    }
    tree = override(read_yaml(shipped("launch") / "studies/realdata-smoke.yaml"), changes)
    page = run_study(StudyConfig.build(tree, where="test"), tmp_path / "study", shown=False)

    table = pd.read_csv(page.parent / "headline.csv")
    assert len(table) == 6  # three strategies on two datasets
    assert table["auroc"].between(0, 1).all()
    cells = re.findall(r"<td[^>]*>(.*?)</td>", page.read_text(encoding="utf-8"), flags=re.S)
    assert cells and all(re.sub(r"<[^>]*>|\s", "", cell) for cell in cells)
    events = [json.loads(line)["event"] for line in (tmp_path / "study" / "ledger.jsonl").read_text().splitlines()]
    assert events.count("done") == 9
