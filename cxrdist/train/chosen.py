"""A whole task with the weights of one step of a run, outside of any engine."""

from torch import nn

from cxrdist.errors import UserError
from cxrdist.train.checkpoints import check_checkpoint, checkpoint_name, latest_checkpoint
from cxrdist.train.consolidate import consolidate, fill
from cxrdist.train.ema import EMA
from cxrdist.train.engine import gather
from cxrdist.train.fragments import WEIGHT
from cxrdist.train.pieces import Reader
from cxrdist.train.run_folder import RunFolder
from cxrdist.train.task import BuildTask
from cxrdist.world import World


def chosen_task(build_task: BuildTask, folder: RunFolder, step: int, world: World) -> nn.Module:
    """Return a whole task with the weights of `step`, whose checkpoint may be days old and is looked at first.

    Raises:
        UserError: On every rank, if the checkpoint is not as it was written.
    """
    problem = gather(_damage(folder, step) if world.is_main else None)[0]
    if problem is not None:
        raise UserError(problem)
    task = build_task()
    load_chosen(task, folder, step=step)
    return task


def load_chosen(task: nn.Module, folder: RunFolder, *, step: int | None) -> int:
    """Fill `task` from the checkpoint of `step`, or of the newest one; return its step.

    With the running mean of the weights, if the run keeps one and `step` is given; without it else.

    Raises:
        UserError: If there is no checkpoint, or if it cannot be read.
    """
    name = latest_checkpoint(folder.checkpoints) if step is None else checkpoint_name(step)
    if name is None:
        raise UserError(f"A run must have a checkpoint for this, got none [in {folder.path.name}].")
    reader = Reader(folder.checkpoints / name)
    fill(task, consolidate(reader, kind=EMA if step is not None and reader.names(EMA) else WEIGHT))
    return int(reader.facts["progress"]["step"])


def _damage(folder: RunFolder, step: int) -> str | None:
    """Return a sentence if the checkpoint of `step` is not as it was written."""
    try:
        check_checkpoint(folder.checkpoints, checkpoint_name(step))
    except UserError as error:
        return str(error)
    return None
