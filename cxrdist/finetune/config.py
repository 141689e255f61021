"""One fine-tuning as a file."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator

from cxrdist.config import Config
from cxrdist.data.config import InputConfig
from cxrdist.datasets.shard_format import read_manifest
from cxrdist.errors import UserError
from cxrdist.findings import LabelPolicy, check_names
from cxrdist.models.config import ModelConfig
from cxrdist.train.config import OptimConfig, TrainConfig


class FinetuneConfig(Config):
    """Fine-tune a backbone on one shard folder."""

    shards: Path
    """The packed dataset."""

    findings: list[str] = []
    """What to predict; empty is every finding with both values in the training and the validation split, but for those
    that the dataset's facts make of others (a mean would count these twice)."""

    labels: LabelPolicy = LabelPolicy()
    """What becomes of uncertain and not-mentioned labels in training; what is not set is the dataset's own default."""

    eval_labels: LabelPolicy | None = None
    """The same for validation and test; null is `labels` with every uncertain label masked."""

    train_images: int | None = Field(default=None, gt=0)
    """Size of the training set: whole patients are drawn until it is reached; null is all."""

    class_weights: Literal["balanced", "none"] = "balanced"
    """``balanced`` weighs positives by negatives / positives, per finding, over exactly the training images."""

    input: InputConfig = InputConfig()
    model: ModelConfig = ModelConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()

    seed: int = Field(default=0, ge=0)
    """Seed of the order, the augmentation, the head and the training subset."""

    @field_validator("findings")
    @classmethod
    def _known(cls, names: list[str]) -> list[str]:
        try:
            check_names(names)
        except UserError as error:
            raise ValueError(str(error)) from None
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"must name each finding once, got {', '.join(twice)} twice.")
        return names

    @field_validator("eval_labels")
    @classmethod
    def _hard(cls, policy: LabelPolicy | None) -> LabelPolicy | None:
        if policy is not None and policy.soft:
            raise ValueError("must not have `soft` true: a metric needs a yes or a no. Set it in `labels` alone.")
        return policy

    def resolved(self) -> Self:
        """Return the configuration with what the shards' manifest decides written out.

        Raises:
            UsageError, UserError: If the shards cannot be read.
        """
        own = {name: getattr(self.labels, name) for name in self.labels.model_fields_set}
        return self.model_copy(update={"labels": read_manifest(self.shards).policy.model_copy(update=own)})

    def evaluation_policy(self) -> LabelPolicy:
        """Return the policy of validation and test."""
        masked = {"uncertain": "ignore", "uncertain_by_finding": {}, "soft": False}
        return self.eval_labels or self.labels.model_copy(update=masked)
