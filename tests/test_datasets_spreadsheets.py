"""Tables as people keep them: words that look blank, dates and separators of other countries, stray quotes."""

import pytest

from cxrdist.datasets import FactFile, import_dataset
from tests.trees.files import picture, table

BASE = {
    "name": "mine",
    "title": "Mine",
    "home": "https://example.org",
    "licence": "mine",
    "coding": "0 or 1",
    "markers": [{"paths": ["labels*"]}],
    "layout": {"kind": "table", "tables": [{"files": ["labels*.csv"]}], "image": "file"},
    "projections": {"*": "PA"},
    "labels": {"coding": "columns"},
    "findings": {"effusion": "Fluid"},
    "namespace": "mine",
}


def build(**changes) -> FactFile:
    return FactFile.build({**BASE, **changes}, where="mine.yaml")


def imported(root, rows, **changes):
    """Return the rows of an import of images that a table of `rows` names, in its order."""
    rows = [{"file": f"{number}.png"} | row for number, row in enumerate(rows)]
    table(root / "labels.csv", list(dict.fromkeys(name for row in rows for name in row)), rows)
    for row in rows:
        picture(root / row["file"])
    return import_dataset(build(**changes), root, projection="all").rows


WORDS = {"coding": "tokens", "columns": ["Fluid"], "unlisted": 0}
VALUES = {"coding": "columns", "values": {"None": 0, "Mild": 1}}


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"labels": VALUES}, [0, 1, None]),
        (
            {
                "labels": {"coding": "columns"},
                "findings": {"effusion": {"names": ["Fluid"], "values": VALUES["values"]}},
            },
            [0, 1, None],
        ),
        ({"labels": WORDS, "findings": {"no_finding": "none", "effusion": "mild"}}, [1, 0]),
        ({"labels": WORDS | {"others": ["none"]}, "findings": {"effusion": "Mild"}}, [0, 1]),
        ({"replace": {"Fluid": {"NONE": "0", "mild": "1"}}}, [0, 1, None]),
    ],
)
def test_a_word_that_the_labels_know_is_not_blank(tmp_path, facts, expected):
    rows = imported(tmp_path, [{"Fluid": "None"}, {"Fluid": "Mild"}, {"Fluid": ""}], **facts)
    name = "no_finding" if "no_finding" in (facts.get("findings") or {}) else "effusion"
    assert [row.findings[name] for row in rows] == expected


def test_a_known_word_is_blank_in_every_other_column(tmp_path):
    columns = {"patient": "who", "sex": "sex", "projection": "view"}
    cells = [{"Fluid": "none", "who": "None", "sex": "N/A", "view": "null"}] * 2
    facts = {"sexes": {"n/a": "F"}, "projections": {"null": "lateral", "*": "PA"}, "labels": VALUES, "columns": columns}
    rows = imported(tmp_path, cells, **facts)
    assert [(row.sex, row.projection, row.findings["effusion"]) for row in rows] == [("F", "lateral", 0)] * 2
    assert [row.patient for row in rows] == ["0", "1"]  # and not one patient called None


def test_rows_are_kept_split_and_told_apart_by_words_that_look_blank(tmp_path):
    rows = [{"Fluid": "1", "part": part, "kind": kind} for part, kind in (("none", "n/a"), ("x", "CR"), ("none", "CR"))]
    facts = {
        "drop": {"kind": ["N/A"]},
        "splits": {"column": "part", "values": {"None": "test", "x": "train"}, "val_fraction": 0},
        "origin": {"column": "part", "words": {"None": "ward"}},
    }
    kept = imported(tmp_path, rows, **facts)
    assert [(row.source, row.split, row.origin) for row in kept] == [
        ("1.png", "train", "other"),
        ("2.png", "test", "ward"),
    ]
    tables = [{"files": ["labels.csv"], "where": {"part": ["None"]}}]
    found = import_dataset(build(layout={**BASE["layout"], "tables": tables}), tmp_path)
    assert [row.source for row in found.rows] == ["0.png", "2.png"]


@pytest.mark.parametrize(
    ("born", "now", "age"),
    [
        ("12.05.1956", "01.02.2020", 64),
        ("12/05/1956", "2020-02-01", 64),
        ("1956/05/12", "2020/02/01 08:15", 64),
        ("2.5.1956", "20200201", 64),
        ("12-05-1956 00:00:00", "2020", 64),
        ("12. 05. 1956", "2020", 64),
        ("12.05.56", "2020", None),
        ("12.05/1956", "2020", None),
        ("12.05.19567", "2020", None),
    ],
)
def test_dates_are_understood_in_any_order_and_years_of_two_digits_are_not(tmp_path, born, now, age):
    columns = {"age": {"column": "born", "born": True, "at": "now"}}
    assert imported(tmp_path, [{"Fluid": "1", "born": born, "now": now}], columns=columns)[0].age == age


@pytest.mark.parametrize(
    ("text", "age"), [("50,5", 50), ("50.5", 50), ("50,5 Y", 50), ("1,234,5", None), ("50,", None)]
)
def test_an_age_may_have_a_decimal_comma(tmp_path, text, age):
    assert imported(tmp_path, [{"Fluid": "1", "age": text}], columns={"age": "age"})[0].age == age


@pytest.mark.parametrize(
    ("sex", "words"),
    [
        ("F", "weiblich W w. F. mujer femme Frau Féminin Fe\u0301minin"),
        ("M", "männlich ma\u0308nnlich M. hombre homme Mann"),
        ("unknown", "H D divers ? X"),
    ],
)
def test_the_sex_is_understood_in_other_languages_where_a_word_has_one_meaning(tmp_path, sex, words):
    rows = [{"Fluid": "1", "sex": word} for word in words.split()]
    assert {row.sex for row in imported(tmp_path, rows, columns={"sex": "sex"})} == {sex}
