import re

import pytest

from cxrdist.cli.ending import KEPT, NOTHING_KEPT, end_with_sentence
from cxrdist.cli.show import print_table


def test_a_name_that_looks_like_markup_is_shown_as_it_is(capsys):
    print_table("a [red]title", ["finding", "[red]x", "a [b]"], [["[/bold]", ":smile:", "[link=x]y"]])
    out = capsys.readouterr().out
    for name in ("a [red]title", "[red]x", "a [b]", "[/bold]", ":smile:", "[link=x]y"):
        assert name in out


@pytest.mark.parametrize(
    ("arguments", "sentence"), [(["compare", "a=b.csv"], NOTHING_KEPT), (["-v", "train", "run.yaml"], KEPT)]
)
def test_an_interrupt_says_what_is_kept(capsys, arguments, sentence):
    def interrupted():
        raise KeyboardInterrupt

    assert end_with_sentence(interrupted, arguments) == 130
    assert capsys.readouterr().err == f"{sentence}\n"


NUMBER = re.compile(r"[-+−]?\d+\.\d+")
CELLS = ["0.8123 ± 0.0012 [0.7912, 0.8301]", "0.7001 ± 0.0102 [0.6512, 0.7423]", "0.9001 ± 0.0002 [0.8512, 0.9423]"]


@pytest.mark.parametrize("width", [34, 50, 80, 110, 200])
def test_cells_stay_whole_at_any_width_and_each_is_shown_once(capsys, width):
    print_table("a title of several words", ["finding", "first", "second", "third"], [["mass", *CELLS]], width=width)
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in lines) <= width
    for cell in CELLS:
        assert sum(cell in line for line in lines) == 1


def test_blocks_of_columns_repeat_what_a_row_is_about(capsys):
    columns = ["models", "finding", "value", "interval", "p"]
    print_table("", columns, [["b − a", "mass", "+0.1", "[−0.1, +0.3]", "0.25"]], keys=2, width=34)
    blocks = [line for line in capsys.readouterr().out.splitlines() if "b − a" in line]
    assert len(blocks) == 3
    assert all("mass" in line for line in blocks)


def test_headings_fold_before_columns_part(capsys):
    print_table("", ["finding", "p non-inferior (not adjusted)"], [["mass", "0.2500"]], width=30)
    lines = capsys.readouterr().out.splitlines()
    assert sum("mass" in line for line in lines) == 1 and any("0.2500" in line for line in lines)


def test_cell_wider_than_the_terminal_folds_and_loses_nothing(capsys):
    print_table("", ["finding", "value"], [["mass", "0123456789" * 5]], width=30)
    assert "0123456789" * 5 in "".join(capsys.readouterr().out.split())


def test_piped_table_is_as_wide_as_it_is_unless_told(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    print_table("", ["finding", "first", "second", "third"], [["mass", *CELLS]])
    assert any(all(cell in line for cell in CELLS) for line in capsys.readouterr().out.splitlines())
    monkeypatch.setenv("COLUMNS", "60")
    print_table("", ["finding", "first", "second", "third"], [["mass", *CELLS]])
    assert max(len(line) for line in capsys.readouterr().out.splitlines()) <= 60
