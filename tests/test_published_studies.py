"""The published studies as files: what they plan, and all of their layouts, stages and tables in a size for a CPU."""

import json
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pandas as pd
import pytest

from cxrdist.config import read_yaml, shipped
from cxrdist.datasets import read_facts
from cxrdist.dispatch.cluster import cluster
from cxrdist.pack import PackOptions
from cxrdist.pack.dataset import pack_dataset
from cxrdist.phantom import write_phantoms
from cxrdist.study import run as running
from cxrdist.study.config import StudyConfig

STUDIES = ("tayebi2024", "tayebi2024-exact", "iyer2022", "verma2022", "verma2022-densenet121", "scaling")
PATIENTS = {"vindr_cxr": 100}
"""Drawn of each layout: enough that validation has a finding with both values; 40 unless told."""
LAYOUTS = {"mimic_cxr": "mimic_cxr_jpg"}
"""Where a study's dataset has another layout's name."""
WHOLE = (
    "tayebi2024",
    *(pytest.param(name, marks=pytest.mark.long) for name in ("iyer2022", "verma2022", "scaling")),
)
"""Those that run at their whole debug size; the long ones train 208, 90 and 24 cells."""


def study_of(name: str) -> Path:
    return shipped("launch") / "studies" / f"{name}.yaml"


@pytest.mark.parametrize("name", STUDIES)
@pytest.mark.parametrize("debug", [False, True])
def test_a_published_study_is_a_study(name, debug):
    study = StudyConfig.read(study_of(name), debug=debug)
    grid = study.grid()
    assert len(grid) == len(set(grid)) > 0
    assert {strategy for strategy, *_ in grid} == set(study.strategies)


@pytest.mark.parametrize(
    ("name", "strategies", "datasets", "variants"),
    [
        ("tayebi2024", 3, 6, [""]),
        ("iyer2022", 8, 13, ["fine-tune", "probe"]),
        ("verma2022", 5, 3, [f"{size}-images" for size in (500, 1000, 2500, 5000, 10000, "all")]),
        ("scaling", 4, 3, ["224px", "518px"]),
    ],
)
def test_a_published_study_has_the_papers_grid(name, strategies, datasets, variants):
    study = StudyConfig.read(study_of(name))
    assert (len(study.strategies), len(study.datasets)) == (strategies, datasets)
    assert sorted({variant for _, _, variant, _ in study.grid()}) == sorted(variants)


def test_no_cell_of_the_mimic_arm_is_tested_on_mimic():
    for name in ("tayebi2024", "tayebi2024-exact"):
        grid = StudyConfig.read(study_of(name)).grid()
        assert {dataset for strategy, dataset, *_ in grid if strategy == "mimic"} == {
            *("vindr_cxr", "nih14", "chexpert", "uka_cxr", "padchest")
        }


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """Return a folder for shards, which the studies of this file share."""
    out = tmp_path_factory.mktemp("published")
    key = out / "id.key"
    key.touch(mode=0o600)
    key.write_text("phantoms-have-no-secret-" + "0" * 40, encoding="utf-8")
    return out / "shards"


def draw(study: str, shards: Path) -> None:
    """Draw and pack, small, those datasets of a study that are not there yet."""
    wanted = [one["shards"] for one in read_yaml(study_of(study))["datasets"].values()]
    for name in dict.fromkeys(n for each in wanted for n in (each if isinstance(each, list) else [each])):
        if (shards / name / "manifest.json").is_file():
            continue
        layout = LAYOUTS.get(name, name)
        raw = shards.parent / "raw" / layout
        write_phantoms(layout, raw, patients=PATIENTS.get(name, 40), seed=1, difficulty=0.2, size=64)
        options = PackOptions(size=64, id_key=shards.parent / "id.key")
        pack_dataset(read_facts(layout), raw, shards / name, options, shown=False)


@pytest.fixture(scope="module")
def connected() -> Iterator[None]:
    """Hold one cluster for all studies: its workers have loaded torch once."""
    with cluster(None), pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "cluster", lambda address, **about: nullcontext())
        yield


@pytest.mark.slow
@pytest.mark.xdist_group("published studies")
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", WHOLE)
def test_a_published_study_runs_to_its_report_on_phantoms(name, shards, connected, tmp_path):
    draw(name, shards)
    study = StudyConfig.read(study_of(name), [f"shards_root={shards}"], debug=True)
    out = tmp_path / name
    assert running.run_study(study, out, shown=False).is_file()
    ledger = [json.loads(line) for line in (out / "ledger.jsonl").read_text(encoding="utf-8").splitlines()]
    cells = [line["name"] for line in ledger if line["event"] == "done" and line["kind"] == "cell"]
    assert len(cells) == len(set(cells)) == len(study.grid())
    # Pretraining and source-dataset training are shared: as many as the file has, each done once.
    stages = [line["name"] for line in ledger if line["event"] == "done" and line["kind"] == "stage"]
    assert sorted(stages) == sorted(study.stages)
    headline = pd.read_csv(out / "report" / "headline.csv")
    assert set(headline["strategy"]) == set(study.strategies)
