"""How long, how fast and how safely to train."""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from cxrdist.config import Config

Precision = Literal["fp32", "bf16", "fp16"]


class OptimConfig(Config):
    """The optimizer and its schedule."""

    name: Literal["adamw", "sgd", "lamb", "lars"] = "adamw"
    """AdamW (Loshchilov & Hutter 2019), SGD with Nesterov momentum, LAMB (You et al. 2020), or LARS (You et al. 2017)
    for CNNs, whose rate is of the order of 1."""

    lr: float = Field(default=1e-4, gt=0)
    """Peak learning rate, taken as it stands: it is not scaled by the batch."""

    weight_decay: float = Field(default=0.05, ge=0)
    """Weight decay; biases, norms, tokens, position embeddings and other one-dimensional parameters have none."""

    final_weight_decay: float | None = Field(default=None, ge=0)
    """Weight decay at the end of a half cosine over the whole run (Caron et al. 2021, DINO); null keeps it."""

    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of the two running means of AdamW and LAMB, each in [0, 1)."""

    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Momentum of SGD and LARS."""

    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """Factor on the learning rate from each layer to the one below (Clark et al. 2020; BEiT); 1 is the same for all."""

    warmup: float = Field(default=0.1, ge=0, lt=1)
    """Share of all steps in which the learning rate rises linearly from zero."""

    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """What the learning rate does after the warm-up."""

    final_lr: float = Field(default=0.01, ge=0, le=1)
    """Learning rate at the end of the cosine or the line, as a share of the peak."""

    clip: float = Field(default=1.0, ge=0)
    """Largest global norm of the gradient; 0 does not clip."""

    @field_validator("betas")
    @classmethod
    def _rates(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"must be two numbers in [0, 1), got {list(betas)}.")
        return betas


class TrainConfig(Config):
    """Steps, batches, engine and checkpoints."""

    steps: int = Field(default=1000, gt=0)
    """Optimizer steps."""

    stop_at: int | None = Field(default=None, gt=0)
    """End after so many of the `steps`, whose schedules stay what they are; null makes them all."""

    global_batch_size: int = Field(default=64, gt=0)
    """Images per optimizer step, over all ranks."""

    micro_batch_size: int | Literal["auto"] | None = None
    """Images per forward pass and rank; null takes a rank's whole share at once, ``auto`` the most that memory holds.
    Changes no result but rounding."""

    precision: Precision = "fp32"
    """bf16 and fp16 compute in autocast and keep weights and optimizer in fp32; fp16 scales the loss."""

    zero_stage: Literal[0, 1, 2, 3] = 0
    """ZeRO (Rajbhandari et al. 2020): 1 divides the optimizer's state among the ranks, 2 also the gradients, 3 also the
    weights."""

    offload: Literal["none", "optimizer", "parameters"] = "none"
    """What lies in the host's memory: the optimizer (stage 1 or above), or the parameters as well (stage 3)."""

    activation_checkpointing: bool = False
    """Compute each block again in the backward pass instead of keeping its activations."""

    compile: bool = False
    """Compile the backbone with `torch.compile`; not with ZeRO 3."""

    deepspeed: Path | None = None
    """A `ds_config.json` of your own, merged into ours: how it communicates, buckets and offloads.  What this file
    decides (batches, optimizer, precision, stage) must not stand in it otherwise."""

    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    """Decay per step of a running mean of the weights; it is validated, and becomes the model, in their place."""

    evaluate_every: int = Field(default=100, gt=0)
    """Steps between validations; each also writes a checkpoint, and the best of them becomes the model."""

    early_stopping: int | None = Field(default=None, gt=0)
    """Stop after so many validations in a row without a better one; null never stops early."""

    checkpoint_every: int = Field(default=100, gt=0)
    """Steps between checkpoints: what a kill can lose at most."""

    checkpoint_in_background: bool = True
    """Write checkpoints while training goes on, from a copy in the host's memory."""

    keep_last: int = Field(default=1, gt=0)
    """Newest checkpoints kept."""

    keep_best: int = Field(default=1, gt=0)
    """Best checkpoints on validation kept."""

    keep_every: int | None = Field(default=None, gt=0)
    """Also keep the checkpoint of every multiple of so many steps."""

    log_every: int = Field(default=10, gt=0)
    """Steps between lines of `metrics.jsonl`."""

    trackers: list[Literal["mlflow", "wandb"]] = []
    """Experiment trackers that get the same values as TensorBoard, offline unless their own settings say otherwise."""

    hang_after: float = Field(default=1800.0, gt=0)
    """Seconds without a step, a validation or a checkpoint on some rank after which the job is ended."""

    @field_validator("micro_batch_size", mode="before")
    @classmethod
    def _size(cls, size: Any) -> Any:
        # Before pydantic looks: it would answer for each of the types.
        if size in (None, "auto") or (isinstance(size, int) and not isinstance(size, bool) and size >= 1):
            return size
        raise ValueError(f"must be a whole number of at least 1, auto or null, got {size!r}.")

    @property
    def last_step(self) -> int:
        """Return the step that training ends at, unless it stops early."""
        return self.steps if self.stop_at is None else min(self.stop_at, self.steps)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        needed = {"none": 0, "optimizer": 1, "parameters": 3}[self.offload]
        if self.zero_stage < needed:
            raise ValueError(
                f"must have a `zero_stage` of at least {needed} for `offload` {self.offload!r}, got {self.zero_stage}."
            )
        if self.compile and self.zero_stage == 3:
            raise ValueError("must not have `compile` with `zero_stage` 3, got both. Use stage 2, or no `compile`.")
        return self
