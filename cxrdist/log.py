"""Logging and progress.  Only entry points call `setup`; everything else asks for a logger and a progress."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TextIO, TypeVar

T = TypeVar("T")

PLAIN_LINE_EVERY_S = 10.0


def get_logger(name: str) -> logging.Logger:
    """Return the logger of a module."""
    return logging.getLogger(name)


def setup(*, verbose: bool = False) -> None:
    """Send our log lines to standard error; hold back the libraries' warnings.

    pydicom's warnings name the file they are about, and a file's name can hold a patient's: they stay silent.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("cxrdist").setLevel(logging.DEBUG if verbose else logging.INFO)
    for library in ("pydicom", "PIL", "matplotlib", "DeepSpeed", "ray"):
        logging.getLogger(library).setLevel(logging.ERROR)


def only_warnings() -> None:
    """Say no more than warnings: what one process of many says for all need not be said by each."""
    logging.getLogger("cxrdist").setLevel(logging.WARNING)


@contextmanager
def log_to(stream: TextIO, *, instead_of: TextIO) -> Iterator[None]:
    """Send log lines to another stream during the block, as long as something is drawn on the terminal."""
    handlers = [one for one in logging.getLogger().handlers if isinstance(one, logging.StreamHandler)]
    moved = [one for one in handlers if one.stream is instead_of]
    for handler in moved:
        handler.setStream(stream)
    try:
        yield
    finally:
        for handler in moved:
            handler.setStream(instead_of)


@dataclass
class Progress:
    """Counts finished units of one long piece of work and shows rate and time left."""

    label: str
    total: int
    unit: str = "images"
    shown: bool = True
    patience_s: float = 0.0
    """Nothing is shown before so many seconds, nor of work that is done by then."""
    done: int = 0
    note: str = ""
    started: float = field(default_factory=time.monotonic)
    _skipped: int = 0
    _last_line: float = 0.0

    @property
    def begun(self) -> bool:
        """Whether a line has been shown."""
        return self._last_line > 0

    def skip(self, count: int) -> None:
        """Count units that an earlier run finished: they are done, but do not enter the rate."""
        self._skipped += count
        self.advance(count)

    def advance(self, count: int = 1, note: str = "") -> None:
        """Count `count` more units; `note` is shown behind the rate."""
        self.done += count
        self.note = note or self.note
        if not self.shown:
            return
        now = time.monotonic()
        if now - self.started < self.patience_s:
            return
        terminal = sys.stderr.isatty()
        if self.done >= self.total or now - self._last_line >= (0.2 if terminal else PLAIN_LINE_EVERY_S):
            self._last_line = now
            end = "\n" if not terminal or self.done >= self.total else ""
            start = "\r\x1b[2K" if terminal else ""
            print(f"{start}{self.line(now)}", end=end, file=sys.stderr, flush=True)

    def line(self, now: float) -> str:
        """Return the progress as one line of text."""
        elapsed = max(now - self.started, 1e-9)
        rate = (self.done - self._skipped) / elapsed
        left = clock((self.total - self.done) / rate) if rate > 0 else "?"
        share = 100 * self.done // max(self.total, 1)
        speed = f"{rate:.1f}/s" if rate >= 1 or rate <= 0 else f"{1 / rate:.0f} s each"
        text = f"{self.label}: {self.done}/{self.total} {self.unit} ({share} %), {speed}, {left} left"
        return f"{text}, {self.note}" if self.note else text


@contextmanager
def progress(label: str, total: int, *, unit: str = "images", shown: bool = True) -> Iterator[Progress]:
    """Show the progress of the block; an unfinished bar ends its line when the block is left."""
    bar = Progress(label, total, unit, shown)
    try:
        yield bar
    finally:
        if shown and bar.done < bar.total and sys.stderr.isatty() and bar.begun:
            print(file=sys.stderr)


def track(
    items: Iterable[T], label: str, total: int, *, unit: str = "images", shown: bool = True, patience_s: float = 0.0
) -> Iterator[T]:
    """Yield `items` while showing how many are done; see `Progress`."""
    with progress(label, total, unit=unit, shown=shown) as bar:
        bar.patience_s = patience_s
        for item in items:
            yield item
            bar.advance()


def clock(seconds: float) -> str:
    """Return a time as ``m:ss`` or ``h:mm:ss``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
