"""Fact files, detection and the rules that hold for every dataset."""

import hashlib

import pytest
import yaml

from cxrdist.config import shipped
from cxrdist.datasets import FactFile, describe_markers, detect, fact_hash, import_dataset, read_facts
from cxrdist.datasets.columns import columns_read, derived_findings, required_columns
from cxrdist.datasets.labels import combine_readers, union
from cxrdist.datasets.readers import read_table
from cxrdist.datasets.splits import carve_all, carve_validation, crossing_patients
from cxrdist.datasets.tree import find, walk
from cxrdist.errors import UsageError, UserError
from cxrdist.findings import titles
from tests.trees.own import OWN, own_facts


@pytest.mark.parametrize("path", sorted(shipped("shards").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_fact_file_parses_and_speaks_of_canonical_findings(path):
    facts = read_facts(str(path))
    assert facts.name == path.stem
    assert set(facts.findings) <= set(titles())
    assert describe_markers(facts) and facts.home.startswith("https://") and facts.licence and facts.coding
    assert facts.name not in facts.overlaps
    assert read_facts(facts.name) == facts


@pytest.mark.parametrize(("wrong", "near"), [("nih-14", "nih14"), ("chexprt", "chexpert"), ("VinDr", "vindr_cxr")])
def test_an_unknown_dataset_is_a_usage_error_with_the_nearest_name(wrong, near):
    with pytest.raises(UsageError, match=f"Did you mean '{near}'"):
        read_facts(wrong)


def test_a_wrong_fact_file_is_a_usage_error_that_names_every_mistake(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({**OWN, "findings": {"effusions": "Fluid"}, "lincense": "x"}), encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        read_facts(str(path))
    assert "Did you mean 'effusion'" in str(caught.value) and "`lincense` is unknown" in str(caught.value)


def test_the_fact_hash_is_of_the_content_and_not_of_its_spelling():
    same = own_facts(findings={"effusion": {"names": ["Fluid"], "relation": "="}})
    assert fact_hash(same) == fact_hash(own_facts())
    assert fact_hash(own_facts(namespace="other")) != fact_hash(own_facts())
    assert len(fact_hash(own_facts())) == 64


def test_a_dataset_of_a_known_shape_needs_a_fact_file_only(tmp_path):
    (tmp_path / "data").mkdir()
    lines = [f"{number}.png,{number % 2}" for number in range(40)]
    (tmp_path / "data/Labels.CSV").write_text("file , Fluid\n" + "\n".join(lines), encoding="utf-8")
    for number in range(40):
        (tmp_path / f"data/{number}.png").touch()
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(OWN), encoding="utf-8")
    found = import_dataset(read_facts(str(path)), tmp_path / "data")
    assert len(found.rows) == 40 and not found.rejects
    assert {row.split for row in found.rows} == {"train", "val", "test"}
    assert sum(row.findings["effusion"] for row in found.rows) == 20
    assert [row.source for row in found.rows] == sorted(row.source for row in found.rows)


def test_findings_that_repeat_others_are_known():
    names = {
        "effusion": ["left", "right"],
        "effusion_left": "left",
        "effusion_right": "right",
        "nodule": "Lesion",
        "nodule_or_mass": {"names": ["Lesion"], "relation": "≈"},
        "edema": {"names": ["grade"], "values": {"2": 1, "1": 0}},
        "congestion": {"names": ["grade"], "values": {"2": 1, "1": 1}},
        "lung_opacity": {"any_of": ["nodule", "edema"]},
        "no_finding": {"none_of": ["nodule", "edema"]},
    }
    assert derived_findings(own_facts(findings=names)) == ["effusion", "nodule_or_mass", "lung_opacity"]
    assert derived_findings(read_facts("nih14")) == ["lung_opacity", "nodule_or_mass", "lung_lesion"]


def test_a_missing_root_is_wrong_usage_and_an_empty_one_an_error(tmp_path):
    for call in (lambda root: import_dataset(own_facts(), root), detect):
        with pytest.raises(UsageError, match="existing folder"):
            call(tmp_path / "nowhere")
        with pytest.raises(UserError, match="empty folder") as caught:
            call(tmp_path)
        assert not isinstance(caught.value, UsageError)


def test_a_folder_without_a_marker_is_refused_saying_what_was_looked_for(tmp_path):
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(UserError, match=r"marker files of \d+ datasets"):
        detect(tmp_path)
    with pytest.raises(UserError, match=r"must have labels\.csv"):
        import_dataset(own_facts(), tmp_path)


def test_a_marker_five_levels_down_is_not_looked_for(tmp_path):
    for levels, hit in ((4, True), (5, False)):
        root = tmp_path / str(levels)
        home = root.joinpath(*"abcd"[: levels - 1])
        home.mkdir(parents=True)
        (root / "notes").mkdir()  # a folder that is alone in its folder would not count
        (home / "Data_Entry_2017.csv").write_text("Image Index,Finding Labels\n", encoding="utf-8")
        if hit:
            assert detect(root).name == "nih14"
        else:
            with pytest.raises(UserError, match="must hold a known dataset"):
                detect(root)


def test_the_split_of_a_patient_is_a_pure_function_of_the_patient():
    facts = own_facts()
    for patient in ("1", "77", "patient00042"):
        digest = hashlib.sha256(f"mine:0:{patient}".encode()).hexdigest()
        place = int(digest, 16) / 2**256
        assert carve_validation(facts, patient) == ("val" if place < 0.2 else "train")
        assert carve_all(facts, patient) == ("test" if place < 0.3 else "val" if place < 0.5 else "train")
    drawn = [carve_all(facts, str(patient)) for patient in range(5000)]
    assert abs(drawn.count("test") / 5000 - 0.3) < 0.03 and abs(drawn.count("val") / 5000 - 0.2) < 0.03


def test_patients_in_two_splits_are_counted():
    assert crossing_patients([("a", "train"), ("a", "train"), ("b", "train"), ("b", "test"), ("b", "val")]) == 1


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0, 0], 0), ([0, 1], 1), ([-1, 0], -1), ([1, -1, None], 1), ([None, 0], None), ([None], None), ([-1, None], -1)],
)
def test_a_finding_of_several_columns_is_present_where_any_is(values, expected):
    assert union(values) == expected


def test_two_readers_who_disagree_leave_a_finding_uncertain():
    findings, no_majority = combine_readers([{"edema": 1, "mass": None}, {"edema": 0, "mass": 0}], "majority")
    assert findings == {"edema": -1, "mass": 0} and not no_majority


def test_tables_are_read_as_text_with_stripped_headers_and_without_blanks(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(
        "\ufeff Image , EncodedPixels,Id,\na,nan,216840111366964012819207061112010307142602253,\n\n".encode()
    )
    assert list(read_table(path)) == [{"image": "a", "id": "216840111366964012819207061112010307142602253"}]


def test_junk_is_not_walked_and_a_link_to_above_ends(tmp_path):
    for name in (
        "a.png",
        "._a.png",
        "Thumbs.db",
        "b.png.part",
        "c.crdownload",
        "index.html",
        "__MACOSX/d.png",
        "x/e.png",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "x/up").symlink_to(tmp_path)
    assert list(walk(tmp_path)) == ["a.png", "x/e.png"]


def test_names_are_found_in_any_case_compressed_or_not_and_the_shallowest_first():
    paths = ["x/y/train.csv", "x/Train.CSV.gz", "x/train.csv", "x/mytrain.csv"]
    assert find(paths, "train.csv") == ["x/train.csv", "x/Train.CSV.gz", "x/y/train.csv"]
    assert find(["a/train/NORMAL", "NORMAL", "b/strain/NORMAL"], "train/NORMAL") == ["a/train/NORMAL"]


def test_the_example_of_the_readme_is_a_fact_file():
    text = (shipped("shards") / "README.md").read_text(encoding="utf-8")
    example = text.split("```yaml\n")[1].split("```")[0]
    assert FactFile.build(yaml.safe_load(example), where="README.md").has_patient_ids


@pytest.mark.parametrize("path", sorted(shipped("shards").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_column_that_must_be_there_is_one_that_is_read(path):
    facts = read_facts(str(path))
    required = required_columns(facts)
    assert {name for names in required for name in names} <= set(columns_read(facts))
    assert {where.split(".")[0] for where in required.values()} <= {*FactFile.model_fields}


def test_columns_that_must_be_there_are_told_with_their_place_and_what_may_stand_for_them():
    facts = own_facts(
        columns={
            "patient": [{"column": "Path", "otherwise": ["PngPath"]}],
            "projection": ["view", "View2"],
            "sex": "s",
        },
        findings={
            "effusion": ["Left", "Right"],
            "edema": {"names": ["New", "Old"], "either": True},
            "mass": "left",
            "no_finding": {"none_of": ["mass"]},
        },
        keep={"Kind ": ["CR"]},
        splits={"column": "part", "values": {"a": "train"}},
    )
    assert required_columns(facts) == {
        ("path", "pngpath"): "columns.patient",
        ("view", "view2"): "columns.projection",
        ("s",): "columns.sex",
        ("left",): "findings.effusion",
        ("right",): "findings.effusion",
        ("new", "old"): "findings.edema",
        ("kind",): "keep",
        ("part",): "splits.column",
    }
    words = own_facts(labels={"coding": "tokens", "columns": ["Terms"]}, findings={"effusion": "fluid"})
    assert required_columns(words) == {("terms",): "labels.columns"}
