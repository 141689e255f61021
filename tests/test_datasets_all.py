"""What holds for every fact file and every tree: detection, counts, variants, overlaps."""

import pytest
import yaml

from cxrdist.config import shipped
from cxrdist.datasets import detect, import_dataset, list_facts, read_facts
from cxrdist.datasets.records import PROJECTIONS
from cxrdist.findings import titles
from tests.trees import TREES

NAMES = [facts.name for facts in list_facts()]
PROMISED = (
    "mimic_cxr mimic_cxr_jpg chexpert chexpert_plus nih14 nih14_google padchest vindr_cxr vinbigdata uka_cxr taix_ray "
    "rsna_pneumonia siim_ptx vindr_pcxr shenzhen montgomery tbx11k brax jsrt object_cxr covidx covid_chestxray openi "
    "candid_ptx covid_qu_ex kermany chestx_det ranzcr_clip reflacx edema_severity tb_portals"
)


@pytest.mark.parametrize("tree", TREES)
def test_each_tree_is_detected_and_every_image_of_it_becomes_a_row_or_a_reject(tree, tmp_path):
    images = TREES[tree](tmp_path)
    facts = detect(tmp_path)
    assert facts.name == tree.split("/")[0]
    found = import_dataset(facts, tmp_path, projection="all")
    assert len(found.rows) + len(found.rejects) == images
    assert found.rows
    for row in found.rows:
        assert row.path.is_file() and row.patient and row.study and row.projection in PROJECTIONS
        assert list(row.findings) == list(facts.findings)
        assert set(row.findings.values()) <= {1, 0, -1, None}
    of_patient: dict[str, set[str]] = {}
    for row in found.rows:
        of_patient.setdefault(row.patient, set()).add(row.split)
    assert all(len(splits) == 1 for splits in of_patient.values())


def test_every_dataset_that_is_promised_is_there():
    assert set(NAMES) == set(PROMISED.split())


@pytest.mark.parametrize("name", NAMES)
def test_each_dataset_has_a_tree(name):
    assert name in TREES


@pytest.mark.parametrize("facts", list_facts(), ids=lambda facts: facts.name)
def test_overlaps_name_datasets_that_name_them_back(facts):
    assert not [other for other in facts.overlaps if other not in NAMES]
    assert not [other for other in facts.overlaps if facts.name not in read_facts(other).overlaps]


@pytest.mark.parametrize(
    ("name", "variant"), [(facts.name, variant) for facts in list_facts() for variant in facts.variants]
)
def test_every_variant_is_a_fact_file_that_differs(name, variant):
    facts, changed = read_facts(name), read_facts(name, variant=variant)
    assert changed.variant == variant
    assert changed.model_copy(update={"variant": None}) != facts


def test_canonical_findings_are_titled_once_and_used():
    assert len(set(titles().values())) == len(titles())
    used = {finding for facts in list_facts() for finding in facts.findings}
    assert set(titles()) <= used


@pytest.mark.parametrize("path", sorted(shipped("shards").glob("*.yaml")), ids=lambda path: path.stem)
def test_each_fact_file_begins_with_what_it_is_and_how_to_pack_it(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("# ") and any(line.startswith(f"#   cxrdist pack {path.stem} --root ") for line in lines)
    assert set(yaml.safe_load(path.read_text(encoding="utf-8"))) >= {"name", "title", "home", "licence", "coding"}
