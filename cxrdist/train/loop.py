"""The training loop, for any task.  The state of a run is its step: see `cxrdist.data.order`."""

import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import nn

from cxrdist.data.loader import Batch, on_device
from cxrdist.data.order import Batching
from cxrdist.errors import UserError
from cxrdist.log import get_logger, progress
from cxrdist.seeds import Purpose, derive
from cxrdist.train.batches import Source, plan_batches, refusal
from cxrdist.train.checkpoints import Checkpoints, Retention, checkpoint_name, latest_checkpoint
from cxrdist.train.chosen import chosen_task
from cxrdist.train.config import OptimConfig, TrainConfig
from cxrdist.train.consolidate import compare_with_live, consolidate
from cxrdist.train.deepspeed_config import deepspeed_config
from cxrdist.train.ema import Ema
from cxrdist.train.engine import (
    agree_on_buffers,
    build_engine,
    describe_device,
    forward_buffers,
    gather,
    grad_norm,
    mean_over_ranks,
    overflowed,
    release_engine,
)
from cxrdist.train.flops import flops_per_image
from cxrdist.train.fragments import scalars
from cxrdist.train.guard import Guard, NotFiniteError, carried
from cxrdist.train.interrupt import Interrupted, StopRequest, stop_on_signals
from cxrdist.train.metrics import MetricsLog
from cxrdist.train.optim import lr_at, set_lr, set_weight_decay, weight_decay_at
from cxrdist.train.pieces import Reader
from cxrdist.train.run_folder import RunFolder, record_start, write_json
from cxrdist.train.state import Progress, facts_of, pieces_on_rank, restore_state
from cxrdist.train.task import BuildTask
from cxrdist.train.throughput import Throughput, note
from cxrdist.train.watchdog import Watchdog, watch
from cxrdist.world import World

log = get_logger(__name__)

SCORE = "auroc_macro"
"""The validation value that chooses the step; higher is better, None is not defined."""

Validate = Callable[[nn.Module, int, Callable[[], None]], dict[str, Any]]
"""From a task, the micro-batch that its training fits in, and what to call before each batch, to the validation values;
every rank calls it and gets the same.  Without `SCORE` among them nothing is chosen: the last step is the result."""

Judge = Callable[[int, dict[str, Any]], None]
"""Is told each validation's step and values, once they are written; every rank calls it, and a `UserError` that it
raises on all of them ends the run, whose newest checkpoint is from before that validation."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    steps: int
    chosen_step: int
    """The step whose weights are the result: best on validation, or the last where nothing is validated."""
    score: float | None
    """Validation macro AUROC of the chosen step."""
    micro_batch_size: int
    """Images per forward pass and rank."""


def train(  # noqa: PLR0913 - all but one by name
    build_task: BuildTask,
    *,
    config: TrainConfig,
    optim: OptimConfig,
    seed: int,
    source: Source,
    validate: Validate | None,
    folder: RunFolder,
    world: World,
    device: torch.device,
    validate_first: bool = False,
    judge: Judge = lambda step, values: None,
) -> tuple[Outcome, nn.Module]:
    """Train to the last step; return how it ended, and a whole task on `device` with the weights of the chosen step.

    With `validate_first` the initial weights are validated too, as step 0.  `judge` may end the run by what it sees.

    Raises:
        Interrupted: After a stop signal, with a checkpoint written.
        UserError: If the loss or its gradient is not finite, with a checkpoint from before that step; if another rank
            is lost; if the disk is full.
    """
    guard = Guard(folder, world, precision=config.precision, seed=seed, keys=source.keys)
    batching = plan_batches(build_task, source, train=config, optim=optim, folder=folder, world=world, device=device)
    flops = None
    if device.type == "cuda":
        flops = flops_per_image(build_task, source.example, config.precision)
    run = _Run(config, optim, batching, seed, folder, world, device, guard, flops)
    with (
        watch(world, hang_after=config.hang_after, folder=folder.path) as watchdog,
        stop_on_signals() as stop,
        progress(folder.path.name, config.last_step, unit="steps", shown=world.is_main) as bar,
        run.opened,
    ):
        run.watchdog = watchdog
        try:
            state = run.start(build_task(told=world.is_main))
            bar.skip(state.step)
            if validate_first and not state.step and not latest_checkpoint(folder.checkpoints):
                state.validation_due = validate is not None
            batches = source.batches_from(batching, state.step)
            run.opened.callback(batches.close)
            signum = stop.agreed(device)  # while the engine was built
            if signum:
                run.save(state)
                run.stop(state, signum)
            while run.goes_on(state):
                if not state.validation_due:
                    run.optimizer_step(state, batches)
                    run.log(state.step)
                    bar.advance(note=run.note)
                    state.validation_due = validate is not None and run.due(state.step, config.evaluate_every)
                signum = stop.agreed(device)
                validated = False
                if validate is not None and state.validation_due and not signum:
                    signum = run.validate(state, validate, judge, stop)
                    validated = not state.validation_due
                if validated or signum or run.due(state.step, config.checkpoint_every):
                    run.save(state)
                if signum and run.goes_on(state):
                    run.stop(state, signum)
            run.check_last(state)
        except (UserError, Interrupted):
            raise
        except (RuntimeError, ValueError) as error:
            sentence = watchdog.explain(error) or refusal(build_task, source.example, batching.micro_batch_size, error)
            if sentence is None:
                raise
            raise sentence from None
        if state.stopped_early and world.is_main:
            log.info("Stopped early: the last %d validations were no better than an earlier one.", state.since_best)
    task = chosen_task(build_task, folder, state.best_step or state.step, world)
    outcome = Outcome(state.step, state.best_step or state.step, state.best_score, batching.micro_batch_size)
    return outcome, task.to(device)


class _Abandoned(BaseException):
    """A validation ends before its time, on every rank at the same batch: no error, a stop signal has come."""


class _Run:
    """The engine and what is around it, and what one turn of the loop does with them."""

    def __init__(
        self,
        config: TrainConfig,
        optim: OptimConfig,
        batching: Batching,
        seed: int,
        folder: RunFolder,
        world: World,
        device: torch.device,
        guard: Guard,
        flops_per_image: float | None,
    ) -> None:
        self.config, self.optim, self.batching, self.seed = config, optim, batching, seed
        self.folder, self.world, self.device, self.guard = folder, world, device, guard
        self.flops_per_image = flops_per_image
        self.watchdog = Watchdog(world, None, hang_after=config.hang_after)
        self.opened = ExitStack()
        self.note = ""
        """The last line of the log, in a few words."""

    def start(self, task: nn.Module) -> Progress:
        """Build the engine around `task`; return where the run is, its newest checkpoint read if there is one."""
        config, folder, world = self.config, self.folder, self.world
        self.throughput = Throughput(
            global_batch_size=self.batching.global_batch_size,
            accumulation=self.batching.accumulation,
            world_size=world.world_size,
            device=self.device,
            precision=config.precision,
            flops_per_image=self.flops_per_image,
        )
        self.engine = build_engine(task, train=config, optim=self.optim, batching=self.batching, device=self.device)
        self.opened.callback(release_engine, self.engine)
        self.buffers = forward_buffers(self.engine.module)
        self.ema = None if config.ema_decay is None else Ema(self.engine, config.ema_decay)
        # Rank 0 looks for all: what another rank sees of a shared folder may be older.
        name, token = gather((latest_checkpoint(folder.checkpoints), secrets.token_hex(8)) if world.is_main else None)[
            0
        ]
        state = Progress()
        if name is not None:
            state = restore_state(self.engine, self.ema, Reader(folder.checkpoints / name))
            # DeepSpeed counts micro-steps to know where a step ends; the run may now divide its batches otherwise.
            self.engine.micro_steps = state.step * self.batching.accumulation
            self.guard.skipped = state.skipped
            log.info("Resumed from %s.", name)
        # A task may do more than to set the mode: here for a fresh and a resumed run alike.
        self.engine.train()
        if world.is_main:
            if config.deepspeed is not None:  # the file may be another tomorrow
                told = deepspeed_config(config, self.optim, self.batching)
                write_json(folder.path / "ds_config.json", told)
            record_start(
                folder.path,
                step=state.step,
                world=world,
                device=describe_device(self.device),
                micro_batch_size=self.batching.micro_batch_size,
                global_batch_size=self.batching.global_batch_size,
                zero_stage=config.zero_stage,
                offload=config.offload,
                activation_checkpointing=config.activation_checkpointing,
                precision=config.precision,
            )
        self.metrics = MetricsLog(folder, step=state.step, enabled=world.is_main, trackers=config.trackers)
        self.opened.push(lambda kind, *_: self.metrics.close(finished=kind is None))
        self.checkpoints = Checkpoints(
            folder.checkpoints,
            rank=world.rank,
            world_size=world.world_size,
            keep=Retention(last=config.keep_last, best=config.keep_best, every=config.keep_every),
            in_background=config.checkpoint_in_background,
            resumed=name,
            token=token,
        )
        self.opened.push(self._close_checkpoints)
        return state

    def _close_checkpoints(self, kind: type[BaseException] | None, *_: Any) -> None:
        # After an error another rank may never come to write its part, and what is under way is not waited for.
        if kind is None or kind is Interrupted or self.world.world_size == 1:
            with suppress(UserError) if kind is not None else nullcontext():
                self.checkpoints.close()

    def optimizer_step(self, state: Progress, batches: Iterator[Batch]) -> None:
        """Make one optimizer step, of a global batch, and count it.

        Raises:
            NotFiniteError: If the step was not made because its loss or gradient is not finite.
        """
        engine, losses, kept = self.engine, [], []
        before = [buffer.clone() for buffer in self.buffers]
        self.watchdog.at(state.step, "step")
        if not engine.module.training:  # setting it walks through all modules
            engine.train()
        if hasattr(engine.module, "at_step"):
            engine.module.at_step(state.step, self.config.steps, engine.optimizer)
        set_lr(engine.optimizer, lr_at(self.optim, state.step, self.config.steps))
        set_weight_decay(engine.optimizer, weight_decay_at(self.optim, state.step, self.config.steps))
        with self.throughput.step():
            for micro_step in range(self.batching.accumulation):
                with self.throughput.waiting():
                    batch = next(batches)
                # Random layers draw from a stream of (step, micro-step, rank): nothing to save, nothing to restore.
                # After `next`: a loader that starts, as one does in a resumed run, draws from the stream as well.
                torch.manual_seed(derive(self.seed, Purpose.STEP, state.step, micro_step, self.world.rank))
                loss = engine(on_device(batch, self.device))["loss"]
                engine.backward(carried(loss))
                engine.step()
                losses.append(loss.detach())
                kept.append(batch)  # as it lies in the host's memory
            # Once a step: reading a value waits for the device.
            self.losses = torch.stack(losses).tolist()
        left_out = overflowed(engine)
        try:
            self.guard.check(state.step + 1, self.losses, norm=grad_norm(engine), overflowed=left_out, batches=kept)
        except NotFiniteError:
            # The weights are those of the step before; the forward pass may have spoilt the running statistics.
            for buffer, value in zip(self.buffers, before, strict=True):
                buffer.copy_(value)
            with suppress(UserError):  # a full disk must not hide what ended the run
                self.save(state)
                self.checkpoints.wait()
            raise
        if not left_out:
            if self.ema is not None:
                self.ema.update()
            if hasattr(engine.module, "after_step"):
                engine.module.after_step(state.step, self.config.steps)
        if self.buffers:
            # At every step: to agree at some only, say those with a checkpoint, would give other statistics.
            agree_on_buffers(engine.module)
        state.step += 1
        state.score = None
        state.skipped = self.guard.skipped

    def goes_on(self, state: Progress) -> bool:
        """Whether there is a step to make or to validate."""
        return state.validation_due or (state.step < self.config.last_step and not state.stopped_early)

    def stop(self, state: Progress, signum: int) -> NoReturn:
        """End the run, which has just been saved, because of a signal."""
        self.checkpoints.wait()
        raise Interrupted(signum, state.step)

    def due(self, step: int, every: int) -> bool:
        """Whether something that happens `every` so many steps, and at the last, happens now."""
        return step % every == 0 or step == self.config.last_step

    def log(self, step: int) -> None:
        """Write a line on the global batch and on the time since the line before, if one is due."""
        if not self.due(step, self.config.log_every):
            return
        # Every rank has the same number of images, so the mean over ranks is the mean over the global batch.
        loss = mean_over_ranks(sum(self.losses) / len(self.losses), self.device)
        values = {
            "loss": loss,
            "lr": lr_at(self.optim, step - 1, self.config.steps),
            "grad_norm": grad_norm(self.engine),
        }
        if self.optim.final_weight_decay is not None:
            values["weight_decay"] = weight_decay_at(self.optim, step - 1, self.config.steps)
        scale = scalars(self.engine).get("loss_scale")
        values |= ({} if scale is None else {"loss_scale": scale}) | self.throughput.values()
        self.metrics.write(step, "train", values)
        self.note = note(values)

    def validate(self, state: Progress, validate: Validate, judge: Judge, stop: StopRequest) -> int:
        """Validate and remember the step if it is the best so far; return the signal that has come meanwhile, or 0.

        A signal ends the validation; it stays due then, and is made when the run is resumed.
        """

        def before_each() -> None:
            self.watchdog.at(state.step, "validation")
            if stop.agreed(self.device):
                raise _Abandoned

        self.engine.eval()
        try:
            with nullcontext() if self.ema is None else self.ema.applied():
                values = validate(self.engine.module, self.batching.micro_batch_size, before_each)
        except _Abandoned:
            return stop.agreed(self.device)
        state.validated(values.get(SCORE), patience=self.config.early_stopping)
        self.metrics.write(state.step, "val", values)
        try:
            judge(state.step, values)
        except UserError:
            # All ranks are here: what is under way can be waited for, and the run be continued from it.
            with suppress(UserError):
                self.checkpoints.wait()
            raise
        return stop.agreed(self.device)

    def save(self, state: Progress) -> None:
        """Write the checkpoint of `state`, in the background if so configured."""
        self.watchdog.at(state.step, "checkpoint")
        pieces = pieces_on_rank(self.engine, self.ema, self.world)
        self.checkpoints.save(state.step, pieces, facts_of(self.engine, state), score=state.score)

    def check_last(self, state: Progress) -> None:
        """Check that the last checkpoint has the very weights of the engine: what is made of it is the model.

        Raises:
            UserError: If it has not.
        """
        self.checkpoints.wait()
        self.watchdog.at(state.step, "checkpoint")
        reader = Reader(self.folder.checkpoints / checkpoint_name(state.step))
        different = gather(compare_with_live(self.engine, consolidate(reader) if self.world.is_main else None))[0]
        if different:
            raise UserError(
                f"A checkpoint must have the weights that were trained, got others in {', '.join(different[:3])} "
                f"[in {checkpoint_name(state.step)}]. The disk or the memory of a machine is damaged: resume elsewhere."
            )
