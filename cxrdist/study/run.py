"""Running a study: stages, then cells, each a Tune trial; what the ledger has is not run again."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cxrdist.config import read_yaml, write_yaml
from cxrdist.errors import UserError
from cxrdist.log import Progress, get_logger, progress
from cxrdist.report import CellFiles, write_report
from cxrdist.study.cluster import cluster
from cxrdist.study.config import Resources, StudyConfig
from cxrdist.study.guards import check_study, describe_confounds
from cxrdist.study.ledger import Ledger, State
from cxrdist.study.plan import Job, Plan, plan_study
from cxrdist.train.run_folder import changes

log = get_logger(__name__)


@dataclass(frozen=True)
class Status:
    """A study's jobs and where each stands."""

    plan: Plan
    states: dict[str, State]

    def jobs(self, *states: State) -> list[Job]:
        """Return the jobs that are in one of `states`."""
        return [job for job in self.plan.jobs if self.states[job.key] in states]


def study_status(study: StudyConfig, out: Path) -> Status:
    """Return what is done, running, failed and left; needs no cluster."""
    plan = plan_study(study, out)
    return Status(plan, Ledger(out / "ledger.jsonl").states(plan.jobs))


def run_study(study: StudyConfig, out: Path, *, address: str | None = None, shown: bool = True) -> Path:
    """Run what is not done yet, then write the report; return its page.

    Raises:
        UserError: If jobs failed.  The report is written all the same and names the missing cells.
    """
    status = study_status(study, out)
    out.mkdir(parents=True, exist_ok=True)
    write_yaml(study.tree(), out / "study.yaml")
    todo = status.jobs("left", "running", "failed")
    if todo:
        log.info(
            "%d of %d jobs are done; %d to run.", len(status.plan.jobs) - len(todo), len(status.plan.jobs), len(todo)
        )
        for job in todo:
            _set_aside_other(job, out)
        with cluster(address), progress("study", len(status.plan.jobs), unit="jobs", shown=shown) as bar:
            bar.skip(len(status.plan.jobs) - len(todo))
            for wave in _waves(status):
                _run_wave(wave, study.resources, out, bar)
    page = report_study(study, out)
    failed = _last_failures(status.plan, out)
    if failed:
        raise UserError(
            "\n".join([*failed, f"The report names what is missing: {page}. Run the same command to try again."])
        )
    return page


def report_study(study: StudyConfig, out: Path) -> Path:
    """Work out the statistics from the saved predictions and write the report; return its page."""
    plan = plan_study(study, out)
    cells = [CellFiles(job.strategy, job.dataset, job.seed, job.folder) for job in plan.cells]
    states = Ledger(out / "ledger.jsonl").states(plan.jobs)
    if not any(states[job.key] == "done" for job in plan.cells):
        raise UserError(f"A report must have finished cells, got none [{out}]. Run the study first.")
    return write_report(
        cells,
        out / "report",
        title=study.title,
        options=study.statistics,
        guards=check_study(study, plan),
        notes=describe_confounds(plan),
    )


def _waves(status: Status) -> list[list[Job]]:
    """Return the jobs to run in groups; a group needs only groups before it."""
    todo = status.jobs("left", "running", "failed")
    waves: list[list[Job]] = []
    placed: set[str] = {job.key for job in status.jobs("done")}
    while todo:
        ready = [job for job in todo if all(key in placed for key in job.needs)]
        # Stages alone first: a cell of the same wave would take their place on the cluster.
        wave = [job for job in ready if job.kind == "stage"] or ready
        waves.append(wave)
        placed |= {job.key for job in wave}
        todo = [job for job in todo if job.key not in placed]
    return waves


def _run_wave(wave: Sequence[Job], resources: Resources, out: Path, bar: Progress) -> None:
    from ray import tune  # noqa: PLC0415 - after the cluster is there

    from cxrdist.study.trial import Shared, run_trial  # noqa: PLC0415

    ledger = Ledger(out / "ledger.jsonl")
    failed = {line["key"] for line in ledger.read() if line["event"] == "failed"}
    done = {line["key"] for line in ledger.read() if line["event"] == "done"}
    blocked = [job for job in wave if any(key in failed - done for key in job.needs)]
    for job in blocked:
        ledger.append("failed", job, error="a stage it starts from failed")
        bar.advance(note=f"{job.name} blocked")
    ready = [job for job in wave if job not in blocked]
    if not ready:
        return

    class Shown(tune.Callback):
        def on_trial_complete(self, iteration: int, trials: list, trial: tune.experiment.Trial, **info: object) -> None:
            bar.advance(note=f"{trial.config['name']} {'failed' if trial.last_result.get('failed') else 'done'}")

        on_trial_error = on_trial_complete

    shared = Shared({job.name: job for job in ready}, resources, ledger.path.resolve())
    bundle = {"CPU": resources.cpus_per_worker} | (
        {"GPU": resources.gpus_per_worker} if resources.gpus_per_worker else {}
    )
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
            name=f"{ready[0].kind}s-{ready[0].key}",
            storage_path=str((out / "ray").resolve()),
            verbose=0,
            callbacks=[Shown()],
        ),
    )
    tuner.fit()


def _set_aside_other(job: Job, out: Path) -> None:
    """Move a run folder of another configuration out of the way; nothing is thrown away."""
    config = job.folder / "config.yaml"
    if config.is_file() and changes(read_yaml(config), job.tree):
        aside = out / "superseded"
        aside.mkdir(exist_ok=True)
        number = len(list(aside.glob(f"{job.name}-*")))
        shutil.move(job.folder, aside / f"{job.name}-{number}")


def _last_failures(plan: Plan, out: Path) -> list[str]:
    ledger = Ledger(out / "ledger.jsonl")
    states = ledger.states(plan.jobs)
    errors = {line["key"]: line["error"] for line in ledger.read() if line["event"] == "failed"}
    return [
        f"{job.name} {'failed: ' + errors[job.key] if states[job.key] == 'failed' else 'was not finished.'}"
        for job in plan.jobs
        if states[job.key] != "done"
    ]
