"""One pretraining as a file."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

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
    """Steps between looks at the features (`watch`); each also writes a checkpoint, but for one that ends the run: what
    there was before all images became one is kept."""


class WatchConfig(Config):
    """What is looked at while a pretraining goes on, every `train.evaluate_every` steps; nothing of it changes the run.

    The labels decide nothing: the last step is the result.
    """

    shards: Path | Annotated[list[Path], Field(min_length=1)] | None = None
    """A labelled dataset, of one folder or several: its training split teaches the probes, its validation split is
    told.  Null has no probes, and looks at training images of the run."""

    findings: list[str] = []
    """What the probes predict; empty is every finding with both values in both splits."""

    images: int = Field(default=1024, ge=32)
    """Most images of a split that are looked at: whole patients, drawn once."""

    probes: list[Literal["knn", "linear"]] = ["knn", "linear"]
    """Weighted nearest neighbours (k = 20), and a logistic regression on the features."""

    pictures: int = Field(default=4, ge=0)
    """Images whose patch features are drawn by their first three principal components, beside them;
    0 draws none.  A picture shows packed radiographs: ``pictures`` and ``tb`` of the run folder are as private as the
    shards."""

    collapse: Literal["stop", "warn"] = "stop"
    """What happens when all images have become one to the network: the run ends, or only says so."""

    @model_validator(mode="after")
    def _labels_are_somewhere(self) -> Self:
        if self.findings and self.shards is None:
            raise ValueError(
                f"must not name `findings` without `shards`, whose labels they are, got {', '.join(self.findings)}."
            )
        return self

    @property
    def folders(self) -> list[Path]:
        """Return the folders of the labelled dataset, none without."""
        if self.shards is None:
            return []
        return self.shards if isinstance(self.shards, list) else [self.shards]

    @property
    def dataset(self) -> str:
        """Return what to call the labelled dataset in a sentence."""
        return " + ".join(folder.name for folder in self.folders)


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
                f"`input.augment` must not be set with method {self.method.name!r}, which does not use it. Its "
                "crops are described in `method.crops`."
            )
        return self

    @model_validator(mode="after")
    def _whole_squares(self) -> Self:
        size = self.input.image_size
        if isinstance(self.method, SimmimConfig) and (size % self.method.mask_patch or size == self.method.mask_patch):
            raise ValueError(
                f"`input.image_size` must be a multiple of `method.mask_patch`={self.method.mask_patch}, twice it or "
                f"more, got {size}."
            )
        return self

    @model_validator(mode="after")
    def _something_to_compare(self) -> Self:
        if isinstance(self.method, CoupledConfig) and self.train.global_batch_size < 2:
            raise ValueError(
                f"`train.global_batch_size` must be 2 or more with method {self.method.name!r}, which compares the "
                "images of a batch, got 1. Take as many as memory holds."
            )
        return self

    @model_validator(mode="after")
    def _queue_holds_a_batch(self) -> Self:
        batch = self.train.global_batch_size
        if isinstance(self.method, MocoV2Config) and self.method.queue < batch:
            raise ValueError(
                f"`method.queue` must hold the keys of a global batch, got {self.method.queue} for {batch} images. "
                "Set it to several global batches."
            )
        return self

    @model_validator(mode="after")
    def _nothing_in_vain(self) -> Self:
        if self.train.ema_decay is not None and hasattr(self.method, "momentum"):
            raise ValueError(
                f"`train.ema_decay` must be null with method {self.method.name!r}, whose teacher is a running mean of "
                f"the weights already, got {self.train.ema_decay}. Set `method.momentum`."
            )
        if self.train.early_stopping is not None:
            raise ValueError(
                f"`train.early_stopping` must be null in a pretraining, which has no score to stop by, got "
                f"{self.train.early_stopping}. Leave it out."
            )
        if self.train.keep_best != TrainConfig.model_fields["keep_best"].default:
            raise ValueError(
                f"`train.keep_best` must be left out in a pretraining, which has no score that makes a step the best, "
                f"got {self.train.keep_best}. Set `train.keep_last` or `train.keep_every`."
            )
        return self
