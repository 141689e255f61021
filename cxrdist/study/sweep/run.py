"""Running a sweep: trials on the cluster until the search has none left, then the best of them and the report."""

from collections.abc import Sequence
from pathlib import Path

from cxrdist.config import Tree, override, write_yaml
from cxrdist.dispatch.cluster import cluster
from cxrdist.errors import UserError
from cxrdist.finetune.config import FinetuneConfig
from cxrdist.log import get_logger
from cxrdist.study.folders import make_way
from cxrdist.study.ledger import Ledger, ledger_of, writing
from cxrdist.study.plan import check_weights
from cxrdist.study.room import check_room
from cxrdist.study.sweep.config import AshaScheduler, MedianScheduler, PbtScheduler, SweepConfig
from cxrdist.study.sweep.draws import draw
from cxrdist.study.sweep.history import History
from cxrdist.study.sweep.journal import Journal
from cxrdist.study.sweep.plan import Planner, Trial, resolved
from cxrdist.study.sweep.population import Population, generation_ends
from cxrdist.study.sweep.results import Findings, Row, gather
from cxrdist.study.sweep.schedulers import Asha, GoOn, MedianStopping, Rule
from cxrdist.study.sweep.source import Listed, Supply, SweepSource
from cxrdist.study.sweep.suggest import Suggested, load_optuna

log = get_logger(__name__)


def plan_sweep(sweep: SweepConfig, out: Path) -> list[Trial]:
    """Return the trials that are known before any has run; none where an algorithm asks for them.

    Raises:
        UsageError: If drawn values do not fit together.
        UserError: If a shard folder, a weight file or a library is missing.
    """
    planner = Planner.of(sweep, out)
    if sweep.algorithm.name == "optuna":
        load_optuna()
        first = [planner.trial(name, 0, {}) for name in sweep.forms]
    else:
        first = planner.trials(draw(sweep))
    check_weights([trial.job for trial in first], of="sweep", way_out="set `model.weights` to where they are")
    if isinstance(sweep.scheduler, PbtScheduler):
        return Population(planner).more(History())
    return [] if sweep.algorithm.name == "optuna" else first


def expected_trials(sweep: SweepConfig) -> int:
    """Return how many trials there will be."""
    if sweep.algorithm.name == "optuna":
        return sweep.trials * len(sweep.forms)
    ends = generation_ends(sweep) if isinstance(sweep.scheduler, PbtScheduler) else [0]
    return len(draw(sweep)) * len(sweep.forms) * len(ends)


def run_sweep(sweep: SweepConfig, out: Path, *, address: str | None = None, shown: bool = True) -> Path:
    """Run the trials that have not ended yet, then write the best and the report; return its page.

    Args:
        sweep: What to run.
        out: The sweep folder; on a cluster one that all machines share.
        address: A running cluster; without one a local cluster is started and ended.
        shown: Show progress.

    Raises:
        UserError: If trials failed that can be tried again; the report is written all the same.  If no trial fits on
            the cluster, another run of this sweep is going on, a file or a library is missing, or the folder cannot be
            written.
    """
    plan_sweep(sweep, out)  # tells what is wrong before anything is written
    ledger = ledger_of(sweep, out)
    with ledger.hold():
        with writing(out):
            out.mkdir(parents=True, exist_ok=True)  # the ledger may be elsewhere
            write_yaml(sweep.tree(), out / "sweep.yaml")
            source = build_source(sweep, out, ledger)
        if source.left():
            total, ended = expected_trials(sweep), len(source.history.ended)
            log.info("%d of %d trials have ended; %d to run.", ended, total, total - ended)
            with cluster(address, name=f"cxrdist sweep {sweep.title}"):
                _run_on_cluster(sweep, source, ledger, shown=shown)
        found = gather(sweep, list(source.trials.values()), source.history)
        with writing(out):
            page = write_findings(found, out)
    # A member of a population that others have taken the place of stays as it is: a failed check on the page tells it.
    again = [row for row in found.rows if row.state == "failed" and source.tried_again(row.trial)]
    failed = [f"{row.name} failed: {row.reason}" for row in again]
    if failed:
        raise UserError(
            "\n".join([*failed, f"The report is of the others: {page}. The same command tries them again."])
        )
    return page


def write_findings(found: Findings, out: Path) -> Path:
    """Write the best configurations and the report; return its page."""
    from cxrdist.study.sweep.page import write_page  # noqa: PLC0415 - matplotlib

    write_best(found, out)
    return write_page(found, out)


def write_best(found: Findings, out: Path) -> None:
    """Write ``best/<strategy>.yaml``, a run file each, and ``best.yaml``, the same for the strategies of a study."""
    sweep = found.sweep
    (out / "best").mkdir(exist_ok=True)
    for stale in (*(out / "best").glob("*.yaml"), out / "best.yaml"):
        stale.unlink(missing_ok=True)
    sets: dict[str, Tree] = {}
    for strategy in found.strategies:
        row = found.best(strategy)
        if row is None:
            continue
        values = row.trial.values
        config = resolved(override(sweep.forms[strategy], values), where=f"best of {strategy}")
        path = out / "best" / f"{strategy}.yaml"
        write_yaml(config.tree(), path)
        path.write_text(_header(found, row) + path.read_text(encoding="utf-8"), encoding="utf-8")
        if FinetuneConfig.read(path) != config:
            raise AssertionError(f"{path.name} is not the configuration it was written from")
        own = sweep.strategies[strategy].set if strategy in sweep.strategies else {}
        sets[strategy] = {"set": {**own, **values}}
    if sweep.strategies and sets:
        write_yaml({"strategies": sets}, out / "best.yaml")
        text = (out / "best.yaml").read_text(encoding="utf-8")
        note = "# The best values of each strategy, for the `strategies` of a study.\n"
        (out / "best.yaml").write_text(note + text, encoding="utf-8")


def _header(found: Findings, row: Row) -> str:
    """Return the comment that a best file begins with; a title may hold anything, but no line of its own."""
    title = " ".join(found.sweep.title.split())
    trials = len({other.trial.number for other in found.of(row.trial.strategy)})
    lines = [
        f"The best of {trials} trials of the sweep {title!r}: {row.name}, validation AUROC {row.best or 0:.4f}.",
        "It was chosen by that value, which is thus too high for new patients: a test split says what it is worth.",
        "",
        f"  cxrdist train {row.trial.strategy}.yaml --out runs/{row.trial.strategy}",
    ]
    if isinstance(found.sweep.scheduler, PbtScheduler):
        lines += [
            "",
            "A population changes values while it trains: these are the last ones of its best member, and a run that",
            f"has them from its first step is another training.  The trained model is in trials/{row.name}/model.",
        ]
    return "".join(f"# {line}".rstrip() + "\n" for line in lines) + "\n"


def build_source(sweep: SweepConfig, out: Path, ledger: Ledger) -> SweepSource:
    """Return where the trials of `sweep` come from, with all that its folder tells of earlier runs."""
    planner, journal = Planner.of(sweep, out), Journal(out.resolve() / "rungs.jsonl")
    supply: Supply
    if isinstance(sweep.scheduler, PbtScheduler):
        supply = Population(planner)
    elif sweep.algorithm.name == "optuna":
        supply = Suggested(planner, journal)
    else:
        supply = Listed(planner.trials(draw(sweep)))
    rule = sweep.scheduler.model_dump_json() + f" {sweep.base.train.steps}"
    rules = {name: build_rule(sweep) for name in sweep.forms}

    def prepare(trials: Sequence[Trial]) -> None:
        with writing(out):
            if isinstance(supply, Population):
                supply.prepare(trials)
            else:
                make_way([trial.job for trial in trials], out.resolve(), renamed=True)

    return SweepSource(supply, rules, rule=rule, journal=journal, ledger=ledger, prepare=prepare)


def build_rule(sweep: SweepConfig) -> Rule:
    """Return the rule of a sweep's scheduler, new."""
    scheduler, train = sweep.scheduler, sweep.base.train
    if isinstance(scheduler, AshaScheduler):
        grace = scheduler.grace or min(train.evaluate_every, train.steps)
        return Asha(grace=grace, reduction=scheduler.reduction, steps=train.steps)
    if isinstance(scheduler, MedianScheduler):
        return MedianStopping(grace=scheduler.grace or train.evaluate_every, fewest=scheduler.fewest)
    return GoOn()


def _run_on_cluster(sweep: SweepConfig, source: SweepSource, ledger: Ledger, *, shown: bool) -> None:
    from cxrdist.study.live import watched  # noqa: PLC0415 - these import Ray
    from cxrdist.study.tuning import run_jobs  # noqa: PLC0415

    trials = list(source.trials.values())
    check_room(sweep.resources, [trial.job.resources for trial in trials])
    ended = [trial.job for trial in trials if trial.job.name in source.history.ended]
    todo = [trial.job for trial in trials if trial.job.name not in source.history.ended]
    total = expected_trials(sweep)
    with watched(sweep.title, todo=todo, done=ended, total=total, shown=shown, label="sweep") as watch:
        run_jobs(source, ledger, sweep.resources, watch)
