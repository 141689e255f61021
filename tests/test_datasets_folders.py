"""Datasets whose folders and file names are their labels: Kermany."""

from collections import Counter

import pytest

from cxrdist.datasets import detect, import_dataset
from tests.trees.kermany import KAGGLE, make_kaggle, make_mendeley, write


@pytest.mark.parametrize("below", ["", "chest_xray"])
def test_kermany_is_imported_once_and_its_pools_are_kept_apart(tmp_path, below):
    make_kaggle(tmp_path)
    facts = detect(tmp_path / below)
    assert facts.name == "kermany"
    found = import_dataset(facts, tmp_path / below)
    assert (len(found.rows), found.rejects) == (len(KAGGLE), [])
    patients = Counter(row.patient for row in found.rows)
    # Train and validation are one pool; person1 of the test folder is somebody else.
    assert patients["train/PNEUMONIA/person1"] == 3 and patients["test/PNEUMONIA/person1"] == 1
    assert patients["train/NORMAL/NORMAL2-IM-1427"] == 2 and patients["train/NORMAL/IM-0115"] == 1
    assert {row.source.split("/")[-3] for row in found.rows if row.split == "test"} == {"test"}
    assert {row.projection for row in found.rows} == {"AP"}
    ones = {row.source.split("/")[-1]: {name for name, value in row.findings.items() if value} for row in found.rows}
    assert ones["person1_bacteria_1.jpeg"] == {"pneumonia", "bacterial_pneumonia"}
    assert ones["person2_virus_6.jpeg"] == {"pneumonia", "viral_pneumonia"}
    assert ones["IM-0115-0001.jpeg"] == {"no_finding"}


def test_kermanys_validation_is_carved_from_the_pool_by_patient(tmp_path):
    write(tmp_path, [f"train/PNEUMONIA/person{n}_virus_{n + i}.jpeg" for n in range(300) for i in (0, 1000)])
    write(tmp_path, ["train/NORMAL/IM-0001-0001.jpeg", "val/NORMAL/IM-0001-0002.jpeg"])
    found = import_dataset(detect(tmp_path), tmp_path)
    splits = {}
    for row in found.rows:
        splits.setdefault(row.patient, set()).add(row.split)
    assert all(len(of_patient) == 1 for of_patient in splits.values())
    share = sum(of_patient == {"val"} for of_patient in splits.values()) / len(splits)
    assert 0.05 < share < 0.16  # a tenth of 301 patients


def test_mendeleys_names_are_known_too(tmp_path):
    make_mendeley(tmp_path)
    found = import_dataset(detect(tmp_path), tmp_path)
    assert len({row.patient for row in found.rows}) == 3
    bacterial = [row.findings["bacterial_pneumonia"] for row in found.rows]
    assert sum(bacterial) == 2
