"""One checkpoint's way to the disk: every rank writes, rank 0 commits.  All of it goes through the run folder.

No rank speaks to another but by files, so that this can run in a thread beside the training's own communication:

1. Each rank writes ``.partial-<step>-<attempt>/rank-%05d.safetensors`` and then ``rank-%05d.json``, its size and hash.
2. When all of these are there, rank 0 adds `checkpoint.json` and renames the folder to ``step-%08d``, and `latest`
   after it.  Until then nothing of the checkpoint before has been touched.
3. The other ranks wait until they see the commit.

A rank that fails leaves ``rank-%05d.failed``; rank 0 then removes the folder and leaves ``.failed-<step>-<attempt>``,
so that nobody waits in vain.  The attempt's name is of one start of a run and one call: what an earlier start left,
or still writes, is never taken for this one's.

On a network file system a listing may be old by up to a minute (NFS: `acdirmax`): the last steps wait for that.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cxrdist.disk import sync
from cxrdist.errors import UserError
from cxrdist.train.pieces import (
    ASIDE,
    FORMAT,
    RECORD,
    DamagedError,
    Piece,
    rank_file,
    read_record,
    record_text,
    write_pieces,
)

PARTIAL, FAILED = ".partial-", ".failed-"
SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 0.002, 0.5
"""Between two looks at a folder."""


@dataclass(frozen=True)
class Attempt:
    """One call of `save`, as one rank sees it."""

    folder: Path
    name: str
    """Of the checkpoint."""
    identity: str
    """Of this attempt to write it; equal on all ranks, and on no other attempt."""
    rank: int
    world_size: int
    timeout_s: float
    """How long one rank waits for another without anything happening in the folder."""
    record: dict[str, Any]
    """What `checkpoint.json` says beside the files: step, score and facts."""

    @property
    def partial(self) -> Path:
        """The folder while it is written."""
        return self.folder / f"{PARTIAL}{self.name}-{self.identity}"

    @property
    def outcome(self) -> Path:
        """The file that says that the attempt has failed."""
        return self.folder / f"{FAILED}{self.name}-{self.identity}"

    def write(self, pieces: Sequence[Piece]) -> None:
        """Write this rank's pieces; then commit on rank 0, and wait for the commit on the others.

        Raises:
            UserError: If this or another rank's disk does not take it, or another rank does not come.
        """
        try:
            self.partial.mkdir(parents=True, exist_ok=True)
            path = self.partial / rank_file(self.rank)
            size, sha256 = write_pieces(path, pieces, json.dumps(self.record["facts"]))
            write_whole(path.with_suffix(".json"), json.dumps({"bytes": size, "sha256": sha256}))
            if self.rank == 0:
                self._commit(self._gather())
            else:
                self._follow()
        except BaseException as error:
            raise self._give_up(error) from None

    def _gather(self) -> dict[str, Any]:
        """Wait until every rank has told what it wrote; return size and hash of each file."""
        told = [Path(rank_file(rank)).with_suffix(".json").name for rank in range(self.world_size)]

        def missing(sizes: dict[str, int]) -> list[int]:
            for name in sizes:
                if name.endswith(".failed"):
                    raise UserError((self.partial / name).read_text(encoding="utf-8"))
            return [rank for rank, name in enumerate(told) if name not in sizes]

        absent = self._wait(missing, self.timeout_s)
        if absent:
            raise UserError(
                f"A checkpoint needs every rank's file, got none from rank {', '.join(map(str, absent))} within "
                f"{self.timeout_s:g} s [in {self.folder.parent.name}]. The run folder must be on a file system that "
                "all nodes share. The checkpoint before it is whole: continue with --resume auto."
            )
        files = {}
        for rank in range(self.world_size):
            file = self.partial / rank_file(rank)
            files[file.name] = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
            if file.stat().st_size != files[file.name]["bytes"]:
                raise UserError(self._refused("a file cut short", rank))
        return files

    def _commit(self, files: dict[str, Any]) -> None:
        """Make the folder of this attempt the checkpoint of its step, and the latest."""
        record = {
            "format": FORMAT,
            "attempt": self.identity,
            "world_size": self.world_size,
            **self.record,
            "files": files,
        }
        write_whole(self.partial / RECORD, record_text(record))
        sync(self.partial)
        pointer = self.folder / ".latest"
        write_whole(pointer, self.name + "\n")  # before the rename: it could still find the disk full
        final = self.folder / self.name
        if final.exists():
            aside = self.folder / f"{ASIDE}{self.name}"
            shutil.rmtree(aside, ignore_errors=True)
            final.rename(aside)
        self.partial.rename(final)
        sync(self.folder)
        pointer.replace(self.folder / "latest")
        sync(self.folder)

    def _follow(self) -> None:
        """Wait until rank 0 has committed."""

        def waiting(_: dict[str, int]) -> bool:
            there = _sizes(self.folder)
            if self.outcome.name in there:
                raise UserError(self.outcome.read_text(encoding="utf-8"))
            return self.name not in there or not self._committed()

        # A little longer than rank 0 waits, so that its word comes first.
        if self._wait(waiting, 1.1 * self.timeout_s + 1):
            raise UserError(
                f"A checkpoint must be committed by rank 0, got nothing from it within {self.timeout_s:g} s on rank "
                f"{self.rank} [in {self.folder.parent.name}]. The run folder must be on a file system that all nodes "
                "share. The checkpoint before it is whole: continue with --resume auto."
            )

    def _committed(self) -> bool:
        """Whether rank 0 is through: the step's folder is of this attempt, and the latest."""
        try:
            mine = read_record(self.folder / self.name).get("attempt") == self.identity
            return mine and (self.folder / "latest").read_text(encoding="utf-8").strip() == self.name
        except (DamagedError, OSError):
            return False

    def _wait(self, waiting: Callable[[dict[str, int]], Any], timeout_s: float) -> Any:
        """Look until nothing is `waiting`, or nothing happened in the folder for so long; return what it last was."""
        pause = SHORTEST_PAUSE_S
        before: dict[str, int] = {}
        until = time.monotonic() + timeout_s
        while True:
            sizes = _sizes(self.partial)
            left = waiting(sizes)
            if not left:
                return left
            if sizes != before:  # somebody is writing
                before, until = sizes, time.monotonic() + timeout_s
            if time.monotonic() > until:
                return left
            time.sleep(pause)
            pause = min(1.5 * pause, LONGEST_PAUSE_S)

    def _give_up(self, error: BaseException) -> BaseException:
        """Give back the room, tell the other ranks, and return what to raise."""
        if isinstance(error, OSError):
            error = UserError(self._refused(error.strerror or str(error), self.rank))
        sentence = str(error) if isinstance(error, UserError) else self._refused(repr(error), self.rank)
        with suppress(OSError):
            (self.partial / rank_file(self.rank)).unlink(missing_ok=True)
        with suppress(OSError):
            if self.rank == 0:
                write_whole(self.outcome, sentence)
            elif self.outcome.exists():  # rank 0 has taken the folder away under this rank: its reason counts
                error = UserError(self.outcome.read_text(encoding="utf-8"))
                shutil.rmtree(self.partial, ignore_errors=True)  # and this rank may have made it again
            else:
                write_whole(self.partial / f"rank-{self.rank:05d}.failed", sentence)
        if self.rank == 0:
            shutil.rmtree(self.partial, ignore_errors=True)
        return error

    def _refused(self, reason: str, rank: int) -> str:
        where = f" on rank {rank}" if self.world_size > 1 else ""
        return refused(f"{reason!r}{where}", self.folder)


def refused(what: str, folder: Path) -> str:
    """Return the sentence for a checkpoint that a disk does not take."""
    before = "The checkpoint before it is whole" if any(folder.glob("step-*")) else "It would have been the first one"
    return (
        f"A checkpoint must be writable, got {what} [in {folder.parent.name}]. "
        f"{before}: make room, then continue with --resume auto."
    )


def write_whole(path: Path, text: str) -> None:
    """Write a small file so that it is there with all of its text or not at all, and on the disk."""
    hidden = path.with_name(f".{path.name}.new")
    with hidden.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    hidden.replace(path)


def _sizes(folder: Path) -> dict[str, int]:
    """Return the files in a folder with their sizes; none if it is gone.

    A listing, not a question for one name: a network file system remembers that a name was not there.
    """
    sizes = {}
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):
                sizes[entry.name] = entry.stat().st_size
    return sizes
