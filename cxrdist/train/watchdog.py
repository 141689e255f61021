"""A rank that dies or hangs ends the job, with a sentence that says which rank and its last step.

Without this the others wait for it inside a collective: for half an hour under gloo, and on a GPU until somebody looks.
"""

import math
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch.distributed

from cxrdist.errors import UserError
from cxrdist.train.heartbeats import (
    Beat,
    Board,
    How,
    Seen,
    Verdict,
    describe,
    find_ended,
    find_hanging,
    has_ended,
    identify,
    note,
    stand,
)
from cxrdist.train.interrupt import Interrupted
from cxrdist.world import World

BEAT_S = 1.0
"""Between two beats; longer where very many ranks read them."""
PAUSE_S = 5.0
"""A thread that comes round every half second and does not for so long was stopped, with its process."""
STUCK_S = 2.0
"""How long this rank must not have moved before it is ended for another's sake: it may still notice by itself."""
SILENT_S = 30.0
"""How long a rank on another machine may be silent; one call that keeps Python's lock can take seconds."""
SILENT_AFTER_ERROR_S = 5.0
"""The same where a collective has failed as well."""
EXPLAIN_S = 12.0
"""How long a failed collective waits for its reason."""
CLEAN_UP_S = 30.0
"""How long a rank that has its reason may take to end: what belongs to the lost rank may be waited for in vain."""
SPEAK_S = 4.0
"""How long the others leave it to one of them to say why the job ends."""

OF_A_PEER = re.compile(
    r"gloo|nccl|peer|socket|connection (closed|reset|refused)|broken pipe|time[d ]*out|TCPStore|collective",
    re.IGNORECASE,
)
"""What errors say that may be about another rank; they have no class in common."""
TIMED_OUT = re.compile(r"time[d ]*out", re.IGNORECASE)
"""What errors say of a collective that was given up."""


class RankLostError(UserError):
    """Another rank has died or hangs; `told` is whether the job's one line about it is another rank's to print."""

    def __init__(self, sentence: str, *, told: bool) -> None:
        self.told = told
        super().__init__(sentence)


class Watchdog:
    """One rank's part of the watch; made by `watch`."""

    def __init__(self, world: World, board: Board | None, *, hang_after: float) -> None:
        self.world = world
        self.board = board
        self.hang_after = hang_after
        self._now = (0, 0, "")
        self._thread = threading.get_ident()
        self._me = identify()
        self._beats = 0
        self._every = BEAT_S * max(1.0, world.world_size / 64)
        self._seen: dict[int, Seen] = {}
        self._ticks, self._moved = 0, time.monotonic()
        """What the guard saw of this rank's own progress, and when that last grew."""
        self._awake = self._guarded = self._talked = time.monotonic()
        """Since when this process has run without a pause; when the two threads last came round."""
        self._store_lost = False
        self._verdict: Verdict | None = None
        self._alone = False
        """Whether the verdict is this rank's alone, for want of a store."""
        self._chosen: bool | None = None
        """Whether the line is this rank's to print, once that is known."""
        self._choosing = threading.RLock()
        """Kept by the thread that ends the process, so that no other prints the line as well."""
        self._explaining = threading.Event()
        self._timed_out = False
        self._left = False
        self._wake = threading.Event()
        self._closed = threading.Event()
        self._group = torch.distributed.group.WORLD if board is not None else None

    def at(self, step: int, phase: str) -> None:
        """Say that `step` optimizer steps are made and that `phase` (step, validation, checkpoint) goes on or begins.

        Costs nothing; call it as often as there is progress.  A phase in which it is not called for `hang_after`
        seconds, by any rank, counts as hanging.
        """
        self._now = (self._now[0] + 1, step, phase)

    def explain(self, error: BaseException) -> RankLostError | None:
        """Return the sentence on the rank that made a collective fail with `error`; None if no rank is lost.

        It waits some seconds for what the others say, so call it where the training has failed anyhow.
        """
        if self.board is None or not _may_be_of_a_peer(error):
            return None
        self._timed_out = TIMED_OUT.search(str(error)) is not None
        self._explaining.set()
        until = time.monotonic() + EXPLAIN_S
        while self._verdict is None and time.monotonic() < until:
            self._wake.set()
            time.sleep(0.1)
            if self._store_lost and self._verdict is None:
                self._verdict = self._without_store()
        verdict = self._verdict
        if verdict is None or verdict.rank == self.world.rank:
            self._explaining.clear()
            return None
        timer = threading.Timer(CLEAN_UP_S, self._end_unless_clean, [verdict])
        timer.daemon = True
        timer.start()
        return RankLostError(verdict.sentence, told=not self._speaks(verdict))

    # The thread that talks.  What it asks of the store may take for ever, if the process that keeps it is stopped.

    def _talk(self) -> None:
        failures = 0
        while not self._closed.is_set():
            try:
                self._exchange()
                failures = 0
            except Exception:  # the store's errors have no class in common, and no other rank may end this thread
                failures += 1
                if failures > 2:
                    self._store_lost = True
                    return
            # At the beginning the ranks look for each other more often: who dies early is known by name and host.
            self._wake.wait(self._every if len(self._seen) == self.world.world_size else self._every / 10)
            self._wake.clear()

    def _exchange(self) -> None:
        assert self.board is not None
        beats = self.board.exchange(self._beat())
        now = self._talked = time.monotonic()
        self._seen |= {rank: note(self._seen.get(rank), beat, now) for rank, beat in beats.items()}
        if self._left or self._verdict is not None or now - self._guarded > PAUSE_S:
            return
        verdict = self.board.verdict() or self._judge(now)
        if verdict is not None:
            self._verdict = self.board.agree(verdict)

    def _beat(self) -> Beat:
        ticks, step, phase = self._now
        where, waits = "", False
        if self._idle(time.monotonic()) > min(10.0, self.hang_after / 2):
            where, waits = stand(sys._current_frames().get(self._thread))
        self._beats += 1
        beat = replace(self._me, number=self._beats, ticks=ticks, step=step, phase=phase)
        beat = replace(beat, where=where, waits=waits, left=self._left)
        self._seen[self.world.rank] = note(self._seen.get(self.world.rank), beat, time.monotonic())
        return beat

    def _idle(self, now: float) -> float:
        """Return for how long this rank has not moved, though it was awake."""
        return 0.0 if self._now[0] != self._ticks else now - max(self._moved, self._awake)

    def _judge(self, now: float) -> Verdict | None:
        """Return what this rank concludes from the beats; nothing as long as its own training goes on."""
        failed = self._explaining.is_set()
        awake = self._awake  # nothing is concluded from what this process slept through
        seen = {
            rank: replace(other, lived=max(other.lived, awake), moved=max(other.moved, awake))
            for rank, other in self._seen.items()
        }
        lost: list[tuple[int, How]] = []
        idle = self._idle(now)
        if failed or idle >= STUCK_S:
            # A rank may have lost the store only: as long as this one gets on, so does the other.
            silent_after = SILENT_AFTER_ERROR_S if failed else SILENT_S if idle > SILENT_S else math.inf
            ended = find_ended(seen, own=self._me, now=now, silent_after=silent_after)
            lost = [ended] if ended else []
        after = min(self.hang_after, SILENT_AFTER_ERROR_S) if self._timed_out else self.hang_after
        if not lost and idle > after:
            lost = find_hanging(seen, world_size=self.world.world_size, now=now, hang_after=after)
        return self._verdict_on(lost, now) if lost else None

    def _verdict_on(self, lost: list[tuple[int, How]], now: float) -> Verdict:
        gone = {rank for rank, _ in lost}
        beats = [(rank, other) for rank, other in self._seen.items() if rank not in gone and not other.beat.left]
        well = [rank for rank, other in beats if now - other.lived < 2.5 * self._every]
        sentence = describe(lost, self._seen, world_size=self.world.world_size)
        return Verdict(*min(lost), sentence, speaker=min(well, default=self.world.rank))

    # The thread that ends the process.  It asks nobody, so nothing can hold it up.

    def _guard(self) -> None:
        while not self._closed.wait(0.5):
            now = time.monotonic()
            if now - self._guarded > PAUSE_S:  # stopped by a terminal or a scheduler, or suspended, and the job with it
                self._awake = now
            self._guarded = now
            if self._now[0] != self._ticks:
                self._ticks, self._moved = self._now[0], now
            if self._explaining.is_set():  # the main thread ends by itself
                continue
            if self._verdict is None and (self._store_lost or now - self._talked > min(SILENT_S, self.hang_after)):
                self._verdict = self._without_store()
            verdict = self._verdict
            # Of a rank that has ended this one may still hear by itself; what hung for so long is given up for good.
            if verdict is not None and (verdict.how not in ("ended", "failed") or self._idle(now) >= STUCK_S):
                with self._choosing:
                    if not self._explaining.is_set():
                        self._end(verdict)

    def _without_store(self) -> Verdict | None:
        """Return what this rank concludes by itself when the store is gone, or does not answer: rank 0 keeps it."""
        if not self._store_lost and self._idle(time.monotonic()) <= self.hang_after:
            return None
        how: How = "ended" if self._store_lost else "hangs"
        self._alone = True
        sentence = describe([(0, how)], self._seen, world_size=self.world.world_size)
        if self.world.launcher == "torchrun":  # its agent keeps the store
            sentence = sentence.replace("Rank 0 (host", "Rank 0 or its launcher (host", 1)
        here = {rank: other.beat for rank, other in self._seen.items() if other.beat.place == self._me.place}
        # Where no mark can be left either, each machine speaks for itself: by the lowest of its ranks that lives.
        speaker = min((rank for rank, beat in here.items() if rank and not has_ended(beat)), default=self.world.rank)
        return Verdict(0, how, sentence, speaker)

    def _speaks(self, verdict: Verdict) -> bool:
        """Return whether the line is this rank's to print: one rank's alone, even if the chosen one has died since."""
        with self._choosing:
            if self._chosen is None:
                chosen = verdict.speaker == self.world.rank if self._alone else self._agree_to_speak(verdict)
                # Of those without a store, one may have spoken and ended long before another comes to conclude.
                self._chosen = self._claim(chosen) if chosen or self._alone else False
            return self._chosen

    def _claim(self, otherwise: bool) -> bool:
        """Return whether this rank is the first to leave the mark; `otherwise` if the folder does not answer."""
        answer: list[bool | None] = [None]

        def ask() -> None:
            assert self.board is not None
            answer[0] = self.board.claim()

        _within(SPEAK_S, ask)
        return otherwise if answer[0] is None else answer[0]

    def _agree_to_speak(self, verdict: Verdict) -> bool:
        """Return whether the ranks that have the store leave the line to this one."""
        answer = [verdict.speaker == self.world.rank]

        def ask() -> None:
            assert self.board is not None
            until = time.monotonic() + SPEAK_S
            with suppress(Exception):  # rank 0 has ended, and would not have without the line being printed
                while self.world.rank != verdict.speaker and time.monotonic() < until:
                    if self.board.count("spoken", 0):
                        break
                    time.sleep(0.1)
                answer[0] = self.board.count("spoken") == 1
                self.board.count("told")
                self._keep_store_for_the_others(verdict)

        _within(4 * SPEAK_S, ask)
        return answer[0]

    def _keep_store_for_the_others(self, verdict: Verdict) -> None:
        """Wait on rank 0, which keeps the store unless torchrun does, for the others to read what they end for."""
        assert self.board is not None
        now = time.monotonic()
        beats = self._seen.items()
        living = {rank for rank, other in beats if not other.beat.left and now - other.lived < 2.5 * self._every}
        if verdict.how != "hangs":
            living.discard(verdict.rank)
        while self.world.is_main and self.world.launcher != "torchrun" and time.monotonic() < now + 2 * SPEAK_S:
            if self.board.count("told", 0) >= len(living):
                break
            time.sleep(0.1)

    def _end(self, verdict: Verdict) -> None:
        """End this process from beside its main thread, which stands in a collective and will not come back.

        No exception reaches a thread inside such a call, and `sys.exit` here would end only this thread: hence
        `os._exit`.  Nothing is lost by it: a checkpoint counts when it is whole, and locks go with the process.
        """
        with self._choosing:
            if self._speaks(verdict):
                _within(2.0, lambda: print(f"Error: {verdict.sentence}", file=sys.stderr, flush=True))
            _within(2.0, sys.stdout.flush)
            os._exit(1)

    def _end_unless_clean(self, verdict: Verdict) -> None:
        """End a process that has its reason and still waits for the lost rank while it closes the process group."""
        if torch.distributed.is_initialized() and torch.distributed.group.WORLD is self._group:
            self._end(verdict)

    def _leave(self, error: BaseException | None) -> None:
        """Tell the others that this rank has left, or that it ends and why, and end the threads."""
        self._left = True
        failed = error is not None and not isinstance(error, Interrupted | RankLostError)

        def tell() -> None:
            assert self.board is not None
            with suppress(Exception):
                if failed and self._verdict is None:
                    how: list[tuple[int, How]] = [(self.world.rank, "failed")]
                    self.board.agree(self._verdict_on(how, time.monotonic()))
                self.board.exchange(self._beat())

        if not self._store_lost:
            _within(5.0, tell)
        self._closed.set()
        self._wake.set()

    def _part(self) -> None:
        """Wait on rank 0, which keeps the store unless torchrun does, until no other rank speaks to it any more."""
        assert self.board is not None
        with suppress(Exception):
            gone, until = self.board.count("gone"), time.monotonic() + 5.0
            while self.world.is_main and self.world.launcher != "torchrun" and time.monotonic() < until:
                if gone >= self.world.world_size:
                    break
                time.sleep(0.05)
                gone = self.board.count("gone", 0)


@contextmanager
def watch(world: World, store: Any = None, *, hang_after: float, folder: Path | None = None) -> Iterator[Watchdog]:
    """Watch over the ranks of `world` during the block; every rank enters it together with the others.

    Args:
        world: This rank's place; a world of one is not watched.
        store: Where the ranks meet; the process group's own if None.
        hang_after: Seconds without `Watchdog.at` on every rank after which the job is ended.  Collectives should be
            given more time than that, or they fail first.
        folder: Where the rank that says why the job ends leaves an empty hidden file, for those that conclude later;
            the next job removes it.  Machines that do not share it print a line each where the store is lost, that
            is rank 0 or its machine; so may two ranks of one machine if it is None.
    """
    if world.world_size == 1:
        yield Watchdog(world, None, hang_after=hang_after)
        return
    if store is None:
        store = torch.distributed.distributed_c10d._get_default_store()
    board = Board(store, rank=world.rank, world_size=world.world_size, folder=folder)
    watchdog = Watchdog(world, board, hang_after=hang_after)
    threads = [threading.Thread(target=work, daemon=True) for work in (watchdog._talk, watchdog._guard)]
    for thread in threads:
        thread.start()
    left: BaseException | None = None
    try:
        yield watchdog
    except BaseException as error:
        left = error
        raise
    finally:
        watchdog._leave(left)
        for thread in threads:
            thread.join(2.0)
        if left is None or isinstance(left, Interrupted):
            _within(5.0, watchdog._part)


def _may_be_of_a_peer(error: BaseException) -> bool:
    if isinstance(error, UserError | Interrupted) or not isinstance(error, RuntimeError):
        return False
    return isinstance(error, torch.distributed.DistError) or OF_A_PEER.search(str(error)) is not None


def _within(seconds: float, work: Any) -> None:
    """Do `work` for at most so long: standard streams and the store may be held by what hangs."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
