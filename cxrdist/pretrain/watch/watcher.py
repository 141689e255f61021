"""Looks at a network between steps of its pretraining.  Shapes: N looked-at images, D features, K findings."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from cxrdist.data.loader import EvaluationImages, evaluation_batches, on_device
from cxrdist.data.samples import Samples, choose_findings, read_samples
from cxrdist.datasets.shard_format import read_manifest
from cxrdist.errors import UserError, of_setting
from cxrdist.evaluate.predict import Gather
from cxrdist.findings import LabelPolicy
from cxrdist.log import get_logger
from cxrdist.models.precision import AUTOCAST
from cxrdist.pretrain.config import PretrainConfig
from cxrdist.pretrain.task import Look
from cxrdist.pretrain.watch.collapse import Collapse, find_collapse
from cxrdist.pretrain.watch.pictures import picture_of, write_picture
from cxrdist.pretrain.watch.probes import knn_scores, linear_scores, macro_auroc
from cxrdist.pretrain.watch.spread import Moments, Usage, feature_std, rankme
from cxrdist.train.metrics import read_metrics
from cxrdist.train.run_folder import RunFolder
from cxrdist.world import World

log = get_logger(__name__)

POLICY = LabelPolicy()
"""Of the probes: uncertain labels are masked, what is not mentioned is absent."""
PICTURE = "patches"
"""The value that is a picture, on rank 0 alone."""


class Watcher:
    """Looks at the same images every time, in evaluation mode and without gradients; it changes nothing of the run."""

    def __init__(
        self,
        config: PretrainConfig,
        samples: Samples,
        folder: RunFolder,
        world: World,
        device: torch.device,
        gather: Gather,
    ) -> None:
        """Draw the images; `samples` are those that the run trains on.

        Raises:
            UserError: If `watch.shards` have nothing that a probe can be taught and told of.
        """
        self.config, self.folder, self.world, self.device, self.gather = config, folder, world, device, gather
        watch, given = config.watch, config.watch.folders
        self.bank: EvaluationImages | None = None
        if not given:
            chosen, findings = _draw(samples, watch.images, config.seed), []
        else:
            projection = config.input.projection
            with of_setting("watch.shards"):
                bank, chosen = (
                    _draw(read_samples(given, split, projection=projection), watch.images, config.seed)
                    for split in ("train", "val")
                )
            findings = _findings(config, bank, chosen)
            if watch.probes:
                self.bank = EvaluationImages(bank, bank.targets(findings, POLICY), config.input)
        self.images = EvaluationImages(chosen, chosen.targets(findings, POLICY), config.input)

    def validate(
        self, task: nn.Module, micro_batch_size: int, before_each: Callable[[], object] = lambda: None
    ) -> dict[str, Any]:
        """Return the values of `cxrdist.pretrain.watch`; all ranks must call it together and get the same.

        Rank 0 also gets a picture, where the network has patches and all is finite.  What `before_each` raises, before
        a batch, ends the look.
        """
        look = self._look(task, self.images, micro_batch_size, before_each)
        bank = None if self.bank is None else self._look(task, self.bank, micro_batch_size, before_each)
        # Made once: ranks on different machines could round otherwise, and decide otherwise.
        values: dict[str, Any] = self.gather(self._values(look, bank) if self.world.is_main else None)[0]
        if self.world.is_main and look.patches and look.finite:
            values[PICTURE] = self._picture(look.patches)
        return values

    def judge(self, step: int, values: dict[str, Any]) -> None:
        """Write the picture of a look, and end the run if all images have become one; all ranks call it together.

        Raises:
            UserError: If they have, and the run is not to go on.
        """
        if PICTURE in values:
            write_picture(self.folder.pictures / f"step-{step:08d}.png", values[PICTURE])
        found = self.gather(self._collapse(step, values) if self.world.is_main else None)[0]
        if found is None:
            return
        if self.config.watch.collapse == "stop":
            raise UserError(f"{found.seen} {found.way_out}")
        if self.world.is_main:
            log.warning("%s", found.seen)

    def _collapse(self, step: int, values: dict[str, Any]) -> Collapse | None:
        if not step:  # a network that was never trained may begin anywhere
            return None
        looks = [line for line in read_metrics(self.folder.metrics) if line["kind"] == "val" and line["step"] < step]
        return find_collapse(self.config, step, values, looks[0] if looks else None)

    @torch.no_grad()
    def _look(
        self, task: nn.Module, images: EvaluationImages, micro_batch_size: int, before_each: Callable[[], object]
    ) -> "_Seen":
        """Return what all ranks have seen of `images`, on every rank."""
        precision = self.config.train.precision
        autocast = nullcontext() if precision == "fp32" else torch.autocast(self.device.type, AUTOCAST[precision])
        pictured = self.config.watch.pictures if images is self.images else 0
        seen = _Seen()
        # A micro-batch that fits with gradients: without, two of them do.
        for batch in evaluation_batches(images, 2 * micro_batch_size, self.world):
            before_each()
            with autocast:
                look: Look = task(on_device(batch, self.device))["look"]
            if "padding" not in batch:
                seen.add(batch["sample"].numpy(), look, pictured)
        return _Seen.joined(self.gather(seen))

    def _values(self, look: "_Seen", bank: "_Seen | None") -> dict[str, Any]:
        features = look.features
        finite = bool(np.isfinite(features).all())
        values: dict[str, Any] = {
            "feature_std": feature_std(features) if finite else None,
            "rankme": rankme(features) if finite else None,
        }
        if look.embedding.count:
            values["embedding_std"] = look.embedding.std()
        if look.pairs:
            values["agreement"] = look.cosines / look.pairs
        if look.usage.count:
            values |= look.usage.values()
        if bank is not None and self.bank is not None:
            finite = finite and bool(np.isfinite(bank.features).all())
            for name, scores in (("knn", knn_scores), ("linear", linear_scores)):
                if name in self.config.watch.probes:
                    told = "probe_auroc" if name == "linear" else f"{name}_auroc"
                    values[told] = None
                    if finite:
                        predicted = scores(bank.features, self.bank.targets, features)
                        values[told] = macro_auroc(self.images.targets, predicted)
        return values

    def _picture(self, patches: dict[int, np.ndarray]) -> np.ndarray:
        numbers = sorted(patches)
        stacked = np.stack([patches[number] for number in numbers])
        images = np.stack([self.images[number]["image"][0].numpy() for number in numbers])
        return picture_of(images, stacked)


@dataclass
class _Seen:
    """What a rank, or all of them, saw of a split: features of each image, sums of what is long, a few maps."""

    rows: list[np.ndarray] = field(default_factory=list)
    parts: list[np.ndarray] = field(default_factory=list)
    embedding: Moments = field(default_factory=Moments)
    usage: Usage = field(default_factory=Usage)
    cosines: float = 0.0
    pairs: int = 0
    patches: dict[int, np.ndarray] = field(default_factory=dict)

    @property
    def finite(self) -> bool:
        """Return whether all features and patches are numbers."""
        return all(bool(np.isfinite(part).all()) for part in (*self.parts, *self.patches.values()))

    @property
    def features(self) -> np.ndarray:
        """Return the features (N, D) float32 in the order of the samples."""
        rows = np.concatenate(self.rows)
        return np.concatenate(self.parts)[np.argsort(rows)]

    def add(self, rows: np.ndarray, look: Look, pictured: int) -> None:
        """Count the look at the samples `rows`; the patches of the first `pictured` samples are kept."""
        self.rows.append(rows)
        self.parts.append(look.features.float().cpu().numpy())
        if look.embedding is not None:
            self.embedding.add(look.embedding)
            if look.target is not None:
                cosines = torch.cosine_similarity(look.embedding.double(), look.target.double(), dim=1)
                self.cosines, self.pairs = self.cosines + float(cosines.sum()), self.pairs + len(cosines)
        if look.prototypes is not None:
            self.usage.add(look.prototypes)
        if look.patches is not None:
            for place in np.flatnonzero(rows < pictured):
                self.patches[int(rows[place])] = look.patches[place].float().cpu().numpy()

    @classmethod
    def joined(cls, pieces: list["_Seen"]) -> "_Seen":
        """Return the pieces of all ranks as one."""
        whole = cls()
        for piece in pieces:
            whole.rows += piece.rows
            whole.parts += piece.parts
            if piece.embedding.count:
                whole.embedding.join(piece.embedding)
            if piece.usage.count:
                whole.usage.join(piece.usage)
            whole.cosines, whole.pairs = whole.cosines + piece.cosines, whole.pairs + piece.pairs
            whole.patches |= piece.patches
        return whole


def _draw(samples: Samples, most: int, seed: int) -> Samples:
    """Return at most so many samples, whole patients but for the last one."""
    drawn = samples.draw(min(most, len(samples)), seed)
    return drawn.subset(np.arange(min(most, len(drawn))))


def _findings(config: PretrainConfig, bank: Samples, told: Samples) -> list[str]:
    """Return what the probes predict.

    Raises:
        UserError: If there is nothing, or one of `watch.findings` has not both values in both splits.
    """
    watch = config.watch
    usable = choose_findings(bank, told, POLICY)
    if not watch.findings:
        # A mean would count what they are made of twice.
        derived = {name for folder in watch.folders for name in read_manifest(folder).derived}
        usable = [name for name in usable if name not in derived]
        if usable or not watch.probes:
            return usable
        raise UserError(
            "`watch.shards` must have a finding with both values among the images that are looked at of the training "
            f"and of the validation split, got none [in {watch.dataset}]. Raise `watch.images`, or set "
            "`watch.probes` to []."
        )
    with of_setting("watch.findings"):
        bank.values(watch.findings)
        told.values(watch.findings)
    missing = [name for name in watch.findings if name not in usable]
    if missing:
        raise UserError(
            "`watch.findings` must have both values among the images that are looked at of the training and of the "
            f"validation split, got one value of {', '.join(missing)} [in {watch.dataset}]. Raise `watch.images`, "
            "or take it out."
        )
    return list(watch.findings)
