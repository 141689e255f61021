"""What the ranks of a job tell each other while they train, and which of them the job has lost.

Each rank writes a beat about every second through the store at which the ranks have met; nobody compares clocks of two
machines: a beat has a number, and each reader notes by its own clock when that number last grew.
"""

import json
import os
import socket
import traceback
import uuid
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from torch.distributed import PrefixStore  # type: ignore[attr-defined]

STORE_TIMEOUT_S = 10.0
WAITING = ("torch/distributed", "deepspeed/comm")
"""Where the code of a rank stands that waits for the others."""
MARK = ".spoken-"
"""Begins the name of the empty file that says that a job's line has been told."""

How = Literal["ended", "failed", "silent", "hangs", "absent"]
SAYS: dict[How, str] = {
    "ended": "ended",
    "failed": "ended with an error, which it tells itself",
    "silent": "is not heard of any more",
    "hangs": "hangs",
    "absent": "has not begun to train",
}


@dataclass(frozen=True)
class Beat:
    """What a rank says of itself."""

    number: int = 0
    """Grows as long as the process lives."""
    ticks: int = 0
    """Grows as long as its training goes on; the ranks train in step, so the lowest is the one behind."""
    step: int = 0
    """Optimizer steps made."""
    phase: str = ""
    """What it does now: ``step``, ``validation``, ``checkpoint``."""
    where: str = ""
    """The place in our code where it has stood for a while."""
    waits: bool = False
    """Whether that place is inside a collective: it waits for others."""
    left: bool = False
    """Whether it has left the training in good order."""
    host: str = ""
    place: str = ""
    """The same for processes that can see each other."""
    pid: int = 0
    born: str = ""
    """When the process began, in the system's own count; a later process may get the same `pid`."""


@dataclass(frozen=True)
class Seen:
    """A rank's newest beat, and when by the reader's clock it last lived and last moved."""

    beat: Beat
    lived: float
    moved: float


@dataclass(frozen=True)
class Verdict:
    """Why the job ends, the same for all ranks; `speaker` is the rank that says so."""

    rank: int
    how: How
    sentence: str
    speaker: int


def note(before: Seen | None, beat: Beat, now: float) -> Seen:
    """Return what is known of a rank after `beat` was read at the time `now`."""
    if before is None:
        return Seen(beat, now, now)
    moved = now if beat.ticks > before.beat.ticks else before.moved
    return Seen(beat, now if beat.number > before.beat.number else before.lived, moved)


def find_ended(seen: Mapping[int, Seen], *, own: Beat, now: float, silent_after: float) -> tuple[int, How] | None:
    """Return a rank whose process is gone though it had not left, and how that is known.

    A process on this machine is looked up.  One elsewhere counts as lost when its beats have stopped for
    `silent_after` seconds; not one on this machine, which may be stopped, or kept from its beats by one long call.
    """
    for rank, other in sorted(seen.items()):
        if other.beat.left:
            continue
        if other.beat.place == own.place:
            if has_ended(other.beat):
                return rank, "ended"
        elif now - other.lived > silent_after:
            return rank, "silent"
    return None


def find_hanging(seen: Mapping[int, Seen], *, world_size: int, now: float, hang_after: float) -> list[tuple[int, How]]:
    """Return the ranks that the others wait for, if no rank at all has moved for `hang_after` seconds; else none.

    As long as one rank moves the job does: the others may wait for it with good reason.  When none does, those are to
    blame whose beats have stopped, else those that are furthest behind, else those that do not wait in a collective.
    """
    if any(other.beat.left or now - other.moved <= hang_after for other in seen.values()):
        return []
    absent = [rank for rank in range(world_size) if rank not in seen]
    if absent:
        return [(rank, "absent") for rank in absent]
    blamed = [rank for rank, other in seen.items() if now - other.lived > min(15.0, hang_after)]
    if not blamed:
        behind = min(other.beat.ticks for other in seen.values())
        blamed = [rank for rank, other in seen.items() if other.beat.ticks == behind]
    if len(blamed) == world_size:
        blamed = [rank for rank in blamed if not seen[rank].beat.waits] or blamed
    return [(rank, "hangs") for rank in sorted(blamed)]


def describe(lost: Collection[tuple[int, How]], seen: Mapping[int, Seen], *, world_size: int) -> str:
    """Return the sentence on the `lost` ranks."""
    rank, how = min(lost)
    other = seen.get(rank)
    if other is None:
        when = "" if how == "absent" else " before it began to train"
        return f"Rank {rank} {SAYS[how]}{when}. Look at what it wrote, then continue with --resume auto."
    beat = other.beat
    who = f"Rank {rank} (host {beat.host})"
    doing = f" in its {beat.phase}" if how == "hangs" and beat.phase else ""
    where = f" (`{beat.where}`)" if how == "hangs" and beat.where else ""
    last = f"its last step was {beat.step}. Continue with --resume auto."
    if len(lost) == world_size:
        return f"Every rank hangs; {who[0].lower()}{who[1:]}{doing}{where}, {last}"
    others = ", ".join(str(one) for one, _ in sorted(lost) if one != rank)
    more = f", and so does rank {others}" if others else ""
    return f"{who} {SAYS[how]}{doing}{where}{more}; {last}"


def identify() -> Beat:
    """Return the beat that says who this process is."""
    place = f"{_read('/proc/sys/kernel/random/boot_id')} {_link('/proc/self/ns/pid')}"
    return Beat(host=socket.gethostname(), place=place, pid=os.getpid(), born=_stat(os.getpid())[1])


def has_ended(beat: Beat) -> bool:
    """Return whether a process on this machine is gone; one that only its parent has yet to notice counts as gone."""
    if not beat.born:  # a system without /proc
        return False
    state, born = _stat(beat.pid)
    return state in ("", "Z", "X") or born != beat.born


def stand(frame: FrameType | None) -> tuple[str, bool]:
    """Return the innermost function of ours that a thread is in, and whether it waits for other ranks there."""
    ours, waits = "", False
    for step in traceback.extract_stack(frame):
        file = step.filename.replace(os.sep, "/")
        if "/cxrdist/" in file:
            ours, waits = f"{step.name} in {file.rsplit('/cxrdist/', 1)[1]}:{step.lineno}", False
        waits = waits or any(part in file for part in WAITING)
    return ours, waits


class Board:
    """The beats and the verdict of one job, in a store of `torch.distributed`, and its mark in a folder."""

    def __init__(self, store: Any, *, rank: int, world_size: int, folder: Path | None = None) -> None:
        # Two trainings in one process group must not read each other's beats; every rank makes the same ones in turn.
        number = store.add(f"cxrdist/watch/{rank}", 1)
        # A connection of its own: a store waits under a lock, and training uses the first one as well.
        connection = store.clone() if hasattr(store, "clone") else store
        if connection is not store:
            connection.set_timeout(timedelta(seconds=STORE_TIMEOUT_S))
        self.store = PrefixStore(f"cxrdist/watch/{number}", connection)
        self.rank = rank
        self.others = [other for other in range(world_size) if other != rank]
        self.begun: set[int] = set()
        # The mark is asked for when the store is gone, so its name is agreed on now; a later job has another one.
        name = f"{MARK}{self.store.compare_set('mark', '', uuid.uuid4().hex).decode()}"
        self.mark = None if folder is None else folder / name
        if folder is not None and rank == 0:
            with suppress(OSError):
                for old in [path for path in folder.glob(f"{MARK}*") if path.name != name]:
                    old.unlink()

    def exchange(self, beat: Beat) -> dict[int, Beat]:
        """Write this rank's beat; return those of the others that have written one."""
        self.store.set(f"beat/{self.rank}", json.dumps(asdict(beat)))
        # To read a key that is not there would be to wait for it.
        self.begun |= {rank for rank in self.others if rank not in self.begun and self.store.check([f"beat/{rank}"])}
        ranks = sorted(self.begun)
        texts = self.store.multi_get([f"beat/{rank}" for rank in ranks]) if ranks else []
        return {rank: Beat(**json.loads(text)) for rank, text in zip(ranks, texts, strict=True)}

    def agree(self, verdict: Verdict) -> Verdict:
        """Return the first verdict that any rank has written; `verdict` if none has."""
        mine = json.dumps(asdict(verdict))
        return Verdict(**json.loads(self.store.compare_set("verdict", "", mine)))

    def verdict(self) -> Verdict | None:
        """Return what the ranks have agreed on, None if nothing yet."""
        return Verdict(**json.loads(self.store.get("verdict"))) if self.store.check(["verdict"]) else None

    def count(self, name: str, more: int = 1) -> int:
        """Add to a number that all ranks share, 0 at first, and return it."""
        return int(self.store.add(name, more))

    def claim(self) -> bool | None:
        """Leave the job's mark; return whether this rank is the first to, and None if it cannot be left.

        It needs no store, and stays when the rank has ended.
        """
        if self.mark is None:
            return None
        try:
            self.mark.touch(exist_ok=False)
        except FileExistsError:
            return False
        except OSError:
            return None
        return True


def _stat(pid: int) -> tuple[str, str]:
    """Return a process's state and its beginning, both empty if there is none (proc_pid_stat(5), fields 3 and 22)."""
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return (fields[0], fields[19]) if len(fields) > 19 else ("", "")


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _link(path: str) -> str:
    try:
        return str(Path(path).readlink())
    except OSError:
        return ""
