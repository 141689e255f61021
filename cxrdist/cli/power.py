"""`cxrdist power`: what a test sample can show, before anything is trained."""

import json
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from cxrdist.cli.options import Json
from cxrdist.errors import UsageError


def power(  # noqa: PLR0913, PLR0917 - typer makes an option of each
    auc: Annotated[float, typer.Option(help="AUROC of the weaker model, 0.5 to below 1.")],
    prevalence: Annotated[float, typer.Option(help="Share of images with the finding.")],
    patients: Annotated[int | None, typer.Option(help="Patients to test: what difference do they show?")] = None,
    difference: Annotated[float | None, typer.Option(help="Or a difference in AUROC: how many patients?")] = None,
    images_per_patient: Annotated[float, typer.Option(help="On average.")] = 1,
    correlation: Annotated[float, typer.Option(help="Between the AUROCs of the two models, 0 to below 1.")] = 0.5,
    within_patient: Annotated[
        float, typer.Option(help="Correlation between images of a patient, 0 to 1; counts with several images.")
    ] = 0.0,
    alpha: Annotated[float, typer.Option(help="Level of the two-sided test; 0.05 / K for one of K tests.")] = 0.05,
    power: Annotated[float, typer.Option(help="Chance of finding a difference that is there.")] = 0.8,
    scores: Annotated[
        str, typer.Option(help="Their distribution: binormal, or exponential, which asks for more patients.")
    ] = "binormal",
    as_json: Json = False,
) -> None:
    """Say the smallest difference between two models that a test sample shows, or the patients that one needs.

    A paired comparison of two models on the same patients, by formula (Hanley & McNeil 1982, 1983; Obuchowski 1997).

    Example: `cxrdist power --auc .8 --prevalence .05 --patients 2800`
    """
    from cxrdist.stats.power import patients_needed, smallest_detectable_difference

    settings: dict[str, Any] = {
        "auc": auc,
        "prevalence": prevalence,
        "images_per_patient": images_per_patient,
        "correlation": correlation,
        "within_patient": within_patient,
        "alpha": alpha,
        "power": power,
        "scores": scores,
    }
    if (patients is None) == (difference is None):
        given = "neither" if patients is None else "both"
        raise UsageError(f"One of `--patients` and `--difference` must be given, got {given}.")
    try:
        if patients is not None:
            result = smallest_detectable_difference(n_patients=patients, **settings)
        elif difference is not None:
            result = patients_needed(difference=difference, **settings)
    except UsageError as error:
        raise UsageError(_with_options(str(error), [*settings, "difference", "n_patients"])) from None
    if as_json:
        typer.echo(json.dumps(result.tree()))
        return
    typer.echo(result.sentence())
    for note in result.notes():
        typer.echo(f"Note: {note}")


def _with_options(sentence: str, names: Sequence[str]) -> str:
    """Return the sentence with the options of the command line in place of the arguments `names`."""
    for name in names:
        sentence = sentence.replace(f"`{name}`", f"`--{name.removeprefix('n_').replace('_', '-')}`")
    return sentence
