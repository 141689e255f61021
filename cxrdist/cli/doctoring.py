"""`cxrdist doctor`: what this machine or a cluster has, what is missing, and what to do about it."""

import json
import sys
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from cxrdist.cli.options import Json
from cxrdist.errors import UsageError

if TYPE_CHECKING:
    from cxrdist.doctor.finding import Finding

NAME_WIDTH = 24
"""Characters of a finding's name in the terminal; longer ones push the rest."""


def doctor(
    context: typer.Context,
    address: Annotated[
        str | None,
        typer.Option(
            help="Look at this Ray cluster instead: HOST:PORT or `auto`, or http://HOST:8265 to ask its head."
        ),
    ] = None,
    paths: Annotated[
        list[str] | None,
        typer.Option("--path", metavar="DIR", help="With --address: a folder all nodes must share; repeatable."),
    ] = None,
    timeout: Annotated[float, typer.Option(min=1, help="With --address: seconds that a node may take to answer.")] = 60,
    as_json: Json = False,
) -> None:
    """Say what this machine has, what is missing, and what to do about it; exit code 1 if there is a problem.

    Example: `cxrdist doctor`

    Of a cluster it compares versions and clocks, writes and reads a file in each `--path` from every node (and removes
    it), and sums 64 MiB over all nodes. Trials that run there go on, a little slower for some seconds:
    `cxrdist doctor --address 10.0.0.5:6379 --path /shared/study`

    Findings name no host, user or folder of this machine, so they can be shown to others; those of a cluster name the
    addresses of its nodes and each `--path`.
    """
    if address is None:
        if paths:
            raise UsageError("`--path` must come with `--address`, got it alone. It compares the nodes of a cluster.")
        from cxrdist.doctor.examine import examine_machine

        findings, nodes = [], None
        for finding in examine_machine():
            findings.append(finding)
            if not as_json:
                _show(finding)
    else:
        from cxrdist.cli.submitting import submitted
        from cxrdist.dispatch.cluster import cluster
        from cxrdist.doctor.cluster import examine_cluster

        wrong = [path for path in paths or () if not path.startswith("/")]
        if wrong:
            raise UsageError(f"`--path` must be absolute, got {wrong[0]!r}: each node has a current folder of its own.")
        submitted(context, address, name="doctor", paths={"`--path`": paths})
        out = sys.stdout  # in the block it is Ray's
        with cluster(address, check=False):
            shown = None if as_json else partial(_show, out=out)
            report = examine_cluster(list(dict.fromkeys(paths or ())), timeout_s=timeout, told=shown)
        findings, nodes = report.findings, report.nodes
    problems = sum(finding.state == "problem" for finding in findings)
    if as_json:
        tree: dict[str, Any] = {"findings": [finding.tree() for finding in findings], "problems": problems}
        typer.echo(json.dumps(tree if nodes is None else tree | {"nodes": nodes}))
    else:
        notes = sum(finding.state == "note" for finding in findings)
        typer.echo(f"{_count(problems, 'problem')}, {_count(notes, 'note')}, of {len(findings)} findings.")
    if problems:
        raise typer.Exit(1)


def _show(finding: "Finding", out: TextIO | None = None) -> None:
    typer.echo(f"{finding.state:<8}{finding.name:<{NAME_WIDTH}} {finding.found}", file=out)
    if finding.state != "ok" and finding.remedy:
        typer.echo(f"{'':<8}{'':<{NAME_WIDTH}} -> {finding.remedy}", file=out)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"
