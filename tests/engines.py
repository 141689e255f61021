"""Small engines on a few ranks, forked from the test's process."""

import gc
import json
import pickle
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import timm
import torch
from ranks import exit_code, fork, kill, rank_works
from torch import nn

from cxrdist.data.order import Batching
from cxrdist.train.config import OptimConfig, TrainConfig
from cxrdist.train.engine import build_engine, process_group, release_engine
from cxrdist.world import World

BATCH = 8
LR = 3e-3
STAGES = (0, 1, 2, 3)


class TinyTask(nn.Module):
    """A vision transformer with dropout where asked, a frozen parameter and constants that no checkpoint has."""

    def __init__(self, *, seed: int = 0, dropout: float = 0.0, trained: str = "") -> None:
        """Train the parameters with `trained` in their name; the position embeddings are always frozen."""
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.net = timm.create_model(
                "vit_tiny_patch16_224", img_size=16, patch_size=8, embed_dim=18, depth=2, num_heads=3, num_classes=2,
                proj_drop_rate=dropout,
            )  # fmt: skip
        for name, parameter in self.net.named_parameters():
            parameter.requires_grad_(trained in name and name != "pos_embed")
        self.register_buffer("mean", torch.full((1, 3, 1, 1), 0.5), persistent=False)
        self.register_buffer("std", torch.full((1, 3, 1, 1), 0.3), persistent=False)

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        logits = self.net((batch["image"] - self.mean) / self.std).float()
        loss = nn.functional.binary_cross_entropy_with_logits(logits, batch["target"])
        return {"loss": loss, "logits": logits}


def batch_of(step: int, *, size: int = BATCH, device: torch.device | str = "cpu") -> dict[str, torch.Tensor]:
    """Return the global batch of a step."""
    generator = torch.Generator().manual_seed(step)
    image = torch.rand(size, 3, 16, 16, generator=generator)
    target = (torch.rand(size, 2, generator=generator) > 0.5).float()
    return {"image": image.to(device), "target": target.to(device)}


@contextmanager
def engine_of(
    world: World,
    device: torch.device,
    *,
    task: nn.Module | None = None,
    optim: OptimConfig | None = None,
    small_buckets: bool = True,
    **train: Any,
) -> Iterator[Any]:
    """Yield an engine; with `small_buckets` the tiny model is divided as a large one would be."""
    with tempfile.TemporaryDirectory() as folder:
        if small_buckets and train.get("zero_stage"):
            zero: dict[str, Any] = {"reduce_bucket_size": 1500, "allgather_bucket_size": 1500}
            if train["zero_stage"] == 3:
                zero |= {"stage3_param_persistence_threshold": 100, "stage3_prefetch_bucket_size": 500}
                zero |= {"sub_group_size": 2000}
            train["deepspeed"] = Path(folder, "ds_config.json")
            train["deepspeed"].write_text(json.dumps({"zero_optimization": zero}))
        config = TrainConfig(**{"global_batch_size": BATCH} | train)
        batching = Batching.plan(
            global_batch_size=config.global_batch_size,
            micro_batch_size=config.micro_batch_size,
            world_size=world.world_size,
        )
        engine = build_engine(
            TinyTask() if task is None else task,
            train=config,
            optim=OptimConfig(lr=LR) if optim is None else optim,
            batching=batching,
            device=device,
        )
    yield engine
    release_engine(engine)


def step_once(engine: Any, world: World, step: int, batch: dict[str, torch.Tensor] | None = None) -> float:
    """Make optimizer step `step` with this rank's part of its global batch; return the rank's mean loss."""
    batch = batch_of(step) if batch is None else batch
    parts = engine.gradient_accumulation_steps()
    size = len(batch["image"]) // world.world_size // parts
    engine.train()
    total = 0.0
    for part in range(parts):
        start = (world.rank * parts + part) * size
        torch.manual_seed(1000 * step + 10 * part + world.rank)
        output = engine({name: value[start : start + size].to(engine.device) for name, value in batch.items()})
        engine.backward(output["loss"])
        engine.step()
        total += output["loss"].item() / parts
    return total


@contextmanager
def alone() -> Iterator[tuple[World, torch.device]]:
    """Yield a world of this process alone, and its device."""
    gc.freeze()  # all that was there before is not looked through at every engine's end
    try:
        with process_group(World()) as device:
            yield World(), device
    finally:
        gc.unfreeze()


def on_ranks(world_size: int, work: Callable[[World, torch.device], Any], *, timeout_s: float = 150) -> list[Any]:
    """Return what `work` returns on each of `world_size` ranks, each a forked process, joined in a process group."""
    _import_all()
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, str(rank)) for rank in range(world_size)]

        def joined(world: World) -> None:
            with process_group(world) as device:
                files[world.rank].write_bytes(pickle.dumps(work(world, device)))

        children = [fork(begin) for begin in rank_works(world_size, joined)]
        until = time.monotonic() + timeout_s
        codes: dict[int, int] = {}
        while len(codes) < world_size:
            for child in set(children) - codes.keys():
                code = exit_code(child)
                if code is not None:
                    codes[child] = code
            # When one has failed, the others wait for it in vain.
            if any(codes.values()) or time.monotonic() > until:
                for child in set(children) - codes.keys():
                    kill(child)
                raise AssertionError(f"ranks ended with {codes} of {children}")
            time.sleep(0.01)
        return [pickle.loads(file.read_bytes()) for file in files]


@cache
def _import_all() -> None:
    """Import what an engine imports when it is built, 2 s, here and not in every child."""
    with alone() as (world, device):
        for stage in (1, 3):
            with engine_of(world, device, zero_stage=stage) as engine:
                step_once(engine, world, 0)
