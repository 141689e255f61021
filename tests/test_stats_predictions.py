"""Prediction files that anybody wrote: what is meant is read, and what cannot be meant is refused in a sentence."""

import datetime
import gzip
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cxrdist.cli.main import run
from cxrdist.errors import UsageError
from cxrdist.stats.meanings import MACRO
from cxrdist.stats.predictions import Predictions, align, check_patients, read_predictions, write_predictions

FINDINGS = ("effusion", "edema", "mass")
CSV = "image_id,patient_id,y_edema,p_edema\n001,07,1,0.9\n002,07,0,0.1\n003,08,,0.5\n004,09,0,0.25\n"


def make_predictions(*, seed: int = 0, n: int = 120) -> Predictions:
    """Return predictions of one model; images and labels are always the same, only the scores change with `seed`."""
    rng = np.random.default_rng(99)
    targets = (rng.random((n, 3)) < (0.4, 0.3, 0.2)).astype(float)
    targets[::17, 1] = np.nan
    patient = rng.integers(0, 50, n)
    return Predictions(
        image_id=np.array([f"img{i:04d}" for i in range(n)], dtype=object),
        patient_id=np.array([f"pat{i:03d}" for i in patient], dtype=object),
        findings=FINDINGS,
        targets=targets,
        scores=np.random.default_rng(seed).random((n, 3)),
        extra={"sex": np.where(patient % 2, "F", "M").astype(object), "age": 30 + patient},
    )


def text_file(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def parquet_file(path: Path, **changes: object) -> Path:
    """Write four images; `changes` are columns, or None for a column to leave out."""
    columns: dict[str, object] = {
        "image_id": ["001", "002", "003", "004"],
        "patient_id": ["07", "07", "08", "09"],
        "y_edema": pa.array([1, 0, None, 0], pa.int8()),
        "p_edema": [0.9, 0.1, 0.5, 0.25],
    }
    columns |= changes
    pq.write_table(pa.table({name: values for name, values in columns.items() if values is not None}), path)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(UsageError) as caught:
        read_predictions(path)
    assert caught.value.exit_code == 2
    return str(caught.value)


@pytest.fixture
def table() -> pd.DataFrame:
    """Return a right prediction table, to be spoiled."""
    return pd.DataFrame(
        {
            "image_id": ["001", "002", "003", "004"],
            "patient_id": ["07", "07", "08", "09"],
            "y_edema": pd.array([1, 0, None, 0], dtype="Int8"),
            "p_edema": [0.9, 0.0, 1.0, 0.25],
            "sex": ["F", "F", None, "M"],
        }
    )


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_written_predictions_are_read_back_sorted_with_masks_and_leading_zeros(tmp_path, suffix):
    predictions = make_predictions()
    predictions = replace(predictions, patient_id=np.array(["007"] * len(predictions), dtype=object))
    path = tmp_path / f"new/test{suffix}"
    write_predictions(path, predictions.rows(np.random.default_rng(0).permutation(len(predictions))))
    read = read_predictions(path)
    assert read.findings == FINDINGS
    assert read.image_id.tolist() == predictions.image_id.tolist()
    assert set(read.patient_id) == {"007"}
    np.testing.assert_array_equal(read.targets, predictions.targets)
    np.testing.assert_array_equal(read.scores, predictions.scores)
    assert read.extra["sex"].tolist() == predictions.extra["sex"].tolist()
    assert read.extra["age"].tolist() == predictions.extra["age"].tolist()
    first = path.read_bytes()
    write_predictions(path, predictions)
    assert path.read_bytes() == first
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_parquet_keeps_labels_as_nullable_small_integers(tmp_path):
    write_predictions(tmp_path / "a.parquet", make_predictions())
    schema = pq.read_schema(tmp_path / "a.parquet")
    assert str(schema.field("y_edema").type) == "int8"
    assert str(schema.field("p_edema").type) == "double"
    assert schema.names[:2] == ["image_id", "patient_id"]


def test_csv_and_parquet_of_the_same_scores_have_the_same_bits(tmp_path):
    predictions = make_predictions()
    hard = np.nextafter(predictions.scores, 1)
    for suffix in ("csv", "parquet"):
        write_predictions(tmp_path / f"a.{suffix}", replace(predictions, scores=hard))
    read = [read_predictions(tmp_path / f"a.{suffix}").scores for suffix in ("csv", "parquet")]
    assert read[0].tobytes() == read[1].tobytes() == hard.tobytes()


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda t: t.drop(columns="patient_id"), r"must have a column `patient_id`, got none \[in a.csv\]"),
        (lambda t: t.rename(columns={"patient_id": " patient_id"}), r"`patient_id`, got none .* mean ' patient_id'"),
        (lambda t: t.rename(columns={"image_id": "Image_ID"}), r"must have a column `image_id`, got none \[in a.csv\]"),
        (lambda t: t.assign(image_id=["1", "2", "2", "3"]), r"`image_id` must be unique, got 1 value .*\(2\)"),
        (lambda t: t.assign(patient_id=["1", None, "2", "3"]), r"`patient_id` must have a value .* 1 empty"),
        (lambda t: t.assign(image_id=["1", "  ", "2", "3"]), r"`image_id` must have a value .* 1 empty"),
        (lambda t: t.assign(p_edema=[0.1, None, None, 0.3]), r"`p_edema` must be .* got nothing or NaN in 2 rows"),
        (lambda t: t.assign(p_edema=["a", "0.1", "0.2", "0.3"]), r"`p_edema` must be .* got 'a' in 1 row"),
        (lambda t: t.assign(p_edema=["0,1", "0,2", "0", "1"]), r"`p_edema` must be .* got '0,1' in 2 rows"),
        (lambda t: t.assign(p_edema=[0.1, np.inf, 0.2, -np.inf]), r"`p_edema` must be .* got inf in 2 rows \[in a.csv"),
        (lambda t: t.assign(y_edema=[0, 1, 0.3, 0]), r"`y_edema` must be 0, 1 or empty, got 0.3 in 1 row"),
        (lambda t: t.assign(y_edema=[0, 1, np.inf, 0]), r"`y_edema` must be 0, 1 or empty, got inf in 1 row"),
        (lambda t: t.assign(y_edema=[0, 1, -1, 0]), r"`y_edema` .* got -1 in 1 row \[in a.csv\]. .*label policy first"),
        (lambda t: t.assign(y_edema=["yes", "0", "1", "0"]), r"`y_edema` must be 0, 1 or empty, got 'yes'"),
        (lambda t: t.drop(columns=["y_edema", "p_edema"]), r"pair of columns `y_<finding>`, `p_<finding>`, got none"),
        (lambda t: t.rename(columns={"p_edema": "p_oedema"}), r"`y_edema` must have its partner `p_edema`.*'p_oedema'"),
        (lambda t: t.assign(p_mass=0.5), r"`p_mass` must have its partner `y_mass`"),
        (lambda t: t.rename(columns={"p_edema": "p_"}), r"A finding must have a name, got the column `p_` \[in"),
        (lambda t: t.rename(columns={"y_edema": "y_"}), r"A finding must have a name, got the column `y_`"),
        (lambda t: t.rename(columns={"sex": "p_edema"}), r"must name each column once, got `p_edema` more than once"),
        (lambda t: t.iloc[:0], r"must have rows, got none"),
    ],
)  # fmt: skip
def test_wrong_prediction_file_is_refused_by_column(table, tmp_path, spoil, sentence):
    spoil(table).to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(UsageError, match=sentence):
        read_predictions(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        ([-3.2, 0.4, 4.1, 0.2], "got -3.2 in 2 rows [in a.parquet]. It looks like logits; apply a sigmoid."),
        ([0.1, 1.5, 0.2, 0.3], "got 1.5 in 1 row [in a.parquet]. It looks like logits; apply a sigmoid."),
        ([90.0, 3.5, 0.2, 41.0], "got 90 in 3 rows [in a.parquet]. It looks like percent; divide by 100."),
        ([0.1, 1.0000001, 0.2, 1.0], "got 1.0000001 in 1 row [in a.parquet]. It looks like rounding; clip it."),
        ([0.1, -1e-9, 0.2, 1.0], "got -1e-09 in 1 row [in a.parquet]. It looks like rounding; clip it."),
        ([0.1, np.nan, np.inf, 1.0], "got nothing or NaN in 2 rows [in a.parquet]."),
    ],
)
def test_what_the_probabilities_look_like_instead_is_told(tmp_path, scores, words):
    told = refusal(parquet_file(tmp_path / "a.parquet", p_edema=scores))
    assert told == "Column `p_edema` must be a probability in [0, 1], " + words


def test_all_faults_are_told_at_once_but_of_very_many_only_the_first(table, tmp_path):
    table.assign(y_edema=7, p_edema=-1.0).to_parquet(tmp_path / "a.parquet")
    assert refusal(tmp_path / "a.parquet").count("\n") == 1
    logits = {f"{prefix}_{k}": [3.0, 0, 1, 1] for k in range(14) for prefix in "yp"}
    told = refusal(parquet_file(tmp_path / "b.parquet", **logits)).splitlines()
    assert len(told) == 6
    assert told[-1] == "And 23 more such faults."


NO_TABLE: dict[str, tuple[str, str | bytes, str]] = {
    "empty csv": ("a.csv", b"", "must have a header and rows, got an empty file [in a.csv]"),
    "empty parquet": ("a.parquet", b"", "must have a header and rows, got an empty file [in a.parquet]"),
    "blank lines": ("a.csv", b"\n \n\n", "must have a header and rows, got an empty file"),
    "header only": ("a.csv", CSV.splitlines()[0] + "\n", "must have rows, got none [in a.csv]"),
    "nameless header": ("a.csv", ",,,\n1,2,3,4\n", "must have a column `image_id`, got none"),
    "semicolons": ("a.csv", CSV.replace(",", ";"), "must part its columns by commas, got semicolons [in a.csv]"),
    "tabs": ("a.csv", CSV.replace(",", "\t"), "must part its columns by commas, got tabs"),
    "utf-16": ("a.csv", CSV.encode("utf-16"), "must be plain UTF-8 text, got UTF-16 text [in a.csv]"),
    "utf-16 without mark": ("a.csv", CSV.encode("utf-16-le"), "must be UTF-8 text, got bytes of zero"),
    "latin-1": ("a.csv", CSV.replace("07", "ä").encode("latin-1"), "must be UTF-8 text, got another encoding"),
    "gzip": ("a.csv", gzip.compress(CSV.encode()), "must be plain UTF-8 text, got gzip"),
    "spreadsheet": ("a.csv", b"PK\x03\x04nothing", "got zip or a spreadsheet [in a.csv]"),
    "long row": ("a.csv", CSV + "005,9,0,0.5,9\n", "must have as many values as the header, got more in line 6"),
    "all rows long": ("a.csv", "image_id,patient_id\n1,2,0.5\n3,4,0.5\n", "as the header, got more in the first [in"),
    "open quote": ("a.csv", CSV + '"005,9,0,0.5\n', "as many values as the header, got a row that does not end"),
    "csv as parquet": ("a.parquet", CSV, "must be parquet, got text [in a.parquet]"),
    "gzip as parquet": ("a.parquet", gzip.compress(CSV.encode()), "must be parquet, got gzip"),
    "noise as parquet": ("a.parquet", b"\x00nothing", "must be parquet, got an unreadable one [in a.parquet]"),
    "torn parquet": ("a.parquet", b"PAR1" + bytes(50) + b"PAR1", "must be parquet, got an unreadable one"),
    "other ending": ("a.txt", CSV, "must end in .csv or .parquet, got 'a.txt'"),
}


@pytest.mark.parametrize(("name", "content", "words"), NO_TABLE.values(), ids=NO_TABLE.keys())
def test_file_that_is_no_table_is_refused_for_what_it_is(tmp_path, name, content, words):
    told = refusal(text_file(tmp_path / name, content))
    assert words in told
    assert str(tmp_path) not in told


def test_parquet_named_csv_is_told_and_so_is_a_folder_and_nothing(tmp_path):
    parquet_file(tmp_path / "a.parquet").rename(tmp_path / "a.csv")
    assert "must be plain UTF-8 text, got parquet [in a.csv]" in refusal(tmp_path / "a.csv")
    (tmp_path / "b.parquet").mkdir()
    assert "must be a file, got the folder 'b.parquet'" in refusal(tmp_path / "b.parquet")
    assert "must exist, got 'gone.csv'" in refusal(tmp_path / "gone.csv")
    assert "must be readable, got 'File name too long'" in refusal(tmp_path / ("x" * 300 + ".csv"))


def test_torn_and_damaged_parquet_never_ends_in_a_traceback(tmp_path):
    """Only the sentence, or a file that still reads: each byte may be one of a score."""
    whole = parquet_file(tmp_path / "a.parquet").read_bytes()
    rng = np.random.default_rng(5)
    refused = 0
    for trial in range(300):
        spoilt = bytearray(whole)
        if trial % 3 == 0:
            spoilt = spoilt[: rng.integers(1, len(whole))]
        else:
            spoilt[rng.integers(4, len(whole))] ^= 1 << int(rng.integers(8))
        try:
            read_predictions(text_file(tmp_path / "b.parquet", bytes(spoilt)))
        except UsageError as error:
            assert "[in b.parquet]" in str(error)
            refused += 1
    assert refused > 150


SAME: dict[str, str | bytes] = {
    "as it is": CSV,
    "byte order mark": CSV.encode("utf-8-sig"),
    "windows line ends": CSV.replace("\n", "\r\n"),
    "old line ends": CSV.replace("\n", "\r"),
    "blank line first": "\n" + CSV,
    "no last line end": CSV[:-1],
    "quoted": "\n".join(",".join(f'"{field}"' for field in line.split(",")) for line in CSV.splitlines()),
    "index column": "\n".join(f"{'' if n == 0 else n},{line}" for n, line in enumerate(CSV.splitlines())),
    "float labels": CSV.replace(",1,", ",1.0,").replace(",0,", ",0.0,"),
    "boolean labels": CSV.replace(",1,", ",True,").replace(",0,", ",False,"),
    "mixed labels": CSV.replace(",1,", ",true,").replace(",,", ",NA,"),
    "columns in another order": "p_edema,patient_id,y_edema,image_id\n.9,07,1,001\n1e-1,07,0,002\n0.50,08,,003\n"
    ".25,09,0,004\n",
}


@pytest.mark.parametrize("content", SAME.values(), ids=SAME.keys())
def test_csv_of_any_hand_reads_the_same(tmp_path, content):
    expect_four_images(read_predictions(text_file(tmp_path / "a.csv", content)))


def expect_four_images(read: Predictions) -> None:
    assert read.image_id.tolist() == ["001", "002", "003", "004"]
    assert read.patient_id.tolist() == ["07", "07", "08", "09"]
    np.testing.assert_array_equal(read.targets[:, 0], [1, 0, np.nan, 0])
    np.testing.assert_array_equal(read.scores[:, 0], [0.9, 0.1, 0.5, 0.25])
    assert not read.extra


PLAIN: dict[str, dict[str, object]] = {
    "categories": {"image_id": pa.array(["001", "002", "003", "004"]).dictionary_encode()},
    "large text": {"patient_id": pa.array(["07", "07", "08", "09"], pa.large_string())},
    "text view": {"patient_id": pa.array(["07", "07", "08", "09"], pa.string_view())},
    "boolean labels": {"y_edema": [True, False, None, False]},
    "text labels": {"y_edema": ["1.0", "0.0", None, " 0"]},
    "empty text labels": {"y_edema": ["1", "0", "", "false"]},
    "category labels": {"y_edema": pa.array(["1", "0", None, "0"]).dictionary_encode()},
    "NaN labels": {"y_edema": pa.array([1, 0, np.nan, 0], pa.float32())},
    "text scores": {"p_edema": ["0.9", "0.1", "5e-1", ".25"]},
    "nested column": {"boxes": [[1, 2], [3], [], None]},
    "structure": {"meta": [{"a": 1}] * 4},
    "times": {"read_at": [datetime.datetime(2020, 1, 1)] * 4},
    "left-over index": {"__index_level_0__": [0, 1, 2, 3]},
}


@pytest.mark.parametrize("changes", PLAIN.values(), ids=PLAIN.keys())
def test_parquet_of_any_hand_reads_the_same(tmp_path, changes):
    expect_four_images(read_predictions(parquet_file(tmp_path / "a.parquet", **changes)))


def test_parquet_of_pandas_with_an_index_and_in_a_folder_that_looks_like_a_partition(tmp_path, table):
    (tmp_path / "seed=0").mkdir()
    table.drop(columns="sex").set_index("image_id").to_parquet(tmp_path / "seed=0" / "a.parquet")
    read = read_predictions(tmp_path / "seed=0" / "a.parquet")
    assert read.image_id.tolist() == ["001", "002", "003", "004"]
    assert not read.extra


WRONG_TYPES: dict[str, tuple[str, object, str]] = {
    "times": ("patient_id", [datetime.datetime(1980, 5, 17)] * 4, "must be text or whole numbers, got timestamp[us]"),
    "dates": ("image_id", [datetime.date(1980, 5, 17)] * 4, "must be text or whole numbers, got date32"),
    "fractions": ("image_id", [1.0, 2.0, 3.0, 4.0], "must be text or whole numbers, got double"),
    "truths": ("patient_id", [True, False, True, True], "must be text or whole numbers, got bool"),
    "lists": ("image_id", [["1"], ["2"], ["3"], ["4"]], "must be text or whole numbers, got list<"),
    "bytes": ("image_id", [b"1", b"2", b"3", b"4"], "must be text or whole numbers, got binary"),
    "nothing": ("patient_id", pa.nulls(4), "must have a value in every row, got 4 empty"),
    "list labels": ("y_edema", [[1], [0], [1], [0]], "must be numbers, got list<"),
    "nested scores": ("p_edema", [{"value": 0.5}] * 4, "must be numbers, got struct<"),
    "times as scores": ("p_edema", [datetime.datetime(1980, 5, 17)] * 4, "must be numbers, got timestamp[us]"),
}


@pytest.mark.parametrize(("name", "values", "words"), WRONG_TYPES.values(), ids=WRONG_TYPES.keys())
def test_column_of_a_type_that_cannot_be_meant_is_refused_without_its_values(tmp_path, name, values, words):
    told = refusal(parquet_file(tmp_path / "a.parquet", **{name: values}))
    assert f"Column `{name}` {words}" in told
    assert "1980" not in told


def test_parquet_with_two_columns_of_one_name_is_refused(tmp_path):
    ids = pa.array(["1", "2"])
    columns = [ids, ids, pa.array([0, 1]), pa.array([0.5, 0.5]), pa.array([0.5, 0.1])]
    names = ["image_id", "patient_id", "y_edema", "p_edema", "p_edema"]
    pq.write_table(pa.Table.from_arrays(columns, names), tmp_path / "a.parquet")
    assert "must name each column once, got `p_edema` more than once" in refusal(tmp_path / "a.parquet")


@pytest.mark.parametrize("type_", [pa.int64(), pa.uint64(), pa.int32()])
def test_whole_numbers_as_ids_match_their_digits_as_text_but_not_with_leading_zeros(tmp_path, type_):
    numbers = parquet_file(
        tmp_path / "a.parquet", image_id=pa.array([1, 2, 3, 4], type_), patient_id=pa.array([7, 7, 8, 9], type_)
    )
    same, padded = CSV, CSV
    for row in range(1, 5):
        same = same.replace(f"00{row},0", f"{row},")
    files = {"a": read_predictions(numbers), "b": read_predictions(text_file(tmp_path / "b.csv", same))}
    assert list(align(files).predictions) == ["a", "b"]
    with pytest.raises(UsageError) as caught:
        align({"a": files["a"], "c": read_predictions(text_file(tmp_path / "c.csv", padded))})
    assert "got 4 missing (1, 2, 3, ...) and 4 more (001, 002, 003, ...). Ids must match" in str(caught.value)


def test_ids_are_kept_to_the_letter(tmp_path):
    ids = ["18446744073709551617", "18446744073709551618", "007 ", "NA", "1e5", "nan", "TRUE", "2020-01-01", "7", "07"]
    lines = [f"{one},p{one},{row % 2},0.5" for row, one in enumerate(ids)]
    read = read_predictions(text_file(tmp_path / "a.csv", "\n".join(["image_id,patient_id,y_a,p_a", *lines])))
    assert read.image_id.tolist() == ids
    assert read.patient_id.tolist() == [f"p{one}" for one in ids]


def test_minus_zero_is_the_same_score_as_zero(tmp_path):
    read = read_predictions(parquet_file(tmp_path / "a.parquet", p_edema=[-0.0, 0.0, 0.5, 1.0]))
    assert not np.signbit(read.scores).any()


def test_an_id_cannot_break_the_line_of_a_sentence(tmp_path):
    wild = ["a\nError: b", "a\nError: b", "x" * 500, "x" * 500]
    told = refusal(parquet_file(tmp_path / "a.parquet", image_id=wild))
    assert "\n" not in told
    assert len(told) < 250


def test_align_sorts_and_keeps_shared_findings():
    ours, theirs = make_predictions(), make_predictions(seed=1)
    order = np.random.default_rng(0).permutation(len(ours))
    aligned = align(
        {"ours": ours.rows(order).only(["mass", "effusion", "edema"]), "theirs": theirs.only(["edema", "mass"])}
    )
    assert aligned.dropped == {"ours": ("effusion",)}
    assert aligned.predictions["ours"].findings == ("mass", "edema")
    assert aligned.predictions["ours"].image_id.tolist() == ours.image_id.tolist()
    np.testing.assert_array_equal(aligned.predictions["theirs"].scores, theirs.scores[:, [2, 1]])
    np.testing.assert_array_equal(aligned.predictions["ours"].targets, aligned.predictions["theirs"].targets)


def with_label(predictions: Predictions, row: int, value: float) -> Predictions:
    targets = predictions.targets.copy()
    targets[row, 2] = value
    return replace(predictions, targets=targets)


def renamed(ids: np.ndarray, change: Callable[[str], str]) -> np.ndarray:
    return np.array([change(one) for one in ids], dtype=object)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (
            lambda p: p.rows(np.arange(2, len(p))),
            r"theirs must have the same images as ours, got 2 missing \(img0000, img0001\). Predict the same split.",
        ),
        (
            lambda p: replace(p, image_id=renamed(p.image_id, lambda one: f"x{one}")),
            r"120 missing \(img0000, img0001, img0002, ...\) and 120 more \(ximg0000",
        ),
        (
            lambda p: replace(p, image_id=renamed(p.image_id, lambda one: f"{one}.png")),
            r"120 more \(img0000.png, .*\). Ids must match to the letter; 120 would but for case, spaces, leading",
        ),
        (
            lambda p: replace(p, image_id=renamed(p.image_id, lambda one: f"{one} ")),
            r"120 more \('img0000 ', .*\). Ids must match to the letter",
        ),
        (
            lambda p: replace(p, patient_id=p.patient_id[::-1]),
            r"theirs must name the same patients as ours, got \d+ others",
        ),
        (
            lambda p: replace(p, patient_id=renamed(p.patient_id, str.upper)),
            r"got 120 others \(img0000, .*\). Ids must match to the letter; \d+ would but for case",
        ),
        (lambda p: with_label(p, 5, 1 - p.targets[5, 2]), r"got 1 other in column `y_mass` \(img0005\)"),
        (lambda p: with_label(p, 5, np.nan), r"same labels as ours.*`y_mass` \(img0005\)"),
        (lambda p: replace(p, findings=("a", "b", "c")), r"must share a finding, got none common to ours, theirs"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_paired_are_refused(spoil, sentence):
    with pytest.raises(UsageError, match=sentence):
        align({"ours": make_predictions(), "theirs": spoil(make_predictions(seed=1))})


def test_images_repeated_in_memory_are_refused():
    base = make_predictions()
    with pytest.raises(UsageError, match=r"must be unique, got an image more than once \[in theirs\]"):
        align({"ours": base, "theirs": base.rows(np.r_[0, 0 : len(base)])})


def test_many_images_are_not_compared_each_with_each():
    base = make_predictions(n=20_000)
    other = replace(base, image_id=renamed(base.image_id, lambda one: f"x{one}"))
    begun = time.process_time()
    with pytest.raises(UsageError, match="got 20000 missing"):
        align({"ours": base, "theirs": other})
    assert time.process_time() - begun < 3  # each with each takes twenty


@pytest.mark.parametrize("name", ["macro", "micro", "weighted"])
def test_finding_that_bears_the_name_of_an_average_is_refused(name):
    files = {one: replace(make_predictions(), findings=("edema", name, "mass")) for one in ("ours", "theirs")}
    with pytest.raises(UsageError, match=f"must not be named '{name}', the word for an average"):
        align(files)


def test_files_without_any_label_are_refused_but_one_finding_without_is_not():
    base = make_predictions()
    targets = base.targets.copy()
    targets[:, 0] = np.nan
    assert len(align({"ours": replace(base, targets=targets)}).predictions) == 1
    with pytest.raises(UsageError, match=r"must have labels, got none in any row of y_effusion, .* \[in ours\]"):
        align({"ours": replace(base, targets=np.full_like(targets, np.nan))})


def test_one_patient_alone_cannot_be_redrawn():
    base = make_predictions()
    constant = replace(base, patient_id=renamed(base.patient_id, lambda _: "pat001"))
    with pytest.raises(UsageError, match=r"at least two patients, got 1 \(pat001\) with 120 images. Check the column"):
        check_patients(constant, "patient_id")
    check_patients(constant, "none")
    check_patients(base, "patient_id")
    with pytest.raises(UsageError, match="at least two images, got 1"):
        check_patients(base.rows(np.array([0])), "none")


CLI: dict[str, tuple[str, str | bytes, str]] = {
    name: NO_TABLE[name] for name in ("empty csv", "header only", "semicolons", "gzip", "torn parquet", "long row")
} | {
    "logits": ("a.csv", CSV.replace("0.9", "3.9"), "It looks like logits; apply a sigmoid."),
    "other images": ("a.csv", CSV.replace("001", "x1"), "b must have the same images as a, got 1 missing (x1)"),
    "other labels": ("a.csv", CSV.replace(",1,", ",0,"), "b must have the same labels as a, got 1 other"),
    "one image twice": ("a.csv", CSV.replace("001", "002"), "`image_id` must be unique"),
    "one column less": ("a.csv", CSV.replace("patient_id", "patient"), "must have a column `patient_id`"),
    "infinite": ("a.csv", CSV.replace("0.9", "inf"), "must be a probability in [0, 1], got inf"),
}


@pytest.mark.parametrize(("name", "content", "words"), CLI.values(), ids=CLI.keys())
def test_compare_ends_with_two_and_a_sentence(tmp_path, capsys, name, content, words):
    text_file(tmp_path / name, content)
    text_file(tmp_path / "right.csv", CSV)
    with pytest.raises(SystemExit) as ended:
        run(["compare", f"a={tmp_path / name}", f"b={tmp_path / 'right.csv'}", "--redraws", "10"])
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (2, "")
    assert err.startswith("Error: ") and err.count("\n") == 1
    assert words in err


def test_the_same_file_twice_in_any_order_of_rows_differs_by_nothing(tmp_path, capsys):
    header, *rows = CSV.splitlines()
    text_file(tmp_path / "a.csv", CSV)
    text_file(tmp_path / "b.csv", "\n".join([header, *rows[::-1]]))
    files = [f"{name}={tmp_path / file}.csv" for name, file in (("a", "a"), ("twin", "a"), ("turned", "b"))]
    with pytest.raises(SystemExit) as ended:
        run(["compare", *files, "--redraws", "20", "--json", str(tmp_path / "out.json")])
    assert ended.value.code == 0, capsys.readouterr().err
    differences = pd.read_json(tmp_path / "out.json", typ="series")["differences"]
    assert len(differences) >= 3
    assert {row["value"] for row in differences if row["finding"] != MACRO} == {0}
