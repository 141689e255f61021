"""``cxrdist COMMAND``.  Commands import what they need when they run, so that ``--help`` answers at once."""

import sys
from typing import Annotated

import typer

from cxrdist import __version__
from cxrdist.cli import comparing, packing, studying, training
from cxrdist.errors import UserError

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
    comparing.compare,
):
    app.command()(command)
app.add_typer(packing.shards, name="shards")
app.add_typer(studying.study, name="study")


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
    from cxrdist.log import setup  # noqa: PLC0415

    setup(verbose=verbose)


def run() -> None:
    """Run the command line; what a user can cause ends in a sentence and an exit code."""
    try:
        app()
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("Interrupted. What is finished stays; the same command goes on from there.", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # The reader (`head`) has left; there is nobody to tell.
        sys.exit(141)
