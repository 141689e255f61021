"""`cxrdist compare`: the statistics alone, on anybody's prediction files."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from cxrdist.cli.outputs import check_outputs, same_file, write_outputs
from cxrdist.cli.show import print_table
from cxrdist.errors import UsageError, unknown
from cxrdist.stats.meanings import MEANINGS, STATEMENTS

if TYPE_CHECKING:
    from cxrdist.dispatch import Map
    from cxrdist.stats.comparison import Comparison
    from cxrdist.stats.options import StatisticsOptions
    from cxrdist.stats.predictions import Predictions
    from cxrdist.stats.tayebi2024 import Replication

Named = list[str]

EPILOG = "\n".join(
    [
        "Metrics:\n",
        *(f"- **{name}**: {meaning}" for name, (_, meaning) in MEANINGS.items()),
        "\nOther numbers:\n",
        *(f"- **{name}**: {meaning}" for name, meaning in STATEMENTS.items()),
    ]
)
"""Below the options: what each number is."""

OPTION = {"n_resamples": "--redraws"}
"""Name of a choice -> its option, where that is not called alike."""
MOST_BYTES = 4 * 2**30
"""What the redraws of all numbers may take; their arrays are copied now and then, so several times that is needed."""
OF_CONVENTION = {"files", "reference", "redraws", "seed", "convention", "workers", "address", "json", "csv"}
"""Parameters that another study's procedure has a use for."""


def compare(  # noqa: PLR0913, PLR0917 - typer makes an option of each
    context: typer.Context,
    files: Annotated[
        Named,
        typer.Argument(
            metavar="NAME=FILE...",
            help=(
                "Prediction files, parquet or csv; several files of one name are one model's training seeds in the "
                "order given. Models with equally many files are taken as trained with the same seeds in that order."
            ),
        ),
    ],
    reference: Annotated[str | None, typer.Option(help="Compare all with this one. Default: every pair.")] = None,
    metrics: Annotated[str, typer.Option(help="What is worked out, parted by commas; see below.")] = "auroc",
    averages: Annotated[str, typer.Option(help="Over findings, parted by commas: macro, micro, weighted.")] = "macro",
    validation: Annotated[
        Named | None, typer.Option(metavar="NAME=FILE", help="Where thresholds are chosen, per model; repeatable.")
    ] = None,
    threshold: Annotated[str, typer.Option(help="youden, f1, sensitivity=X or specificity=X.")] = "youden",
    redraws: Annotated[int, typer.Option(help="Redraws of the bootstrap, 1 or more.")] = 1000,
    cluster: Annotated[str, typer.Option(help="What is redrawn: patient_id or none (images).")] = "patient_id",
    stratified: Annotated[bool, typer.Option(help="Redraw patients with a rare finding among themselves.")] = False,
    interval: Annotated[str, typer.Option(help="percentile, basic or bca.")] = "percentile",
    correction: Annotated[str, typer.Option(help="Over the family of tests: bh, by, holm, max_t or none.")] = "bh",
    margin: Annotated[float | None, typer.Option(help="Test non-inferiority and equivalence within it.")] = None,
    hierarchical: Annotated[
        bool, typer.Option(help="Widen intervals by what other training seeds might have given.")
    ] = False,
    permutations: Annotated[int, typer.Option(help="Draws of the paired permutation test; 0: none.")] = 0,
    subgroups: Annotated[str, typer.Option(help="Columns, parted by commas: sex, age, projection ...")] = "",
    alpha: Annotated[float, typer.Option(help="1 - confidence level.")] = 0.05,
    seed: Annotated[int, typer.Option(help="Seed of the redraws, 0 or more.")] = 0,
    convention: Annotated[
        str | None, typer.Option(help="Another study's procedure in place of ours, for replication: tayebi2024.")
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes; the numbers are the same with any number.")] = 1,
    address: Annotated[
        str | None, typer.Option(help="Spread redraws that take long over the Ray cluster there.")
    ] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write all numbers as JSON.")] = None,
    csv: Annotated[Path | None, typer.Option(metavar="FILE", help="Write all numbers as one long table.")] = None,
    latex: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the tables for LaTeX (booktabs).")] = None,
    explain: Annotated[bool, typer.Option(help="Say below the tables what each number is.")] = False,
) -> None:
    """Compare models on the same images: metrics with patient-clustered intervals, paired two-sided p, adjusted p.

    Files have image_id, patient_id, y_FINDING and p_FINDING. Example: `cxrdist compare random=a.parquet ssl=b.parquet`
    """
    from cxrdist.dispatch.submission import is_submission
    from cxrdist.stats import tayebi2024
    from cxrdist.stats.compare import compare as run
    from cxrdist.stats.families import Correction
    from cxrdist.stats.intervals import IntervalMethod
    from cxrdist.stats.options import Cluster

    test = _named(files, "A file")
    choosing = _named(validation or [], "`--validation`")
    outputs = {"--json": json, "--csv": csv, "--latex": latex}
    for option, least, number in (("--redraws", 1, redraws), ("--seed", 0, seed), ("--workers", 1, workers)):
        _at_least(option, least, number)
    _at_least("--permutations", 0, permutations)
    if is_submission(address):
        raise UsageError(
            f"`--address` must be HOST:PORT or `auto` here, as the files are this machine's, got {address!r}. Leave it "
            "out, or give the command on the head."
        )
    _check("--cluster", cluster, get_args(Cluster))
    _check("--interval", interval, get_args(IntervalMethod))
    _check("--correction", correction, get_args(Correction))
    if not (0 < alpha < 1 and 1 - alpha < 1):
        raise UsageError(f"`--alpha` must be in (0, 1), got {alpha}. Intervals have confidence level 1 - alpha.")
    if reference is not None and reference not in test:
        raise UsageError(unknown("`--reference`", reference, test))
    for name in choosing:
        if name not in test:
            raise UsageError(unknown("The model of `--validation`", name, test))
    if convention is not None:
        _check("--convention", convention, ["tayebi2024"])
        _refuse_unused(context, f"--convention {convention}")
        check_outputs(outputs, _paths(test))
        tests = _read(test)
        _check_size(tests, redraws, metrics=len(tayebi2024.METRICS), averages=0)
        with _map(workers, address) as spread:
            replication = _replicate(tests, reference, n_resamples=redraws, seed=seed, map=spread)
        typer.echo(replication.text())
        write_outputs(outputs, {"--json": replication.to_json, "--csv": lambda: _csv_of(replication)})
        return
    options = _options(
        {
            "n_resamples": redraws,
            "alpha": alpha,
            "seed": seed,
            "cluster": cluster,
            "stratified": stratified,
            "metrics": _parted(metrics),
            "averages": _parted(averages),
            "threshold": threshold,
            "interval": interval,
            "correction": correction,
            "margin": margin,
            "hierarchical": hierarchical,
            "permutations": permutations,
            "subgroups": _parted(subgroups),
        }
    )
    check_outputs(outputs, [*_paths(test), *_paths(choosing)])
    told = _read(choosing) if choosing else None
    tests = _read(test)
    _check_size(tests, redraws, metrics=len(options.metrics), averages=len(options.averages))
    seeds = {name: range(len(several)) for name, several in tests.items()}
    with _map(workers, address) as spread:
        comparison = run(tests, reference=reference, validation=told, train_seeds=seeds, options=options, map=spread)
    from cxrdist.report import compared, tables

    _show(comparison, explain=explain)
    write_outputs(
        outputs,
        {
            "--json": comparison.to_json,
            "--csv": lambda: tables.csv_text(compared.csv_rows(comparison)),
            "--latex": lambda: "\n".join(tables.latex(table) for table in compared.tables(comparison)),
        },
    )


def _options(choices: dict[str, Any]) -> "StatisticsOptions":
    """Return the choices checked; faults name the option of the command line."""
    from cxrdist.stats.options import StatisticsOptions

    def option(match: re.Match[str]) -> str:
        name = match[1]
        return f"`{OPTION.get(name, '--' + name)}`" if name in choices else match[0]

    where = "the command line"
    try:
        return StatisticsOptions.build(choices, where=where)
    except UsageError as error:
        lines = [line.removesuffix(f" [in {where}]") for line in str(error).splitlines()]
        lines = [line if line.endswith((".", "?")) else f"{line}." for line in lines]
        raise UsageError("\n".join(re.sub(r"`(\w+)(?:\.\d+)?`", option, line) for line in lines)) from None


def _refuse_unused(context: typer.Context, convention: str) -> None:
    """Refuse the first option given that is without effect under a convention and not as it would be anyway."""
    for parameter in context.command.params:
        name = parameter.name or ""
        given = context.get_parameter_source(name)
        told = given is not None and given.name in ("COMMANDLINE", "ENVIRONMENT")
        value = context.params.get(name)
        if name not in OF_CONVENTION and told and value != parameter.get_default(context):
            got = "" if value is True else f" {' '.join(value) if isinstance(value, list) else value}"
            raise UsageError(
                f"`{convention}` must have no option that it does not use, got `{parameter.opts[0]}{got}`. That "
                "procedure is fixed; leave the option out."
            )


def _replicate(
    predictions: "dict[str, list[Predictions]]",
    reference: str | None,
    *,
    n_resamples: int,
    seed: int,
    map: "Map",
) -> "Replication":
    from cxrdist.stats.predictions import align
    from cxrdist.stats.tayebi2024 import replicate

    several = [name for name, files in predictions.items() if len(files) > 1]
    if several:
        raise UsageError(
            f"`--convention tayebi2024` must have one file per model, as that study trained one, got "
            f"{len(predictions[several[0]])} of {several[0]}."
        )
    aligned = align({name: one for name, (one,) in predictions.items()})
    for name, findings in aligned.dropped.items():
        typer.echo(f"Note: {name}: {', '.join(findings)} left out; not in every file.")
    files = aligned.predictions
    base = next(iter(files.values()))
    return replicate(
        base.targets,
        {name: one.scores for name, one in files.items()},
        base.findings,
        pairs=[(name, reference) for name in files if name != reference] if reference else None,
        n_resamples=n_resamples,
        seed=seed,
        map=map,
    )


def _csv_of(replication: "Replication") -> str:
    """Return the rows of both kinds as one table; what does not apply is empty."""
    from cxrdist.report import tables

    rows = [{"kind": "value", **row} for row in replication.rows()]
    rows += [{"kind": "difference", **row} for row in replication.difference_rows()]
    columns = dict.fromkeys(name for row in rows for name in row)
    return tables.csv_text([{name: row.get(name, "") for name in columns} for row in rows])


def _check(option: str, given: str, known: Sequence[str]) -> None:
    if given not in known:
        raise UsageError(unknown(f"`{option}`", given, known))


def _at_least(option: str, least: int, given: int) -> None:
    if given < least:
        raise UsageError(f"`{option}` must be at least {least}, got {given}.")


def _check_size(tests: "dict[str, list[Predictions]]", redraws: int, *, metrics: int, averages: int) -> None:
    """Refuse redraws whose numbers are more than `MOST_BYTES` together: a column of float64 per file and number."""
    files = [one for several in tests.values() for one in several]
    shared = set.intersection(*(set(one.findings) for one in files))
    columns = len(files) * metrics * (len(shared) + averages)
    most = MOST_BYTES // (8 * max(columns, 1))
    if redraws > most:
        raise UsageError(
            f"`--redraws` must be at most {most} here, where each has {columns} numbers and all together may take "
            f"{MOST_BYTES // 2**30} GiB, got {redraws}."
        )


def _parted(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _named(files: list[str], what: str) -> dict[str, list[Path]]:
    named: dict[str, list[Path]] = {}
    for entry in files:
        name, equals, path = entry.partition("=")
        if not equals or not name or not path:
            raise UsageError(
                f"{what} must be given as NAME=FILE, got {entry!r}. Example: `random=runs/a/test.parquet`."
            )
        others = named.setdefault(name, [])
        if any(same_file(Path(path), other) for other in others):
            raise UsageError(f"{name} must have a file once, as each stands for a training seed, got {path!r} twice.")
        others.append(Path(path))
    return named


def _paths(named: dict[str, list[Path]]) -> list[Path]:
    return [path for paths in named.values() for path in paths]


def _read(named: dict[str, list[Path]]) -> "dict[str, list[Predictions]]":
    from cxrdist.stats.predictions import read_predictions

    return {name: [read_predictions(path) for path in paths] for name, paths in named.items()}


@contextmanager
def _map(workers: int, address: str | None) -> "Iterator[Map]":
    from cxrdist.dispatch import fork_map, shown_map

    if address is None:
        yield shown_map(fork_map(workers), "redraws", unit="blocks")
        return
    from cxrdist.dispatch.adaptive import adaptive_map
    from cxrdist.dispatch.cluster import cluster

    with cluster(address, name="cxrdist compare"):
        yield shown_map(adaptive_map(workers), "redraws", unit="blocks")


def _keys(columns: Sequence[str]) -> int:
    """Return how many leading columns say what a row is about."""
    if columns[0] == "models":
        return 3 if columns[2] == "metric" else 2
    return 3 if columns[0] == "model" else 1


def _show(comparison: "Comparison", *, explain: bool) -> None:
    from cxrdist.report import compared

    options = comparison.options
    drawn = "patients" if options.cluster == "patient_id" else "images"
    typer.echo(
        f"{comparison.n_images} images of {comparison.n_patients} patients; "
        f"{options.n_resamples} redraws of {drawn}, the same for all models."
    )
    for table in compared.tables(comparison):
        rows = [[cell.text for cell in row] for row in table.rows]
        print_table(table.caption, table.columns, rows, keys=_keys(table.columns))
    for warning in comparison.warnings():
        typer.echo(f"Note: {warning}")
    if explain:
        for sentence in compared.sentences(comparison):
            typer.echo(sentence)
        if any(len(one.by_member) > 1 for one in comparison.estimates):
            typer.echo(f"±: {STATEMENTS['±']}")
