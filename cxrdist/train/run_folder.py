"""The folder of one run: resolved configuration, environment, metrics; what each later part reads."""

import fcntl
import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

from cxrdist import __version__
from cxrdist.config import Config, Tree, read_yaml, write_yaml
from cxrdist.datasets.shard_format import manifest_sha256
from cxrdist.disk import append_line
from cxrdist.errors import UsageError, UserError
from cxrdist.log import get_logger
from cxrdist.world import World

log = get_logger(__name__)

Resume = Literal["auto"]
LIBRARIES = ("torch", "timm", "deepspeed", "ray", "numpy", "opencv-python-headless", "pydicom", "webdataset", "lightly")
TEST_ACCESSES = "test_accesses.jsonl"
STARTS = "starts.jsonl"
REVISION = "CXRDIST_REVISION"
"""Variable with the revision of this program where there is no git to ask: in an image."""
TRACKERS = "trackers.json"
"""Each tracker's own id of the run, so that a resumed run goes on in the same one."""
BAD_BATCH = "bad-batch"
"""Folder of the batch that stopped the run."""
LOCK_WAIT_S = 20.0
"""How long a run waits for its folder: reading processes of a killed run live on for some seconds and hold it."""
FREE = (
    "input.workers",
    *(f"train.{name}" for name in ("micro_batch_size", "zero_stage", "offload", "activation_checkpointing", "compile")),
    *(f"train.{name}" for name in ("checkpoint_every", "checkpoint_in_background", "keep_last", "keep_best")),
    *(f"train.{name}" for name in ("keep_every", "log_every", "trackers", "hang_after")),
    *(f"watch.{name}" for name in ("shards", "findings", "images", "probes", "pictures", "collapse")),
)
"""What may differ when a run is resumed: none of it changes which images a step sees, or what is learnt of them."""


class RunFolder:
    """Paths of a run folder and what is written into it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.environment = path / "environment.json"
        self.metrics = path / "metrics.jsonl"
        self.tensorboard = path / "tb"
        self.checkpoints = path / "checkpoints"
        self.predictions = path / "predictions"
        self.pictures = path / "pictures"
        self.model = path / "model"
        self.result = path / "result.json"
        self.lock = path / ".lock"

    @property
    def finished(self) -> bool:
        """Whether the run has ended and its model is there; the result is written last."""
        return self.result.is_file()

    @property
    def begun(self) -> bool:
        """Whether there is something to resume or a result."""
        return self.config.is_file() and (self.finished or any(self.checkpoints.glob("step-*")))

    @contextmanager
    def opened(
        self, config: Config, *, resume: Resume | None, world: World, shards: Sequence[Path], seed: int
    ) -> Iterator[None]:
        """Hold the folder for one run during the block, and make it ready if it is new.  For rank 0 alone.

        Raises:
            UsageError: As `check`.
            UserError: If another process trains there, or if the folder cannot be written.
        """
        self.check(config, resume=resume, shards=shards)
        with self._locked():
            # Who held the lock until now may have begun a run.
            self.check(config, resume=resume, shards=shards)
            if not self.begun:
                self._clear_away()
                write_json(self.environment, describe_environment(world, shards, seed))
                hidden = self.path / ".config.yaml"
                write_yaml(config.tree(), hidden)
                hidden.replace(self.config)
            yield

    def check(self, config: Config, *, resume: Resume | None, shards: Sequence[Path]) -> None:
        """Check that the folder is new, or holds the very run that is to be resumed.

        A run that ended before its first checkpoint has left nothing to resume: its folder is as good as new.

        Raises:
            UsageError: If a run is there already and `resume` is not asked for, or if it has another configuration
                or other shards.
        """
        if not self.begun:
            return
        if resume is None:
            raise UsageError(
                f"`--out` must be a new folder, got one with a run in it [{self.path}]. "
                "Continue it with --resume auto, or choose another folder."
            )
        changed = changes(read_yaml(self.config), config.tree())
        if changed:
            raise UsageError(
                f"A resumed run must keep its configuration, got {'; '.join(changed[:5])} [{self.path}]. "
                "Choose another --out for another run."
            )
        before = json.loads(self.environment.read_text(encoding="utf-8"))["shard_manifests"]
        # By place: two folders may have one name.
        pairs = zip_longest(shards, before if isinstance(before, list) else [])
        repacked = [
            folder.name for folder, told in pairs if folder and (not told or told["sha256"] != manifest_sha256(folder))
        ]
        if repacked:
            raise UsageError(
                f"A resumed run must read the shards it began with, got others in {', '.join(repacked)} [{self.path}]. "
                "Choose another --out for another run."
            )

    def _clear_away(self) -> None:
        """Remove what a start that ended before its first checkpoint has left: it is of another run.

        Raises:
            UserError: If the folder cannot be written.
        """
        try:
            for name in (STARTS, TRACKERS, self.metrics.name):
                (self.path / name).unlink(missing_ok=True)
            for left in (self.path / BAD_BATCH, self.pictures):
                if left.exists():
                    shutil.rmtree(left)
        except OSError as error:
            raise UserError(f"`--out` must be writable, got {error.strerror!r} [{self.path}].") from None

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            file = self.lock.open("wb")
        except OSError as error:
            raise UserError(f"`--out` must be writable, got {error.strerror!r} [{self.path}].") from None
        with file:
            waits_until = time.monotonic() + LOCK_WAIT_S
            while not _try_lock(file.fileno()):
                if time.monotonic() > waits_until:
                    raise UserError(
                        f"Another process is training in this folder [{self.path}]. "
                        "Wait for it, end it, or choose another --out."
                    )
                time.sleep(0.2)
            yield


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the complete lines of a file of JSON lines; one torn by a kill is left out."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        with suppress(json.JSONDecodeError):
            lines.append(json.loads(text))
    return lines


def describe_environment(world: World, shards: Sequence[Path], seed: int) -> dict[str, Any]:
    """Return what a reader needs to trace a run: revision, versions, world, seed, hash of each shard manifest."""
    return {
        **_versions(),
        "world_size": world.world_size,
        "launcher": world.launcher,
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "seed": seed,
        "shard_manifests": [{"name": folder.name, "sha256": manifest_sha256(folder)} for folder in shards],
    }


def record_start(folder: Path, *, step: int, world: World, device: str, **more: Any) -> None:
    """Append a line to the run folder's list of starts; `environment.json` tells of the first one only."""
    facts = {"step": step, "world_size": world.world_size, "device": device, **more}
    _append(folder / STARTS, facts | _versions())


def _versions() -> dict[str, Any]:
    return {
        "cxrdist": __version__,
        "git_revision": _git_revision(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "libraries": {name: version(name) for name in LIBRARIES},
    }


def changes(before: Tree, now: Tree) -> list[str]:
    """Return ``name: old -> new`` for every value that differs and may not when a run is resumed."""
    old, new = flatten(before), flatten(now)
    names = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name) and name not in FREE)
    return [f"{name}: {old.get(name)!r} -> {new.get(name)!r}" for name in names]


def record_test_access(folder: Path, facts: dict[str, Any]) -> None:
    """Append to the run folder's list of openings of its test split."""
    _append(folder / TEST_ACCESSES, facts)


def read_test_accesses(folder: Path) -> list[dict[str, Any]]:
    """Return the openings of a run's test split."""
    return read_lines(folder / TEST_ACCESSES)


def _append(path: Path, facts: dict[str, Any]) -> None:
    append_line(path, json.dumps({"time": round(time.time(), 3), **facts}))


def write_json(path: Path, tree: Any) -> None:
    """Write `tree` as JSON, whole or not at all.

    Raises:
        UserError: If the disk refuses.
    """
    hidden = path.with_name(f".{path.name}")
    try:
        hidden.write_text(json.dumps(tree, indent=2) + "\n", encoding="utf-8")
        hidden.replace(path)
    except OSError as error:
        raise UserError(f"{path.name} must be writable, got {error.strerror!r} [{path.parent}].") from None


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        # Some network file systems have no locks; a run there is not protected, but it can be made.
        log.warning("This file system has no locks: nothing keeps a second process out of the run folder.")
    return True


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one, names joined by dots."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _git_revision() -> str | None:
    if told := os.environ.get(REVISION):
        return told if told != "unknown" else None
    try:
        command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
