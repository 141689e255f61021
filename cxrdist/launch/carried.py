"""Files of a run on machines that do not see this one's: which travel along, and which paths must be theirs already.

The run's file and DeepSpeed's travel.  Shards, weights and the run folder do not: they lie on storage that all machines
see under one path, the mount.
"""

import json
import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import yaml

from cxrdist.config import DEBUG, Tree, load_yaml, override, parse_settings
from cxrdist.errors import UsageError
from cxrdist.launch.request import Request
from cxrdist.train.places import DEEPSPEED, is_path_of_study, path_of_run

SET = "--set"
MOST_BYTES = 200_000
"""`kubectl apply` keeps a copy of an object in a note of 256 KiB at most, as JSON."""


@dataclass(frozen=True)
class Carried:
    """What travels, and the request as it is there."""

    request: Request
    """`file` and `out` are those of the machines, absolute; `options` too."""
    files: dict[str, str]
    """Name in the folder of files that travel -> text; the run's file comes first."""
    start: PurePosixPath
    """The folder, absolute, from which relative paths lead: this one if it is below the mount, else the mount."""


def carry(request: Request, *, folder: str, mount: str) -> Carried:
    """Return `request` for machines that have `folder` with what travels, and storage at `mount`.

    Raises:
        UsageError: If a path of the run is not below `mount`, a DeepSpeed file cannot be read, or all is too long.
    """
    here = PurePosixPath(request.here)
    start = here if _below(str(here), mount) else PurePosixPath(mount)
    effective = _effective(request)
    files = {_key(request.file.name): ""}
    moved = {
        value: f"{folder}/{key}"
        for value in dict.fromkeys(
            value for name, value in _leaves(effective) if _is_deepspeed(name) and not _below(value, mount)
        )
        if (key := _taken(files, request.here / value, value))
    }
    run = next(iter(files))
    files[run] = _with_places(request.text, moved)
    out = posixpath.join(start, request.out)
    wrong = [f"`{name}` {value!r}" for name, value in _places(effective, start) if not _below(value, mount)]
    wrong += [] if _below(out, mount) and out != mount else [f"its folder {str(request.out)!r}"]
    if wrong:
        raise UsageError(
            f"A path of a run on these machines must be below {mount!r}, where they see shared storage, got "
            f"{', '.join(wrong)}. Give what it is there: a relative path leads from {str(start)!r}; `--set NAME=PATH` "
            "changes one, `--run-out DIR` the run's folder, and `--mount` says where the storage is seen."
        )
    if (size := sum(len(json.dumps(text)) for text in files.values())) > MOST_BYTES:
        raise UsageError(
            f"The files that travel with a run must have {MOST_BYTES:,} bytes at most, got {size:,} in "
            f"{', '.join(files)}. Put them on the shared storage, and run `cxrdist` with their paths there."
        )
    there = replace(
        request, file=Path(folder) / run, out=Path(posixpath.normpath(out)), options=_options(request, moved)
    )
    return Carried(there, files, start)


def _effective(request: Request) -> Tree:
    """Return what the run is after its `options`."""
    tree = load_yaml(request.text)
    changes = tree.pop(DEBUG, None) or {}
    return override(override(tree, changes if "--debug" in request.options else {}), parse_settings(_settings(request)))


def _settings(request: Request) -> list[str]:
    pairs = zip(request.options, request.options[1:], strict=False)
    return [value for option, value in pairs if option == SET]


def _options(request: Request, moved: dict[str, str]) -> tuple[str, ...]:
    done: list[str] = []
    for option in request.options:
        name, _, value = option.partition("=")
        told = load_yaml(value) if done and done[-1] == SET and _is_deepspeed(name) else None
        done.append(f"{name}={json.dumps(moved[told])}" if told in moved else option)
    return tuple(done)


def _leaves(tree: object, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield the texts in `tree`, each with its dotted name."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _leaves(value, f"{name}.{key}" if name else str(key))
    elif isinstance(tree, list):
        for value in tree:
            yield from _leaves(value, name)
    elif isinstance(tree, str):
        yield name, tree


def _is_deepspeed(name: str) -> bool:
    return path_of_run(name) == DEEPSPEED


def _places(tree: Tree, start: PurePosixPath) -> Iterator[tuple[str, str]]:
    for name, value in _leaves(tree):
        is_path = path_of_run(name) not in (None, DEEPSPEED) or is_path_of_study(name)
        if is_path and ("://" not in value or value.startswith("file://")):
            yield name, posixpath.join(start, value.removeprefix("file://"))


def _below(path: str, mount: str) -> bool:
    """Return whether `path`, absolute, is `mount` or in it, once ``..`` has been taken out."""
    return PurePosixPath(posixpath.normpath(path)).is_relative_to(mount)


def _taken(files: dict[str, str], path: Path, value: str) -> str:
    """Put the DeepSpeed file at `path` into `files`; return its name there."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "no text"
        raise UsageError(
            f"`{DEEPSPEED}` must be a JSON file that can be read, got {value!r}: {why}. "
            f"A relative path leads from the folder in which this command is given; `--set {DEEPSPEED}=FILE` names "
            "another."
        ) from None
    key = _key(path.name)
    while key in files:
        key = f"_{key}"
    files[key] = text
    return key


def _key(name: str) -> str:
    """Return a file's name as Kubernetes takes it."""
    plain = re.sub(r"[^-._A-Za-z0-9]", "_", name)[-200:]
    return f"_{plain}" if plain.startswith(".") else plain


def _with_places(text: str, moved: dict[str, str]) -> str:
    """Return the run's file with the DeepSpeed files where they are `moved` to; all else, comments too, stays."""
    found: dict[int, yaml.ScalarNode] = {}

    def look(node: yaml.Node | None, name: str) -> None:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                look(value, f"{name}.{key.value}")
        elif isinstance(node, yaml.ScalarNode) and _is_deepspeed(name) and node.value in moved:
            found[node.start_mark.index] = node

    if moved:
        look(yaml.compose(text, Loader=yaml.SafeLoader), "")
    for at, node in sorted(found.items(), reverse=True):
        text = text[:at] + json.dumps(moved[node.value]) + text[node.end_mark.index :]
    return text
