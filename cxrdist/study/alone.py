"""One training on a running Ray cluster: the run that ``torchrun`` with as many ranks makes, started by Ray.

No ledger and no trial: the run folder is all there is, and it is the same as that of ``torchrun``.
"""

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cxrdist.config import Tree
from cxrdist.dispatch.cluster import cluster
from cxrdist.errors import UsageError, UserError
from cxrdist.log import Progress as Bar
from cxrdist.log import get_logger, progress
from cxrdist.models.locate import is_timm_name
from cxrdist.study.jobs import Job
from cxrdist.study.progress import ProgressReader, progress_of_job, steps_of
from cxrdist.study.resources import Resources
from cxrdist.study.room import Room, alive, no_room
from cxrdist.study.watching import Progress
from cxrdist.train.interrupt import StopRequest, stop_on_signals
from cxrdist.train.places import RUN_PATHS
from cxrdist.train.run_folder import Resume, RunFolder, flatten

if TYPE_CHECKING:
    from ray.util.placement_group import PlacementGroup

    from cxrdist.finetune.config import FinetuneConfig
    from cxrdist.pretrain.config import PretrainConfig
    from cxrdist.study.gang import End

log = get_logger(__name__)

SAY_S = 3.0
"""When the run has waited so long for its place, it is said what for."""
STOP_WAIT_S = 600.0
"""How long the ranks may take to the end of their step and its checkpoint once they are asked to stop."""
CLUSTER_MUST_GROW = "Lower --workers or what each holds, or give --wait SECONDS if machines are still to come."


class Stopped(Exception):  # noqa: N818 - like KeyboardInterrupt, no error
    """The run was asked to stop by the signal `signum`; the message says what is left of it."""

    def __init__(self, signum: int, sentence: str) -> None:
        self.signum = signum
        super().__init__(sentence)


@dataclass(frozen=True)
class _Run:
    """What all attempts share."""

    job: Job
    resources: Resources
    stop: StopRequest
    shown: "_Shown"


def train_on_cluster(
    config: "FinetuneConfig | PretrainConfig",
    out: Path,
    *,
    method: Literal["train", "pretrain"],
    address: str,
    resources: Resources,
    resume: Resume | None = None,
) -> dict[str, Any] | None:
    """Train on the cluster at `address`; return what stands in the run folder's result, None if it was finished before.

    Args:
        config: The run.
        out: Run folder, which all machines share.  Relative paths, here and in `config`, are those of the folder
            that this process is in, as long as the machines have that folder too.
        method: What kind of run it is.
        address: A running cluster; see `cluster`.
        resources: Number of ranks, what each holds, how often the run goes on after a loss, and how long it waits for
            machines while the cluster is too small for it.
        resume: Whether a run that is in `out` goes on.

    Raises:
        UsageError: If there is a run in `out` that is not to go on, or is another one.
        UserError: If there is no room for all workers, the training fails, or it was lost once too often.
        Stopped: After a signal.
    """
    folder = RunFolder(Path(os.path.abspath(out)))  # noqa: PTH100 - a link may lead elsewhere on another machine
    if resume is None:
        folder.check(config, resume=None, shards=())
    finished = folder.finished
    resources = resources.model_copy(update={"max_concurrent": 1})
    tree = config.tree()
    job = Job("stage", method, folder.path.name, "", folder.path, tree, resources=resources.of_trial())
    with (
        cluster(address, name=f"cxrdist {method} {job.name}"),
        stop_on_signals() as stop,
        progress(job.name, steps_of(tree) or 0, unit="steps") as bar,
    ):
        _warn_of_idle_gpus(resources)
        _until_it_ends(_Run(job, resources, stop, _Shown(progress_of_job(job), bar)), resume)
    return None if finished else result_of(folder)


def result_of(folder: RunFolder) -> dict[str, Any]:
    """Return how a run ended, as its folder tells.

    Raises:
        UserError: If nothing of it is there.
    """
    if not folder.finished:
        raise UserError(
            f"`--out` must be a folder that all machines of the cluster share, got none of the run's files here "
            f"[{folder.path}]. Put it on a shared file system."
        )
    return dict(json.loads(folder.result.read_bytes()))


def _warn_of_idle_gpus(resources: Resources) -> None:
    if not resources.gpus_per_worker and any(machine.get("GPU") for machine in alive()):
        log.warning("The cluster has GPUs, and the run trains on none. `--gpus-per-worker 1` gives each rank one.")


def _until_it_ends(run: _Run, resume: Resume | None) -> None:
    """Make attempts until the run has ended, in one way or the other."""
    from cxrdist.study.gang import Lost  # noqa: PLC0415 - imports Ray

    allowed = run.resources.retries + 1
    for attempt in range(1, allowed + 1):
        try:
            _attempt(run, resume)
            return
        except Lost as how:
            reason = f"A worker or its machine was lost ({how})"
        resume = "auto"
        if attempt < allowed:
            log.warning("%s. The run goes on from its last checkpoint, attempt %d of %d.", reason, attempt + 1, allowed)
    raise UserError(
        f"{reason}, attempt {allowed} of {allowed}. The same command with `--resume auto` goes on from the last "
        f"checkpoint [{run.job.folder}]."
    )


def _attempt(run: _Run, resume: Resume | None) -> None:
    """Train to the end.

    Raises:
        Lost: If a worker or its machine died.
        UserError, Stopped: As `train_on_cluster`.
    """
    from ray.exceptions import RayTaskError  # noqa: PLC0415

    from cxrdist.study.gang import End, Gang, unexpected  # noqa: PLC0415

    here = Path.cwd()

    def work(job: Job, rank: int, workers: int, resources: Resources, address: str) -> End:
        return run_here(job, rank, workers, resources, address, resume=resume, here=here)

    with _placed(run, resume) as group, Gang(run.job, run.resources.workers, run.resources, work, group) as gang:
        try:
            while gang.working():
                run.shown.look()
                if run.stop.raised:
                    log.info("Asked to stop; the ranks write a checkpoint.")
                    _stopped(run, gang.stop(STOP_WAIT_S))
                    return
        except RayTaskError as error:
            raise UserError(unexpected(run.job.folder, error)) from None
        run.shown.look()
        if gang.problem:
            raise (UsageError if gang.problem.usage else UserError)(gang.problem.problem)


def _stopped(run: _Run, ends: Sequence[Any]) -> None:
    """Say how the run was stopped; return if it has ended just before."""
    from cxrdist.study.gang import End  # noqa: PLC0415

    told = [end for end in ends if isinstance(end, End)]
    if len(told) == run.resources.workers and not any(told):
        return
    left = "Stopped. Continue with --resume auto from the last checkpoint, if there is one."
    raise Stopped(run.stop.signum, next((end.problem for end in told if end.stopped), left))


def run_here(
    job: Job, rank: int, workers: int, resources: Resources, address: str, *, resume: Resume | None, here: Path
) -> "End":
    """Train as one rank in the folder in which the command was given, so that its paths mean the same there."""
    from cxrdist.study.gang import End, run_worker  # noqa: PLC0415

    try:
        os.chdir(here)
    except OSError:
        relative = relative_paths(job.tree)
        if relative:
            return End(
                f"A path of a run on a cluster must lead to the same on every machine, got {', '.join(relative)} and "
                f"a machine without the folder that they are relative to [{here}]. Share that, or set whole paths.",
                usage=True,
            )
    return run_worker(job, rank, workers, resources, address, resume=resume)


def relative_paths(tree: Tree) -> list[str]:
    """Return ``name 'path'`` for every path of a run that is relative to where its command is given."""
    return [f"{name} {path!r}" for name, path in paths_of(tree) if not Path(path).is_absolute()]


def paths_of(tree: Tree) -> list[tuple[str, str]]:
    """Return the name and path of all that the tree of a run names on disk."""
    found: list[tuple[str, str]] = []
    for name, value in flatten(tree).items():
        if name in RUN_PATHS:
            paths = value if isinstance(value, list) else [value]
            found += [(f"`{name}`", str(path)) for path in paths if path is not None and not is_timm_name(path)]
    return found


@contextmanager
def _placed(run: _Run, resume: Resume | None) -> "Iterator[PlacementGroup]":
    """Hold a place for each worker during the block; wait until the cluster has one for all of them at once.

    Raises:
        UserError: If the cluster is too small for longer than the run waits for machines.
        Stopped: If a signal comes while it waits.
    """
    from ray.util.placement_group import placement_group, remove_placement_group  # noqa: PLC0415

    held = run.job.resources
    bundle = {"CPU": held.cpus_per_worker} | ({"GPU": held.gpus_per_worker} if held.gpus_per_worker else {})
    # It is asked for even where there is no room yet: a cluster that grows on demand grows by what is asked for.
    group = placement_group([bundle] * held.workers, strategy=held.placement.upper(), name=f"cxrdist {run.job.name}")
    try:
        _wait_for(group, run, resume)
        yield group
    finally:
        remove_placement_group(group)


def _wait_for(group: "PlacementGroup", run: _Run, resume: Resume | None) -> None:
    room, held, waits = Room(), run.job.resources, run.resources.waits
    begun = fitted = time.monotonic()
    told = ""
    while not group.wait(1.0):
        if run.stop.raised:
            raise Stopped(run.stop.signum, f"Stopped before the run had its place. {how_on(run.job.folder, resume)}")
        now = time.monotonic()
        wanted = f"{held.workers} workers of {held.cpus_per_worker:g} CPUs and {held.gpus_per_worker:g} GPUs"
        if room.workers(held) >= held.workers:
            fitted = now
            say = f"The run waits for its place: others hold a part of what {wanted} need."
        else:
            if now - fitted > waits:
                raise UserError(no_room(held, alive(), subject="The run", way_out=CLUSTER_MUST_GROW))
            say = f"The run waits for machines, at most {waits:g} s: there is no room yet for {wanted}."
        if say != told and now - begun > SAY_S:
            log.info("%s", say)
            told = say


def how_on(folder: Path, resume: Resume | None) -> str:
    """Return which command continues a run that was stopped while it waited; `resume` is that of the attempt."""
    if resume or RunFolder(folder).begun:
        return "The same command with `--resume auto` goes on."
    return "The same command begins again."


class _Shown:
    """Shows how far the run is."""

    def __init__(self, reader: ProgressReader, bar: Bar) -> None:
        self._reader, self._bar = reader, bar
        self._known: Progress = reader.read()
        self._begun = False
        if self._known.step:
            bar.skip(self._known.step)

    def look(self) -> None:
        """Bring the bar up to date; a run that goes on from a checkpoint is shown once it is past where it was."""
        known = self._reader.read()
        if known == self._known:
            return
        new, self._known = max(known.step - self._bar.done, 0), known
        self._bar.note = note(known)
        if self._begun:
            self._bar.advance(new)
        else:  # the rate counts from here: until now machines were waited for and workers started
            self._begun, self._bar.started = True, time.monotonic()
            self._bar.skip(new)


def note(known: Progress) -> str:
    """Return the last values of a run in a few words."""
    parts = [
        "" if known.loss is None else f"loss {known.loss:.4f}",
        "" if known.images_per_second is None else f"{known.images_per_second:,.0f} img/s",
        "" if known.value is None else f"val AUROC {known.value:.3f}",
    ]
    return ", ".join(part for part in parts if part)
