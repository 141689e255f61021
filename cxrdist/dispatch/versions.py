"""Which versions this process works with, told without importing them, and where two machines differ.

`versions_here` is sent to other machines by value: one without this program, or with an older one, answers too.
So it uses the standard library alone.
"""

import hashlib
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

LIBRARIES = ("torch", "ray", "deepspeed", "timm")
PROGRAM, CODE = "cxrdist", "cxrdist code"
DECISIVE = ("python", PROGRAM, CODE, "torch", "ray")
"""What must not differ: work would fail in the middle, or end with other numbers."""
HASH_DIGITS = 12
NOT_CODE = ("__pycache__", "shipped", "pictures", ".*")
"""Names of files and folders that the program does without; a wheel leaves out pictures, and a checkout has elsewhere
what a wheel carries along under `shipped`."""

Versions = dict[str, str | None]
"""Name -> version; None where it is not installed."""


@dataclass(frozen=True)
class Difference:
    """A version that differs between here and there."""

    name: str
    here: str | None
    there: str | None

    @property
    def decisive(self) -> bool:
        """Whether the two cannot work together; of Python only the minor version decides."""
        if self.name == "python":
            return _minor(self.here) != _minor(self.there)
        return self.name in DECISIVE

    def __str__(self) -> str:
        """Return ``torch 2.14 (here 2.15)``."""
        if self.name == CODE:
            return "other code of the same cxrdist version"
        name = "Python" if self.name == "python" else self.name
        if self.there is None:
            return f"no {name}"
        return f"{name} {self.there} (here {self.here or 'none'})"


def versions_here() -> Versions:
    """Return the versions of Python, this program and the libraries that work is done with; imports none of them.

    ``cxrdist code`` is a hash of the program's source files, which tells two checkouts of one version apart.
    """
    found: Versions = {"python": platform.python_version(), PROGRAM: None, CODE: None}
    try:
        program = import_module(PROGRAM)
        found[PROGRAM] = str(program.__version__)
        found[CODE] = code_hash(Path(str(program.__file__)).parent)
    except (ImportError, AttributeError, OSError):
        pass
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def code_hash(package: Path) -> str:
    """Return a hash of the files of a package, without `NOT_CODE`: a checkout and its wheel have the same."""
    files = []
    for path in package.rglob("*"):
        parts = path.relative_to(package).parts
        if not any(fnmatch(part, pattern) for part in parts for pattern in NOT_CODE):
            files += [("/".join(parts), path)] * path.is_file()
    digest = hashlib.sha256()
    for name, path in sorted(files):
        content = path.read_bytes()
        digest.update(f"{name} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()[:HASH_DIGITS]


def differences(here: Mapping[str, str | None], there: Mapping[str, str | None]) -> list[Difference]:
    """Return what differs between the versions here and those of another machine.

    The code of different versions differs, which is not told twice.
    """
    found = [Difference(name, value, there.get(name)) for name, value in here.items() if value != there.get(name)]
    told = {difference.name for difference in found}
    return [difference for difference in found if difference.name != CODE or PROGRAM not in told]


def _minor(text: str | None) -> list[str]:
    return (text or "").split(".")[:2]
