"""Importers on real copies of public datasets."""

import csv
import os
from collections import Counter
from pathlib import Path

import pytest

from cxrdist.datasets import detect, import_dataset

pytestmark = [
    pytest.mark.realdata,
    pytest.mark.skipif("CXRDIST_REALDATA" not in os.environ, reason="CXRDIST_REALDATA does not name a folder"),
]
ROOT = Path(os.environ.get("CXRDIST_REALDATA", "."))


@pytest.mark.parametrize(
    ("folder", "dataset", "images", "patients", "rejects", "projections"),
    [
        ("nih_cxr14", "nih14", 536, 378, {}, {"AP": 306, "PA": 230}),
        ("nih_cxr14_64px", "nih14", 1000, 264, {}, {"PA": 637, "AP": 363}),
        ("kermany", "kermany", 2400, 1491, {}, {"AP": 2400}),
        ("covid_chestxray", "covid_chestxray", 215, 110, {"excluded_by_source": 28}, {"PA": 131, "AP": 56}),
    ],
)
def test_counts_are_those_of_the_copy(folder, dataset, images, patients, rejects, projections):
    facts = detect(ROOT / folder)
    assert facts.name == dataset
    found = import_dataset(facts, ROOT / folder)
    assert len(found.rows) + len(found.rejects) == images
    assert Counter(reject.reason for reject in found.rejects) == rejects
    assert Counter(row.projection for row in found.rows) == projections
    assert len({row.patient for row in found.rows}) == patients
    by_patient = {}
    for row in found.rows:
        by_patient.setdefault(row.patient, set()).add(row.split)
    assert all(len(splits) == 1 for splits in by_patient.values())
    assert {split for splits in by_patient.values() for split in splits} == {"train", "val", "test"}


@pytest.mark.parametrize("folder", ["nih_cxr14", "nih_cxr14_64px"])
def test_every_label_of_nih14_is_the_tables(folder):
    with (ROOT / folder / "Data_Entry_2017_v2020.csv").open(encoding="utf-8") as file:
        counted = Counter(word for row in csv.DictReader(file) for word in row["Finding Labels"].split("|"))
    facts = detect(ROOT / folder)
    found = import_dataset(facts, ROOT / folder)
    for finding, source in facts.findings.items():
        if finding != "nodule_or_mass" and source.names:
            assert sum(row.findings[finding] for row in found.rows) == sum(counted[name] for name in source.names)


def test_patients_and_kinds_of_kermany_are_those_worked_out_beside_it():
    with (ROOT / "kermany/index_derived.csv").open(encoding="utf-8") as file:
        derived = {row["path"]: row for row in csv.DictReader(file)}
    found = import_dataset(detect(ROOT / "kermany"), ROOT / "kermany")
    assert {row.source for row in found.rows} == set(derived)
    for row in found.rows:
        assert row.patient.endswith("/" + derived[row.source]["patient_id"])
        assert bool(row.findings["viral_pneumonia"]) == (derived[row.source]["subtype"] == "virus")


def test_covid_labels_are_those_of_the_copy():
    found = import_dataset(detect(ROOT / "covid_chestxray"), ROOT / "covid_chestxray")
    counts = {name: sum(row.findings[name] == 1 for row in found.rows) for name in found.rows[0].findings}
    assert (counts["covid19"], counts["no_finding"], counts["tuberculosis"]) == (115, 4, 0)
    assert counts["pneumonia"] == 187 - 4 - 4  # all but No Finding and the cases that say ARDS alone
