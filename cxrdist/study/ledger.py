"""The ledger: one line per event, only ever appended, so that what is done is known after any crash."""

import json
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cxrdist.study.plan import Job

Event = Literal["started", "done", "failed"]
State = Literal["done", "running", "failed", "left"]


@dataclass(frozen=True)
class Ledger:
    """`ledger.jsonl` of a study folder."""

    path: Path

    def append(self, event: Event, job: Job, **facts: Any) -> None:
        """Add one line in one write, and wait until it is on the disk."""
        line = {
            "time": round(time.time(), 3),
            "event": event,
            "kind": job.kind,
            "name": job.name,
            "key": job.key,
            **facts,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            torn = os.fstat(descriptor).st_size and not self.path.read_bytes().endswith(b"\n")
            os.write(descriptor, (("\n" if torn else "") + json.dumps(line) + "\n").encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def read(self) -> list[dict[str, Any]]:
        """Return the lines in order; one torn by a crash is passed over."""
        lines = []
        for text in self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else []:
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:
                continue
        return lines

    def states(self, jobs: Iterable[Job]) -> dict[str, State]:
        """Return the state of each job by key; ``running`` is started and neither done nor failed since."""
        states: dict[str, State] = {job.key: "left" for job in jobs}
        meaning: dict[str, State] = {"started": "running", "done": "done", "failed": "failed"}
        for line in self.read():
            if line["key"] in states and line["event"] in meaning:
                states[line["key"]] = meaning[line["event"]]
        for job in jobs:
            # The ledger speaks of what was; the files must be there too.
            if states[job.key] == "done" and not is_complete(job):
                states[job.key] = "left"
        return states


def is_complete(job: Job) -> bool:
    """Whether the run folder holds what later work reads."""
    wanted = [job.folder / "result.json", job.folder / "model" / "model.safetensors"]
    if job.kind == "cell":
        wanted.append(job.folder / "predictions" / "test.parquet")
    return all(path.is_file() for path in wanted)
