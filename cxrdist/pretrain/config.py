"""One pretraining as a file."""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from cxrdist.config import Config
from cxrdist.data.config import AugmentConfig, InputConfig
from cxrdist.models.config import ModelConfig
from cxrdist.pretrain.methods import CoupledConfig, MaeConfig, Method, MocoV2Config, SimmimConfig
from cxrdist.train.config import OptimConfig, TrainConfig

# Defaults stand on fields of classes of their own, not in the values of `PretrainConfig`: setting one name of a section
# would else give all its other names the defaults of fine-tuning.


class PretrainAugment(AugmentConfig):
    """Random changes of a training image; a wide range of scales and little else, as in the paper."""

    rotate: float = Field(default=5.0, ge=0, le=180)
    """Largest rotation, degrees, either way."""

    shift: float = Field(default=0.1, ge=0, le=0.5)
    """Largest shift along each axis, as a share of the side."""

    zoom: tuple[float, float] = (1.0, 1.6)
    """Range of the scale factor; above 1 crops, below 1 shows a black border."""


class PretrainInput(InputConfig):
    """How packed images become the backbone's input."""

    augment: PretrainAugment = PretrainAugment()
    """Random changes of every image, where the method sees it whole; the others have `method.crops`."""


class PretrainOptim(OptimConfig):
    """AdamW (Loshchilov & Hutter 2019) and its schedule."""

    betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates of the two running means, each in [0, 1)."""


class PretrainTrain(TrainConfig):
    """Steps, batches, engine and checkpoints."""

    evaluate_every: int = Field(default=500, gt=0)
    """Steps between looks at the features (`watch`); each also writes a checkpoint."""


class WatchConfig(Config):
    """What is looked at while a pretraining goes on, every `train.evaluate_every` steps; nothing of it changes the run.

    The labels decide nothing: the last step is the result.
    """

    shards: Path | None = None
    """A labelled dataset: its training split teaches the probes, its validation split is told.  Null has no probes,
    and looks at training images of the run."""

    findings: list[str] = []
    """What the probes predict; empty is every finding with both values in both splits."""

    images: int = Field(default=1024, ge=32)
    """Most images of a split that are looked at: whole patients, drawn once."""

    probes: list[Literal["knn", "linear"]] = ["knn", "linear"]
    """Weighted nearest neighbours (k = 20), and a logistic regression on the features."""

    pictures: int = Field(default=4, ge=0)
    """Images whose patch features are drawn by their first three principal components; 0 draws none."""

    collapse: Literal["stop", "warn"] = "stop"
    """What happens when all images have become one to the network: the run ends, or only says so."""


class PretrainConfig(Config):
    """Pretrain a backbone on the training splits of shard folders; labels are read by `method` ``supervised`` only."""

    shards: list[Path] = Field(min_length=1)
    """Packed datasets; their training splits are joined.  One named twice is seen twice in an epoch."""

    method: Method = MaeConfig()
    input: PretrainInput = PretrainInput()
    model: ModelConfig = ModelConfig()
    optim: PretrainOptim = PretrainOptim()
    train: PretrainTrain = PretrainTrain()
    watch: WatchConfig = WatchConfig()
    seed: int = Field(default=0, ge=0)

    @field_validator("method", mode="before")
    @classmethod
    def _named(cls, method: Any) -> Any:
        # A file that only changes a size means the default method.
        return {"name": "mae", **method} if isinstance(method, dict) else method

    @model_validator(mode="after")
    def _augmented_once(self) -> Self:
        changed = self.input.augment != PretrainAugment()
        if isinstance(self.method, CoupledConfig) and changed:
            raise ValueError(
                f"must not set `input.augment` with method {self.method.name!r}, which does not use it: "
                "its crops are described in `method.crops`."
            )
        return self

    @model_validator(mode="after")
    def _whole_squares(self) -> Self:
        size = self.input.image_size
        if isinstance(self.method, SimmimConfig) and (size % self.method.mask_patch or size == self.method.mask_patch):
            raise ValueError(
                f"must have an `input.image_size` that is a multiple of `method.mask_patch`={self.method.mask_patch}, "
                f"twice it or more, got {size}."
            )
        return self

    @model_validator(mode="after")
    def _queue_holds_a_batch(self) -> Self:
        batch = self.train.global_batch_size
        if isinstance(self.method, MocoV2Config) and self.method.queue < batch:
            raise ValueError(
                f"must have a `method.queue` that holds the keys of a global batch, got {self.method.queue} for "
                f"{batch} images. Set it to several global batches."
            )
        return self

    @model_validator(mode="after")
    def _nothing_in_vain(self) -> Self:
        if self.train.ema_decay is not None and hasattr(self.method, "momentum"):
            raise ValueError(
                f"must not set `train.ema_decay` with method {self.method.name!r}, whose teacher is a running mean of "
                "the weights already. Leave it null and set `method.momentum`."
            )
        if self.train.early_stopping is not None:
            raise ValueError(
                f"must not set `train.early_stopping`, got {self.train.early_stopping}: a pretraining has no score "
                "that decides when to end. Leave it null."
            )
        if self.train.keep_best != TrainConfig.model_fields["keep_best"].default:
            raise ValueError(
                f"must not set `train.keep_best`, got {self.train.keep_best}: a pretraining has no score by which one "
                "step is better than another. Set `train.keep_last` or `train.keep_every`."
            )
        return self
