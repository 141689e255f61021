"""`cxrdist plan`: what a run would need of the hardware, before any of it is booked."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cxrdist.cli.options import Json, Settings
from cxrdist.cli.show import print_table
from cxrdist.cli.training import RunFile
from cxrdist.errors import UsageError, UserError

if TYPE_CHECKING:
    from cxrdist.finetune.config import FinetuneConfig
    from cxrdist.pretrain.config import PretrainConfig
    from cxrdist.train.planner import Way, Workload

    RunConfig = FinetuneConfig | PretrainConfig

GIB = 2**30
FINDINGS = 14
"""How many are assumed where neither the file nor its shards say."""

WHOLE = (
    "The method {!r} compares the images of a step with each other, so each GPU computes its share at once; "
    "`method.accumulate` would compare within micro-batches."
)


def plan(
    run: RunFile,
    gpus: Annotated[int, typer.Option(min=1, help="GPUs, over all machines.")],
    gpu_memory: Annotated[float, typer.Option(metavar="GIB", help="Memory of one of them, GiB.")],
    gpu: Annotated[str, typer.Option(help="Its name, for its peak rate.")] = "H100",
    mfu: Annotated[float, typer.Option(help="Share of that peak that is reached.")] = 0.4,
    settings: Settings = None,
    as_json: Json = False,
) -> None:
    """Say what a run needs per GPU under each ZeRO stage, its micro-batch, operations and time; nothing is started.

    Needs no GPU, no weights and no shards. Example: `cxrdist plan launch/finetune/vit-b.yaml --gpus 8 --gpu-memory 80`
    """
    if not 0 < mfu <= 1:
        raise UsageError(f"`--mfu` must be in (0, 1], got {mfu}. 0.4 is usual.")
    if not 1 < gpu_memory < 1e6:
        raise UsageError(f"`--gpu-memory` must be more than 1 GiB and less than a million, got {gpu_memory}.")
    config = _read(run, settings or ())
    import torch

    from cxrdist.train.dryrun import imagine
    from cxrdist.train.memory import Sizes
    from cxrdist.train.planner import Planner, best_way
    from cxrdist.train.throughput import PEAKS, peak_flops

    peak = peak_flops(gpu, config.train.precision)
    if peak is None:
        raise UsageError(
            f"`--gpu` must be one of {', '.join(PEAKS)} that computes in {config.train.precision}, got {gpu!r}."
        )
    torch.set_num_threads(1)
    work, assumed = _workload(config, gpus)
    planner = Planner(work, gpus=gpus, gpu_memory=gpu_memory * GIB, rate=mfu * peak)
    ways = list(planner.ways())
    best = best_way(ways)
    notes = assumed + planner.notes
    sizes = Sizes.of(imagine(work.build_task))
    if as_json:
        suggested = best.settings() if best else None
        tree = {"rows": [way.tree() for way in ways], "suggested": suggested, "notes": notes}
        typer.echo(json.dumps(tree | {"weights": asdict(sizes), "gpu": gpu, "gpus": gpus, "mfu": mfu}))
    else:
        train = config.train
        typer.echo(
            f"{config.model.backbone} at {config.input.image_size} px, {sizes.weights // 4 / 1e6:.1f} million "
            f"parameters, {train.precision}, {train.global_batch_size} images per step; "
            f"on {gpus} x {gpu}, {gpu_memory:g} GiB each"
        )
        _show(ways, planner.room, notes)
        if best is not None:
            typer.echo("Suggested: " + " ".join(f"--set {setting}" for setting in best.settings()))
    if best is None:
        raise UserError(
            f"A run must fit into {gpu_memory:g} GiB on each of {gpus} GPUs, got none that does. Take more or larger "
            "GPUs, a smaller `input.image_size`, or a smaller `model.backbone`."
        )


def _read(run: Path, settings: Sequence[str]) -> "RunConfig":
    """Return the configuration in `run`, of one training."""
    from cxrdist.finetune.config import FinetuneConfig
    from cxrdist.launch.request import read_any
    from cxrdist.pretrain.config import PretrainConfig

    kind, config = read_any(run, settings)
    if not isinstance(config, FinetuneConfig | PretrainConfig):
        raise UsageError(
            f"`plan` must be given the file of one training, got a {kind} [{run.name}]. "
            f"Its parts and their cost: `cxrdist {'study run' if kind == 'study' else kind} {run} --dry-run`."
        )
    return config


def _workload(config: "RunConfig", gpus: int) -> "tuple[Workload, list[str]]":
    """Return what `train` or `pretrain` would run on so many GPUs, and what had to be assumed or left out of it."""
    import torch

    from cxrdist.data.order import Batching
    from cxrdist.pretrain.config import PretrainConfig
    from cxrdist.train.planner import Workload

    size, workers = config.input.image_size, config.input.workers
    if isinstance(config, PretrainConfig):
        from cxrdist.pretrain.build import build_task as build_pretraining
        from cxrdist.pretrain.build import example_batch
        from cxrdist.pretrain.coupled import check_division, divisor, undivided

        batch, micro = config.train.global_batch_size, config.train.micro_batch_size
        if isinstance(micro, int):
            check_division(config, Batching.plan(global_batch_size=batch, micro_batch_size=micro, world_size=gpus))
        build, example = partial(build_pretraining, config), partial(example_batch, config)
        notes = [WHOLE.format(config.method.name)] if undivided(config) else []
        return Workload(build, example, config.train, config.optim, workers, divisor(config, gpus)), notes
    import numpy as np

    from cxrdist.finetune.parts import build_task

    findings, assumed = _count_findings(config)

    def make_batch(images: int) -> dict[str, torch.Tensor]:
        return {
            "image": torch.empty(images, 1, size, size, dtype=torch.uint8, device="meta"),
            "target": torch.empty(images, findings, device="meta"),
            "sample": torch.arange(images),
            "seed": torch.arange(images),
        }

    build_tuning = partial(build_task, config, pos_weight=np.ones(findings), known_share=1.0)
    multiple_of = 2 if config.mixup else 1
    return Workload(build_tuning, make_batch, config.train, config.optim, workers, multiple_of), assumed


def _count_findings(config: "FinetuneConfig") -> tuple[int, list[str]]:
    from cxrdist.datasets.shard_format import read_manifest

    if config.findings:
        return len(config.findings), []
    try:
        return len({name for folder in config.folders for name in read_manifest(folder).findings}), []
    except UserError:
        return FINDINGS, [f"The shards are not here, so {FINDINGS} findings are assumed."]


def _show(ways: "list[Way]", room: int, notes: list[str]) -> None:
    print_table(
        f"GiB per GPU ({room / GIB:.1f} of each can be filled) and of the host per GPU",
        [
            "ZeRO", "offload", "checkpointing", "micro-batch x accumulation", "weights", "masters", "optimizer", "mean",
            "gradients, buckets", "pass", "step", "total", "fits", "largest that fits", "host", "images/s", "time",
        ],
        (_cells(way) for way in ways),
    )  # fmt: skip
    if ways:
        typer.echo(
            f"{ways[0].flops_per_image / 1e9:.1f} GFLOP per image, forward and backward. "
            f"A checkpoint is {ways[0].memory.checkpoint / GIB:.2f} GiB on the disk."
        )
    for note in dict.fromkeys(notes):
        typer.echo(f"Note: {note}")


def _cells(way: "Way") -> list[str]:
    device = way.memory.device
    parts = (
        device.weights, device.masters, device.optimizer, device.ema, device.gradients + device.buckets,
        device.backward, device.step, device.total,
    )  # fmt: skip
    return [
        str(way.zero_stage), way.offload, "yes" if way.activation_checkpointing else "no",
        f"{way.micro_batch_size} x {way.accumulation}", *(f"{part / GIB:.2f}" for part in parts),
        "yes" if way.fits else "no", str(way.largest or "none"), f"{way.memory.host.total / GIB:.2f}",
        "-" if way.images_per_s is None else f"{way.images_per_s:.0f}", _duration(way.eta_s),
    ]  # fmt: skip


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 3600:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 72 * 3600 else f"{seconds / 86400:.1f} d"
