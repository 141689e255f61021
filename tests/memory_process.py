"""Trains for some steps in a process of its own and says what it took.  No test; see `test_train_memory.py`.

``python memory_process.py JSON``: keys of `Case`.  Prints how much the resident size grew at its peak, from just before
the model is built to after three steps with a checkpoint in the background after the first; the largest of the ranks.
"""

import json
import os
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from cxrdist.data.order import Batching
from cxrdist.models.build import RadiographModel, build_model
from cxrdist.models.config import ModelConfig
from cxrdist.train.checkpoints import Checkpoints, Retention
from cxrdist.train.config import OptimConfig, TrainConfig
from cxrdist.train.ema import Ema
from cxrdist.train.engine import build_engine, gather, process_group
from cxrdist.train.fragments import fragments
from cxrdist.train.pieces import Piece
from cxrdist.world import read_world

FINDINGS = 14


class Task(nn.Module):
    """A network and its loss."""

    def __init__(self, model: RadiographModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"loss": binary_cross_entropy_with_logits(self.model(batch["image"]).float(), batch["target"])}


@dataclass(frozen=True)
class Case:
    """One training."""

    name: str
    backbone: str = "vit_small_patch16_224"
    micro_batch_size: int = 4
    accumulation: int = 1
    ranks: int = 1
    image_size: int = 224
    train: dict[str, Any] = field(default_factory=dict)
    optim: dict[str, Any] = field(default_factory=dict)
    args: dict[str, Any] = field(default_factory=dict)

    @property
    def batching(self) -> Batching:
        whole = self.micro_batch_size * self.accumulation * self.ranks
        return Batching(whole, self.micro_batch_size, self.accumulation)

    @property
    def train_config(self) -> TrainConfig:
        return TrainConfig(global_batch_size=self.batching.global_batch_size, **self.train)

    @property
    def optim_config(self) -> OptimConfig:
        return OptimConfig(**self.optim)

    def task(self, *, told: bool = False, loaded: bool = True) -> Task:
        config = ModelConfig(backbone=self.backbone, args=self.args)
        model = build_model(config, num_classes=FINDINGS, image_size=self.image_size, seed=0)
        return Task(model)

    def batch(self, images: int) -> dict[str, torch.Tensor]:
        shape = (images, 1, self.image_size, self.image_size)
        return {"image": torch.zeros(shape, dtype=torch.uint8), "target": torch.zeros(images, FINDINGS)}


def resident(name: str) -> int:
    """Return VmRSS or VmHWM (its peak) of this process, bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))


def grown(case: Case) -> int:
    """Train and return the growth of this process in bytes."""
    world = read_world()
    train = case.train_config
    with process_group(world) as device, tempfile.TemporaryDirectory() as folder:
        shared = Path(gather(folder)[0])
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
        engine = build_engine(case.task(), train=train, optim=case.optim_config, batching=case.batching, device=device)
        ema = Ema(engine, train.ema_decay) if train.ema_decay is not None else None
        store = Checkpoints(
            shared / "checkpoints",
            rank=world.rank,
            world_size=world.world_size,
            keep=Retention(),
            in_background=train.checkpoint_in_background,
            resumed=None,
            token="one",
        )
        for step in range(3):
            engine.train()
            for _ in range(case.accumulation):
                output = engine(case.batch(case.micro_batch_size))
                float(output["loss"].item())
                engine.backward(output["loss"])
                engine.step()
                del output
            if ema is not None:
                ema.update()
            if step == 0:
                parts = [*fragments(engine), *(ema.fragments() if ema is not None else [])]
                pieces = [
                    Piece(part.name, kind, part.shape, part.start, tensor)
                    for number, part in enumerate(parts)
                    if not part.shared or number % world.world_size == world.rank
                    for kind, tensor in part.tensors.items()
                ]
                store.save(1, pieces, {})
                del parts, pieces
        store.close()
        return max(gather(resident("VmHWM") - before))


if __name__ == "__main__":
    took = grown(Case(**json.loads(sys.argv[1])))
    if os.environ.get("RANK", "0") == "0":
        print(json.dumps({"grown": took}))
