"""Running a study: stages, then cells, each a Tune trial; what the ledger has is not run again."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path

from cxrdist.config import read_yaml, write_yaml
from cxrdist.dispatch import shown_map, thread_map
from cxrdist.dispatch.cluster import cluster
from cxrdist.errors import UserError
from cxrdist.log import Progress, get_logger, progress
from cxrdist.report import CellFiles, write_report
from cxrdist.study.config import Resources, StudyConfig
from cxrdist.study.guards import check_study, describe_confounds
from cxrdist.study.ledger import Ledger, State, claimed_by, is_complete, writing
from cxrdist.study.plan import Identity, Job, Plan, missing_weights, plan_study
from cxrdist.study.room import check_room
from cxrdist.train.run_folder import changes

log = get_logger(__name__)

TO_RUN: tuple[State, ...] = ("left", "running", "stopped", "failed")


@dataclass(frozen=True)
class Status:
    """A study's jobs and where each stands."""

    plan: Plan
    states: dict[Identity, State]

    def jobs(self, *states: State) -> list[Job]:
        """Return the jobs that are in one of `states`."""
        return [job for job in self.plan.jobs if self.states[job.identity] in states]


def study_status(study: StudyConfig, out: Path) -> Status:
    """Return what is done, running, failed and left; needs no cluster."""
    plan = plan_study(study, out)
    return Status(plan, _ledger(out).states(plan.jobs))


def run_study(study: StudyConfig, out: Path, *, address: str | None = None, shown: bool = True) -> Path:
    """Run what is not done yet, then write the report; return its page.

    Raises:
        UserError: If jobs failed; the report is written all the same and names the missing cells.  If a trial does not
            fit on the cluster, a weight file is missing, another run of this study is going on, or the folder cannot be
            written.
    """
    plan = plan_study(study, out)
    ledger = _ledger(out)
    with ledger.hold():
        _check_weights(Status(plan, ledger.states(plan.jobs)).jobs(*TO_RUN))
        with writing(out):
            for job in plan.jobs:
                _make_way(job, out)
            write_yaml(study.tree(), out / "study.yaml")
        status = Status(plan, ledger.states(plan.jobs))
        todo, total = status.jobs(*TO_RUN), len(plan.jobs)
        if todo:
            log.info("%d of %d jobs are done; %d to run.", total - len(todo), total, len(todo))
            with cluster(address):
                check_room(study.resources)
                with progress("study", total, unit="jobs", shown=shown) as bar:
                    bar.skip(total - len(todo))
                    for wave in _waves(status):
                        _run_wave(wave, plan, study.resources, ledger, bar)
        failed = _failures(plan, ledger)
        if all(job.name in failed for job in plan.cells):
            raise UserError("\n".join([*failed.values(), "No cell has ended, so there is no report."]))
        page = report_study(study, out)
    if failed:
        way_out = f"The report names what is missing: {page}. Run the same command to try again."
        raise UserError("\n".join([*failed.values(), way_out]))
    return page


def report_study(study: StudyConfig, out: Path) -> Path:
    """Work out the statistics from the saved predictions and write the report; return its page."""
    plan = plan_study(study, out)
    states = _ledger(out).states(plan.jobs)
    done = [job for job in plan.cells if states[job.identity] == "done"]
    if not done:
        raise UserError(f"A report must have finished cells, got none [{out}]. Run the study first.")
    cells = [
        # What lies in the folder of an unfinished cell may be half of it, or of an earlier form of the study.
        CellFiles(
            job.strategy, job.dataset, job.seed, job.folder if job in done else job.folder / "unfinished", job.variant
        )
        for job in plan.cells
    ]
    guards, notes = check_study(study, plan, done), describe_confounds(plan)
    spread = shown_map(thread_map(_cores()), "statistics", unit="blocks")
    with writing(out):
        return write_report(
            cells, out / "report", title=study.title, options=study.statistics, guards=guards, notes=notes, map=spread
        )


def _check_weights(todo: Sequence[Job]) -> None:
    """Make sure that every weight file is there before the first hour is spent.

    Raises:
        UserError: If one is not; all are told.
    """
    missing = missing_weights(todo)
    if missing:
        more = {path: f" and {len(names) - 2} more" if len(names) > 2 else "" for path, names in missing.items()}
        told = [f"{path!r} (for {', '.join(names[:2])}{more[path]})" for path, names in missing.items()]
        raise UserError(
            f"Every weight file of a study must be there before it starts, got none at {'; '.join(told)}. Put "
            f"{'it' if len(told) == 1 else 'them'} there, or set `weights_root` to the folder that "
            f"{'it is' if len(told) == 1 else 'they are'} in."
        )


def _cores() -> int:
    """Return the cores this process may use: a job of a cluster has a share of its machine (Linux; elsewhere all)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _ledger(out: Path) -> Ledger:
    return Ledger(out.resolve() / "ledger.jsonl")


def _waves(status: Status) -> list[list[Job]]:
    """Return the jobs to run in groups; a group needs only groups before it."""
    todo = status.jobs(*TO_RUN)
    waves: list[list[Job]] = []
    placed = {job.identity for job in status.jobs("done")}
    while todo:
        ready = [job for job in todo if placed.issuperset(job.needs)]
        # Tune starts trials in this order: stages first, and cells that need none fill what the stages leave free.
        waves.append(sorted(ready, key=lambda job: job.kind != "stage"))
        placed |= {job.identity for job in ready}
        todo = [job for job in todo if job.identity not in placed]
    return waves


def _run_wave(wave: Sequence[Job], plan: Plan, resources: Resources, ledger: Ledger, bar: Progress) -> None:
    from ray import tune  # noqa: PLC0415 - after the cluster is there

    from cxrdist.study.trial import Shared, run_trial  # noqa: PLC0415

    ready = [job for job in wave if not _blocked(job, plan, ledger, bar)]
    if not ready:
        return

    class Shown(tune.Callback):
        def on_trial_complete(self, iteration: int, trials: list, trial: tune.experiment.Trial, **info: object) -> None:
            failed = (trial.last_result or {}).get("failed", True)
            bar.advance(note=f"{trial.config['name']} {'failed' if failed else 'done'}")

        on_trial_error = on_trial_complete

    shared = Shared({job.name: job for job in ready}, resources, ledger.path)
    bundle = {"CPU": resources.cpus_per_worker}
    if resources.gpus_per_worker:
        bundle["GPU"] = resources.gpus_per_worker
    # The first bundle is the trial's own process, which only waits; empty, so that on a small machine it takes no core.
    placement = tune.PlacementGroupFactory([{}, *[bundle] * resources.workers], strategy="PACK")
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(run_trial, shared=shared), placement),
        param_space={"name": tune.grid_search(list(shared.jobs))},
        tune_config=tune.TuneConfig(
            max_concurrent_trials=resources.max_concurrent,
            reuse_actors=True,
            trial_name_creator=lambda trial: trial.config["name"],
            trial_dirname_creator=lambda trial: trial.config["name"],
        ),
        run_config=tune.RunConfig(
            name=f"from-{ready[0].name}-{ready[0].key}",
            storage_path=str(ledger.path.parent / "ray"),
            # A trial itself starts its workers again; this is for the machine that the trial's own process was on.
            failure_config=tune.FailureConfig(max_failures=resources.retries),
            verbose=0,
            callbacks=[Shown()],
        ),
    )
    with writing(ledger.path.parent):
        results = tuner.fit()
    for result in results:
        if result.metrics and result.metrics.get("unwritten"):
            raise UserError(result.metrics["failed"])
    states = ledger.states(ready)
    for job in ready:
        if states[job.identity] == "running":
            ledger.append("failed", job, error="Its process on the cluster was lost.")


def _blocked(job: Job, plan: Plan, ledger: Ledger, bar: Progress) -> bool:
    """Mark `job` as failed if a stage that it needs is not done; return whether it is so."""
    states, errors = ledger.states(plan.stages), ledger.failures()
    for stage in plan.stages:
        if stage.identity in job.needs and states[stage.identity] != "done":
            ledger.append("failed", job, error=f"Stage {stage.name} failed: {errors.get(stage.identity, 'not done.')}")
            bar.advance(note=f"{job.name} failed")
            return True
    return False


def _make_way(job: Job, out: Path) -> None:
    """Move a run folder of another configuration aside, and bring back this one's; nothing is thrown away.

    What belongs to whom is told by the key; the configuration can differ besides, where shards have moved.
    """
    config, aside = job.folder / "config.yaml", out / "superseded"
    key = claimed_by(job.folder)
    moved = config.is_file() and not is_complete(job) and changes(read_yaml(config), job.tree)
    if job.folder.is_dir() and (key != job.key or moved):
        aside.mkdir(exist_ok=True)
        places = (aside / f"{job.name}-{key}{suffix}" for suffix in chain([""], (f"-{n}" for n in count(1))))
        job.folder.rename(next(place for place in places if not place.exists()))
    mine = aside / f"{job.name}-{job.key}"
    if not job.folder.exists() and mine.is_dir() and not moved:
        job.folder.parent.mkdir(parents=True, exist_ok=True)
        mine.rename(job.folder)


def _failures(plan: Plan, ledger: Ledger) -> dict[str, str]:
    """Return a sentence for each job that is not done, by its name."""
    states, errors = ledger.states(plan.jobs), ledger.failures()
    unseen = "nothing of it is in the study folder, which all machines of a cluster must share."
    return {
        job.name: f"{job.name} failed: {errors[job.identity] if states[job.identity] == 'failed' else unseen}"
        for job in plan.jobs
        if states[job.identity] != "done"
    }
