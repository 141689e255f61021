"""The task of a pretraining: its backbone with initial weights, and the method around it."""

from collections.abc import Callable
from contextlib import suppress
from inspect import signature
from typing import Any

import timm
import torch

from cxrdist.data.loader import Batch
from cxrdist.datasets.shard_format import read_manifest
from cxrdist.errors import UsageError, UserError, of_setting
from cxrdist.models.build import RadiographModel, build_model
from cxrdist.models.weights import load_weights
from cxrdist.pretrain.byol import ByolTask
from cxrdist.pretrain.config import PretrainConfig
from cxrdist.pretrain.dino import DinoTask
from cxrdist.pretrain.dinov2 import Dinov2Task
from cxrdist.pretrain.mae import MaeTask
from cxrdist.pretrain.methods import CoupledConfig, SupervisedConfig
from cxrdist.pretrain.moco_v2 import MocoV2Task
from cxrdist.pretrain.moco_v3 import MocoV3Task
from cxrdist.pretrain.simclr import SimclrTask
from cxrdist.pretrain.simmim import SimmimTask
from cxrdist.pretrain.supervised import SupervisedTask
from cxrdist.pretrain.supervision import Supervision, imagine_supervision, read_supervision
from cxrdist.pretrain.swav import SwavTask
from cxrdist.pretrain.task import PretrainTask
from cxrdist.seeds import Purpose, derive

MakeTask = Callable[..., PretrainTask]
"""From a model, the method's configuration and whether the model is ``fresh`` (has no loaded weights) to the task."""

TASKS: dict[str, MakeTask] = {
    "mae": MaeTask,
    "simmim": SimmimTask,
    "dino": DinoTask,
    "dinov2": Dinov2Task,
    "simclr": SimclrTask,
    "moco_v2": MocoV2Task,
    "moco_v3": MocoV3Task,
    "byol": ByolTask,
    "swav": SwavTask,
    "supervised": SupervisedTask,
}
"""By the method's name."""


def build_task(
    config: PretrainConfig, *, supervision: Supervision | None = None, told: bool = False, loaded: bool = True
) -> PretrainTask:
    """Return the task with its initial weights, the same at every call; what of them fits is logged if `told`.

    Without `loaded` only the shapes are of use: no weight file is read, and no shards.  Student and teacher both start
    from the weights; heads, which files of weights do not have, are random.  A `supervision`, which the method
    ``supervised`` has alone, is read if it is not given.
    """
    more: dict[str, Any] = {}
    if isinstance(config.method, SupervisedConfig):
        if supervision is None:
            supervision = read_supervision(config) if loaded else imagine_supervision(config)[0]
        more = {"supervision": supervision}
    model = _model(config, num_classes=1 if supervision is None else len(supervision.columns))
    if config.model.weights is not None and loaded:
        with of_setting("model.weights"):
            load_weights(model, config.model.weights, told=told)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(config.seed, Purpose.INIT, 1))
        return TASKS[config.method.name](model, config.method, fresh=config.model.weights is None, **more)


def example_batch(config: PretrainConfig, images: int) -> Batch:
    """Return a batch of so many images in the shapes and types of the loader's, without values, on the device "meta".

    Numbers of samples and seeds are real: they are read by value.
    """
    side, pixels = config.input.image_size, _pixels(config)
    columns = len(imagine_supervision(config)[0].columns) if isinstance(config.method, SupervisedConfig) else 0
    batch = {
        "target": torch.empty(images, columns, device="meta"),
        "sample": torch.arange(images),
        "seed": torch.arange(images),
    }
    if not isinstance(config.method, CoupledConfig):
        return {"image": _empty(pixels, images, 1, side, side), **batch}
    batch["image"] = _empty(pixels, images, 2, 1, side, side)
    local = getattr(config.method, "local_crops", None)
    if local is not None and local.count:
        batch["local"] = _empty(pixels, images, local.count, 1, local.size, local.size)
    return batch


def _pixels(config: PretrainConfig) -> torch.dtype:
    """Return the type of the loader's pixels: bytes, unless a dataset has 16 bits; of one that is not here, bytes."""
    bits = []
    for folder in config.shards:
        with suppress(UserError):
            bits.append(read_manifest(folder).preprocessing.bits)
    return torch.float32 if 16 in bits else torch.uint8


def _empty(pixels: torch.dtype, *shape: int) -> torch.Tensor:
    return torch.empty(*shape, dtype=pixels, device="meta")


SAVED = ("img_size",)


def _model(config: PretrainConfig, *, num_classes: int) -> RadiographModel:
    """Return the backbone, which must take crops of two sizes where the method has them."""
    size, local = config.input.image_size, getattr(config.method, "local_crops", None)
    described: Any = config.model
    if local is not None and local.count and local.size != size and _has_positions(config.model.backbone):
        _check_takes_sizes(config, local.size)
        described = described.model_copy(update={"args": {"dynamic_img_size": True, **described.args}})
    model = build_model(described, num_classes=num_classes, image_size=size, seed=config.seed)
    # What the network is called with here is no matter of the model that is saved.
    model.net.model_args = {
        name: value for name, value in model.net.model_args.items() if name in config.model.args or name in SAVED
    }
    return model


def _has_positions(backbone: str) -> bool:
    facts = timm.get_pretrained_cfg(backbone)
    return facts is not None and bool(facts.fixed_input_size)


def _check_takes_sizes(config: PretrainConfig, small: int) -> None:
    """Refuse a backbone of one size of images; timm tells by its class, which none but a built network shows."""
    size = config.input.image_size
    with torch.device("meta"):
        net = build_model(config.model, num_classes=1, image_size=size, seed=config.seed).net
    if not any("dynamic_img_size" in signature(kind).parameters for kind in type(net).__mro__):
        raise UsageError(
            f"`method.local_crops.size` must be `input.image_size`={size} for the backbone {config.model.backbone!r}, "
            f"which takes images of one size, got {small}. Set `method.local_crops.count` to 0, or choose a backbone "
            "that takes several: a vision transformer of timm's, EVA, Swin or any CNN."
        )
