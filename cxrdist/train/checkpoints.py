"""Checkpoints that are there whole or not at all.

``checkpoints/step-%08d/`` is written under a hidden name and renamed; then ``latest`` is replaced.  A kill at any
moment leaves the previous ``latest`` and a complete folder behind it.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed

from cxrdist.errors import UserError

STATE = "cxrdist"
"""Key of our own state in DeepSpeed's checkpoint."""

TORCH_WRITERS = ("PytorchStreamWriter", "inline_container")


@dataclass
class Progress:
    """What a run must remember besides weights and optimizer."""

    step: int = 0
    """Optimizer steps done."""
    best_step: int | None = None
    """Step of the best validation so far."""
    best_score: float | None = None
    """Its macro AUROC; None while it was never defined."""
    world_size: int = 1
    zero_stage: int = 0


def checkpoint_name(step: int) -> str:
    """Return the folder name of the checkpoint after `step` steps."""
    return f"step-{step:08d}"


def save_checkpoint(engine: Any, folder: Path, progress: Progress, *, keep_last: int) -> None:
    """Write the checkpoint of `progress.step` and drop old ones.  All ranks must call it together.

    Raises:
        UserError: If the disk does not take it; `latest` is then what it was.
    """
    name = checkpoint_name(progress.step)
    hidden = folder / f".partial-{name}"
    main = torch.distributed.get_rank() == 0
    if main:
        with _written_or_removed(hidden):
            folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(hidden, ignore_errors=True)
    torch.distributed.barrier()
    with _written_or_removed(hidden):
        engine.save_checkpoint(str(folder), tag=hidden.name, client_state={STATE: asdict(progress)}, save_latest=False)
    torch.distributed.barrier()
    if main:
        with _written_or_removed(hidden):
            for file in (*hidden.iterdir(), hidden):
                _sync(file)
            final = folder / name
            shutil.rmtree(final, ignore_errors=True)
            hidden.rename(final)
            pointer = folder / ".latest"
            pointer.write_text(name + "\n", encoding="utf-8")
            _sync(pointer)
            pointer.replace(folder / "latest")
            _sync(folder)
            _prune(folder, progress, keep_last)
    torch.distributed.barrier()


def latest_checkpoint(folder: Path) -> str | None:
    """Return the name of the newest complete checkpoint, or None if there is none."""
    pointer = folder / "latest"
    if not pointer.is_file():
        return None
    name = pointer.read_text(encoding="utf-8").strip()
    if not (folder / name).is_dir():
        raise UserError(
            f"`latest` must name a checkpoint that is there, got {name!r} [in {folder.name}]. "
            "Write the name of one of its step folders into that file, or remove it to start over."
        )
    return name


def load_checkpoint(engine: Any, folder: Path, name: str, *, world_size: int, zero_stage: int) -> Progress:
    """Restore weights and optimizer from a checkpoint and return its progress.

    Raises:
        UserError: If it cannot be continued with this number of ranks or ZeRO stage.
    """
    saved = Progress(**torch.load(_model_states(folder / name), map_location="cpu", weights_only=True)[STATE])
    if saved.zero_stage != zero_stage or (zero_stage and saved.world_size != world_size):
        raise UserError(
            "A checkpoint with ZeRO must be resumed as it was written "
            f"({saved.world_size} ranks, stage {saved.zero_stage}), got {world_size} ranks, "
            f"stage {zero_stage} [in {name}]."
        )
    engine.load_checkpoint(str(folder), tag=name)
    return saved


def load_module(module: torch.nn.Module, folder: Path, name: str) -> None:
    """Restore only the weights of `module` from a checkpoint."""
    states = torch.load(_model_states(folder / name), map_location="cpu", weights_only=True)
    module.load_state_dict(states["module"], strict=True)


@contextmanager
def _written_or_removed(hidden: Path) -> Iterator[None]:
    """Turn what a disk refuses into a sentence, and give back the room that the unfinished folder `hidden` takes."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        # torch's writer of zip files has no class for it, only its name in the text.
        if not isinstance(error, OSError) and not any(name in str(error) for name in TORCH_WRITERS):
            raise
        shutil.rmtree(hidden, ignore_errors=True)
        reason = error.strerror if isinstance(error, OSError) else "a file cut short (is the disk full?)"
        raise UserError(
            f"A checkpoint must be writable, got {reason!r} [in {hidden.parent.parent.name}]. "
            "The checkpoint before it is whole: make room, then continue with --resume auto."
        ) from None


def _model_states(checkpoint: Path) -> Path:
    return checkpoint / "mp_rank_00_model_states.pt"


def _prune(folder: Path, progress: Progress, keep_last: int) -> None:
    names = sorted(path.name for path in folder.glob("step-*"))
    # A kill between the renaming of a folder and of `latest` leaves a folder of a later step than the run is at.
    passed = [name for name in names if name <= checkpoint_name(progress.step)]
    kept = {*passed[-keep_last:], checkpoint_name(progress.best_step or progress.step)}
    for name in names:
        if name not in kept:
            # Renamed first, so that no reader takes a half-removed folder for a checkpoint.
            doomed = (folder / name).rename(folder / f".partial-{name}")
            shutil.rmtree(doomed, ignore_errors=True)
    for partial in folder.glob(".partial-*"):
        shutil.rmtree(partial, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
