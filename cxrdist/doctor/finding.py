"""A finding: what was looked at, how it stands, and what to do about it."""

import getpass
import os
import re
import socket
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

State = Literal["ok", "note", "problem"]
"""``note``: works, but something is slower or missing that somebody may want."""

REMEDY = "Install cxrdist anew into a fresh virtual environment; `pip check` names what does not fit."
"""Of a part that does not even load."""
LONGEST = 300
"""Characters of a library's own message."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    name: str
    state: State
    found: str
    remedy: str = ""

    def tree(self) -> dict[str, str]:
        """Return it as JSON-ready values."""
        return asdict(self)


Probe = Callable[[], Iterable[Finding]]


def look(name: str, probe: Probe) -> Iterator[Finding]:
    """Yield the findings of `probe`; that it fails is one too, whatever is missing."""
    try:
        yield from probe()
    except Exception as error:
        # `str` of an error can fail as well
        text = f"{type(error).__name__}: {' '.join(str(error).split())}"
        yield Finding(name, "problem", tidy(text), REMEDY)


def tidy(text: str) -> str:
    """Return a library's message without this machine's name, its user, and where things lie: it gets published."""
    for place, name in _private():
        text = text.replace(place, name)
    for word in _names():
        text = re.sub(rf"\b{re.escape(word)}\b", "...", text)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def size(number: float) -> str:
    """Return bytes as ``1.5 GiB``, below one GiB as ``64 MiB``."""
    return f"{number / 2**30:.1f} GiB" if number >= 2**30 else f"{number / 2**20:.0f} MiB"


def _private() -> Iterator[tuple[str, str]]:
    for place, name in ((sys.prefix, "PREFIX"), (os.path.expanduser("~"), "~")):  # noqa: PTH111 - `home` may raise
        if len(place) > 1:
            yield place, name
    with suppress(OSError):
        here = str(Path.cwd())
        if len(here) > 1:
            yield here, "."


def _names() -> list[str]:
    names = []
    for ask in (socket.gethostname, getpass.getuser):
        with suppress(Exception):
            names.append(ask())
    return [name for name in names if len(name) > 3]  # `root` and shorter tell nothing, and are parts of words
