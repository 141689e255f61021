"""The ledger: one line per event, only ever appended, so that what is done is known after any crash."""

import contextlib
import errno
import fcntl
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cxrdist.errors import UserError
from cxrdist.study.external import is_evaluated
from cxrdist.study.plan import Identity, Job
from cxrdist.train.run_folder import write_json

Event = Literal["started", "done", "failed"]
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
    """Turn a disk's refusal during the block into a sentence that names the study `folder`.

    Raises:
        UserError: If the disk is full, read-only, gone ...
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (*REFUSED, errno.ENOENT):
            raise
        raise UserError(
            f"The study folder must be writable, got {error.strerror!r} [{folder}]. "
            "Make room there or choose another --out; the same command goes on from what is done."
        ) from None


@dataclass(frozen=True)
class Ledger:
    """`ledger.jsonl` of a study folder."""

    path: Path

    @property
    def lock(self) -> Path:
        """Return the file whose lock says that a study is running."""
        return self.path.with_name(f".{self.path.stem}.lock")

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Be the only run of this study during the block.  The system lets go when the process ends, however it does.

        Raises:
            UserError: If another run of it is going on, or if the folder cannot be written.
        """
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
                    break
            yield

    def held(self) -> bool:
        """Whether a run of this study is going on; where file systems know no locks it is taken to be."""
        try:
            with self.lock.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except OSError:
            return True
        return False

    def append(self, event: Event, job: Job, **facts: Any) -> None:
        """Add one line in one write, and wait until it is on the disk.

        Raises:
            UserError: If it cannot be written.
        """
        line = {
            "time": round(time.time(), 3),
            "event": event,
            "kind": job.kind,
            "name": job.name,
            "key": job.key,
            **facts,
        }
        with writing(self.path.parent):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._append(json.dumps(line) + "\n")

    def _append(self, line: str) -> None:
        descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            with contextlib.suppress(OSError):  # no locks here: a line is still one write
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            size = os.fstat(descriptor).st_size
            torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
            os.write(descriptor, (("\n" if torn else "") + line).encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def read(self) -> list[dict[str, Any]]:
        """Return the lines in order; one torn by a crash is passed over."""
        lines = []
        for text in self.path.read_bytes().split(b"\n") if self.path.is_file() else []:
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if isinstance(line, dict) and {"event", "kind", "name", "key"} <= line.keys():
                lines.append(line)
        return lines

    def states(self, jobs: Sequence[Job]) -> dict[Identity, State]:
        """Return the state of each job by its identity.

        A job that was started and has neither ended nor failed since is ``running`` while a run of the study goes on,
        else ``stopped``: it goes on from its last checkpoint.
        """
        meaning: dict[str, State] = {
            "started": "running" if self.held() else "stopped",
            "done": "done",
            "failed": "failed",
        }
        states: dict[Identity, State] = {job.identity: "left" for job in jobs}
        for line in self.read():
            if _identity(line) in states and line["event"] in meaning:
                states[_identity(line)] = meaning[line["event"]]
        for job in jobs:
            # The ledger speaks of what was; the files must be there too.
            if states[job.identity] == "done" and not is_complete(job):
                states[job.identity] = "left"
        return states

    def failures(self) -> dict[Identity, str]:
        """Return the reason of each job's last failure, by its identity."""
        return {_identity(line): str(line.get("error", "")) for line in self.read() if line["event"] == "failed"}


def _identity(line: dict[str, Any]) -> Identity:
    return str(line["kind"]), str(line["name"]), str(line["key"])


def is_complete(job: Job) -> bool:
    """Whether the run folder is this job's and holds what later work reads."""
    if job.kind == "external":  # each of its files says what it is of
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
