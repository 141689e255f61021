import csv
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from run_folders import FINDINGS, NASTY, make_study, spoil
from sklearn.metrics import roc_auc_score

from cxrdist.config import write_yaml
from cxrdist.errors import UsageError
from cxrdist.report import CellFiles, Guard, ReportOptions, write_report
from cxrdist.report.analysis import analyse
from cxrdist.report.cells import read_cell
from cxrdist.report.guards import check
from cxrdist.report.tables import Table, Text, latex, markdown
from cxrdist.report.write import file_names
from cxrdist.stats.meanings import MACRO
from cxrdist.stats.predictions import read_predictions
from cxrdist.stats.threshold import operating_point, youden_threshold

OPTIONS = ReportOptions(reference="random", n_resamples=99)


def report(cells, out, **settings):
    """Return the folder of the written report, its page, and its tables as rows."""
    page = write_report(cells, out, title="A study", options=OPTIONS, **settings).read_text(encoding="utf-8")
    rows = {}
    for name in ("headline", "findings", "guards"):
        with (out / f"{name}.csv").open(newline="", encoding="utf-8") as file:
            rows[name] = list(csv.DictReader(file))
    return page, rows


class Page(HTMLParser):
    """Collects what the tests ask: unbalanced tags, blank table cells, addresses, tags."""

    VOID = ("meta", "img", "br", "link")

    def __init__(self, text):
        super().__init__()
        self.stack, self.blank, self.addresses, self.tags, self.cell, self.text = [], [], [], set(), None, ""
        self.feed(text)
        assert not self.stack, self.stack

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "action", "data")]
        if tag in ("td", "th"):
            self.cell = ""
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack and self.stack.pop() == tag, f"</{tag}> at {self.getpos()}"
        if tag in ("td", "th"):
            if not self.cell.strip():
                self.blank.append(self.getpos())
            self.cell = None

    def handle_data(self, data):
        if self.stack and self.stack[-1] != "style":
            self.text += data
        if self.cell is not None:
            self.cell += data


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("study")
    cells = make_study(root)
    page, rows = report(
        cells, root / "report", guards=[Guard("Told <i>by</i> the caller", True, "seen")], notes=["A note & more"]
    )
    return cells, root / "report", page, rows


def guard_of(rows, words):
    return next(row for row in rows["guards"] if words in row["name"])


def test_page_parses_without_blank_cells_scripts_or_addresses_elsewhere(written):
    _, out, text, _ = written
    page = Page(text)
    assert not page.blank
    assert "script" not in page.tags
    assert not re.search(r"url\(|@import", text)
    for address in page.addresses:
        assert address.startswith(("data:image/svg+xml;base64,", "#")) or (out / address).is_file(), address
    assert sum(address.startswith("data:") for address in page.addresses) == 8


def test_every_name_is_escaped(written):
    _, _, text, _ = written
    page = Page(text)
    assert "<b>x</b>" not in text
    assert NASTY in page.text
    assert "<i>by</i>" not in text
    assert "A note & more" in page.text


def test_csv_numbers_are_those_of_the_prediction_files(written):
    cells, _, _, rows = written
    for row in rows["findings"]:
        ours = [c for c in cells if (c.strategy, c.dataset) == (row["strategy"], row["dataset"])]
        files = [
            [read_predictions(c.folder / f"predictions/{split}.parquet") for split in ("val", "test")] for c in ours
        ]
        k = FINDINGS.index(row["finding"])
        aurocs = [roc_auc_score(test.targets[:, k], test.scores[:, k]) for _, test in files]
        assert float(row["auroc"]) == pytest.approx(np.mean(aurocs), abs=1e-12)
        assert float(row["auroc_sd_seeds"]) == pytest.approx(np.std(aurocs, ddof=1), abs=1e-12)
        points = [
            operating_point(
                test.targets[:, k], test.scores[:, k], youden_threshold(val.targets[:, k], val.scores[:, k])
            )
            for val, test in files
        ]
        assert float(row["sensitivity"]) == pytest.approx(np.mean([point.sensitivity for point in points]))
        assert float(row["specificity"]) == pytest.approx(np.mean([point.specificity for point in points]))
        assert int(row["positive"]) == (files[0][1].targets[:, k] == 1).sum()
        assert float(row["auroc_low"]) <= float(row["auroc"]) <= float(row["auroc_high"])
    for row in rows["headline"]:
        per_finding = [
            float(r["auroc"])
            for r in rows["findings"]
            if (r["strategy"], r["dataset"]) == (row["strategy"], row["dataset"])
        ]
        assert float(row["auroc"]) == pytest.approx(np.mean(per_finding))
        assert row["finding"] == MACRO


def test_q_is_over_all_datasets_and_the_page_shows_the_csv_numbers(written):
    _, _, text, rows = written
    p = sorted(float(row["p"]) for row in rows["headline"] if row["p"])
    assert len(p) == 2
    assert max(float(row["q"]) for row in rows["headline"] if row["q"]) == pytest.approx(p[1])
    for row in rows["headline"]:
        assert f"{float(row['auroc']):.3f}" in text
    assert "(2 tests of the AUROC)" in text
    assert "(6 tests)" in Page(text).text.replace("\n", " ")


def test_guards_of_a_right_study_pass_and_are_all_told(written):
    _, _, text, rows = written
    assert [row["name"] for row in rows["guards"] if row["passed"] != "True"] == []
    assert rows["guards"][0]["name"] == "Told <i>by</i> the caller"
    assert len(rows["guards"]) == 8
    assert "guards failed" not in text
    assert "600" not in guard_of(rows, "budget")["detail"]
    assert "40 steps × 8 images" in guard_of(rows, "budget")["detail"]


def test_provenance_shows_allowed_facts_and_no_path_of_the_machine(written):
    _, _, text, _ = written
    page = Page(text)
    assert "abc123" in page.text
    assert "versions.torch" in page.text
    assert "somebody" not in text
    assert "user" not in re.sub(r"<style>.*?</style>", "", text, flags=re.S)


def test_provenance_names_the_shards_even_where_two_folders_have_one_name(written):
    page = Page(written[2]).text
    for text in ("shard_manifests", "toy aa11; toy bb22"):
        assert text in page


def test_same_files_give_the_same_bytes(written, tmp_path):
    cells, out, _, _ = written
    report(cells, tmp_path, guards=[Guard("Told <i>by</i> the caller", True, "seen")], notes=["A note & more"])
    files = sorted(path.relative_to(out) for path in out.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    assert [str(f) for f in files if (out / f).read_bytes() != (tmp_path / f).read_bytes()] == []
    assert {"figures/forest.svg", "figures/roc-a-b.png", "figures/training.svg"} <= {f.as_posix() for f in files}


def test_latex_is_balanced_and_escaped(written):
    _, out, _, _ = written
    for path in out.glob("*.tex"):
        text = path.read_text(encoding="utf-8")
        assert re.findall(r"\\begin\{(\w+)\}", text) == re.findall(r"\\end\{(\w+)\}", text)[::-1]
        bare = re.sub(r"\\(textbackslash|[\\&%$#_{}])", "", text)
        assert bare.count("{") == bare.count("}")
        assert re.sub(r"\\label\{.*?\}|\\begin.*|\\end.*", "", bare).count("_") == 0
        assert not re.search(r"[#%^~]", bare)
        assert text.isascii()
        rows = [line for line in text.splitlines() if line.endswith(r"\\")]
        assert len({len(re.findall(r"(?<!\\)&", row)) for row in rows}) == 1
        assert r"\toprule" in text
        assert r"\bottomrule" in text
    assert (
        r"\textless{}b\textgreater{}x\textless{}/b\textgreater{}\&|\_\$y\$\textbackslash{}" in text
        or "guards" in path.name
    )


def test_markdown_rows_have_as_many_cells_as_columns():
    table = Table("t", "A *caption*", ("One|two", "b"), ((Text(NASTY), Text("1", bold=True)),))
    lines = markdown(table).splitlines()
    assert lines[0] == r"A \*caption\*"
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines[2:]} == {3}
    assert "&lt;b&gt;" in lines[-1]
    assert "**1**" in lines[-1]
    assert r"\textbf{1}" in latex(table)


def test_missing_cells_are_named_everywhere(tmp_path):
    cells = make_study(tmp_path, strategies=("random", "ours"), datasets=("nih14", "vindr"))
    shutil.rmtree(cells[2].folder)  # ours on nih14, seed 0
    for cell in cells[6:]:  # ours on vindr, both seeds
        (cell.folder / "predictions/test.parquet").unlink()
    page, rows = report(cells, tmp_path / "report")
    text = Page(page).text
    row = next(r for r in rows["headline"] if (r["strategy"], r["dataset"]) == ("ours", "vindr"))
    assert (row["status"], row["auroc"], row["seeds"]) == ("missing", "", "0")
    assert not Page(page).blank
    assert "missing" in text
    assert "ours on vindr, seed 1: no test predictions." in text
    assert "ours on nih14: seed 0 missing; its numbers are from 1 of 2 seeds." in text
    assert "only 1 of 2 seeds" in text
    assert guard_of(rows, "Every cell")["passed"] == "False"
    assert (
        "ours on nih14, seed 0; ours on vindr, seed 0; ours on vindr, seed 1" in guard_of(rows, "Every cell")["detail"]
    )
    assert "1 of 7 guards failed" in text
    for name in ("headline.md", "headline.tex"):
        assert "missing" in (tmp_path / "report" / name).read_text(encoding="utf-8")


def test_missing_reference_leaves_no_difference_and_says_so(tmp_path):
    cells = make_study(tmp_path, strategies=("random", "ours"), seeds=(0,))
    shutil.rmtree(cells[0].folder)
    page, rows = report(cells, tmp_path / "report")
    assert "The reference random is missing, so no difference is given." in page
    assert [row["p"] for row in rows["headline"] if row["dataset"] == "nih14"] == ["", ""]
    assert "no reference" in page


def test_study_without_any_result_still_gives_a_page(tmp_path):
    page, rows = report([CellFiles("random", "nih14", 0, tmp_path / "nowhere")], tmp_path / "report")
    assert not Page(page).blank
    assert "No strategy has test predictions." in page
    assert rows["findings"] == []


def guard_now(cells, words):
    """Return the guard whose name has `words`, without drawing a page."""
    return next(guard for guard in check(analyse([read_cell(cell) for cell in cells], OPTIONS)) if words in guard.name)


def spoil_yaml(cell, name, value):
    write_yaml({"steps": 40, "global_batch_size": 8, "seed": cell.seed} | {name: value}, cell.folder / "config.yaml")


@pytest.mark.parametrize(
    ("guard", "break_rule", "detail"),
    [
        ("disjoint", lambda c: spoil(c, patient_id=lambda p: p.image_id * 0 + "nih14-valp001"), "1 patient in"),
        ("same test images", lambda c: spoil(c, targets=lambda p: 1 - p.targets), "must have the same labels as"),
        ("same test images", lambda c: spoil(c, image_id=lambda p: p.image_id + "x"), "90 missing"),
        ("Thresholds", lambda c: (c.folder / "predictions/val.parquet").unlink(), "No validation predictions for ours"),
        ("budget", lambda c: spoil_yaml(c, "steps", 80), "seed 0 saw 640 training images"),
        ("budget", lambda c: spoil_yaml(c, "global_batch_size", None), "not recorded for ours on nih14"),
        ("Seeds", lambda c: spoil_yaml(c, "seed", 5), "ours on nih14, seed 0: recorded 5"),
    ],
)  # fmt: skip
def test_guard_fails_when_its_rule_is_broken(tmp_path, guard, break_rule, detail):
    cells = make_study(tmp_path, strategies=("random", "ours"), datasets=("nih14",), seeds=(0,))
    break_rule(cells[1])
    failed = guard_now(cells, guard)
    assert not failed.passed
    assert detail in failed.detail


def test_dataset_without_results_is_nothing_to_compare_and_a_gap_in_the_grid(tmp_path):
    cells = make_study(tmp_path, strategies=("random", "ours"), datasets=("nih14", "chexpert"), seeds=(0,))
    for cell in cells:
        if cell.dataset == "chexpert":
            shutil.rmtree(cell.folder)
    same = guard_now(cells, "same test images")
    assert same.passed and same.detail.endswith("of a dataset; nothing to compare on chexpert")
    assert not guard_now(cells, "Every cell").passed
    alone = guard_now([cell for cell in cells if cell.dataset == "chexpert"], "same test images")
    assert alone.passed and alone.detail == "nothing to compare on chexpert"


def test_guard_fails_when_delong_and_bootstrap_disagree(tmp_path, monkeypatch):
    monkeypatch.setattr("cxrdist.report.guards.SE_RATIO", (2.0, 3.0))
    cells = make_study(tmp_path, strategies=("random", "ours"), datasets=("nih14",), seeds=(0,))
    failed = guard_now(cells, "DeLong")
    assert not failed.passed
    assert "; 3 outside 2.00 to 3.00" in failed.detail


def test_incomparable_files_give_a_page_without_numbers_that_says_why(tmp_path):
    cells = make_study(tmp_path, strategies=("random", "ours"), datasets=("nih14",), seeds=(0,))
    spoil(cells[1], targets=lambda p: 1 - p.targets)
    page, rows = report(cells, tmp_path / "report")
    assert "No comparison." in page
    assert "must have the same labels as random" in page
    assert "FAILED" in page
    assert not Page(page).blank
    assert {row["auroc"] for row in rows["headline"]} == {""}


def test_torn_and_repeated_metric_lines_are_handled(tmp_path):
    cells = make_study(tmp_path, strategies=("random",), datasets=("nih14",), seeds=(0,))
    with (cells[0].folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "kind": "train", "time": 1.0, "loss": 9.0, "lr": 1}\n{"step": 41, "ki')
    page, _ = report(cells, tmp_path / "report")
    assert "1 unreadable line of metrics.jsonl left out" in page


def test_datasets_of_like_names_get_files_of_their_own():
    assert file_names(["a b", "a/b", "../a_b", "€"]) == ["a-b", "a-b-1", "a-b-2", "dataset"]


def test_wrong_reference_and_no_cells_are_wrong_usage(tmp_path):
    with pytest.raises(UsageError, match="`reference` must be one of ours, got 'random'"):
        report([CellFiles("ours", "nih14", 0, tmp_path)], tmp_path / "report")
    with pytest.raises(UsageError, match="at least one cell"):
        report([], tmp_path / "report")


def test_a_long_latex_table_breaks_over_pages_and_no_cell_is_taken_for_a_command():
    rows = [(Text(f"[red]{i}"), Text("*")) for i in range(60)]
    text = latex(Table("by-a%b_c", "Many", ("model", "[finding]"), tuple(rows)))
    assert text.startswith(r"\begin{longtable}{ll}") and text.count(r"\endhead") == 1
    assert r"\label{tab:by-a-b-c}" in text
    assert text.count(r"\midrule") == 1
    lines = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert not any(line.startswith(("[", "*")) or "& *" in line for line in lines)
    assert r"{}[red]7 & {}*" in text


def test_a_rule_parts_the_groups_of_a_latex_table_where_there_are_any():
    rows = [(Text(name), Text("1")) for name in ("a", "a", "b")]
    assert latex(Table("t", "Few", ("dataset", "n"), tuple(rows))).count(r"\midrule") == 2
    assert latex(Table("t", "Few", ("dataset", "n"), tuple(rows[1:]))).count(r"\midrule") == 1
