"""One fine-tuning as a file."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator

from cxrdist.config import Config
from cxrdist.data.config import InputConfig
from cxrdist.datasets.shard_format import Manifest, read_manifest
from cxrdist.errors import UsageError, UserError
from cxrdist.findings import LabelPolicy, check_names
from cxrdist.models.config import ModelConfig
from cxrdist.train.config import OptimConfig, TrainConfig
from cxrdist.train.loss_config import LossConfig


class LoraConfig(Config):
    """Which layers are adapted, and how."""

    rank: int = Field(default=8, gt=0)
    """Rank of the change of each weight."""

    alpha: float = Field(default=16.0, gt=0)
    """The change is multiplied by `alpha` / `rank`."""

    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the input of the adapters."""

    targets: list[str] = []
    """Last parts of the names of the linear layers to adapt; empty is all of attention and perceptrons."""


class KnnConfig(Config):
    """How neighbours vote (Caron et al. 2021, DINO)."""

    k: int = Field(default=20, gt=0)
    """Nearest training images asked."""

    temperature: float = Field(default=0.07, gt=0)
    """A neighbour of cosine s weighs exp(s / temperature)."""


class ProtocolConfig(Config):
    """What is trained."""

    name: Literal["full", "head_then_full", "probe", "lora", "knn"] = "full"
    """``full`` trains everything; ``head_then_full`` the head alone at first (Kumar et al. 2022); ``probe`` the head
    alone, on features that never change; ``lora`` low-rank adapters and the head; ``knn`` nothing."""

    head_share: float = Field(default=0.1, gt=0, lt=1)
    """Share of the steps in which ``head_then_full`` trains the head alone."""

    lora: LoraConfig = LoraConfig()
    """Adapters of ``lora``."""

    knn: KnnConfig = KnnConfig()
    """Neighbours of ``knn``."""


class FinetuneConfig(Config):
    """Fine-tune a backbone on one shard folder."""

    shards: Path | Annotated[list[Path], Field(min_length=1)]
    """The packed dataset; several folders are one dataset together (Shenzhen and Montgomery, say)."""

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

    protocol: ProtocolConfig = ProtocolConfig()
    """What of the network is trained, and when."""

    loss: LossConfig = LossConfig()
    """Which loss, and how hard its targets are."""

    mixup: float = Field(default=0.0, ge=0)
    """Mix images in pairs, by shares from Beta(`mixup`, `mixup`) (Zhang et al. 2018); 0 mixes none."""

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

    @property
    def folders(self) -> list[Path]:
        """Return the shard folders."""
        return self.shards if isinstance(self.shards, list) else [self.shards]

    @property
    def dataset(self) -> str:
        """Return what to call the dataset in a sentence."""
        return " + ".join(folder.name for folder in self.folders)

    def resolved(self, read: Callable[[Path], Manifest] = read_manifest) -> Self:
        """Return the configuration with what the shards' manifest decides written out.

        Args:
            read: Gives the manifest of a shard folder.

        Raises:
            UsageError, UserError: If the shards cannot be read, or several of them map labels in different ways.
        """
        policies = [read(folder).policy for folder in self.folders]
        own = {name: getattr(self.labels, name) for name in self.labels.model_fields_set}
        labels = [policy.model_copy(update=own) for policy in policies]
        if any(one != labels[0] for one in labels):
            raise UsageError(
                f"Shard folders that are one dataset must map labels alike, got other defaults [in {self.dataset}]. "
                "Set `labels.uncertain` and `labels.not_mentioned`."
            )
        return self.model_copy(update={"labels": labels[0]})

    def evaluation_policy(self) -> LabelPolicy:
        """Return the policy of validation and test."""
        masked = {"uncertain": "ignore", "uncertain_by_finding": {}, "soft": False}
        return self.eval_labels or self.labels.model_copy(update=masked)
