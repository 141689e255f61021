"""Mistakes in fact files and settings: each is one clear sentence that names its place as a user writes it."""

import pytest
import yaml

from cxrdist.datasets import FactFile, fact_hash, read_facts
from cxrdist.errors import UsageError
from tests.trees.own import own_facts, own_layout


def tables(**more) -> dict:
    return {"layout": own_layout(tables=[{"files": ["labels.csv"], **more}])}


FOLDERS = {"kind": "folders", "path": ".*", "texts": [{"folder": "reports", "patterns": ["("]}]}
WORDS = {"coding": "tokens", "columns": ["words"]}
MISTAKES = [
    ({"columns": {"patient": {"column": "id", "pattern": "("}}}, "columns.patient.0.pattern", "a regular expression"),
    ({"columns": {"patient": {"column": "id", "pattern": r"H\d+"}}}, "columns.patient.0.pattern", "a group in round"),
    ({"layout": own_layout(within="(")}, "layout.within", "a regular expression"),
    ({"layout": own_layout(within="a{99999999999999}")}, "layout.within", "a regular expression"),
    ({"layout": FOLDERS}, "layout.texts.0.patterns.0", "a regular expression"),
    ({"splits": {"folders": {"train": "("}}}, "splits.folders.train", "a regular expression"),
    ({"labels": WORDS | {"part": "("}}, "labels.part", "a regular expression"),
    (tables(separator=";;"), "layout.tables.0.separator", "one character"),
    (tables(separator=""), "layout.tables.0.separator", "one character"),
    (tables(separator='"'), "layout.tables.0.separator", "one character"),
    (tables(xml={"record": "///[", "cells": {"file": "x"}}), "layout.tables.0.xml.record", "a path of elements"),
    (tables(xml={"record": "x", "cells": {"file": "a[@"}}), "layout.tables.0.xml.cells", "a path of elements"),
    ({"layout": own_layout(tables=[{"files": ["Grades.XLSX"]}])}, "layout.tables.0.files", "CSV, Parquet"),
    ({"layout": own_layout(match_parts=0)}, "layout.match_parts", "greater than or equal to 1"),
    ({"labels": {"coding": "columns", "values": {"1": 7}}}, "labels.values.1", "got 7"),
    ({"pixels": {"invert": {"column": "x"}}}, "pixels.invert.values", "is required"),
    ({"markers": []}, "markers", "at least 1 entry"),
    ({"splits": {"test_fraction": 0.6, "val_fraction": 0.4}}, "splits", "add up to 1 or more"),
    ({"columns": {"age": {"column": "born", "born": True}}}, "columns.age", "must have `at`"),
]


@pytest.mark.parametrize(("facts", "place", "rule"), MISTAKES)
def test_a_mistake_is_a_sentence_that_names_its_place(facts, place, rule):
    with pytest.raises(UsageError) as caught:
        own_facts(**facts)
    lines = [line for line in str(caught.value).splitlines() if line.startswith(f"`{place}`")]
    assert len(lines) == 1 and rule in lines[0], str(caught.value)


def test_an_unknown_name_is_told_with_those_of_its_own_kind_of_layout():
    with pytest.raises(UsageError) as caught:
        own_facts(layout={"kind": "folders", "path": ".*", "nams": ["x"]})
    assert "`layout.nams` is unknown. Did you mean 'names'? Known here: joins, suffixes, kind, path," in str(
        caught.value
    )
    with pytest.raises(UsageError, match=r"`labels\.separator` is unknown\. Did you mean 'separators'"):
        own_facts(labels=WORDS | {"separator": ";"})


def test_a_tab_is_a_separator():
    assert own_facts(**tables(separator="\t")).layout.tables[0].separator == "\t"


UNQUOTED = """
columns: {sex: sex, projection: view}
keep: {age: [50, 1.5], ok: [true]}
drop: {year: [2020-01-02]}
sexes: {1: M, 2: F}
projections: {1: PA}
replace: {grade: {7: 1}}
labels: {coding: columns, values: {0: 0, 2: 1, true: 1}}
findings: {effusion: {names: [Fluid], values: {0: 0, 3: 1}}}
origin: {column: part, words: {5: ward}}
splits: {column: part, values: {0: train, 1: test}}
"""


def test_numbers_and_truth_values_need_no_quotes():
    facts = own_facts(**yaml.safe_load(UNQUOTED), **tables(where={"Fold": [0]}))
    assert facts.keep == {"age": ["50", "1.5"], "ok": ["true"]} and facts.drop == {"year": ["2020-01-02"]}
    assert facts.sexes == {"1": "M", "2": "F"} and facts.projections == {"1": "PA"}
    assert facts.replace == {"grade": {"7": "1"}} and facts.labels.values == {"0": 0, "2": 1, "true": 1}
    assert facts.findings["effusion"].values == {"0": 0, "3": 1} and facts.origin.words == {"5": "ward"}
    assert facts.splits.values == {"0": "train", "1": "test"} and facts.layout.tables[0].where == {"Fold": ["0"]}


def written(path, **changes) -> str:
    path.write_text(yaml.safe_dump(own_facts().tree() | changes), encoding="utf-8")
    return str(path)


def test_a_code_is_added_to_the_usual_ones_by_a_setting_and_by_a_variant(tmp_path):
    variants = {
        "mild": {"about": "x", "labels.values": {"2": 1}},
        "whole": {"about": "x", "labels": {"values": {2: 1}}},
    }
    source = written(tmp_path / "mine.yaml", labels={"coding": "columns"}, variants=variants)
    usual = {"1": 1, "0": 0, "-1": -1}
    changed = [
        read_facts(source, changes={"labels.values.2": 1}),
        read_facts(source, changes={"labels.values": {2: 1}}),
        read_facts(source, changes={"labels": {"values": {"2": 1}}}),
        read_facts(source, variant="mild"),
        read_facts(source, variant="whole"),
    ]
    assert [facts.labels.values for facts in changed] == [usual | {"2": 1}] * 5
    assert len({fact_hash(facts) for facts in changed}) == 1
    assert read_facts(source, variant="mild", changes={"labels.values.1": -1}).labels.values == usual | {
        "2": 1,
        "1": -1,
    }
    assert fact_hash(read_facts(source, changes={"labels.values.1": 1})) == fact_hash(read_facts(source))
    half = read_facts(source, changes={"labels.values": {"0.5": -1}})
    assert half.labels.values == usual | {"0.5": -1}
    own = written(tmp_path / "own.yaml", labels={"coding": "columns", "values": {0: 0, 3: 1}})
    assert read_facts(own, changes={"labels.values.2": 1}).labels.values == {"0": 0, "3": 1, "2": 1}
    words = read_facts(own, changes={"labels": {"coding": "columns", "others": 0}})
    assert words.labels.values == {"0": 0, "3": 1}


def test_a_finding_that_is_a_name_alone_keeps_it_where_a_setting_adds_to_it(tmp_path):
    source = written(tmp_path / "mine.yaml", findings={"effusion": "Fluid", "mass": ["A", "B"]})
    facts = read_facts(source, changes={"findings.effusion.values.2": 1, "findings.mass.either": True})
    assert (facts.findings["effusion"].names, facts.findings["effusion"].values) == (["Fluid"], {"2": 1})
    assert facts.findings["mass"].names == ["A", "B"] and facts.findings["mass"].either


def test_what_was_chosen_is_not_to_be_set(tmp_path):
    plain = written(tmp_path / "mine.yaml")
    for changes in ({"variant": "x"}, {"changes": {"a": 1}}, {"changes.a": 1}):
        with pytest.raises(UsageError, match=r"must not be set"):
            read_facts(plain, changes=changes)
    for more in ({"variant": "x"}, {"changes": {"a": 1}}):
        with pytest.raises(UsageError, match=rf"`{next(iter(more))}` must not be set.* \[in own\.yaml\]"):
            read_facts(written(tmp_path / "own.yaml", **more))


def test_a_variant_of_a_dataset_without_any_is_refused_as_such(tmp_path):
    with pytest.raises(UsageError, match=r"got 'x': \w+ has no variants\.$"):
        read_facts(written(tmp_path / "mine.yaml"), variant="x")
    with pytest.raises(UsageError, match="must be one of"):
        read_facts("chexpert", variant="x")


def test_the_printed_facts_of_a_dataset_are_a_fact_file(tmp_path):
    path = tmp_path / "again.yaml"
    for name in ("chexpert", "kermany"):
        path.write_text(read_facts(name).model_dump_json(), encoding="utf-8")
        assert isinstance(read_facts(str(path)), FactFile) and fact_hash(read_facts(str(path))) == fact_hash(
            read_facts(name)
        )
