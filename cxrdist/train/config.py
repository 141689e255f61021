"""How long, how fast and how safely to train."""

import math
from typing import Literal

from pydantic import Field, field_validator

from cxrdist.config import Config


class OptimConfig(Config):
    """AdamW (Loshchilov & Hutter 2019) and its schedule."""

    lr: float = Field(default=1e-4, gt=0)
    """Peak learning rate, taken as it stands: it is not scaled by the batch."""

    weight_decay: float = Field(default=0.05, ge=0)
    """Decoupled weight decay; biases, norms and other one-dimensional parameters have none."""

    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of the two running means, each in [0, 1)."""

    warmup: float = Field(default=0.1, ge=0, lt=1)
    """Share of all steps in which the learning rate rises linearly from zero."""

    schedule: Literal["cosine", "constant"] = "cosine"
    """What the learning rate does after the warm-up."""

    final_lr: float = Field(default=0.01, ge=0, le=1)
    """Learning rate at the end of the cosine, as a share of the peak."""

    clip: float = Field(default=1.0, ge=0)
    """Largest global norm of the gradient; 0 does not clip."""

    @field_validator("betas")
    @classmethod
    def _rates(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"must be two numbers in [0, 1), got {list(betas)}.")
        return betas

    def lr_at(self, step: int, steps: int) -> float:
        """Return the learning rate of optimizer step `step` of `steps`: a function of the step, with no state."""
        warmup_steps = round(self.warmup * steps)
        if step < warmup_steps:
            return self.lr * (step + 1) / warmup_steps
        if self.schedule == "constant":
            return self.lr
        done = (step - warmup_steps) / max(1, steps - warmup_steps)
        return self.lr * (self.final_lr + (1 - self.final_lr) * 0.5 * (1 + math.cos(math.pi * done)))


class TrainConfig(Config):
    """Steps, batches, engine and checkpoints."""

    steps: int = Field(default=1000, gt=0)
    """Optimizer steps."""

    global_batch_size: int = Field(default=64, gt=0)
    """Images per optimizer step, over all ranks."""

    micro_batch_size: int | None = Field(default=None, gt=0)
    """Images per forward pass and rank; null takes a rank's whole share at once.  Changes no result but rounding."""

    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 computes in autocast and keeps weights and optimizer in fp32."""

    zero_stage: Literal[0, 1] = 0
    """ZeRO (Rajbhandari et al. 2020): 1 divides the optimizer's state among the ranks."""

    evaluate_every: int = Field(default=100, gt=0)
    """Steps between validations; each also writes a checkpoint, and the best of them becomes the model."""

    checkpoint_every: int = Field(default=100, gt=0)
    """Steps between checkpoints: what a kill can lose at most."""

    keep_last: int = Field(default=1, gt=0)
    """Newest checkpoints kept; the best one is kept besides."""

    log_every: int = Field(default=10, gt=0)
    """Steps between lines of `metrics.jsonl`."""
