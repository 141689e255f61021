"""`cxrdist plan`: what a run would need of the hardware, before any of it is booked."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cxrdist.cli.options import Json, Settings
from cxrdist.cli.show import print_table
from cxrdist.cli.training import RunFile
from cxrdist.errors import UsageError, UserError

if TYPE_CHECKING:
    from torch import nn

    from cxrdist.finetune.config import FinetuneConfig
    from cxrdist.pretrain.config import PretrainConfig
    from cxrdist.train.config import TrainConfig
    from cxrdist.train.dryrun import PassProfile
    from cxrdist.train.memory import RankMemory

    RunConfig = FinetuneConfig | PretrainConfig

GIB = 2**30
FINDINGS = 14
"""How many are assumed where neither the file nor its shards say."""

ENOUGH = 8
"""Images in a micro-batch from which on more memory is not worth more traffic between the GPUs."""


@dataclass(frozen=True)
class Row:
    """One way to run it."""

    zero_stage: int
    offload: str
    activation_checkpointing: bool
    micro_batch_size: int
    accumulation: int
    largest: int
    """Largest micro-batch that fits, 0 if none does."""
    fits: bool
    """Whether `micro_batch_size` does, which is the file's, or else the largest that fits, or else the smallest."""
    memory: "RankMemory"
    flops_per_image: int
    images_per_s: float | None
    eta_s: float | None

    def settings(self) -> list[str]:
        """Return what sets this in a run."""
        return [
            f"train.zero_stage={self.zero_stage}",
            f"train.offload={self.offload}",
            f"train.activation_checkpointing={str(self.activation_checkpointing).lower()}",
            f"train.micro_batch_size={self.micro_batch_size}",
        ]

    def tree(self) -> dict[str, Any]:
        """Return it as JSON-ready values, bytes as whole numbers."""
        device, host = self.memory.device, self.memory.host
        totals = {"device_total": device.total, "host_total": host.total}
        return asdict(self) | totals


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
    from cxrdist.train.throughput import PEAKS, peak_flops

    peak = peak_flops(gpu, config.train.precision)
    if peak is None:
        raise UsageError(
            f"`--gpu` must be one of {', '.join(PEAKS)} that computes in {config.train.precision}, got {gpu!r}."
        )
    torch.set_num_threads(1)
    planner = _Planner(config, gpus, gpu_memory * GIB, mfu * peak)
    rows = list(planner.rows())
    best = _best(rows)
    sizes = Sizes.of(imagine(planner.build_task))
    if as_json:
        suggested = best.settings() if best else None
        tree = {"rows": [row.tree() for row in rows], "suggested": suggested, "notes": planner.notes}
        typer.echo(json.dumps(tree | {"weights": asdict(sizes), "gpu": gpu, "gpus": gpus, "mfu": mfu}))
    else:
        _show(rows, planner, sizes.weights // 4, f"{gpus} x {gpu}, {gpu_memory:g} GiB each")
        if best is not None:
            typer.echo("Suggested: " + " ".join(f"--set {setting}" for setting in best.settings()))
    if best is None:
        raise UserError(
            f"A run must fit into {gpu_memory:g} GiB on each of {gpus} GPUs, got none that does. Take more or larger "
            "GPUs, a smaller `input.image_size`, or a smaller `model.backbone`."
        )


class _Planner:
    """The ways to run one configuration on so many GPUs."""

    def __init__(self, config: "RunConfig", gpus: int, gpu_memory: float, rate: float) -> None:
        from cxrdist.train.memory import usable_gpu_memory
        from cxrdist.train.microbatch import candidates

        self.config, self.gpus, self.rate = config, gpus, rate
        self.room = usable_gpu_memory(gpu_memory)
        self.notes: list[str] = []
        self.images = 2  # of the smallest profile: a task may mix pairs
        mixes = bool(getattr(config, "mixup", 0.0))
        self.sizes = candidates(config.train.global_batch_size, gpus, 2 if mixes else 1)
        wanted = config.train.micro_batch_size
        self.wanted = wanted if isinstance(wanted, int) else None
        if self.wanted is not None and self.wanted not in self.sizes:
            raise UsageError(
                f"`train.micro_batch_size` must divide the {self.sizes[0]} images of each rank and step, got "
                f"{self.wanted}. Possible: {', '.join(map(str, reversed(self.sizes)))}."
            )
        self.findings = _findings(config, self.notes)
        self._profiles: dict[bool, tuple[nn.Module, PassProfile, PassProfile]] = {}

    def rows(self) -> Iterator[Row]:
        """Yield every stage as the file has it otherwise; more until something fits: checkpointing, then offload."""
        train = self.config.train
        tried = [(train.activation_checkpointing, train.offload)]
        tried += [(again, offload) for offload in ("none", "optimizer", "parameters") for again in (False, True)]
        fits = False
        for again, offload in dict.fromkeys(tried):
            if fits or (train.activation_checkpointing and not again):
                continue
            if again and not self._can_checkpoint():
                continue
            for stage in range({"none": 0, "optimizer": 1, "parameters": 3}[offload], 4):
                row = self._row(stage, offload, again)
                if row is not None:
                    fits = fits or row.fits
                    yield row

    def build_task(self, *, told: bool = False, loaded: bool = False) -> "nn.Module":
        """Return the task of the run; a plan never reads its weights."""
        return _build_task(self.config, self.findings)

    def _row(self, stage: int, offload: str, again: bool) -> Row | None:
        from cxrdist.train.dryrun import at_size
        from cxrdist.train.memory import plan_memory, profile_step
        from cxrdist.train.optim import check_optimizer

        config = self.config
        train = config.train.model_copy(
            update={"zero_stage": stage, "offload": offload, "activation_checkpointing": again, "compile": False}
        )
        task, small, large = self._profile(again)
        optimizer = profile_step(task, train=train, optim=config.optim, world_size=self.gpus, on_gpu=True)

        def needs(size: int) -> "RankMemory":
            return plan_memory(
                task,
                at_size(small, large, size),
                train=train,
                optim=config.optim,
                world_size=self.gpus,
                workers=config.input.workers,
                on_gpu=True,
                optimizer=optimizer,
            )

        try:
            check_optimizer(config.optim, stage)
            largest = next((size for size in self.sizes if needs(size).device.total <= self.room), 0)
        except UsageError as error:  # the optimizer, or the user's file for DeepSpeed, wants another stage
            self.notes.append(f"Stage {stage} is left out: {error}")
            return None
        size = self.wanted or largest or self.sizes[-1]
        speed = self.gpus * self.rate / large.flops if large.flops else None
        images = train.steps * train.global_batch_size
        return Row(
            stage, offload, again, size, self.sizes[0] // size, largest, 0 < size <= largest, needs(size),
            large.flops, speed, images / speed if speed else None,
        )  # fmt: skip

    def _profile(self, again: bool) -> "tuple[nn.Module, PassProfile, PassProfile]":
        from cxrdist.train.dryrun import imagine, profile_pass
        from cxrdist.train.engine import checkpoint_activations

        if again not in self._profiles:
            task = imagine(self.build_task)
            if again:
                checkpoint_activations(task)
            precision = self.config.train.precision
            small, large = (
                profile_pass(task, self._batch, images, precision=precision)
                for images in (self.images, 2 * self.images)
            )
            self._profiles[again] = (task, small, large)
        return self._profiles[again]

    def _can_checkpoint(self) -> bool:
        try:
            self._profile(True)
        except UsageError as error:
            if self.config.train.activation_checkpointing:
                raise
            self.notes.append(str(error))
            return False
        return True

    def _batch(self, images: int) -> dict[str, Any]:
        import torch

        size = self.config.input.image_size
        return {
            "image": torch.empty(images, 1, size, size, dtype=torch.uint8, device="meta"),
            "target": torch.empty(images, self.findings if _is_finetuning(self.config) else 0, device="meta"),
            "sample": torch.arange(images),
            "seed": torch.arange(images),
        }


def _read(run: Path, settings: Iterable[str]) -> "RunConfig":
    """Return the configuration in `run`: of a pretraining if it has a `method` or a list of `shards`."""
    from cxrdist.config import override, parse_settings, read_yaml
    from cxrdist.finetune.config import FinetuneConfig
    from cxrdist.pretrain.config import PretrainConfig

    tree = override(read_yaml(run), parse_settings(settings))
    kind = PretrainConfig if "method" in tree or isinstance(tree.get("shards"), list) else FinetuneConfig
    return kind.build(tree, where=run.name)


def _is_finetuning(config: "RunConfig") -> bool:
    return hasattr(config, "findings")


def _findings(config: "RunConfig", notes: list[str]) -> int:
    """Return how many findings the head has; what is assumed is added to `notes`."""
    from cxrdist.datasets.shard_format import read_manifest

    if not _is_finetuning(config):
        return 1
    named: list[str] = config.findings  # type: ignore[union-attr]
    if named:
        return len(named)
    try:
        return len(read_manifest(config.shards).findings)  # type: ignore[arg-type]
    except UserError:
        notes.append(f"The shards are not here, so {FINDINGS} findings are assumed.")
        return FINDINGS


def _build_task(config: Any, findings: int) -> "nn.Module":
    """Return the task that `train` or `pretrain` would build, without weights from files."""
    import numpy as np

    from cxrdist.models.build import build_model

    size = config.input.image_size
    model = build_model(config.model, num_classes=findings, image_size=size, seed=config.seed)
    if not _is_finetuning(config):
        from cxrdist.pretrain.mae import MaeTask

        return MaeTask(model, config.method, fresh=config.model.weights is None)
    from cxrdist.finetune.losses import MultiLabelLoss
    from cxrdist.finetune.protocols import begin_protocol
    from cxrdist.finetune.task import FinetuneTask

    begin_protocol(model.net, config.protocol, seed=config.seed)
    loss = MultiLabelLoss(config.loss, pos_weight=np.ones(findings), known_share=1.0)
    return FinetuneTask(model, loss=loss, protocol=config.protocol, mixup_alpha=config.mixup)


def _best(rows: list[Row]) -> Row | None:
    """Return the row that costs least traffic and computes least twice, among those with a sensible micro-batch."""
    fitting = [row for row in rows if row.fits]
    easy = [row for row in fitting if row.micro_batch_size >= min(ENOUGH, row.micro_batch_size * row.accumulation)]
    return easy[0] if easy else max(fitting, key=lambda row: row.micro_batch_size, default=None)


def _show(rows: list[Row], planner: _Planner, parameters: int, where: str) -> None:
    config = planner.config
    train: TrainConfig = config.train
    typer.echo(
        f"{config.model.backbone} at {config.input.image_size} px, {parameters / 1e6:.1f} million parameters, "
        f"{train.precision}, {train.global_batch_size} images per step; on {where}"
    )
    print_table(
        f"GiB per GPU ({planner.room / GIB:.1f} of each can be filled) and of the host per GPU",
        [
            "ZeRO", "offload", "checkpointing", "micro-batch x accumulation", "weights", "masters", "optimizer", "mean",
            "gradients, buckets", "pass", "step", "total", "fits", "largest that fits", "host", "images/s", "time",
        ],
        (_cells(row) for row in rows),
    )  # fmt: skip
    row = rows[0] if rows else None
    if row is not None:
        typer.echo(
            f"{row.flops_per_image / 1e9:.1f} GFLOP per image, forward and backward. "
            f"A checkpoint is {row.memory.checkpoint / GIB:.2f} GiB on the disk."
        )
    for note in dict.fromkeys(planner.notes):
        typer.echo(f"Note: {note}")


def _cells(row: Row) -> list[str]:
    device = row.memory.device
    parts = (
        device.weights, device.masters, device.optimizer, device.ema, device.gradients + device.buckets,
        device.backward, device.step, device.total,
    )  # fmt: skip
    return [
        str(row.zero_stage), row.offload, "yes" if row.activation_checkpointing else "no",
        f"{row.micro_batch_size} x {row.accumulation}", *(f"{part / GIB:.2f}" for part in parts),
        "yes" if row.fits else "no", str(row.largest or "none"), f"{row.memory.host.total / GIB:.2f}",
        "-" if row.images_per_s is None else f"{row.images_per_s:.0f}", _duration(row.eta_s),
    ]  # fmt: skip


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 3600:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 72 * 3600 else f"{seconds / 86400:.1f} d"
