"""The code of a submitted command: compared with that of the machine where it runs, or brought along."""

import shutil
from functools import cache
from pathlib import Path

import cxrdist
from cxrdist.config import shipped
from cxrdist.dispatch.versions import NOT_CODE, code_hash
from cxrdist.errors import UserError

EXPECTED = "CXRDIST_EXPECTED"
"""Environment variable with the `code_version` that a submitted command must find on its machine."""

SHIPPED = ("launch", "shards")
"""Top-level folders that a wheel has inside of the package."""


@cache
def code_version() -> str:
    """Return the version and the hash of the code, as ``0.1.0+a1b2c3d4e5f6``; alike in a checkout and its wheel."""
    return f"{cxrdist.__version__}+{code_hash(_package())}"


def check_code(expected: str) -> None:
    """Make sure that this machine has the code that a command was submitted with.

    Raises:
        UserError: If it has other code.
    """
    if code_version() != expected:
        raise UserError(
            f"The cluster must have the code that the command was submitted with, got cxrdist {code_version()} on its "
            f"head and {expected} where it came from. Install the same on both, or bring yours with `--ship-code`."
        )


def stage_code(folder: Path) -> Path:
    """Copy the package into `folder`, in the form that a wheel has, and return the copy."""
    copy = folder / "cxrdist"
    without = shutil.ignore_patterns(*NOT_CODE)
    shutil.copytree(_package(), copy, ignore=without)
    for name in SHIPPED:
        if shipped(name).is_dir():
            shutil.copytree(shipped(name), copy / "shipped" / name, ignore=without)
    return copy


def _package() -> Path:
    return Path(cxrdist.__file__).parent
