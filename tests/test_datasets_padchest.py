"""PadChest: words as Python writes a list, a tree of words, 44-digit ids, 16 bits."""

import ast

import pytest

from cxrdist.datasets import UnknownLabelsError, import_dataset, read_facts
from tests.trees.files import imported, ones, reasons
from tests.trees.padchest import LABELS, LONG, TREES, make


def by_letter(found):
    return {row.source.rsplit("_")[-1][0]: row for row in found.rows}


@pytest.mark.parametrize("form", TREES)
def test_padchest_reads_whole_words_and_their_descendants(tmp_path, form):
    named = TREES[form](tmp_path)
    found = imported(tmp_path, "padchest", named)
    assert reasons(found) == {
        "excluded_by_source": 2, "no_label_row": 3, "projection_filtered": 2, "missing_file": 1,
    }  # fmt: skip
    present = {letter: ones(row) for letter, row in by_letter(found).items()}
    assert present == {
        "a": {"cardiomegaly", "pneumonia"},
        "b": {"no_finding"},
        "c": set(),
        "d": set(),
        "e": {"effusion"},
        "f": set(),  # no effusion, nodule, emphysema or mass
        "g": {"effusion", "pneumothorax", "atelectasis", "support_devices"},
        "o": set(),
        "p": {"infiltration", "lung_opacity", "aortic_enlargement", "aortic_elongation"},
    }


def test_what_is_not_listed_is_absent_but_for_reports_that_say_unchanged(tmp_path):
    make(tmp_path)
    facts = read_facts("padchest")
    rows = by_letter(import_dataset(facts, tmp_path))
    assert all(set(rows[letter].findings.values()) <= {0, 1} for letter in "abcfgp")
    assert set(rows["d"].findings.values()) == {None}
    assert {value for name, value in rows["e"].findings.items() if name not in ("effusion", "no_finding")} == {None}
    assert (rows["e"].findings["no_finding"], rows["c"].findings["no_finding"]) == (0, 0)
    assert rows["o"].findings["no_finding"] is None  # normal, but for what an unseen report says
    assert facts.policy.not_mentioned == "ignore"


def test_ids_of_44_digits_stay_apart_and_ages_are_those_at_the_examination(tmp_path):
    make(tmp_path)
    rows = by_letter(import_dataset(read_facts("padchest"), tmp_path))
    assert (rows["a"].patient, rows["b"].patient) == (LONG + "3", LONG + "4")
    assert rows["a"].study == LONG + "000"
    assert [rows[letter].age for letter in "abdgp"] == [60, 83, None, 90, 8]
    assert {row.sex for row in rows.values()} == {"F"}
    assert [rows[letter].projection for letter in "abc"] == ["PA", "AP", "AP"]


def test_images_that_were_not_inverted_when_written_are_inverted_when_read(tmp_path):
    make(tmp_path)
    rows = by_letter(import_dataset(read_facts("padchest"), tmp_path))
    assert {letter for letter, row in rows.items() if row.pixels.invert} == {"o"}
    assert {row.pixels.range for row in rows.values()} == {"file"}  # 65,519 is white


def test_variants_of_padchest_choose_among_its_images(tmp_path):
    make(tmp_path)
    physician = import_dataset(read_facts("padchest", variant="physician"), tmp_path)
    assert sorted(by_letter(physician)) == ["b", "g"]
    adults = import_dataset(read_facts("padchest", variant="adults"), tmp_path)
    assert sorted(by_letter(adults)) == list("abcdefgo")
    whole = import_dataset(read_facts("padchest"), tmp_path)
    splits = {row.patient: row.split for row in whole.rows}
    for found in (physician, adults):  # a patient tests in a part if he tests in the whole
        assert len(found.rows) + len(found.rejects) == len(whole.rows) + len(whole.rejects)
        assert all(splits[row.patient] == row.split for row in found.rows)
    tayebi = read_facts("padchest", variant="tayebi2024")
    assert (tayebi.splits.test_fraction, tayebi.policy.not_mentioned) == (0.2, "zeros")


def test_all_193_words_of_padchest_are_known_and_another_stops_the_import(tmp_path):
    facts = read_facts("padchest")
    labels = facts.labels
    known = {word.lower() for source in facts.findings.values() for word in source.names}
    known |= {word.lower() for word in [*labels.others, *labels.exclude, *labels.open]}
    assert len(known) == 193 + 1  # `hemothorax` is in the tree of words, and in no row
    assert {
        word.strip().lower() for words, _, _ in LABELS.values() for word in ast.literal_eval(words or "[]")
    } - known == {""}
    make(tmp_path)
    (path,) = tmp_path.glob("*.csv")
    path.write_text(path.read_text(encoding="utf-8").replace("breast mass", "Maria's mass"), encoding="utf-8")
    with pytest.raises(UnknownLabelsError) as caught:
        import_dataset(facts, tmp_path)
    assert "Maria" not in str(caught.value)
