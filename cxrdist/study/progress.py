"""How far a run is, read from its folder: cheap enough to be asked every second of a hundred runs."""

import json
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cxrdist.config import Tree, read_yaml
from cxrdist.errors import UserError
from cxrdist.study.jobs import Job
from cxrdist.study.watching import Progress
from cxrdist.train.run_folder import RunFolder

VALUES = ("auroc_macro", "probe_auroc", "knn_auroc")
"""Validation AUROC in a line of `metrics.jsonl`, the first that is there: of a fine-tuning, else of what is learnt on
the features of a pretraining."""
LOOK = b'"val"'


@dataclass
class ProgressReader:
    """Follows the `metrics.jsonl` of a run folder, of which only new bytes are read.

    The file may not be there yet, end in half a line, or be replaced by a shorter one when the run is resumed.
    """

    folder: RunFolder
    known: Progress
    _offset: int = 0
    """Bytes taken note of; the last complete line ends there."""
    _last: bytes = b""
    """That line, by which a replaced file is recognised: it has the time of its writing."""
    _first: Progress = field(init=False)

    def __post_init__(self) -> None:
        self._first = self.known

    def read(self) -> Progress:
        """Return how far the run is by now; what it was before, if the folder cannot be read at this moment."""
        with suppress(OSError):
            self._follow()
        return self.known

    def _follow(self) -> None:
        if self.folder.metrics.stat().st_size == self._offset:
            return
        with self.folder.metrics.open("rb") as file:
            file.seek(self._offset - len(self._last))
            new = file.read()
            if not new.startswith(self._last):
                self._offset, self._last, self.known = 0, b"", self._first
                file.seek(0)
                new = file.read()
        new = new[len(self._last) :]
        lines = new[: new.rfind(b"\n") + 1].splitlines(keepends=True)
        if not lines:
            return
        self._offset += sum(map(len, lines))
        self._last = lines[-1]
        if self.known.steps is None:
            self.known = replace(self.known, steps=_steps_in(self.folder.config))
        # Of the training lines only the last one says anything; a long run has very many.
        training = [line for line in lines if LOOK not in line][-1:]
        for line in [line for line in lines if LOOK in line] + training:
            self._take(line)

    def _take(self, text: bytes) -> None:
        try:
            line = json.loads(text)
            step, at = int(line["step"]), float(line["time"])
        except (ValueError, TypeError, KeyError):
            return
        known = self.known
        if step >= known.step:
            known = replace(known, step=step, at=max(at, known.at))
        if line.get("kind") == "val":
            value = next((line[name] for name in VALUES if line.get(name) is not None), None)
            if value is not None:
                best = value if known.best is None else max(known.best, value)
                known = replace(known, value=value, value_step=step, best=best)
        else:
            known = replace(known, loss=line.get("loss"), images_per_second=line.get("samples_per_sec"))
        self.known = known


def progress_of(folder: Path, *, name: str = "", steps: int | None = None) -> ProgressReader:
    """Return a reader of the run in `folder`.

    Args:
        folder: Run folder; need not be there yet.
        name: What the run is called; empty is the folder's name.
        steps: How many it will make; None is what its `config.yaml` says, once it is there.
    """
    return ProgressReader(RunFolder(folder), Progress(name or folder.name, steps=steps))


def progress_of_job(job: Job) -> ProgressReader:
    """Return a reader of a job's run."""
    return progress_of(job.folder, name=job.name, steps=steps_of_job(job))


def ended_progress(job: Job) -> Progress:
    """Return how far a finished job got, from its result: the steps it made and the AUROC of the one it chose."""
    try:
        result: dict[str, Any] = dict(json.loads(RunFolder(job.folder).result.read_bytes()))
    except (OSError, ValueError, TypeError):
        return Progress(job.name, steps=steps_of_job(job))
    score, made = result.get("score"), int(result.get("steps") or 0)
    at = float(result.get("time") or 0)
    return Progress(job.name, made, made, score, score, at, value_step=result.get("chosen_step"))


def steps_of(tree: Tree) -> int | None:
    """Return the optimizer steps that a resolved configuration asks for; neighbours are asked without any.

    A run that is to stop earlier, as one of a population does, has that many.
    """
    if (tree.get("protocol") or {}).get("name") == "knn":
        return 0
    train = tree.get("train") or {}
    ends = [int(train[name]) for name in ("steps", "stop_at") if train.get(name) is not None]
    return min(ends, default=None)


def steps_of_job(job: Job) -> int | None:
    """Return the optimizer steps of a job; None of one that looks at other datasets: its tree is its cell's."""
    return None if job.kind == "external" else steps_of(job.tree)


def _steps_in(config: Path) -> int | None:
    with suppress(OSError, UserError):
        return steps_of(read_yaml(config))
    return None
