"""Two forms of a log that is only ever appended: lines of a file, and numbered objects of a folder.

Both read what is new only, as what is written never changes; what is no event (a line torn by a crash, garbage) is
passed over.  Objects are numbered from 1, and a number is created once: whoever creates it wrote the next event, and
everybody else reads that one and takes the number after it.  So all writers agree on one order of events.

An event says in ``term`` under whose hold of the study it was written: the number of the event ``hold`` that began it,
0 before the first.  An event has its predecessor's term unless it is a ``hold`` itself, so the last event alone tells
who holds the study, and a writer who holds it no longer learns so before it can write.
"""

import json
import os
import random
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeGuard
from uuid import uuid4

from cxrdist.disk import append_line
from cxrdist.errors import UserError
from cxrdist.study.objects import Store

Event = dict[str, Any]

OBJECT = re.compile(r"(\d{10,18})\.json")
STEPS = 3
"""How many numbers a writer goes on one by one before it lists the folder again."""
VAIN = 20
"""How often a number can neither be created nor read before this is a fault of the store."""
PAUSE_S = 0.01


class SupersededError(Exception):
    """The writer's hold of the study has been taken over."""


def parse(text: bytes) -> Event | None:
    """Return the mapping in `text`; None if it is no JSON or no mapping."""
    try:
        event = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) else None


def is_line(event: Event | None) -> TypeGuard[Event]:
    """Whether `event` is about a job."""
    return event is not None and {"event", "kind", "name", "key"} <= event.keys() and isinstance(event["event"], str)


class FileJournal:
    """Lines of a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._forget()

    def _forget(self) -> None:
        self._lines: list[Event] = []
        self._offset, self._inode = 0, 0

    def append(self, event: Event) -> None:
        """Add one line in one write, and wait until it is on the disk."""
        append_line(self.path, json.dumps(event))

    def lines(self) -> list[Event]:
        """Return the events of jobs in order; the same list grows, and is another one if the file was replaced."""
        with self._lock:
            return self._read()

    def _read(self) -> list[Event]:
        if not self.path.is_file():
            self._forget()
            return self._lines
        with self.path.open("rb") as file:
            stat = os.fstat(file.fileno())
            if stat.st_ino != self._inode or stat.st_size < self._offset:
                self._forget()
                self._inode = stat.st_ino
            file.seek(self._offset)
            *whole, rest = file.read().split(b"\n")
        self._offset += sum(len(text) + 1 for text in whole)
        self._lines += (event for text in whole if is_line(event := parse(text)))
        # The last line has no end yet: being written, torn, or only its end is missing.
        return [*self._lines, last] if is_line(last := parse(rest)) else self._lines


class ObjectJournal:
    """Numbered objects of a folder."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._events: dict[int, Event] = {}
        self._lines: list[Event] = []
        self._read_to = self._last = self._term = 0
        self._looked = False
        self._lock = threading.RLock()

    def lines(self) -> list[Event]:
        """Return the events of jobs in order; the same list grows, and is another one if an earlier event turned up."""
        with self._lock:
            numbers = self._numbers()
            new = [number for number in numbers if number not in self._events]
            self._fetch(new)
            self._set_last(numbers)
            found = [number for number in new if number in self._events]
            unseen = sorted({*found, *(number for number in self._events if number > self._read_to)})
            if unseen and unseen[0] <= self._read_to:
                unseen, self._lines = sorted(self._events), []
            self._lines += (self._events[number] for number in unseen if is_line(self._events[number]))
            self._read_to = max(unseen, default=self._read_to)
            return self._lines

    def term(self, *, fresh: bool = True) -> int:
        """Return the number of the ``hold`` that the last event was written under; 0 if there was none."""
        with self._lock:
            if fresh or not self._looked:
                self._set_last(self._numbers())
            return self._term

    def event(self, number: int) -> Event | None:
        """Return an event by its number."""
        with self._lock:
            self._fetch([number] if number not in self._events else [])
            return self._events.get(number)

    def append(self, event: Event, *, term: int | None = None) -> None:
        """Add one event, under the hold `term` or, without one, under whichever there is.

        Raises:
            SupersededError: If another hold has begun since.
            UserError: If the store refuses.
        """
        with self._lock:
            if not self._looked:
                self._set_last(self._numbers())
            self._go_on_until(lambda: self._create(event, term))

    def begin(self, event: Event, *, after: int) -> int | None:
        """Add a ``hold`` and return its number; None if another hold than `after` is the last."""
        with self._lock:
            try:
                self._go_on_until(lambda: self._create(event, after, holds=True))
            except SupersededError:
                return None
            return self._last

    def _go_on_until(self, created: Callable[[], bool]) -> None:
        """Try the next number until one is ours, passing by the events that others wrote."""
        steps = vain = 0
        while not created():
            before = self._last
            steps += 1
            if steps % STEPS == 0:
                self._set_last(self._numbers())
            elif self.event(self._last + 1) is not None:
                self._last += 1
                self._term = self._events[self._last]["term"]
            elif self.store.fetch([_name(self._last + 1)]) != [None]:
                self._last += 1  # garbage
            vain = 0 if self._last > before else vain + 1
            if vain == VAIN:
                raise UserError(
                    f"A ledger's store must create an object or show the one there, got neither [{self.store.url}]. "
                    "Look at the store; the same command goes on from what is done."
                )
            if vain:
                time.sleep(PAUSE_S * vain * random.random())  # two that met shall not meet again

    def _create(self, event: Event, term: int | None, *, holds: bool = False) -> bool:
        """Write the event after the last one known, unless somebody else has; everything before it is known."""
        if term is not None and term != self._term:
            raise SupersededError
        number, id_ = self._last + 1, uuid4().hex
        whole = {**event, "term": number if holds else self._term, "id": id_}
        if not self.store.create(_name(number), json.dumps(whole).encode()):
            # Asked again after a lost answer, a store says that there is one: ours.
            there = self.event(number)
            if there is None or there["id"] != id_:
                return False
        self._events[number], self._last, self._term = whole, number, whole["term"]
        return True

    def _numbers(self) -> list[int]:
        return sorted(int(found[1]) for name in self.store.names() if (found := OBJECT.fullmatch(name)))

    def _set_last(self, numbers: list[int]) -> None:
        """Take note of the last number, and of the term of the last event that is one."""
        self._looked, self._last = True, max(numbers, default=0)
        self._term = next((event["term"] for number in reversed(numbers) if (event := self.event(number))), 0)

    def _fetch(self, numbers: list[int]) -> None:
        # What is no event is asked for again each time: where names are not written in one go, it may become one.
        for number, text in zip(numbers, self.store.fetch([_name(number) for number in numbers]), strict=True):
            event = parse(text) if text is not None else None
            if event is not None and type(event.get("term")) is int and isinstance(event.get("id"), str):
                self._events[number] = event


def _name(number: int) -> str:
    return f"{number:010d}.json"
