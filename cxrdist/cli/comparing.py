"""`cxrdist compare`: the statistics alone, on anybody's prediction files."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cxrdist.cli.show import print_table
from cxrdist.errors import UsageError, UserError, unknown

if TYPE_CHECKING:
    from cxrdist.stats.compare import Comparison


def compare(
    files: Annotated[
        list[str], typer.Argument(metavar="NAME=FILE...", help="Two or more prediction files, parquet or csv.")
    ],
    redraws: Annotated[int, typer.Option(min=1, help="Redraws of the bootstrap.")] = 1000,
    cluster: Annotated[str, typer.Option(help="What is redrawn: patient_id or none (images).")] = "patient_id",
    alpha: Annotated[float, typer.Option(help="1 - confidence level.")] = 0.05,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the redraws.")] = 0,
    reference: Annotated[str | None, typer.Option(help="Compare all with this one. Default: every pair.")] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write all numbers as JSON.")] = None,
) -> None:
    """Compare models on the same images: AUROC with patient-clustered intervals, paired two-sided p, BH-FDR.

    Files have image_id, patient_id, y_FINDING and p_FINDING. Example: `cxrdist compare random=a.parquet ssl=b.parquet`
    """
    from cxrdist.stats.compare import compare as run
    from cxrdist.stats.predictions import read_predictions

    named = _named(files)
    if cluster not in ("patient_id", "none"):
        raise UsageError(unknown("`--cluster`", cluster, ["patient_id", "none"]))
    if not 0 < alpha < 1:
        raise UsageError(f"`--alpha` must be in (0, 1), got {alpha}. Intervals have confidence level 1 - alpha.")
    if json is not None and not json.parent.is_dir():
        raise UsageError(f"`--json` must be in a folder that exists, got {str(json)!r}.")
    comparison = run(
        {name: read_predictions(path) for name, path in named.items()},
        reference=reference,
        n_resamples=redraws,
        cluster=cluster,  # type: ignore[arg-type]
        alpha=alpha,
        seed=seed,
    )
    if json is not None:
        try:
            json.write_text(comparison.to_json(), encoding="utf-8")
        except OSError as error:
            raise UserError(f"`--json` must be writable, got {error.strerror!r} [{json}].") from None
    _show(comparison)


def _named(files: list[str]) -> dict[str, Path]:
    named: dict[str, Path] = {}
    for entry in files:
        name, equals, path = entry.partition("=")
        if not equals or not name or not path:
            raise UsageError(f"A file must be given as NAME=FILE, got {entry!r}. Example: random=runs/a/test.parquet")
        if name in named:
            raise UsageError(f"Names must differ, got {name!r} twice.")
        named[name] = Path(path)
    if len(named) < 2:
        raise UsageError(f"`compare` needs at least two files, got {len(named)}.")
    return named


def _show(comparison: "Comparison") -> None:
    level = f"{100 * (1 - comparison.alpha):g} %"
    drawn = "patients" if comparison.cluster == "patient_id" else "images"
    typer.echo(
        f"{comparison.n_images} images of {comparison.n_patients} patients; "
        f"{comparison.n_resamples} redraws of {drawn}, the same for all models."
    )
    print_table(
        f"AUROC [{level} interval]",
        ["finding", *comparison.models],
        [
            [finding, *(_estimate(comparison, model, finding) for model in comparison.models)]
            for finding in dict.fromkeys(row["finding"] for row in comparison.rows())
        ],
    )
    print_table(
        f"Differences [{level} interval], two-sided p, q after Benjamini-Hochberg",
        ["difference", "finding", "AUROC", "interval", "p", "q"],
        [
            [
                f"{row['model']} - {row['reference']}",
                row["finding"],
                f"{row['value']:+.4f}",
                f"[{row['low']:+.4f}, {row['high']:+.4f}]",
                f"{row['p']:.4f}",
                f"{row['q']:.4f}",
            ]
            for row in comparison.difference_rows()
        ],
    )
    for warning in comparison.warnings():
        typer.echo(f"Note: {warning}")


def _estimate(comparison: "Comparison", model: str, finding: str) -> str:
    estimate = comparison.estimate(model, finding)
    return f"{estimate.value:.4f} [{estimate.low:.4f}, {estimate.high:.4f}]"
