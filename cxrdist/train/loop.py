"""The training loop, for any task.  The state of a run is its step: see `cxrdist.data.order`."""

import math
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from cxrdist.data.loader import Batch
from cxrdist.data.order import Batching
from cxrdist.errors import UserError
from cxrdist.log import get_logger, progress
from cxrdist.seeds import Purpose, derive
from cxrdist.train.checkpoints import (
    Progress,
    checkpoint_name,
    latest_checkpoint,
    load_checkpoint,
    load_module,
    save_checkpoint,
)
from cxrdist.train.config import OptimConfig, TrainConfig
from cxrdist.train.engine import agree_on_buffers, build_engine, describe_device, mean_over_ranks
from cxrdist.train.interrupt import Interrupted, stop_on_signals
from cxrdist.train.metrics import MetricsLog
from cxrdist.train.optim import lr_at, set_lr
from cxrdist.train.run_folder import RunFolder, record_start
from cxrdist.world import World

log = get_logger(__name__)

SCORE = "auroc_macro"
"""The validation value that chooses the step; higher is better, None is not defined."""

Validate = Callable[[nn.Module], dict[str, Any]]
"""From a task to its validation values, `SCORE` among them; every rank calls it and gets the same."""

BatchesFrom = Callable[[Batching, int], Generator[Batch, None, None]]
"""From the division of batches and a first step to this rank's micro-batches."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    steps: int
    chosen_step: int
    """The step whose weights are the result: best on validation, or the last where nothing is validated."""
    score: float | None
    """Validation macro AUROC of the chosen step."""


def train(
    task: nn.Module,
    *,
    config: TrainConfig,
    optim: OptimConfig,
    seed: int,
    batches_from: BatchesFrom,
    validate: Validate | None,
    folder: RunFolder,
    world: World,
    device: torch.device,
) -> Outcome:
    """Train `task` (``task(batch)["loss"]``) to the last step and leave it with the weights of the chosen one.

    Raises:
        Interrupted: After a stop signal, with a checkpoint written.
        UserError: If the loss is not finite; the last checkpoint stays.
    """
    batching = Batching.plan(
        global_batch_size=config.global_batch_size,
        micro_batch_size=config.micro_batch_size if isinstance(config.micro_batch_size, int) else None,
        world_size=world.world_size,
    )
    engine = build_engine(task, train=config, optim=optim, batching=batching, device=device)
    state = Progress(world_size=world.world_size, zero_stage=config.zero_stage)
    name = latest_checkpoint(folder.checkpoints)
    if name is not None:
        state = load_checkpoint(
            engine, folder.checkpoints, name, world_size=world.world_size, zero_stage=config.zero_stage
        )
        state.world_size = world.world_size
        # DeepSpeed counts micro-steps to know where a step ends; the run may now divide its batches otherwise.
        engine.micro_steps = state.step * batching.accumulation
        log.info("Resumed from %s.", name)
    if world.is_main:
        record_start(folder.path, step=state.step, world=world, device=describe_device(device))
    metrics = MetricsLog(folder, step=state.step, enabled=world.is_main)
    run = _Run(engine, config, optim, batching, seed, world, folder, metrics)
    batches = batches_from(batching, state.step)
    try:
        with (
            stop_on_signals() as stop,
            progress(folder.path.name, config.steps, unit="steps", shown=world.is_main) as bar,
        ):
            bar.skip(state.step)
            while state.step < config.steps:
                loss = run.optimizer_step(state.step, batches)
                state.step += 1
                run.log(state.step, loss)
                validated = validate is not None and run.due(state.step, config.evaluate_every)
                if validate is not None and validated:
                    agree_on_buffers(engine.module)
                    run.validate(state, validate)
                signum = stop.agreed(device)
                if validated or signum or run.due(state.step, config.checkpoint_every):
                    agree_on_buffers(engine.module)
                    save_checkpoint(engine, folder.checkpoints, state, keep_last=config.keep_last)
                if signum and state.step < config.steps:
                    raise Interrupted(signum, state.step)
                bar.advance(note=f"loss {loss:.4f}")
    finally:
        batches.close()
        metrics.close()
    chosen = state.best_step or state.step
    load_module(task, folder.checkpoints, checkpoint_name(chosen))
    return Outcome(steps=state.step, chosen_step=chosen, score=state.best_score)


@dataclass
class _Run:
    """The fixed parts of a run, and what one turn of its loop does with them."""

    engine: Any
    config: TrainConfig
    optim: OptimConfig
    batching: Batching
    seed: int
    world: World
    folder: RunFolder
    metrics: MetricsLog
    busy_s: float = 0.0
    """Time in optimizer steps since the last line of the log: validations and checkpoints do not count."""
    waited_s: float = 0.0
    """The part of it spent waiting for data."""
    steps_since: int = 0

    def optimizer_step(self, step: int, batches: Iterator[Batch]) -> float:
        """Return this rank's mean loss over its part of the global batch."""
        started = time.monotonic()
        set_lr(self.engine.optimizer, lr_at(self.optim, step, self.config.steps))
        self.engine.train()
        total = 0.0
        for micro_step in range(self.batching.accumulation):
            asked = time.monotonic()
            batch = next(batches)
            self.waited_s += time.monotonic() - asked
            # Random layers draw from a stream of (step, micro-step, rank): nothing to save, nothing to restore.
            # After `next`: a loader that starts, as one does in a resumed run, draws from the stream as well.
            torch.manual_seed(derive(self.seed, Purpose.STEP, step, micro_step, self.world.rank))
            output = self.engine(
                {name: value.to(self.engine.device, non_blocking=True) for name, value in batch.items()}
            )
            value = float(output["loss"].item())
            if not math.isfinite(value):
                raise UserError(
                    f"The loss must be finite, got {value} at step {step + 1} on rank {self.world.rank}; stopped "
                    "before the optimizer step. Lower `optim.lr` or set `train.precision` to fp32."
                )
            self.engine.backward(output["loss"])
            self.engine.step()
            total += value / self.batching.accumulation
        self.steps_since += 1
        self.busy_s += time.monotonic() - started
        return total

    def due(self, step: int, every: int) -> bool:
        """Whether something that happens `every` so many steps, and at the last, happens now."""
        return step % every == 0 or step == self.config.steps

    def log(self, step: int, loss: float) -> None:
        """Write the global batch's loss, learning rate, throughput and share of time waiting for data since before."""
        if not self.due(step, self.config.log_every):
            return
        # Every rank has the same number of images, so the mean over ranks is the mean over the global batch.
        loss = mean_over_ranks(loss, self.engine.device)
        elapsed = max(self.busy_s, 1e-9)
        values = {
            "loss": loss,
            "lr": lr_at(self.optim, step - 1, self.config.steps),
            "samples_per_sec": round(self.steps_since * self.batching.global_batch_size / elapsed, 2),
            "data_wait": round(self.waited_s / elapsed, 4),
        }
        self.metrics.write(step, "train", values)
        self.busy_s, self.waited_s, self.steps_since = 0.0, 0.0, 0

    def validate(self, state: Progress, validate: Validate) -> None:
        """Validate and remember the step if it is the best so far."""
        self.engine.eval()
        values = validate(self.engine.module)
        self.metrics.write(state.step, "val", values)
        score = values[SCORE]
        if state.best_score is None or (score is not None and score > state.best_score):
            state.best_step, state.best_score = state.step, score
