"""A finding: what was looked at, how it stands, and what to do about it."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Literal

from cxrdist.doctor.measure import tidy

State = Literal["ok", "note", "problem"]
"""``note``: works, but something is slower or missing that somebody may want."""

REMEDY = "Install cxrdist anew into a fresh virtual environment; `pip check` names what does not fit."
"""Of a part that does not even load."""


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


def size(number: float) -> str:
    """Return bytes as ``1.5 GiB``, below one GiB as ``64 MiB``, below one MiB as ``64 KiB``."""
    if number >= 2**30:
        return f"{number / 2**30:.1f} GiB"
    return f"{number / 2**20:.0f} MiB" if number >= 2**20 else f"{number / 2**10:.0f} KiB"
