"""`cxrdist bench`: what this machine does, beside plain scripts."""

from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer

from cxrdist.cli.ending import Stopped
from cxrdist.cli.show import print_table
from cxrdist.errors import UsageError, unknown

if TYPE_CHECKING:
    from cxrdist.bench.bootstrap import BootstrapResult, Spread
    from cxrdist.bench.step import StepResult

bench = typer.Typer(help="Measure this machine: ours beside a plain script, in one run.", no_args_is_help=True)

GPU_BLOCK = 5


@bench.command()
def step(
    backbone: Annotated[str, typer.Option(help="A timm model.")] = "vit_small_patch16_224",
    image_size: Annotated[int, typer.Option(min=16, help="Side of the input, pixels.")] = 224,
    batch: Annotated[int, typer.Option(min=1, help="Images per step.")] = 8,
    precision: Annotated[str, typer.Option(help="fp32, bf16 or fp16.")] = "fp32",
    steps: Annotated[int, typer.Option(min=1, help="Measured steps of each side.")] = 20,
    block: Annotated[
        int | None, typer.Option(min=1, help="Steps of one side before the other's turn. Default: 1, on a GPU 5.")
    ] = None,
    compiled: Annotated[bool, typer.Option("--compile", help="Compile the model on both sides.")] = False,
    activation_checkpointing: Annotated[
        bool, typer.Option("--activation-checkpointing", help="Keep no activations of blocks, on both sides.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Compare a training step with that of a bare PyTorch loop: same model, batch, type, AdamW and clipping.

    Example: `cxrdist bench step --backbone vit_base_patch16_224 --precision bf16 --batch 64`
    """
    import json
    from dataclasses import asdict

    from cxrdist.train.config import Precision

    if precision not in get_args(Precision):
        raise UsageError(unknown("`--precision`", precision, get_args(Precision)))
    import torch

    from cxrdist.bench.step import StepOptions, bench_step
    from cxrdist.models.config import ModelConfig
    from cxrdist.train.interrupt import Interrupted

    options = StepOptions(
        model=ModelConfig(backbone=backbone),
        image_size=image_size,
        batch=batch,
        precision=cast("Precision", precision),
        steps=steps,
        block=block or (GPU_BLOCK if torch.cuda.is_available() else 1),
        compile=compiled,
        activation_checkpointing=activation_checkpointing,
    )
    try:
        result = bench_step(options)
    except Interrupted as stop:
        raise Stopped(stop.signum, "Interrupted; nothing was measured.") from None
    if as_json:
        typer.echo(json.dumps({"options": asdict(options) | {"model": {"backbone": backbone}}, **asdict(result)}))
    else:
        _show(result, f"{backbone}, {image_size} px, batch {batch}, {precision}")


def _show(result: "StepResult", title: str) -> None:
    rate = f"{result.matmul_flops / 1e12:.3g} TFLOP/s"
    print_table(
        title,
        ["side", "ms per step", "images/s", f"share of {rate}"],
        [
            [
                side.name,
                f"{1000 * side.step_s:.2f}",
                f"{side.images_per_s:.1f}",
                "-" if side.flops_share is None else f"{side.flops_share:.1%}",
            ]
            for side in (result.ours, result.bare)
        ],
    )
    quartiles, interval = result.ratio_quartiles, result.ratio_interval
    typer.echo(
        f"cxrdist / bare: {result.ratio:.3f} (median of {result.rounds} rounds of {result.block} "
        f"step{'s' if result.block > 1 else ''} each; quartiles {quartiles[0]:.3f} to {quartiles[1]:.3f}, "
        f"95 % interval {interval[0]:.3f} to {interval[1]:.3f})"
    )
    if result.ratio_processor is not None:
        typer.echo(f"The same of the processor's time, all threads together: {result.ratio_processor:.3f}")
    typer.echo(f"Weights after the same steps differ by at most {result.weight_difference:.1e} of the largest.")
    typer.echo(", ".join(f"{name} {value}" for name, value in result.machine.items()))


@bench.command()
def bootstrap(
    images: Annotated[int, typer.Option(min=2, help="Images.")] = 25596,
    findings: Annotated[int, typer.Option(min=1, help="Findings.")] = 14,
    models: Annotated[int, typer.Option(min=1, help="Models, each with a prediction for every finding.")] = 3,
    patients: Annotated[int, typer.Option(min=1, help="Patients, who are redrawn with all their images.")] = 2797,
    redraws: Annotated[int, typer.Option(min=1, help="Redraws of ours in each round.")] = 10_000,
    workers: Annotated[int, typer.Option(min=1, help="Processes that are compared with one.")] = 2,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each side.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Compare the bootstrap of AUROCs with a plain loop of scikit-learn's `roc_auc_score` over redrawn images.

    The sizes are those of ChestX-ray14's test split. One redraw of the plain loop in each round tells its speed.

    Example: `cxrdist bench bootstrap --workers 8`
    """
    import json
    from dataclasses import asdict

    from cxrdist.bench.bootstrap import BootstrapOptions, bench_bootstrap

    options = BootstrapOptions(images, findings, models, patients, redraws, workers=workers, rounds=rounds)
    result = bench_bootstrap(options)
    if as_json:
        typer.echo(json.dumps({"options": asdict(options), **asdict(result)}))
    else:
        title = f"{images} images of {patients} patients, {models} x {findings} AUROCs"
        _show_bootstrap(result, title, workers)


def _show_bootstrap(result: "BootstrapResult", title: str, workers: int) -> None:
    def row(name: str, spread: "Spread", digits: int = 0) -> list[str]:
        return [name, *(f"{value:,.{digits}f}" for value in (spread.median, spread.low, spread.high))]

    print_table(
        title,
        ["", "median", "least", "greatest"],
        [
            row("cxrdist, µs per AUROC and redraw, one core", result.ours_us, 2),
            row("scikit-learn, µs per AUROC and redraw", result.plain_us, 1),
            row("scikit-learn / cxrdist", result.ratio),
            row("the same, drawing of patients included", result.ratio_with_drawing),
            row(f"one process / {workers} processes", result.workers_ratio, 2),
        ],
    )
    typer.echo(
        f"10,000 redraws: {result.ten_thousand_s:.1f} s on one core, {result.ten_thousand_workers_s:.1f} s with "
        f"{workers} processes; sorting once {result.sorting_s:.2f} s, first call (compiles) "
        f"{result.first_call_s:.2f} s."
    )
    if result.memory_mib is not None:
        typer.echo(f"Peak memory above the predictions: {result.memory_mib:.0f} MiB.")
    typer.echo(f"AUROCs of both sides differ by at most {result.difference:.1e}.")
    typer.echo(", ".join(f"{name} {value}" for name, value in result.machine.items()))
