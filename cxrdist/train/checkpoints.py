"""Checkpoints that are there whole or not at all: when they are written, which are kept, which one is read.

`checkpoints/` holds ``step-%08d/`` folders and `latest`, the name of one of them.  How a folder comes to be, and what
a kill at any moment leaves, says `cxrdist.train.commit`; what is in it, `cxrdist.train.pieces`.
"""

import hashlib
import json
import math
import re
import secrets
import shutil
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cxrdist.errors import UserError
from cxrdist.log import get_logger
from cxrdist.train.commit import FAILED, PARTIAL, Attempt, refused
from cxrdist.train.pieces import (
    ASIDE,
    FORMAT,
    DamagedError,
    Piece,
    place_of,
    rank_file,
    read_record,
    refuse_other_versions,
)
from cxrdist.train.snapshot import Snapshot

log = get_logger(__name__)

REMOVED = ".removed-"
"""Before the name of a checkpoint that is being removed: no reader takes half of it for a checkpoint."""

HASHED_AT_A_TIME = 8


@dataclass(frozen=True)
class Retention:
    """Which checkpoints stay; the one just written always does."""

    last: int = 1
    """So many newest."""
    best: int = 1
    """So many of the highest scores; of equal scores the earlier."""
    every: int | None = None
    """Those of every multiple of so many steps."""

    def kept(self, scores: Mapping[int, float | None]) -> set[int]:
        """Return the steps to keep of those in `scores`; a checkpoint without a score is never among the best."""
        steps = sorted(scores)
        scored = [(-score, step) for step, score in scores.items() if score is not None and math.isfinite(score)]
        multiples = [step for step in steps if self.every and step % self.every == 0]
        return {*steps[-max(self.last, 1) :], *(step for _, step in sorted(scored)[: self.best]), *multiples}


class Checkpoints:
    """Writes the checkpoints of one start of a run; every rank has one and makes the same calls in the same order."""

    def __init__(
        self,
        folder: Path,
        *,
        rank: int,
        world_size: int,
        keep: Retention,
        in_background: bool,
        resumed: str | None,
        token: str | None = None,
        timeout_s: float = 600.0,
    ) -> None:
        """Make `folder` ready; rank 0 removes what killed starts left in it.

        Args:
            folder: `checkpoints/` in the run folder, on a file system that all ranks share.
            rank: Of this process.
            world_size: Of the run now; earlier checkpoints may have another.
            keep: Which checkpoints stay.
            in_background: Return from `save` when the pieces are copied; takes host memory of their size.
            resumed: The checkpoint that this start continues from, as `latest_checkpoint` named it; None for a new
                run.  Later ones that are there nonetheless (damaged ones, or those of a killed start or an abandoned
                run) are not this run's: they score for nothing, and go when the first `save` has committed.
            token: Of this start: equal on all ranks, and never the same again.  One rank alone can draw its own.
            timeout_s: How long one rank waits for another without anything happening in the folder.

        Raises:
            UserError: If the folder cannot be made.
        """
        if token is None and world_size > 1:
            raise ValueError("Ranks of one start must be given one token.")
        self._folder = folder
        self._rank, self._world_size = rank, world_size
        self._keep = keep
        self._in_background = in_background
        self._token = secrets.token_hex(8) if token is None else token
        self._timeout_s = timeout_s
        self._calls = 0
        self._snapshot = Snapshot()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._own: set[int] = set()
        """Steps of this run that have a checkpoint."""
        if rank == 0:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                self._clear_away()
            except OSError as error:
                raise UserError(refused(repr(error.strerror), folder)) from None
            if resumed is not None:
                self._own = {step for step in _steps(folder) if step <= _step_of(resumed)}

    def save(self, step: int, pieces: Sequence[Piece], facts: dict[str, Any], *, score: float | None = None) -> None:
        """Write the checkpoint after `step` steps; every rank calls it with its own pieces and the same other values.

        An earlier `save` that is still under way is waited for.  In the background this returns when the pieces may
        be written to again, else when the checkpoint is committed.  One of the same step gives way to the new one.

        Args:
            step: Optimizer steps done.
            pieces: What this rank adds.  All ranks' together must hold each tensor once.
            facts: JSON; what else the run must remember.
            score: Of the weights, higher is better; for `Retention.best`.

        Raises:
            UserError: If this or the save before cannot be committed; `latest` is then what it was.
        """
        self.wait()
        self._calls += 1
        score = score if score is not None and math.isfinite(score) else None
        attempt = Attempt(
            folder=self._folder,
            name=checkpoint_name(step),
            identity=f"{self._token}-{self._calls}",
            rank=self._rank,
            world_size=self._world_size,
            timeout_s=self._timeout_s,
            record=json.loads(json.dumps({"step": step, "score": score, "facts": facts})),
        )
        if not self._in_background:
            self._write(attempt, pieces)
            return
        copies = self._snapshot.take(pieces)
        # A daemon: a process that ends for another reason does not wait for ranks that may be gone.
        self._thread = threading.Thread(target=self._work, args=(attempt, copies), name="checkpoint", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Wait until what was saved is committed, as this rank sees it.

        Raises:
            UserError: If it could not be; once.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def close(self) -> None:
        """Wait as `wait` does, and give the memory back.

        Raises:
            UserError: As `wait`.
        """
        try:
            self.wait()
        finally:
            self._snapshot.release()

    def _work(self, attempt: Attempt, pieces: Sequence[Piece]) -> None:
        try:
            self._write(attempt, pieces)
        except BaseException as error:
            self._error = error

    def _write(self, attempt: Attempt, pieces: Sequence[Piece]) -> None:
        attempt.write(pieces)
        if self._rank == 0:
            self._own.add(attempt.record["step"])
            try:
                self._prune(attempt.record["step"])
            except OSError as error:  # the new checkpoint is safe; the old ones only take room
                log.warning("Old checkpoints could not be removed: %s.", error.strerror)

    def _prune(self, step: int) -> None:
        """Remove the checkpoints that are not to be kept, and those that are not of this run."""
        self._clear_away()
        self._own = {other for other in self._own if other <= step}
        there = _steps(self._folder)
        kept = self._keep.kept({other: _score(self._folder, other) for other in self._own.intersection(there)})
        for other in there:
            if other not in kept:
                path = self._folder / checkpoint_name(other)
                doomed = path.with_name(f"{REMOVED}{path.name}")
                path.rename(doomed)
                shutil.rmtree(doomed, ignore_errors=True)

    def _clear_away(self) -> None:
        """Remove what is no checkpoint; put back one that lies aside while nothing has taken its place."""
        for path in list(self._folder.iterdir()):
            if path.name.startswith(ASIDE):
                if place_of(path.with_name(path.name.removeprefix(ASIDE))) == path:
                    path.rename(path.with_name(path.name.removeprefix(ASIDE)))
                else:
                    shutil.rmtree(path, ignore_errors=True)
            # Other ranks may have begun the next attempt of this start already.
            elif path.name.startswith((PARTIAL, REMOVED)) and f"-{self._token}-" not in path.name:
                shutil.rmtree(path, ignore_errors=True)
            elif path.name.startswith(FAILED):
                path.unlink(missing_ok=True)


def checkpoint_name(step: int) -> str:
    """Return the folder name of the checkpoint after `step` steps."""
    return f"step-{step:08d}"


def latest_checkpoint(folder: Path) -> str | None:
    """Return the name of the checkpoint to continue from, or None if there is none.

    It is the one that `latest` names, or, if a file of it is not what was written or `latest` is lost, the newest
    sound one, with a warning.  Reads all of the checkpoint: one rank does it for all.

    Raises:
        UserError: If no checkpoint is sound, or they are another version's.
    """
    steps = sorted(_steps(folder), reverse=True) if folder.is_dir() else []
    if not steps and not (folder / "latest").exists():
        return None
    try:
        name = (folder / "latest").read_text(encoding="utf-8", errors="replace").strip()
    except (FileNotFoundError, IsADirectoryError):
        name = ""
    if name not in map(checkpoint_name, steps):
        problem = f"`latest` must name a checkpoint that is there, got {name or 'nothing'!r} [in {folder.name}]."
    else:
        refuse_other_versions(place_of(folder / name))
        wrong = verify_checkpoint(folder, name)
        if not wrong:
            return name
        problem = f"A checkpoint must be as it was written, got {'; '.join(wrong)!r} [in {name}]."
    for other in map(checkpoint_name, steps):
        if other != name and not verify_checkpoint(folder, other):
            log.warning("%s Taking %s instead.", problem, other)
            return other
    raise UserError(
        f"{problem} No other one is whole. Bring one of its step folders back and write its name into `latest`, "
        "or remove the folder `checkpoints` to start over."
    )


def verify_checkpoint(folder: Path, name: str) -> list[str]:
    """Return what is wrong with a checkpoint: files that are not there, or not as written by size or sha256."""
    place = place_of(folder / name)
    try:
        record = read_record(place)
    except DamagedError as error:
        return [str(error)]
    if record.get("format") != FORMAT:
        return [f"its format is {record.get('format')!r}, not {FORMAT}"]
    files = [(place / rank_file(rank), record["files"][rank_file(rank)]) for rank in range(record["world_size"])]
    with ThreadPoolExecutor(HASHED_AT_A_TIME) as pool:
        return [wrong for wrong in pool.map(_wrong_with, *zip(*files, strict=True)) if wrong]


def check_checkpoint(folder: Path, name: str) -> None:
    """Check that a checkpoint is what was written; reads all of it: one rank does it for all.

    Raises:
        UserError: If it is not, or another version's.
    """
    refuse_other_versions(place_of(folder / name))
    wrong = verify_checkpoint(folder, name)
    if wrong:
        raise UserError(
            f"A checkpoint must be as it was written, got {'; '.join(wrong)!r} [in {name}]. "
            "Bring that folder back from a copy, or start the run over in another --out."
        )


def _wrong_with(path: Path, written: Mapping[str, Any]) -> str | None:
    try:
        size = path.stat().st_size
        if size != written["bytes"]:
            return f"{path.name} has {size} bytes, not {written['bytes']}"
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != written["sha256"]:
                return f"{path.name} is not what was written"
    except FileNotFoundError:
        return f"{path.name} is not there"
    except OSError as error:
        return f"{path.name} cannot be read: {error.strerror}"
    return None


def _steps(folder: Path) -> set[int]:
    """Return the steps that have a checkpoint, sound or not."""
    names = (path.name.removeprefix(ASIDE) for path in folder.iterdir())
    return {_step_of(name) for name in names if re.fullmatch(r"step-\d{8,}", name)}


def _step_of(name: str) -> int:
    return int(name.removeprefix("step-"))


def _score(folder: Path, step: int) -> float | None:
    with suppress(DamagedError):
        score: float | None = read_record(folder / checkpoint_name(step)).get("score")
        return score
    return None
