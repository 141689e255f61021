"""``cxrdist COMMAND``.  Commands import what they need when they run, so that ``--help`` answers at once."""

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from cxrdist import __version__
from cxrdist.cli import (
    benching,
    comparing,
    doctoring,
    exporting,
    launching,
    packing,
    planning,
    power,
    studying,
    sweeping,
    training,
)
from cxrdist.cli.ending import end_with_sentence

app = typer.Typer(
    name="cxrdist",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    studying.demo,
    packing.phantom,
    packing.datasets,
    packing.pack,
    training.pretrain,
    training.train,
    sweeping.sweep,
    exporting.export,
    planning.plan,
    power.power,
    doctoring.doctor,
):
    app.command()(command)
app.command(epilog=comparing.EPILOG)(comparing.compare)
app.add_typer(packing.shards, name="shards")
app.add_typer(studying.study, name="study")
app.add_typer(launching.launch, name="launch")
app.add_typer(benching.bench, name="bench")


def _version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def main(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say more about what is done.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """Which way of pretraining a vision backbone is best for reading chest radiographs?

    Start with `cxrdist demo`: phantoms, shards, a study and its report, in minutes on two CPU cores.
    """
    from cxrdist.log import setup

    setup(verbose=verbose)
    if expected := os.environ.get("CXRDIST_EXPECTED"):  # a submitted command
        from cxrdist.dispatch.code import check_code

        check_code(expected)


def run(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit; what a user can cause ends in a sentence and an exit code."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    sys.exit(end_with_sentence(lambda: app(given, prog_name="cxrdist", standalone_mode=False), given))
