"""Running a study: a graph of stages and cells, each a trial; what the ledger has is not run again."""

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from cxrdist.config import write_yaml
from cxrdist.dispatch import shown_map
from cxrdist.dispatch.adaptive import adaptive_map
from cxrdist.dispatch.cluster import cluster
from cxrdist.errors import UserError
from cxrdist.log import get_logger
from cxrdist.report import CellFiles, write_report
from cxrdist.study.choice import ALL, Chosen
from cxrdist.study.config import StudyConfig
from cxrdist.study.external_guards import (
    check_external,
    describe_seen,
    external_files,
    find_leaks,
    with_marks,
)
from cxrdist.study.folders import make_way
from cxrdist.study.graph import Graph
from cxrdist.study.guards import check_study, describe_confounds
from cxrdist.study.jobs import Identity, Job
from cxrdist.study.ledger import Ledger, State, ledger_of, writing
from cxrdist.study.plan import Plan, check_weights, plan_study
from cxrdist.study.room import check_room

log = get_logger(__name__)

TO_RUN: tuple[State, ...] = ("left", "running", "stopped", "failed")


@dataclass(frozen=True)
class Status:
    """A study's jobs and where each stands."""

    plan: Plan
    states: dict[Identity, State]
    chosen: Sequence[Job]
    """Those that a run would see to: all, unless only some cells are asked for."""

    def jobs(self, *states: State) -> list[Job]:
        """Return the jobs that are in one of `states`."""
        return [job for job in self.plan.jobs if self.states[job.identity] in states]


def study_status(study: StudyConfig, out: Path, chosen: Chosen = ALL) -> Status:
    """Return what is done, running, failed and left; needs no cluster."""
    plan = plan_study(study, out)
    return Status(plan, ledger_of(study, out).states(plan.jobs), chosen.of(plan))


def run_study(
    study: StudyConfig, out: Path, *, address: str | None = None, chosen: Chosen = ALL, shown: bool = True
) -> Path:
    """Run what is not done yet, then write the report; return its page.

    Args:
        study: What to run.
        out: The study folder; on a cluster one that all machines share.
        address: A running cluster; without one a local cluster is started and ended.
        chosen: Which cells are run now.  The report is always of the whole study.
        shown: Show progress.

    Raises:
        UserError: If jobs failed; the report is written all the same and names the missing cells.  If no trial fits
            on the cluster, a weight file is missing, another run of this study is going on, or the folder cannot be
            written.
    """
    plan = plan_study(study, out)
    wanted = chosen.of(plan)
    ledger = ledger_of(study, out)
    with ledger.hold(), ExitStack() as connection:
        states = ledger.states(plan.jobs)
        check_weights(
            [job for job in wanted if states[job.identity] in TO_RUN],
            of="study",
            way_out="set `weights_root` to their folder",
        )
        with writing(out):
            out.mkdir(parents=True, exist_ok=True)  # the ledger may be elsewhere
            make_way(plan.jobs, out)
            write_yaml(study.tree(), out / "study.yaml")
        states = ledger.states(plan.jobs)
        todo = sum(states[job.identity] in TO_RUN for job in wanted)
        if todo:
            log.info("%d of %d jobs are done; %d to run.", len(wanted) - todo, len(wanted), todo)
            connection.enter_context(cluster(address, name=f"cxrdist study {study.title}"))
            _run_on_cluster(study, wanted, states, ledger, shown=shown)
            if not address:  # it has no more cores for the report than this process
                connection.close()
        failed = _failures(wanted, ledger)
        if not any(state == "done" for state in ledger.states(plan.cells).values()):
            raise UserError("\n".join([*failed.values(), "No cell has ended, so there is no report."]))
        page = report_study(study, out)
    if failed:
        way_out = f"The report names what is missing: {page}. Run the same command to try again."
        raise UserError("\n".join([*failed.values(), way_out]))
    return page


def _run_on_cluster(
    study: StudyConfig, wanted: Sequence[Job], states: Mapping[Identity, State], ledger: Ledger, *, shown: bool
) -> None:
    """Run those of the `wanted` jobs that are not done on the connected cluster."""
    from cxrdist.study.live import watched  # noqa: PLC0415 - these import Ray
    from cxrdist.study.tuning import run_jobs  # noqa: PLC0415

    todo = [job for job in wanted if states[job.identity] in TO_RUN]
    check_room(study.resources, [job.resources for job in todo])
    with watched(
        study.title, todo=todo, done=[job for job in wanted if states[job.identity] == "done"], shown=shown
    ) as watch:
        run_jobs(Graph(todo, states, ledger, watch), ledger, study.resources, watch)


def report_study(study: StudyConfig, out: Path) -> Path:
    """Work out the statistics from the saved predictions and write the report; return its page.

    Where a cluster is connected, long work goes there; the report is the same.
    """
    plan = plan_study(study, out)
    states = ledger_of(study, out).states(plan.jobs)
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
    external = external_files(plan, {identity for identity, state in states.items() if state == "done"})
    if external:
        leaks = find_leaks(study, plan)
        guards, notes = guards + check_external(plan, leaks), notes + describe_seen(study, plan)
        external = with_marks(external, leaks)
    spread = shown_map(adaptive_map(_cores()), "statistics", unit="blocks")
    with writing(out):
        return write_report(
            cells,
            out / "report",
            title=study.title,
            options=study.statistics,
            guards=guards,
            notes=notes,
            external=external,
            map=spread,
        )


def _cores() -> int:
    """Return the cores this process may use: a job of a cluster has a share of its machine (Linux; elsewhere all)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _failures(jobs: Sequence[Job], ledger: Ledger) -> dict[str, str]:
    """Return a sentence for each of `jobs` that is not done, by its name."""
    states, errors = ledger.states(jobs), ledger.failures()
    unseen = "nothing of it is in the study folder, which all machines of a cluster must share."
    return {
        job.name: f"{job.name} failed: {errors[job.identity] if states[job.identity] == 'failed' else unseen}"
        for job in jobs
        if states[job.identity] != "done"
    }
