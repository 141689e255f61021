"""`cxrdist sweep`: a search for the values of a fine-tuning, on Ray."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cxrdist.cli.options import Address, Debug, Json, Settings, ShipCode
from cxrdist.cli.reading import read_file
from cxrdist.cli.show import print_table
from cxrdist.cli.training import default_folder

if TYPE_CHECKING:
    from cxrdist.study.sweep.config import SweepConfig

SweepFile = Annotated[Path, typer.Argument(metavar="SWEEP.yaml", help="The sweep's configuration.")]
Out = Annotated[
    Path | None, typer.Option(help="Sweep folder. Default: runs/NAME, for NAME.yaml; with --debug runs/NAME-debug.")
]


def sweep(
    context: typer.Context,
    file: SweepFile,
    out: Out = None,
    settings: Settings = None,
    address: Address = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be tried, and stop.")] = False,
    ship_code: ShipCode = False,
    debug: Debug = False,
    as_json: Json = False,
) -> None:
    """Search for the values of a fine-tuning: grid, random or Optuna; with ASHA, median stopping or populations.

    Judged by validation AUROC alone; the test split is not read. Safe to repeat: what has ended is not done again.

    Example: `cxrdist sweep launch/sweeps/demo.yaml --out runs/demo/sweep`
    """
    from cxrdist.study.sweep.config import SweepConfig

    config, folder = read_file(SweepConfig, file, settings, debug=debug), out or default_folder(file, debug=debug)
    from cxrdist.cli.submitting import named_in, submitted

    paths, files = named_in({"run": config.forms})
    paths |= {"`--out`": folder, "`run.shards`": config.base.shards}
    submitted(
        context, address, name=f"sweep {file.stem}", paths=paths, files=[file, *files],
        keep=folder / "submitted" if files else None, ship_code=ship_code,
    )  # fmt: skip
    if dry_run:
        _show_plan(config, folder, as_json)
        return
    from cxrdist.study.sweep.run import run_sweep

    _finish(config, run_sweep(config, folder, address=address, shown=not as_json), as_json)


def _show_plan(config: "SweepConfig", folder: Path, as_json: bool) -> None:
    import json

    from cxrdist.study.sweep.importance import shown
    from cxrdist.study.sweep.run import expected_trials, plan_sweep

    trials, total, train = plan_sweep(config, folder), expected_trials(config), config.base.train
    if as_json:
        told = [{"name": one.job.name, "key": one.job.key, "values": one.values} for one in trials]
        typer.echo(json.dumps({"trials": told, "total": total, "steps_each": train.steps}))
        return
    names = list(config.search)
    rows = [[one.job.name, *(shown(one.values[name]) for name in names)] for one in trials]
    if rows:
        print_table("What would be tried", ["trial", *names], rows)
    members = total // max(len(config.forms), 1) if config.scheduler.name != "pbt" else config.trials
    images = members * len(config.forms) * train.steps * train.global_batch_size
    typer.echo(
        f"{total} trials, {len(config.forms)} x {config.scheduler.name} on {config.algorithm.name} values; "
        f"at most {images:,} training images."
    )
    if total > len(trials):
        typer.echo("The values of the others follow from how the first do.")


def _finish(config: "SweepConfig", page: Path, as_json: bool) -> None:
    """Print the best of each strategy, the checks that failed, and where the page is."""
    import csv
    import json

    def read(name: str) -> list[dict[str, str]]:
        with (page.parent / name).open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    best = [row for row in read("trials.csv") if row["best"] == "True"]
    failed = [check for check in read("checks.csv") if check["passed"] != "True"]
    if as_json:
        typer.echo(json.dumps({"report": str(page), "best": best, "failed_checks": failed}))
        return
    names = list(config.search)
    print_table(
        "The best by validation AUROC",
        ["strategy", "AUROC", *names, "trial"],
        [
            [row["strategy"], f"{float(row['validation_auroc']):.4f}", *(row[name] for name in names), row["trial"]]
            for row in best
        ],
    )
    for check in failed:
        typer.echo(f"FAILED: {check['name']}. {check['detail']}")
    typer.echo(f"Run files: {page.parent.parent / 'best'}")
    typer.echo(f"Report: {page}")
