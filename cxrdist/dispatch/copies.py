"""Copies of this process, which inherit the work that is to be done and send back its results.

The parent runs no thread (a process with threads is not copied safely) and has no core of its own: whenever it wakes,
a copy waits.  So short items go and come several at once.  Each copy has a pipe of its own and a thread that reads it,
so that handing over never waits for work, and the end of the parent, however it comes, is the end of its copies.
"""

import gc
import itertools
import multiprocessing
import os
import pickle
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from queue import SimpleQueue
from typing import Any, TypeVar

from cxrdist.errors import UserError

T = TypeVar("T")
R = TypeVar("R")

Group = list[tuple[int, Any]]
"""Items with their numbers, handed over at once."""

MOST_TOGETHER = 8
"""Items of a group at most."""

SEND_EVERY_S = 0.05
"""Results of short items wait for others that long, results of long ones for none."""


def map_in_copies(function: Callable[[T], R], items: Iterable[T], *, workers: int, ahead: int) -> Iterator[R]:
    """Yield ``function(item)`` for each of `items`, in their order, worked out by up to `workers` copies.

    Args:
        function: Inherited, so it need not pickle; items and results must.
        items: One by one as they are needed, where their number is not known; else several at once.
        workers: At least 1.
        ahead: Groups of items that a copy has at once, the one at work included; at least 1.

    Raises:
        UserError: If a copy was killed.
    """
    together = MOST_TOGETHER if isinstance(items, Sized) else 1
    groups = _groups(items, workers, together)
    copies: list[_Copy] = []
    outcomes: dict[int, tuple[bool, Any]] = {}
    turn = 0
    try:
        for group in itertools.islice(groups, workers):
            copies.append(_begin(function, copies))
            copies[-1].hand_over(group)
        while True:
            if len(outcomes) < workers * ahead * together:  # else the turn's item is slow: let nothing pile up
                _refill(copies, groups, ahead)
            if turn in outcomes:
                done, value = outcomes.pop(turn)
                turn += 1
                if not done:
                    raise value
                yield value
            elif not any(copy.held for copy in copies):
                return
            else:
                outcomes.update(_outcomes(copies))
    finally:
        for copy in copies:
            copy.process.kill()  # they hold nothing: their work is written so that it may stop anywhere
        for copy in copies:
            copy.process.join()
            copy.pipe.close()


@dataclass
class _Copy:
    process: BaseProcess
    pipe: Connection
    held: int = 0
    """Groups handed over that have not come back whole."""

    def hand_over(self, group: Group) -> None:
        message = pickle.dumps(group)
        with suppress(ConnectionError):  # it was killed, which reading tells
            self.pipe.send_bytes(message)
        self.held += 1


def _groups(items: Iterable[Any], workers: int, together: int) -> Iterator[Group]:
    """Yield all items by their numbers, in the smaller groups the fewer are left, so that copies end side by side.

    Half of what is left goes out in one round (Hummel, Schonberg & Flynn 1992, Commun ACM 35(8):90, "factoring").
    """
    left = len(items) if isinstance(items, Sized) else 0
    numbered = enumerate(items)
    while group := list(itertools.islice(numbered, max(1, min(together, left // (2 * workers))))):
        left -= len(group)
        yield group


def _begin(function: Callable[[Any], Any], earlier: Sequence[_Copy]) -> _Copy:
    ours, theirs = multiprocessing.Pipe()
    not_theirs = [*(copy.pipe for copy in earlier), ours]
    process = multiprocessing.get_context("fork").Process(
        target=_work, args=(function, theirs, not_theirs), daemon=True
    )
    process.start()
    theirs.close()
    return _Copy(process, ours)


def _refill(copies: Sequence[_Copy], groups: Iterator[Group], ahead: int) -> None:
    """Hand over, first to the copy that has least, until each has `ahead` groups."""
    while copies:
        least = min(copies, key=lambda copy: copy.held)
        group = next(groups, None) if least.held < ahead else None
        if group is None:
            return
        least.hand_over(group)


def _outcomes(copies: Sequence[_Copy]) -> Iterator[tuple[int, tuple[bool, Any]]]:
    """Yield what has come, at least one: the number of an item, whether it was done, the result or else the error.

    Raises:
        UserError: If a copy was killed.
    """
    ready = wait([copy.pipe for copy in copies])
    for copy in copies:
        if copy.pipe in ready:
            try:
                message = copy.pipe.recv_bytes()
            except (EOFError, OSError):
                raise UserError(
                    "A worker process must live until its work is done, got one killed (most often for want of "
                    f"memory). Run again with fewer than {len(copies)} workers."
                ) from None
            whole, outcomes = pickle.loads(message)
            copy.held -= whole
            yield from map(pickle.loads, outcomes)


def _work(function: Callable[[Any], Any], pipe: Connection, not_mine: Sequence[Connection]) -> None:
    """Be a copy: work until the pipe ends."""
    # Ctrl-C reaches every process of the terminal; the parent alone decides, else each copy prints a traceback.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.freeze()  # looking for garbage among what was inherited would copy every page of it
    for end in not_mine:
        end.close()
    calls: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=_read, args=(pipe, calls), daemon=True).start()
    with suppress(ConnectionError):  # the parent is gone
        while True:
            for message in _messages(function, pickle.loads(calls.get())):
                pipe.send_bytes(message)


def _read(pipe: Connection, calls: "SimpleQueue[bytes]") -> None:
    with suppress(EOFError, OSError):
        while True:
            calls.put(pipe.recv_bytes())
    os._exit(1)


def _messages(function: Callable[[Any], Any], group: Group) -> Iterator[bytes]:
    """Work, and yield messages of whether the group is done, and the outcomes since the message before."""
    outcomes: list[bytes] = []
    since = time.monotonic()
    for at, (number, item) in enumerate(group, start=1):
        outcomes.append(_outcome(function, number, item))
        if at == len(group) or time.monotonic() - since > SEND_EVERY_S:
            yield pickle.dumps((at == len(group), outcomes))
            outcomes, since = [], time.monotonic()


def _outcome(function: Callable[[Any], Any], number: int, item: Any) -> bytes:
    try:
        return pickle.dumps((number, (True, function(item))), protocol=pickle.HIGHEST_PROTOCOL)
    except BaseException as error:  # whatever it is, it is raised in the parent
        error.add_note(f"In a worker process:\n{traceback.format_exc()}")
        try:
            outcome = pickle.dumps((number, (False, error)))
            pickle.loads(outcome)
        except Exception:  # an error that cannot be sent, or not be made again
            return pickle.dumps((number, (False, RuntimeError(f"{type(error).__name__}: {error}"))))
        return outcome
