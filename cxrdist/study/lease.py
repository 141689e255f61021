"""Being the only run of a study where no lock tells: a hold in a journal of objects, and a lease that shows life.

A run begins its hold with an event ``hold`` in the journal, which one of two can create.  Beside the journal it keeps
``lease-<number of that event>.json`` and writes it anew several times during the lease's time.  Another run watches
that object by its own clock: a renewal means that the first is alive, none in the lease's time that it is not; then the
other begins a hold of its own, and the journal takes nothing of the first any more.  No two clocks are compared.
"""

import json
import math
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from cxrdist.errors import UserError
from cxrdist.log import get_logger
from cxrdist.study.journal import ObjectJournal, parse

log = get_logger(__name__)

LEASE_S = 60.0
"""How long a run is taken to be alive after a sign of it: longer than a machine or a network is away for a moment."""
RENEWALS = 12
"""How often a lease is renewed in its time."""
LOOKS = 60
"""How often a lease is looked at in its time."""
LONGEST_S = 3600.0
"""What is taken of a lease of any length, so that a broken one ends."""


@dataclass
class Lease:
    """The hold of a study in `journal`."""

    journal: ObjectJournal
    place: str
    """What is held, for sentences."""

    lease_s: float = LEASE_S
    _stop: threading.Event = field(default_factory=threading.Event)
    _lost: threading.Event = field(default_factory=threading.Event)

    @property
    def lost(self) -> bool:
        """Whether another run has taken over what this one holds; known a few seconds after this one woke."""
        return self._lost.is_set()

    @contextmanager
    def hold(self) -> Iterator[int]:
        """Be the only run during the block and yield the number of the hold.

        Waits up to the lease's time for the end of a run that may be dead.

        Raises:
            UserError: If another run is alive.
        """
        self.journal.store.check()
        term = self._take()
        self._stop, self._lost = threading.Event(), threading.Event()
        ends = (self._stop, self._lost)
        renewing = threading.Thread(target=self._renew, args=(term, *ends), name="study-lease", daemon=True)
        renewing.start()
        try:
            yield term
        finally:
            self._stop.set()
            renewing.join(self.lease_s)
            self._write(term, released=True)

    def held(self, *, fresh: bool = True) -> bool:
        """Whether a run seems to be going on, by the clocks of both machines: to be shown, not to be relied on."""
        term = self.journal.term(fresh=fresh)
        if term == 0:
            return False
        last = self._last(term) or self.journal.event(term) or {}
        return not last.get("released") and abs(time.time() - _number(last.get("time"), 0)) < self._length(last)

    def superseded(self) -> UserError:
        """Return the sentence for a run whose hold was taken over."""
        by = self.journal.event(self.journal.term()) or {}
        return UserError(
            "Only the run that holds a study may write its ledger, got one that a later run on "
            f"{by.get('host', 'another machine')} has taken over from [{self.place}]. A hold not renewed for "
            f"{self.lease_s:g} s is free to take; the later run goes on with what this one had not finished."
        )

    def _take(self) -> int:
        seen: tuple[int, Any] | None = None
        since = time.monotonic()
        while True:
            term = self.journal.term()
            last = self._last(term) if term else {"released": True}
            now = (term, (last or {}).get("count"))
            free = bool(last and last.get("released"))
            if seen is None and not free:
                host = (last or {}).get("host", "another machine")
                log.info(
                    "A run of this study on %s has not ended; waiting %g s at most for a sign of it.",
                    host,
                    self.lease_s,
                )
                seen, since = now, time.monotonic()
            elif not free and now != seen:
                raise UserError(
                    f"Only one run of a study may go on at a time, got a second [{self.place}]. "
                    f"Wait for the first on {(last or {}).get('host', 'another machine')}, or choose another --out."
                )
            if free or time.monotonic() - since >= self._length(last or {}):
                event = {"time": round(time.time(), 3), "event": "hold", **_holder()}
                mine = self.journal.begin(event, after=term)
                if mine is not None:
                    self._write(mine)
                    return mine
            time.sleep(self._length(last or {}) / LOOKS if not free else 0)

    def _renew(self, term: int, stop: threading.Event, lost: threading.Event) -> None:
        count = 0
        while not stop.wait(self.lease_s / RENEWALS):
            count += 1
            self._write(term, count=count)
            # After a sleep nobody may have asked the journal, while both runs work on the same jobs.
            with suppress(UserError):  # the next look may succeed
                if self.journal.term() > term:
                    lost.set()
                    return

    def _write(self, term: int, **facts: Any) -> None:
        lease = {"time": round(time.time(), 3), "lease_s": self.lease_s, "count": 0, **_holder(), **facts}
        try:
            self.journal.store.put(_name(term), json.dumps(lease).encode())
        except UserError as error:
            # The next may succeed; if none does for so long that another run begins, the journal tells.
            log.warning("The hold of the study could not be renewed: %s", error)

    def _last(self, term: int) -> dict[str, Any] | None:
        (text,) = self.journal.store.fetch([_name(term)])
        return parse(text) if text is not None else None

    def _length(self, lease: dict[str, Any]) -> float:
        return min(max(_number(lease.get("lease_s"), self.lease_s), 0), LONGEST_S)


def _name(term: int) -> str:
    return f"lease-{term:010d}.json"


def _holder() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid()}


def _number(value: Any, otherwise: float) -> float:
    if not isinstance(value, int | float):
        return otherwise
    try:
        return float(value) if math.isfinite(value) else otherwise
    except OverflowError:  # an integer beyond all floats
        return otherwise
