"""`cxrdist export`: a trained model for other programs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cxrdist.cli.options import Json
from cxrdist.errors import UsageError, unknown

if TYPE_CHECKING:
    from cxrdist.models.export import Exported

FORMATS = ("hf", "onnx")
PIXELS = ("uint8", "float32")


def export(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A run folder that has ended, or a model folder.")],
    to: Annotated[str, typer.Option("--to", help="hf (a folder for timm and the hub) or onnx.")],
    out: Annotated[Path, typer.Option(help="Where to write; a new folder.")],
    pixels: Annotated[str, typer.Option(help="onnx: type of the input, uint8 or float32.")] = "uint8",
    shard_size: Annotated[
        str | None,
        typer.Option(help="hf: largest weight file, as in 5GB; timm reads one file only. Default: one file."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a trained model for timm, the Hugging Face hub or ONNX, and compare it with its source.

    Example: `cxrdist export runs/a --to hf --out exported/a`
    """
    import json
    from dataclasses import asdict

    if to not in FORMATS:
        raise UsageError(unknown("`--to`", to, FORMATS))
    if pixels not in PIXELS:
        raise UsageError(unknown("`--pixels`", pixels, PIXELS))
    if to == "hf" and pixels != "uint8":
        raise UsageError("`--pixels` goes with `--to onnx`, got `--to hf`: its input is what timm prepares.")
    if to == "onnx" and shard_size is not None:
        raise UsageError("`--shard-size` goes with `--to hf`, got `--to onnx`: it divides its weights as it must.")
    if to == "hf":
        from cxrdist.models.export import export_hf, read_source

        result = export_hf(read_source(model), out, shard_size=shard_size)
    else:
        from cxrdist.models.export import read_source
        from cxrdist.models.export_onnx import check_extra, export_onnx

        check_extra()
        result = export_onnx(read_source(model), out, pixels="uint8" if pixels == "uint8" else "float32")
    if as_json:
        typer.echo(json.dumps(asdict(result)))
    else:
        _show(result)


def _show(result: "Exported") -> None:
    what = f"logits of {len(result.findings)} findings" if result.findings else "features of a backbone"
    tensors = f"{result.tensors} tensors equal the source's bit for bit; " if result.format == "hf" else ""
    typer.echo(f"{result.out}: {what}, {result.parameters:,} parameters.")
    for name, size in result.files.items():
        typer.echo(f"  {name}  {size:,} bytes")
    typer.echo(
        f"Checked: {tensors}outputs for {result.checked_images} images differ "
        f"by at most {result.largest_difference:.2g} (allowed {result.tolerance:.2g})."
    )
    if result.notes:
        typer.echo(", ".join(f"{name} {value}" for name, value in result.notes.items()))
