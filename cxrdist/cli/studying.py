"""`cxrdist study` and `cxrdist demo`: the grid of cells on Ray, its state, and its report."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cxrdist.cli.options import Address, Debug, Json, Settings, ShipCode
from cxrdist.cli.reading import read_file
from cxrdist.cli.show import print_table
from cxrdist.cli.training import default_folder
from cxrdist.errors import UsageError

if TYPE_CHECKING:
    from cxrdist.study.config import StudyConfig
    from cxrdist.study.cost import JobCost
    from cxrdist.study.run import Status
    from cxrdist.study.standing import Standing

study = typer.Typer(help="Run a study on Ray, see how far it is, and write its report.", no_args_is_help=True)

StudyFile = Annotated[Path, typer.Argument(metavar="STUDY.yaml", help="The study's configuration.")]
Only = Annotated[
    list[str] | None, typer.Option(metavar="PATTERN", help="Run only cells of such names: 'dinov2--*'. Repeatable.")
]
LeaveOut = Annotated[
    list[str] | None, typer.Option("--except", metavar="PATTERN", help="Leave out cells of such names. Repeatable.")
]
Out = Annotated[
    Path | None, typer.Option(help="Study folder. Default: runs/NAME, for NAME.yaml; with --debug runs/NAME-debug.")
]


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
def run(  # noqa: PLR0913, PLR0917 - typer makes an option of each
    context: typer.Context,
    file: StudyFile,
    out: Out = None,
    settings: Settings = None,
    address: Address = None,
    only: Only = None,
    leave_out: LeaveOut = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would run and its cost, and stop.")] = False,
    gpus: Annotated[int, typer.Option(min=1, help="With --dry-run: GPUs, over all machines.")] = 1,
    gpu: Annotated[str, typer.Option(help="With --dry-run: name of one of them, for its peak rate.")] = "H100",
    mfu: Annotated[float, typer.Option(help="With --dry-run: share of that peak that is reached.")] = 0.4,
    ship_code: ShipCode = False,
    debug: Debug = False,
    as_json: Json = False,
) -> None:
    """Run the cells that are not done yet, then write the report.

    Example: `cxrdist study run launch/studies/demo.yaml --out runs/demo/study`

    A part of it, with the stages that part needs: `cxrdist study run STUDY.yaml --only 'dinov2--*' --except '*--seed2'`

    What it would cost: `cxrdist study run launch/studies/demo.yaml --dry-run --gpus 8`
    """
    config, folder = _read(file, settings, debug), out or default_folder(file, debug=debug)
    _submit(context, address, config, file, folder, ship_code=ship_code)
    from cxrdist.study.choice import Chosen
    from cxrdist.study.run import run_study, study_status

    chosen = Chosen(tuple(only or ()), tuple(leave_out or ()))
    if dry_run:
        if not 0 < mfu <= 1:
            raise UsageError(f"`--mfu` must be in (0, 1], got {mfu}. 0.4 is usual.")
        _show_costs(study_status(config, folder, chosen), gpus=gpus, gpu=gpu, mfu=mfu, as_json=as_json)
        return
    _finish(run_study(config, folder, address=address, chosen=chosen), as_json)


@study.command()
def status(
    file: StudyFile, out: Out = None, settings: Settings = None, debug: Debug = False, as_json: Json = False
) -> None:
    """Show what is done, running, failed and left.  Needs no cluster.

    Example: `cxrdist study status launch/studies/demo.yaml --out runs/demo/study`
    """
    from cxrdist.study.ledger import ledger_of
    from cxrdist.study.run import study_status
    from cxrdist.study.standing import standings

    config, folder = _read(file, settings, debug), out or default_folder(file, debug=debug)
    status = study_status(config, folder)
    failures = ledger_of(config, folder).failures()
    if not folder.is_dir():
        typer.echo(f"Note: no study folder yet at {folder}.", err=True)
    _show_status(standings(status.plan.jobs, status.states, failures), as_json)


@study.command()
def report(
    context: typer.Context,
    file: StudyFile,
    out: Out = None,
    settings: Settings = None,
    address: Address = None,
    ship_code: ShipCode = False,
    debug: Debug = False,
    as_json: Json = False,
) -> None:
    """Work out statistics and report again from the saved predictions; with `--address` on that cluster's cores.

    Example: `cxrdist study report launch/studies/demo.yaml --out runs/demo/study --set statistics.n_resamples=10000`
    """
    from contextlib import nullcontext

    config, folder = _read(file, settings, debug), out or default_folder(file, debug=debug)
    _submit(context, address, config, file, folder, ship_code=ship_code)
    from cxrdist.dispatch.cluster import cluster
    from cxrdist.study.run import report_study

    with cluster(address, name=f"cxrdist report {config.title}") if address else nullcontext():
        page = report_study(config, folder)
    _finish(page, as_json)


def _submit(
    context: typer.Context,
    address: str | None,
    config: "StudyConfig",
    file: Path,
    out: Path,
    *,
    ship_code: bool,
) -> None:
    """Have the head run the command of `context`, if `address` is a dashboard's; see `submitted`."""
    from cxrdist.cli.submitting import named_in, submitted

    paths, files = named_in(config.tree())
    submitted(
        context,
        address,
        name=f"study {file.stem}",
        paths={"`--out`": out, **paths},
        files=[file, *files],
        keep=out / "submitted" if files else None,
        ship_code=ship_code,
    )


def _read(file: Path, settings: list[str] | None, debug: bool) -> "StudyConfig":
    from cxrdist.study.config import StudyConfig

    return read_file(StudyConfig, file, settings, debug=debug)


def _show_costs(status: "Status", *, gpus: int, gpu: str, mfu: float, as_json: bool) -> None:
    import json

    import torch

    from cxrdist.study.cost import short_of_images, study_cost
    from cxrdist.study.plan import missing_weights

    torch.set_num_threads(1)
    costs = study_cost(status.chosen, gpu=gpu, mfu=mfu)
    rows = [
        {"state": status.states[job.identity], "key": job.key, **cost.tree()}
        for job, cost in zip(status.chosen, costs, strict=True)
    ]
    left = [cost for row, cost in zip(rows, costs, strict=True) if row["state"] != "done"]
    totals = {"all": _total(costs, gpus), "left": _total(left, gpus)}
    missing = missing_weights([job for job in status.chosen if status.states[job.identity] != "done"])
    short = short_of_images([job for job in status.chosen if status.states[job.identity] != "done"])
    uncounted = [cost.name for cost in costs if cost.flops is None]
    if as_json:
        about = {
            "gpu": gpu,
            "gpus": gpus,
            "mfu": mfu,
            "missing_weights": missing,
            "short": short,
            "uncounted": uncounted,
        }
        typer.echo(json.dumps({"jobs": rows, "totals": totals, **about}))
        return
    print_table(
        f"What would run, on {gpu} at {100 * mfu:g} % of its peak",
        ["name", "state", "method", "network", "px", "steps", "images", "evaluated", "GFLOP per image", "GPU-hours"],
        [
            [
                cost.name, row["state"], cost.method, cost.backbone, cost.image_size, f"{cost.steps:,}",
                f"{cost.images:,}", f"{cost.evaluated:,}",
                "-" if cost.flops_per_image is None else f"{cost.flops_per_image / 1e9:,.1f}", _hours(cost.gpu_hours),
            ]
            for row, cost in zip(rows, costs, strict=True)
        ],
    )  # fmt: skip
    for name, total in totals.items():
        if name == "all" or total["jobs"] != totals["all"]["jobs"]:
            typer.echo(
                f"{name.capitalize()}: {_counted(total['stages'], 'stage')}, {_counted(total['cells'], 'cell')}, "
                f"{total['images']:,} training images, {total['flops']:.2e} FLOP, {_hours(total['gpu_hours'])} "
                f"GPU-hours; {_hours(total['hours'])} hours on {_counted(gpus, 'GPU')}."
            )
    typer.echo(
        "At most: training and the images evaluated; early stopping ends sooner, and reading data takes no time here."
    )
    if uncounted:
        typer.echo(f"Note: the operations of {', '.join(uncounted)} cannot be counted and are in no total.")
    for path, names in missing.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        typer.echo(f"Note: no weight file yet at {path} (for {names[0]}{more}).")
    for sentence in short:
        typer.echo(f"Note: {sentence}")


def _counted(count: float, name: str) -> str:
    return f"{count:,} {name}{'s' * (count != 1)}"


def _total(costs: "Sequence[JobCost]", gpus: int) -> dict[str, float]:
    hours = sum(cost.gpu_hours or 0 for cost in costs)
    return {
        "jobs": len(costs),
        "stages": sum(cost.kind == "stage" for cost in costs),
        "cells": sum(cost.kind == "cell" for cost in costs),
        "images": sum(cost.images for cost in costs),
        "evaluated": sum(cost.evaluated for cost in costs),
        "flops": sum(cost.flops or 0 for cost in costs),
        "gpu_hours": hours,
        "hours": hours / gpus,
    }


def _hours(hours: float | None) -> str:
    if hours is None:
        return "-"
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.3g}"


def _show_status(standings: "Sequence[Standing]", as_json: bool) -> None:
    import json

    rows = [one.tree() for one in standings]
    if as_json:
        typer.echo(json.dumps(rows))
        return
    print_table(
        "",
        ["name", "kind", "state", "step", "validation AUROC", "key"],
        [
            [
                row["name"],
                row["kind"],
                row["state"],
                "-"
                if row["step"] is None
                else "/".join(f"{row[one]:,}" for one in ("step", "steps") if row[one] is not None),
                "-" if row["validation_auroc"] is None else f"{row['validation_auroc']:.3f}",
                row["key"],
            ]
            for row in rows
        ],
    )
    for row in rows:
        if row["reason"]:
            typer.echo(f"{row['name']} failed: {row['reason']}")
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
    variants = any(row["variant"] for row in rows)
    rows = [row for row in rows if row["status"] != "absent"]
    print_table(
        f"Mean AUROC over findings, and its difference to {rows[0]['reference']}",
        ["dataset", *(["variant"] if variants else []), "strategy", "AUROC", "difference", "p", "q"],
        [
            [
                row["dataset"],
                *([row["variant"]] if variants else []),
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
