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
