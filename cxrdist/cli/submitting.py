"""Commands whose `--address` is a dashboard's: they run on the head of that cluster, and are followed from here."""

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from cxrdist.cli.ending import Stopped
from cxrdist.config import Tree
from cxrdist.dispatch.submission import ON_THE_HEAD, follow, is_submission, submit
from cxrdist.errors import UsageError
from cxrdist.models.locate import is_timm_name
from cxrdist.train.places import DEEPSPEED, SHARDS, WATCH, WEIGHTS, path_of_run
from cxrdist.train.run_folder import flatten

INTERRUPTED = 2
"""SIGINT."""


def submitted(
    context: typer.Context,
    address: str | None,
    *,
    name: str,
    paths: Mapping[str, object],
    files: Sequence[Path] = (),
    keep: Path | None = None,
    ship_code: bool = False,
) -> None:
    """Run the command of `context` on the head, if `address` is a dashboard's, and exit with its code; else return.

    The same words are given there as here, but with ``--address auto``, and each of `files` by its name alone: files
    of this machine are brought along.  With ``--json`` standard output is the result alone.  Ctrl-C leaves the job
    running.

    Args:
        context: Typer's, of the command.
        address: Its option.
        name: What the dashboard calls it: "study demo".
        paths: What the command calls a path of the cluster (`--out`) -> the path, or several; None: not given.
        files: Files of this machine that the command names; relative ones keep their place beside it.
        keep: Folder of the cluster for `files`, where trials read them too; None: the command's start alone does.
        ship_code: Its option.

    Raises:
        UsageError: If one of `paths` is relative: it would be one of this machine.
        UserError: As `submit` and `follow`.
        Stopped: On Ctrl-C.
    """
    if address is None or not is_submission(address):
        if ship_code:
            raise UsageError("`--ship-code` must come with `--address http://HOST:PORT`, got none. Leave it out.")
        return
    check_absolute(paths)
    places = {str(file): placed(file) for file in files}
    words = [places.get(word, word) for word in _words(context)]
    as_json = bool(context.params.get("as_json"))
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    job = submit(
        address,
        words,
        name=f"cxrdist {name}",
        files={place: Path(file) for file, place in places.items()},
        keep=None if keep is None else str(keep),
        ship_code=ship_code,
        columns=columns,
    )
    typer.echo(f"Job {job.identity} is on the cluster. Ctrl-C leaves it running. {job.ways}", err=True)
    try:
        code = follow(job, _write_json if as_json else _write)
    except KeyboardInterrupt:
        raise Stopped(INTERRUPTED, f"Left; that does not end job {job.identity}. {job.ways}") from None
    raise typer.Exit(code)


def check_absolute(paths: Mapping[str, object]) -> None:
    """Make sure that every path of `paths` means the same on the cluster.

    Raises:
        UsageError: If one is relative; all are told.
    """
    relative = [f"{name} {path!r}" for name, path in relative_of(paths)]
    if relative:
        raise UsageError(
            "A path of a command for another machine must begin with `/`, and be the cluster's, got "
            f"{', '.join(relative)}. Set {'it' if len(relative) == 1 else 'them'}, or give the command on the head."
        )


def relative_of(paths: Mapping[str, object]) -> list[tuple[str, str]]:
    """Return the name and path of each of `paths` that is relative."""
    given = [
        (name, str(path))
        for name, value in paths.items()
        for path in (value if isinstance(value, list | tuple) else [value])
        if path is not None
    ]
    return [(name, path) for name, path in given if not path.startswith("/") and ":/" not in path]


def named_in(tree: Tree) -> tuple[dict[str, object], list[Path]]:
    """Return the paths of the cluster that a study's `tree` names, and the files of this machine.

    The latter are DeepSpeed's, which are relative to where a command is started.
    """
    flat = flatten(tree)
    root = Path(str(tree.get("shards_root") or "."))
    weights = tree.get("weights_root")
    inside = [name for name in flat if name.endswith(".shards") and name.startswith("datasets.")]
    paths: dict[str, object] = {"`weights_root`": weights}
    if any(not Path(one).is_absolute() for name in inside for one in _several(flat[name])):
        paths["`shards_root`"] = root
    files = []
    for name, value in flat.items():
        key = path_of_run(name)
        if value is None or key in (None, SHARDS):  # those of datasets are told above
            continue
        if key == WEIGHTS and (weights is not None or is_timm_name(value)):
            continue
        if key == DEEPSPEED and placed(Path(value)) == str(Path(value)):
            files.append(Path(value))
            continue
        named = tree.get("datasets", {}) if key == WATCH else {}
        paths[f"`{name}`"] = [one for one in _several(value) if one not in named] if key == WATCH else value
    return paths, files


def named_in_run(tree: Tree) -> tuple[dict[str, object], list[Path]]:
    """Return the paths of the cluster that the `tree` of one run names, and the files of this machine."""
    from cxrdist.study.alone import paths_of

    paths: dict[str, list[str]] = {}
    files = []
    for name, path in paths_of(tree):
        if name == f"`{DEEPSPEED}`" and placed(Path(path)) == path:
            files.append(Path(path))
        else:
            paths.setdefault(name, []).append(path)
    return dict(paths), files


def _several(value: object) -> list[str]:
    return [str(one) for one in (value if isinstance(value, list) else [value])]


def placed(file: Path) -> str:
    """Return where a file of this machine is put for a submitted command: as named, if that is below; else its name."""
    return file.name if file.is_absolute() or ".." in file.parts else file.as_posix()


def _words(context: typer.Context) -> list[str]:
    """Return the words of the command line that `context` came from, for the head."""
    words: list[str] = []
    contexts: list[Any] = [context]
    while contexts[0].parent is not None:
        contexts.insert(0, contexts[0].parent)
    for number, each in enumerate(contexts):
        words += [each.info_name] if number else []
        places: list[str] = []
        for parameter in each.command.params:
            given = each.get_parameter_source(parameter.name)
            if given is None or given.name != "COMMANDLINE" or parameter.name == "ship_code":
                continue
            value = ON_THE_HEAD if parameter.name == "address" else each.params[parameter.name]
            values = [str(one) for one in (value if isinstance(value, list | tuple) else [value])]
            if parameter.param_type_name == "argument":
                places += values
            elif isinstance(value, bool):
                words.append(parameter.opts[0] if value else parameter.secondary_opts[0])
            else:
                words += [word for one in values for word in (parameter.opts[0], one)]
        words += ["--"] * any(word.startswith("-") for word in places) + places
    return words


def _write(line: str) -> None:
    print(line, end="", file=sys.stderr if line.startswith("Error: ") else sys.stdout, flush=True)


def _write_json(line: str) -> None:
    """Send the result to standard output, and everything else to standard error."""
    try:
        result = isinstance(json.loads(line), dict | list)
    except ValueError:
        result = False
    print(line, end="", file=sys.stdout if result else sys.stderr, flush=True)
