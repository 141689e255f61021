"""The ledger: one event after another, only ever appended, so that what is done is known after any crash.

It is a file in the study folder, or objects of a store (see `cxrdist.study.journal`).  Either way a `Ledger` object
reads only what is new since it last did, so it can be asked often.
"""

import errno
import fcntl
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

from cxrdist.errors import UserError
from cxrdist.study.jobs import Identity, Job
from cxrdist.study.journal import FileJournal, ObjectJournal, SupersededError
from cxrdist.study.lease import LEASE_S, Lease
from cxrdist.study.objects import DiskStore, open_store
from cxrdist.train.run_folder import write_json

Event = Literal["started", "done", "failed", "lost"]
State = Literal["done", "running", "stopped", "failed", "left"]
CLAIM = "job.json"
TRIES, BETWEEN_S = 5, 0.2
"""How often a run asks for the lock: `held` takes it for an instant."""
REFUSED = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR, errno.EISDIR, errno.EIO,
    errno.ENAMETOOLONG, errno.ESTALE,
)  # fmt: skip
"""What a disk may answer to a correct program."""


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn a disk's refusal during the block into a sentence that names the `folder` of a study or a sweep.

    Raises:
        UserError: If the disk is full, read-only, gone ...
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (*REFUSED, errno.ENOENT):
            raise
        raise UserError(
            f"The folder must be writable, got {error.strerror!r} [{folder}]. "
            "Make room there or choose another --out; the same command goes on from what is done."
        ) from None


@dataclass
class _Now:
    """What a ledger knows at this moment."""

    term: int | None = None
    """The hold that this run, or the run that a trial belongs to, began in a journal of objects."""

    holding: bool = False
    lines: list[dict[str, Any]] = field(default_factory=list)
    """The list that `seen` counts in; another list is read from its beginning."""

    seen: int = 0
    last: dict[Identity, dict[str, Any]] = field(default_factory=dict)
    """The last line of each job, ..."""

    failed: dict[Identity, str] = field(default_factory=dict)
    """... and the reason of its last failure."""


@dataclass(frozen=True)
class Ledger:
    """Who did what in a study.  Travels to other machines with what is needed to write there: `url`, and the hold."""

    path: Path
    """``ledger.jsonl`` of the study folder; where there is a `url`, only its folder is used."""

    url: str | None = None
    """A folder of objects that is the ledger instead of the file."""

    lease_s: float = LEASE_S
    """After how long without a sign a run is taken to be dead where no lock tells."""

    _now: _Now = field(default_factory=_Now, init=False, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        """Leave connections and what was read here."""
        return {"path": self.path, "url": self.url, "lease_s": self.lease_s, "_now": _Now(self._now.term)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    @property
    def lock(self) -> Path:
        """Return the file whose lock says that a study is running."""
        return self.path.with_name(f".{self.path.stem}.lock")

    @property
    def place(self) -> str:
        """Return where it is, for sentences."""
        return self.url or str(self.path.parent)

    @cached_property
    def _file(self) -> FileJournal:
        return FileJournal(self.path)

    @cached_property
    def _objects(self) -> ObjectJournal:
        """Return the events in a store; for a file only the holds, and only where the file system has no locks."""
        store = open_store(self.url) if self.url else DiskStore(self.path.with_name(f".{self.path.stem}.lease"))
        return ObjectJournal(store)

    @cached_property
    def _lease(self) -> Lease:
        return Lease(self._objects, self.place, self.lease_s)

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Be the only run of this study during the block.

        A file's lock goes with its process, however that ends.  In a store, and where a file system has no locks, it is
        a lease: this may wait `lease_s` to see whether a run that left one is still alive.

        Raises:
            UserError: If another run of it is going on, or if the folder cannot be written.
        """
        if self.url:
            with self._leased():
                yield
            return
        with writing(self.path.parent):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lock = self.lock.open("ab")
        with lock as file:
            for attempt in range(TRIES):
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if attempt == TRIES - 1:
                        raise UserError(
                            f"Only one run of a study may go on at a time, got a second [{self.path.parent}]. "
                            "Wait for the first, or choose another --out."
                        ) from None
                    time.sleep(BETWEEN_S)
                except OSError:  # some cluster file systems know no locks
                    with self._leased():
                        yield
                    return
            yield

    @contextmanager
    def _leased(self) -> Iterator[None]:
        with self._lease.hold() as self._now.term:
            self._now.holding = True
            try:
                yield
            finally:
                self._now.holding = False
        self._now.term = None

    @property
    def lost(self) -> bool:
        """Whether a later run has taken over the hold that this one has, which then must end its trials.

        Where a lock tells who holds the study, never.
        """
        return self._now.holding and self._lease.lost

    def superseded(self) -> UserError:
        """Return the sentence for a run whose hold is `lost`."""
        return self._lease.superseded()

    def held(self) -> bool:
        """Whether a run of this study is going on, as far as one can tell."""
        if self._now.holding:
            return True
        if self.url:
            return self._lease.held()
        try:
            with self.lock.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        except OSError:
            return self._lease.held()
        return False

    def append(self, event: Event, job: Job, **facts: Any) -> None:
        """Add one event, and wait until it is written for good.

        Raises:
            UserError: If it cannot be written, or if another run has taken over the hold that this one, or the one that
                sent this ledger, began.
        """
        line = {
            "time": round(time.time(), 3),
            "event": event,
            "kind": job.kind,
            "name": job.name,
            "key": job.key,
            **facts,
        }
        if self.url:
            try:
                self._objects.append(line, term=self._now.term)
            except SupersededError:
                raise self._lease.superseded() from None
            return
        if self._now.term is not None and self._objects.term() != self._now.term:
            raise self._lease.superseded()
        with writing(self.path.parent):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file.append(line)

    def read(self) -> list[dict[str, Any]]:
        """Return the events of jobs in order; one torn by a crash is passed over."""
        return list(self._lines())

    def _lines(self) -> list[dict[str, Any]]:
        return self._objects.lines() if self.url else self._file.lines()

    def _read_on(self) -> _Now:
        """Take note of what is new."""
        now, lines = self._now, self._lines()
        if lines is not now.lines:
            now.lines, now.seen, now.last, now.failed = lines, 0, {}, {}
        for line in lines[now.seen :]:
            if line["event"] in MEANING:
                now.last[_identity(line)] = line
            if line["event"] == "failed":
                now.failed[_identity(line)] = str(line.get("error", ""))
        now.seen = len(lines)
        return now

    def states(self, jobs: Sequence[Job]) -> dict[Identity, State]:
        """Return the state of each job by its identity.

        A job that was started and has neither ended nor failed since is ``running`` while a run of the study goes on,
        else ``stopped``: it goes on from its last checkpoint.  Each job that is done costs a look at its run folder.
        """
        last = self._read_on().last
        states: dict[Identity, State] = {}
        started: State | None = None
        for job in jobs:
            line = last.get(job.identity)
            state = MEANING[line["event"]] if line else "left"
            # The ledger speaks of what was; the files must be there too.
            if state == "done" and not is_complete(job):
                state = "left"
            if state == "running":
                started = started or ("running" if self.held() else "stopped")
                state = started
            states[job.identity] = state
        return states

    def failures(self) -> dict[Identity, str]:
        """Return the reason of each job's last failure, by its identity."""
        return dict(self._read_on().failed)


MEANING: dict[str, State] = {"started": "running", "done": "done", "failed": "failed"}


class Kept(Protocol):
    """A study or a sweep, as a file."""

    @property
    def ledger(self) -> str | None:
        """Where it is written what is done; None is a file in its folder."""


def ledger_of(study: Kept, out: Path) -> Ledger:
    """Return the ledger of a study or a sweep in the folder `out`.

    Raises:
        UserError: If the backend of its `ledger` is not installed.
    """
    if study.ledger:
        open_store(study.ledger)
    return Ledger(out.resolve() / "ledger.jsonl", study.ledger)


def _identity(line: dict[str, Any]) -> Identity:
    return str(line["kind"]), str(line["name"]), str(line["key"])


def is_complete(job: Job) -> bool:
    """Whether the run folder is this job's and holds what later work reads."""
    if job.kind == "external":  # each of its files says what it is of
        from cxrdist.study.external import is_evaluated  # noqa: PLC0415 - most trials are none, and start sooner

        return is_evaluated(job)
    wanted = [job.folder / "result.json", job.folder / "model" / "model.safetensors"]
    if job.kind == "cell":
        wanted.append(job.folder / "predictions" / "test.parquet")
    return claimed_by(job.folder) == job.key and all(path.is_file() for path in wanted)


def claim(job: Job) -> None:
    """Write into the run folder whose it is: cells of changed studies have the same folder and other keys.

    The folder itself tells the rest of the identity: a cell's is named after it, and a stage's belongs to every stage
    of its key, whatever its name.
    """
    job.folder.mkdir(parents=True, exist_ok=True)
    write_json(job.folder / CLAIM, {"name": job.name, "key": job.key})


def claimed_by(folder: Path) -> str | None:
    """Return the key of the job whose run folder this is; None if no study has written it."""
    try:
        return str(json.loads((folder / CLAIM).read_bytes())["key"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
