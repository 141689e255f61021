"""`cxrdist compare`: the statistics alone, on anybody's prediction files."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from cxrdist.cli.show import print_table
from cxrdist.errors import UsageError, UserError, unknown
from cxrdist.stats.meanings import MEANINGS, STATEMENTS

if TYPE_CHECKING:
    from cxrdist.dispatch import Map
    from cxrdist.stats.comparison import Comparison
    from cxrdist.stats.options import StatisticsOptions
    from cxrdist.stats.predictions import Predictions

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


def compare(  # noqa: PLR0913, PLR0917 - typer makes an option of each
    files: Annotated[
        Named,
        typer.Argument(
            metavar="NAME=FILE...",
            help="Prediction files, parquet or csv; several files of one name are one model's training seeds.",
        ),
    ],
    reference: Annotated[str | None, typer.Option(help="Compare all with this one. Default: every pair.")] = None,
    metrics: Annotated[str, typer.Option(help="What is worked out, parted by commas; see below.")] = "auroc",
    averages: Annotated[str, typer.Option(help="Over findings, parted by commas: macro, micro, weighted.")] = "macro",
    validation: Annotated[
        Named | None, typer.Option(metavar="NAME=FILE", help="Where thresholds are chosen, per model; repeatable.")
    ] = None,
    threshold: Annotated[str, typer.Option(help="youden, f1, sensitivity=X or specificity=X.")] = "youden",
    redraws: Annotated[int, typer.Option(min=1, help="Redraws of the bootstrap.")] = 1000,
    cluster: Annotated[str, typer.Option(help="What is redrawn: patient_id or none (images).")] = "patient_id",
    stratified: Annotated[bool, typer.Option(help="Redraw patients with a rare finding among themselves.")] = False,
    interval: Annotated[str, typer.Option(help="percentile, basic or bca.")] = "percentile",
    correction: Annotated[str, typer.Option(help="Over the family of tests: bh, by, holm, max_t or none.")] = "bh",
    margin: Annotated[float | None, typer.Option(help="Test non-inferiority and equivalence within it.")] = None,
    hierarchical: Annotated[bool, typer.Option(help="Redraw the training seeds besides the patients.")] = False,
    permutations: Annotated[int, typer.Option(min=0, help="Draws of the paired permutation test; 0: none.")] = 0,
    subgroups: Annotated[str, typer.Option(help="Columns, parted by commas: sex, age, projection ...")] = "",
    alpha: Annotated[float, typer.Option(help="1 - confidence level.")] = 0.05,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the redraws.")] = 0,
    convention: Annotated[
        str | None, typer.Option(help="Another study's procedure in place of ours, for replication: tayebi2024.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Threads; the numbers are the same with any number.")] = 1,
    address: Annotated[str | None, typer.Option(help="Spread the redraws over the Ray cluster there.")] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write all numbers as JSON.")] = None,
    csv: Annotated[Path | None, typer.Option(metavar="FILE", help="Write all numbers as one long table.")] = None,
    latex: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the tables for LaTeX (booktabs).")] = None,
    explain: Annotated[bool, typer.Option(help="Say below the tables what each number is.")] = False,
) -> None:
    """Compare models on the same images: metrics with patient-clustered intervals, paired two-sided p, adjusted p.

    Files have image_id, patient_id, y_FINDING and p_FINDING. Example: `cxrdist compare random=a.parquet ssl=b.parquet`
    """
    from cxrdist.stats.compare import compare as run
    from cxrdist.stats.intervals import IntervalMethod
    from cxrdist.stats.options import Cluster, Correction, StatisticsOptions

    test = _named(files, "A file")
    for option, path in (("--json", json), ("--csv", csv), ("--latex", latex)):
        if path is not None and not path.parent.is_dir():
            raise UsageError(f"`{option}` must be in a folder that exists, got {str(path)!r}.")
    _check("--cluster", cluster, get_args(Cluster))
    _check("--interval", interval, get_args(IntervalMethod))
    _check("--correction", correction, get_args(Correction))
    if not 0 < alpha < 1:
        raise UsageError(f"`--alpha` must be in (0, 1), got {alpha}. Intervals have confidence level 1 - alpha.")
    options = StatisticsOptions.build(
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
        },
        where="the command line",
    )
    if convention is not None:
        _check("--convention", convention, ["tayebi2024"])
        _show_replication(_read(test), reference, options, json)
        return
    told = _read(_named(validation, "`--validation`")) if validation else None
    with _map(workers, address) as spread:
        comparison = run(_read(test), reference=reference, validation=told, options=options, map=spread)
    _write(comparison, json, csv, latex)
    _show(comparison, explain=explain)


def _show_replication(
    predictions: "dict[str, list[Predictions]]", reference: str | None, options: "StatisticsOptions", json: Path | None
) -> None:
    from cxrdist.stats.predictions import align
    from cxrdist.stats.tayebi2024 import replicate

    several = [name for name, files in predictions.items() if len(files) > 1]
    if several:
        raise UsageError(
            f"`--convention tayebi2024` must have one file per model, as that study trained one, got "
            f"{len(predictions[several[0]])} of {several[0]}."
        )
    if reference is not None and reference not in predictions:
        raise UsageError(unknown("`--reference`", reference, predictions))
    files = align({name: one for name, (one,) in predictions.items()}).predictions
    base = next(iter(files.values()))
    result = replicate(
        base.targets,
        {name: one.scores for name, one in files.items()},
        base.findings,
        pairs=[(name, reference) for name in files if name != reference] if reference else None,
        n_resamples=options.n_resamples,
        seed=options.seed,
    )
    if json is not None:
        _write_text("--json", json, result.to_json())
    typer.echo(result.text())


def _check(option: str, given: str, known: Sequence[str]) -> None:
    if given not in known:
        raise UsageError(unknown(f"`{option}`", given, known))


def _parted(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _named(files: list[str], what: str) -> dict[str, list[Path]]:
    named: dict[str, list[Path]] = {}
    for entry in files:
        name, equals, path = entry.partition("=")
        if not equals or not name or not path:
            raise UsageError(f"{what} must be given as NAME=FILE, got {entry!r}. Example: random=runs/a/test.parquet")
        named.setdefault(name, []).append(Path(path))
    return named


def _read(named: dict[str, list[Path]]) -> "dict[str, list[Predictions]]":
    from cxrdist.stats.predictions import read_predictions

    return {name: [read_predictions(path) for path in paths] for name, paths in named.items()}


@contextmanager
def _map(workers: int, address: str | None) -> "Iterator[Map]":
    from cxrdist.dispatch import shown_map, thread_map

    if address is None:
        yield shown_map(thread_map(workers), "redraws", unit="blocks")
        return
    from cxrdist.dispatch.cluster import cluster, ray_map

    with cluster(address):
        yield shown_map(ray_map(), "redraws", unit="blocks")


def _write(comparison: "Comparison", json: Path | None, csv: Path | None, latex: Path | None) -> None:
    from cxrdist.report import compared, tables

    texts = {
        "--json": (json, comparison.to_json),
        "--csv": (csv, lambda: tables.csv_text(compared.csv_rows(comparison))),
        "--latex": (latex, lambda: "\n".join(tables.latex(table) for table in compared.tables(comparison))),
    }
    for option, (path, text) in texts.items():
        if path is not None:
            _write_text(option, path, text())


def _write_text(option: str, path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"`{option}` must be writable, got {error.strerror!r} [{path}].") from None


def _show(comparison: "Comparison", *, explain: bool) -> None:
    from cxrdist.report import compared

    options = comparison.options
    drawn = "patients" if options.cluster == "patient_id" else "images"
    typer.echo(
        f"{comparison.n_images} images of {comparison.n_patients} patients; "
        f"{options.n_resamples} redraws of {drawn}, the same for all models."
    )
    for table in compared.tables(comparison):
        print_table(table.caption, table.columns, [[cell.text for cell in row] for row in table.rows])
    for warning in comparison.warnings():
        typer.echo(f"Note: {warning}")
    for sentence in compared.sentences(comparison) if explain else ():
        typer.echo(sentence)
