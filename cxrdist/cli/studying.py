"""`cxrdist study` and `cxrdist demo`: the grid of cells on Ray, its state, and its report."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cxrdist.cli.options import Json, Settings
from cxrdist.cli.show import print_table

if TYPE_CHECKING:
    from cxrdist.study.config import StudyConfig
    from cxrdist.study.run import Status

study = typer.Typer(help="Run a study on Ray, see how far it is, and write its report.", no_args_is_help=True)

StudyFile = Annotated[Path, typer.Argument(metavar="STUDY.yaml", help="The study's configuration.")]
Out = Annotated[Path | None, typer.Option(help="Study folder. Default: runs/NAME, for NAME.yaml.")]


def demo(
    out: Annotated[Path, typer.Option(help="Folder to write.")] = Path("runs/demo"),
    as_json: Json = False,
) -> None:
    """Draw phantoms, pack them, run a study on them and write its report: the whole chain, in minutes.

    Safe to repeat: what is finished is not done again. Example: `cxrdist demo --out runs/demo`
    """
    from cxrdist.study.demo import run_demo

    page = run_demo(out)
    _finish(page, as_json)


@study.command()
def run(
    file: StudyFile,
    out: Out = None,
    settings: Settings = None,
    address: Annotated[str | None, typer.Option(help="A running Ray cluster. Default: a local one of its own.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would run, and stop.")] = False,
    as_json: Json = False,
) -> None:
    """Run the cells that are not done yet, then write the report.

    Example: `cxrdist study run launch/studies/demo.yaml --out runs/demo/study`
    """
    from cxrdist.study.run import run_study, study_status

    config, folder = _read(file, settings), out or Path("runs") / file.stem
    if dry_run:
        _show_status(study_status(config, folder), as_json)
        return
    _finish(run_study(config, folder, address=address), as_json)


@study.command()
def status(file: StudyFile, out: Out = None, settings: Settings = None, as_json: Json = False) -> None:
    """Show what is done, running, failed and left.  Needs no cluster.

    Example: `cxrdist study status launch/studies/demo.yaml --out runs/demo/study`
    """
    from cxrdist.study.run import study_status

    _show_status(study_status(_read(file, settings), out or Path("runs") / file.stem), as_json)


@study.command()
def report(file: StudyFile, out: Out = None, settings: Settings = None, as_json: Json = False) -> None:
    """Work out statistics and report again from the saved predictions.

    Example: `cxrdist study report launch/studies/demo.yaml --out runs/demo/study --set statistics.n_resamples=10000`
    """
    from cxrdist.study.run import report_study

    _finish(report_study(_read(file, settings), out or Path("runs") / file.stem), as_json)


def _read(file: Path, settings: list[str] | None) -> "StudyConfig":
    from cxrdist.study.config import StudyConfig

    return StudyConfig.read(file, settings or ())


def _show_status(status: "Status", as_json: bool) -> None:
    import json

    rows = [
        {"kind": job.kind, "name": job.name, "state": status.states[job.identity], "key": job.key}
        for job in status.plan.jobs
    ]
    if as_json:
        typer.echo(json.dumps(rows))
        return
    print_table(
        "", ["name", "kind", "state", "key"], [[row["name"], row["kind"], row["state"], row["key"]] for row in rows]
    )
    counts = {
        state: sum(row["state"] == state for row in rows) for state in ("done", "running", "stopped", "failed", "left")
    }
    typer.echo(", ".join(f"{count} {state}" for state, count in counts.items()))


def _finish(page: Path, as_json: bool) -> None:
    """Print the headline table, the guards that failed, and where the page is."""
    import csv
    import json

    def read(name: str) -> list[dict[str, str]]:
        with (page.parent / name).open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    rows, guards = read("headline.csv"), read("guards.csv")
    failed = [guard for guard in guards if guard["passed"] != "True"]
    if as_json:
        typer.echo(json.dumps({"report": str(page), "headline": rows, "failed_checks": failed}))
        return
    print_table(
        f"Mean AUROC over findings, and its difference to {rows[0]['reference']}",
        ["dataset", "strategy", "AUROC", "difference", "p", "q"],
        [
            [
                row["dataset"],
                row["strategy"],
                _interval(row, "auroc", ".3f") or row["status"],
                _interval(row, "difference", "+.3f") or ("reference" if row["strategy"] == row["reference"] else "-"),
                *(f"{float(row[name]):.4f}" if row[name] else "-" for name in ("p", "q")),
            ]
            for row in rows
        ],
    )
    typer.echo(f"{len(guards) - len(failed)} of {len(guards)} checks of rigor passed.")
    for guard in failed:
        typer.echo(f"FAILED: {guard['name']}. {guard['detail']}")
    typer.echo(f"Report: {page}")


def _interval(row: dict[str, str], name: str, form: str) -> str:
    if not row[name]:
        return ""
    value, low, high = (float(row[name + end]) for end in ("", "_low", "_high"))
    return f"{value:{form}} [{low:{form}}, {high:{form}}]"
