"""Maps: how a piece of work is spread over processes or threads.  Work takes its map as an argument: one code for all.

A map calls ``function(item)`` for every item and yields the results, in the order of the items unless told otherwise.
It looks only a few items ahead, so `items` may be a generator; leaving the loop early ends the work.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait as wait_for_end
from typing import Any, Protocol, TypeVar

from cxrdist.dispatch.copies import map_in_copies
from cxrdist.errors import UserError
from cxrdist.log import track

T = TypeVar("T")
R = TypeVar("R")

AHEAD_PER_WORKER = 2
"""Items handed out per worker: one at work and one waiting, so that nobody idles and little is lost at the end."""

PATIENCE_S = 2.0
"""Work that is done by then shows no progress."""


class Map(Protocol):
    """Anything that is called like the built-in `map` with one iterable."""

    def __call__(self, function: Callable[[T], R], items: Iterable[T], /) -> Iterator[R]:
        """Yield ``function(item)`` for each of `items`."""
        ...


def local_map(function: Callable[[T], R], items: Iterable[T], /) -> Iterator[R]:
    """Do the work in this process, one item after the other."""
    for item in items:
        yield function(item)


def process_map(workers: int, *, ordered: bool = True) -> Map:
    """Return a map over `workers` processes of this machine; one worker means this process itself.

    `function`, items and results must pickle.  Workers start fresh (no fork), so a process that runs threads may use
    it; they end with their parent, however it ends.

    Args:
        workers: At least 1.
        ordered: Results in the order of the items, or as they come.

    Raises:
        UserError: While iterating, if a worker process was killed.
    """
    if workers < 1:
        raise UserError(f"`workers` must be at least 1, got {workers}.")
    if workers == 1:
        return local_map

    def spread(function: Callable[[T], R], items: Iterable[T], /) -> Iterator[R]:
        yield from _in_processes(workers, function, items, ordered=ordered)

    return spread


def fork_map(workers: int) -> Map:
    """Return an ordered map over `workers` copies of this process, made anew for each call.

    `function` and what it refers to is there in every copy without being sent; items and results must pickle.  Items of
    known number (a list, a range) go several at once.  Only for a process that runs no other threads; where processes
    are not copied safely (not Linux) it is `thread_map`.

    Args:
        workers: At least 1.

    Raises:
        UserError: While iterating, if a worker process was killed.
    """
    if workers < 2 or sys.platform != "linux":
        return thread_map(workers)

    def spread(function: Callable[[T], R], items: Iterable[T], /) -> Iterator[R]:
        return map_in_copies(function, items, workers=workers, ahead=AHEAD_PER_WORKER)

    return spread


def _in_processes(workers: int, function: Callable[[T], R], items: Iterable[T], *, ordered: bool) -> Iterator[R]:
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_prepare_worker)
    try:
        yield from _run(pool, function, iter(items), workers * AHEAD_PER_WORKER, ordered=ordered)
    except BrokenProcessPool:
        raise UserError(
            f"A worker process must live until its work is done, got one killed (most often for want of memory). "
            f"Run again with fewer than {workers} workers."
        ) from None
    except BaseException:
        _end(pool)
        raise
    pool.shutdown()


def thread_map(workers: int) -> Map:
    """Return an ordered map over `workers` threads of this process, for work that releases the GIL.

    Nothing is pickled or copied.  One worker means the calling thread itself.  Items at work are finished before an
    error, Ctrl-C or leaving the loop early ends the map: a thread cannot be stopped, so items should be short.

    Args:
        workers: At least 1.
    """
    if workers < 1:
        raise UserError(f"`workers` must be at least 1, got {workers}.")
    if workers == 1:
        return local_map

    def spread(function: Callable[[T], R], items: Iterable[T], /) -> Iterator[R]:
        pool = ThreadPoolExecutor(workers, thread_name_prefix="map")
        try:
            yield from _run(pool, function, iter(items), workers * AHEAD_PER_WORKER, ordered=True)
        finally:
            pool.shutdown(cancel_futures=True)

    return spread


def shown_map(spread: Map, label: str, *, unit: str) -> Map:
    """Return `spread` with a line of progress for work that takes longer than a moment; it lists the items first."""

    def shown(function: Callable[[T], R], items: Iterable[T], /) -> Iterator[R]:
        listed = list(items)
        yield from track(spread(function, listed), label, len(listed), unit=unit, patience_s=PATIENCE_S)

    return shown


def _run(pool: Executor, function: Callable[[T], R], items: Iterator[T], ahead: int, *, ordered: bool) -> Iterator[R]:
    pending: deque[Future[R]] = deque()

    def refill() -> None:
        while len(pending) < ahead:
            try:
                item = next(items)
            except StopIteration:
                return
            pending.append(pool.submit(function, item))

    refill()
    while pending:
        if ordered:
            ready = [pending.popleft()]
        else:
            done = wait(pending, return_when=FIRST_COMPLETED).done
            ready = [future for future in pending if future in done]
            pending = deque(future for future in pending if future not in done)
        for future in ready:
            yield future.result()
        refill()


def _end(pool: ProcessPoolExecutor) -> None:
    """End the workers now: their work is written so that it may stop anywhere."""
    processes: list[Any] = list((getattr(pool, "_processes", None) or {}).values())
    pool.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        with contextlib.suppress(OSError, ValueError):
            process.terminate()


def _prepare_worker() -> None:
    # Ctrl-C reaches every process of the terminal; the parent alone decides, else each worker prints a traceback.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # A pool's worker holds both ends of its queue's pipe, so it never learns that its parent was killed.
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait_for_end([parent.sentinel])
        os._exit(1)
