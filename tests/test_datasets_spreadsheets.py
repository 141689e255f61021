"""Tables as people keep them: words that look blank, dates and separators of other countries, stray quotes."""

import gzip
import json

import pytest

from cxrdist.datasets import FactFile, delimited, import_dataset
from cxrdist.datasets.layouts import TableFile
from cxrdist.datasets.readers import header_of, read_table
from cxrdist.errors import UserError
from tests.trees.files import picture, table
from tests.trees.own import own_facts, own_layout

PATTERNS = {"markers": [{"paths": ["labels*"]}], "layout": own_layout(tables=[{"files": ["labels*.csv"]}])}


def build(**changes) -> FactFile:
    return own_facts(**{**PATTERNS, **changes})


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
    found = import_dataset(build(layout=own_layout(tables=tables)), tmp_path)
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


NAMES = ["who", "file", "größe; cm", "Fluid", "part", "report"]
ROWS = [[f"H{n // 2}", f"{n}.png", "1,80", str(n % 2), "a", f"text {n}"] for n in range(12)]


def text_of(separator: str, *, first: str = "", end: str = "\n", quoted: bool = False) -> str:
    def cell(text: str) -> str:
        return f'"{text}"' if quoted or any(each in text for each in ",;\t") else text

    return first + end.join(separator.join(map(cell, row)) for row in [NAMES, *ROWS]) + end


FORMS = {
    "comma": text_of(",").encode(),
    "semicolon": text_of(";").encode(),
    "tab": text_of("\t").encode(),
    "quoted": text_of(";", quoted=True).encode(),
    "latin": text_of(";").encode("latin-1"),
    "marked": text_of(",", end="\r\n").encode("utf-8-sig"),
    "utf16": text_of("\t", end="\r\n").encode("utf-16"),
    "utf16_big": b"\xfe\xff" + text_of(",").encode("utf-16-be"),
    "mac": text_of(",", end="\r").encode(),
    "said": text_of(";", first="sep=;\r\n", end="\r\n").encode(),
    "said_bar": text_of("|", first="sep=|\n").encode("utf-8-sig"),
    "compressed": gzip.compress(text_of(";").encode()),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_table_is_found_and_read_however_a_spreadsheet_writes_it(tmp_path, form):
    path = tmp_path / ("labels.csv.gz" if form == "compressed" else "labels.csv")
    path.write_bytes(FORMS[form])
    names = [name.lower() for name in NAMES]
    assert header_of(path) == set(names)
    assert list(read_table(path)) == [dict(zip(names, row, strict=True)) for row in ROWS]
    for row in ROWS:
        picture(tmp_path / row[1])
    marked = build(markers=[{"paths": ["labels.csv"], "columns": ["Fluid", "größe; cm"]}], columns={"patient": "who"})
    found = import_dataset(marked, tmp_path)
    assert len(found.rows) == 12 and not found.rejects
    assert len({row.patient for row in found.rows}) == 6


def test_a_separator_that_is_said_is_not_guessed_and_words_in_a_cell_do_not_count(tmp_path):
    (tmp_path / "t.csv").write_text("a;b;c,d\n1;2;3,4\n")
    how = TableFile(files=["t.csv"], separator=",")
    assert header_of(tmp_path / "t.csv", ",") == {"a;b;c", "d"}
    assert list(read_table(tmp_path / "t.csv", how)) == [{"a;b;c": "1;2;3", "d": "4"}]
    (tmp_path / "u.csv").write_text("1.png,mass;nodule;edema\n")
    how = TableFile(files=["u.csv"], header=["file", "words"])
    assert list(read_table(tmp_path / "u.csv", how)) == [{"file": "1.png", "words": "mass;nodule;edema"}]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize(("row", "closed"), [(4, False), (11, False), (2, True)])
def test_a_stray_quote_is_told_with_its_row_and_swallows_nothing(tmp_path, row, closed, separator, end):
    lines = text_of(separator, end=end).split(end)
    lines[row] = lines[row].replace("text", '"MUSTERMANN')
    if closed:
        lines[row + 7] = lines[row + 7].replace("text", 'and "')
    (tmp_path / "labels_MUSTERMANN.csv").write_text(end.join(lines), newline="")
    with pytest.raises(UserError, match=rf"got one in row {row + 1} that .* \[in labels\*\.csv\]") as caught:
        import_dataset(build(), tmp_path)
    assert "MUSTERMANN" not in str(caught.value)


def test_reports_of_many_lines_are_no_stray_quotes(tmp_path):
    report = "Findings, of today:\n" + "No effusion, no mass.\n" * 30 + 'The "old" lines, tubes, wires, clips, and all.'
    table(tmp_path / "labels.csv", ["file", "Fluid", "report"], [{"file": "0.png", "Fluid": "1", "report": report}] * 3)
    assert [row["report"] for row in read_table(tmp_path / "labels.csv")] == [report] * 3


DAMAGED = {
    "csv.gz": gzip.compress(b"file,Fluid\n" * 1000)[:-9],
    "csv": b'file,Fluid\n0.png,"' + b"A" * 102,
    "parquet": b"PAR1 no",
    "json": b'[{"file": 1, "Fluid": 1}, 7]',
}


@pytest.mark.parametrize("form", DAMAGED)
def test_an_unreadable_table_is_told_by_its_pattern_and_not_by_its_name(tmp_path, monkeypatch, form):
    monkeypatch.setattr(delimited, "LARGEST_CELL", 100)
    path = tmp_path / f"labels_MUSTERMANN.{form}"
    path.write_bytes(DAMAGED[form])
    with pytest.raises(UserError, match=r"\[in labels\*\.\* or other\.csv\]") as caught:
        list(read_table(path, TableFile(files=["labels*.*", "other.csv"])))
    assert "MUSTERMANN" not in str(caught.value)
    with pytest.raises(UserError) as caught:
        list(read_table(path))
    assert "MUSTERMANN" not in str(caught.value)


def test_lines_lists_and_json_are_told_by_their_pattern(tmp_path):
    (tmp_path / "MUSTERMANN.txt").write_text("what\n")
    with pytest.raises(UserError, match=r"got 1 that are not \[in \*\.txt\]"):
        list(read_table(tmp_path / "MUSTERMANN.txt", TableFile(files=["*.txt"], lines=[r"(?P<a>\d+)"])))
    (tmp_path / "train_MUSTERMANN.txt.gz").write_bytes(gzip.compress(b"a\n")[:-4])
    (tmp_path / "labels.json").write_text(json.dumps([{"file": "a", "Fluid": 1}]))
    layout = own_layout(tables=[{"files": ["labels.json"]}])
    with pytest.raises(UserError, match=r"got a damaged one \[in train_\*\.txt\]"):
        import_dataset(build(layout=layout, splits={"lists": {"train": ["train_*.txt"]}}), tmp_path)


@pytest.mark.parametrize("data", [b"PK\x03\x04rest", b"\xd0\xcf\x11\xe0rest"])
def test_a_spreadsheet_under_the_name_of_a_table_is_to_be_saved_as_csv(tmp_path, data):
    (tmp_path / "labels.csv").write_bytes(data)
    with pytest.raises(UserError, match=r"got a spreadsheet \[in labels\*\.csv\]\. Save it as CSV\."):
        list(read_table(tmp_path / "labels.csv", TableFile(files=["labels*.csv"])))


def test_a_spreadsheet_in_place_of_the_table_is_told_of(tmp_path):
    picture(tmp_path / "0.png")
    marked = build(markers=[{"paths": ["labels*.csv"], "columns": ["file"]}])
    with pytest.raises(UserError, match=r"got none\.$"):
        import_dataset(marked, tmp_path)
    (tmp_path / "Labels_MUSTERMANN.xlsx").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"got none\. There is a spreadsheet .* found as labels\*\.csv\.$"):
        import_dataset(marked, tmp_path)


@pytest.mark.parametrize(
    ("labels", "place"),
    [({"coding": "columns"}, r"`labels\.values`.*`values`.*`labels\.others`"), (WORDS, "`findings`, or")],
)
def test_an_unknown_label_is_told_with_the_places_where_it_can_be_made_known(tmp_path, labels, place):
    with pytest.raises(UserError, match=place):
        imported(tmp_path, [{"Fluid": "7"}], labels=labels)
