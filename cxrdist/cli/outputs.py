"""Files that a command writes at its end: checked before its work, and there whole or not at all."""

import os
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from cxrdist.errors import UsageError, UserError

Outputs = Mapping[str, Path | None]
"""Option -> the file that it was given."""


def check_outputs(outputs: Outputs, inputs: Iterable[Path]) -> None:
    """Refuse outputs that cannot be written, or that would replace an input or each other.

    Raises:
        UsageError: If an output is a folder, its folder does not exist or cannot be written to, or it is a file named
            more than once.
    """
    given = {option: path for option, path in outputs.items() if path is not None}
    read = list(inputs)
    for option, path in given.items():
        if not path.parent.is_dir():
            raise UsageError(f"`{option}` must be in a folder that exists, got {str(path)!r}.")
        fault = _unwritable(path)
        if fault:
            raise UsageError(f"`{option}` must be writable, got {fault} [{path}].")
    files = {option: path for option, path in given.items() if not _special(path)}
    for number, (option, path) in enumerate(files.items()):
        if any(same_file(path, other) for other in read):
            raise UsageError(f"`{option}` must not replace a file that is read, got {str(path)!r}. Name another file.")
        for earlier in list(files)[:number]:
            if same_file(path, files[earlier]):
                raise UsageError(
                    f"`{option}` must be another file than that of `{earlier}`, got {str(path)!r} for both."
                )


def write_outputs(outputs: Outputs, texts: Mapping[str, Callable[[], str]]) -> None:
    """Write the text of every option that was given a file; each file appears complete or not at all.

    Raises:
        UserError: If one cannot be written, after all others have been.
    """
    faults = []
    for option, path in outputs.items():
        if path is None:
            continue
        try:
            _write(path, texts[option]())
        except BrokenPipeError:
            raise
        except OSError as error:
            faults.append(f"`{option}` must be writable, got {error.strerror!r} [{path}].")
    if faults:
        raise UserError("\n".join(faults))


def same_file(one: Path, other: Path) -> bool:
    """Return whether two paths are one file, through links as well."""
    if one.resolve() == other.resolve():
        return True
    return one.exists() and other.exists() and one.samefile(other)


def _write(path: Path, text: str) -> None:
    if _special(path):
        # Behind what was printed, should it be where standard output goes.
        sys.stdout.flush()
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
        return
    path = path.resolve()
    partial = _partial(path)
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _unwritable(path: Path) -> str:
    """Return why no file can be written there, or nothing."""
    if path.is_dir():
        return "a folder"
    if path.exists() and not os.access(path, os.W_OK):
        return "a file that may not be changed"
    if _special(path):
        return ""
    # Tried, since neither permissions nor owners tell it of every file system.
    partial = _partial(path.resolve())
    try:
        partial.touch()
        partial.unlink()
    except OSError as error:
        return repr(error.strerror)
    return ""


def _special(path: Path) -> bool:
    """Return whether `path` is a device, a pipe or an open file, which is written to and not replaced."""
    folder = Path(os.path.abspath(path)).parent  # noqa: PTH100 - `resolve` would follow /dev/stdout to its file
    always_open = folder in (Path("/dev"), Path("/dev/fd")) or folder.parts[1:2] == ("proc",)
    return path.exists() and (always_open or not path.is_file())


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.partial")
