"""What a fine-tuning is made of: its samples, findings and targets, and the task built from them."""

from dataclasses import dataclass

import numpy as np

from cxrdist.data.samples import Samples, choose_findings, count_samples, read_samples
from cxrdist.datasets.shard_format import read_manifest
from cxrdist.errors import UserError, of_setting
from cxrdist.finetune.config import FinetuneConfig
from cxrdist.finetune.mixup import mixed_known_share
from cxrdist.finetune.protocols import begin_protocol
from cxrdist.finetune.task import FinetuneTask
from cxrdist.log import get_logger
from cxrdist.models.build import build_model
from cxrdist.models.weights import load_weights
from cxrdist.train.losses import MultiLabelLoss, balanced_weights

log = get_logger(__name__)


@dataclass(frozen=True)
class Parts:
    """What one fine-tuning trains on and validates with."""

    config: FinetuneConfig
    train: Samples
    val: Samples
    findings: list[str]
    targets: np.ndarray
    """Of the training samples (N, K), in [0, 1], NaN masked."""
    val_targets: np.ndarray
    """Of the validation samples, 0, 1 or NaN."""

    def build_task(self, *, told: bool = False, loaded: bool = True) -> FinetuneTask:
        """Return the task with its initial weights, the same at every call; what of them fits is logged if `told`.

        Without `loaded` only the shapes are of use: no weight file is read.
        """
        return build_task(
            self.config, pos_weight=self._pos_weight(), known_share=self._known_share(), told=told, loaded=loaded
        )

    def _pos_weight(self) -> np.ndarray:
        if self.config.class_weights == "balanced":
            return balanced_weights(self.train.targets(self.findings, self.config.labels))
        return np.ones(len(self.findings))

    def _known_share(self) -> float:
        return mixed_known_share(self.targets) if self.config.mixup else float((~np.isnan(self.targets)).mean())


def build_task(
    config: FinetuneConfig, *, pos_weight: np.ndarray, known_share: float, told: bool = False, loaded: bool = True
) -> FinetuneTask:
    """Return the task of `config` with its initial weights, the same at every call.

    Args:
        config: Backbone, protocol and loss.
        pos_weight: What a positive of each of the K findings weighs (K,).
        known_share: Of the training targets, mixed or not, in (0, 1].
        told: Whether what of its weights fits is logged.
        loaded: Whether they are read; without, only the shapes are of use.
    """
    size = config.input.image_size
    model = build_model(config.model, num_classes=len(pos_weight), image_size=size, seed=config.seed)
    if config.model.weights is not None and loaded:
        with of_setting("model.weights"):
            load_weights(model, config.model.weights, told=told)
    begin_protocol(model.net, config.protocol, seed=config.seed)
    loss = MultiLabelLoss(config.loss, pos_weight=pos_weight, known_share=known_share)
    return FinetuneTask(model, loss=loss, protocol=config.protocol, mixup_alpha=config.mixup)


def read_parts(config: FinetuneConfig, *, told: bool) -> Parts:
    """Return what `config` describes, read from its shards; what a user should know is logged if `told`.

    Raises:
        UserError: If there is nothing to train or to validate with.
    """
    train, val = (read_samples(config.folders, split, projection=config.input.projection) for split in ("train", "val"))
    if told and not any(count_samples(folder, "test", projection=config.input.projection) for folder in config.folders):
        log.warning(
            "The test split has no image of projection %r, so this run cannot be tested [in %s].",
            config.input.projection,
            config.dataset,
        )
    if config.train_images is not None:
        train = train.draw(config.train_images, config.seed)
    val_policy = config.evaluation_policy()
    findings = config.findings or own_findings(config, choose_findings(train, val, config.labels, val_policy))
    if not findings:
        raise UserError(
            "A training split must have a finding with both values, in validation too, got none "
            f"[in {config.dataset}]. Pack more images or name `findings`."
        )
    targets = train.training_targets(findings, config.labels)
    unknown = [name for name, none in zip(findings, np.isnan(targets).all(axis=0), strict=True) if none]
    if unknown:
        raise UserError(
            f"A finding must have a label in the training images, got none of {', '.join(unknown)} "
            f"[in {config.dataset}]. Take it out of `findings` or change `labels`."
        )
    return Parts(config, train, val, findings, targets, val.targets(findings, val_policy))


def own_findings(config: FinetuneConfig, findings: list[str]) -> list[str]:
    """Return `findings` without those that are made of others: a mean over all would count these twice."""
    made_of_others = {name for folder in config.folders for name in read_manifest(folder).derived}
    derived = [name for name in findings if name in made_of_others]
    if derived:
        log.info(
            "Left out, because they are made of other findings: %s. Name `findings` to have them.", ", ".join(derived)
        )
    return [name for name in findings if name not in derived]
