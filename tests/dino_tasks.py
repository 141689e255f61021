"""Small DINO tasks, batches of crops for them, and their loss written once more from the papers, image by image."""

from typing import Any

import torch
from lightly.models.modules import MaskedVisionTransformerTIMM
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn import functional

from cxrdist.models.build import RadiographModel, build_model
from cxrdist.models.config import ModelConfig
from cxrdist.pretrain.dino import DinoTask
from cxrdist.pretrain.dinov2 import Dinov2Task
from cxrdist.pretrain.masks import Masks, block_masks
from cxrdist.pretrain.methods import DinoConfig, Dinov2Config

SMALL = {"hidden_width": 12, "bottleneck": 6, "prototypes": 10}
VIT = {
    "backbone": "vit_tiny_patch16_224",
    "args": {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2, "dynamic_img_size": True},
}
CONVNEXT = {"backbone": "convnext_atto", "args": {"depths": [1, 1, 1, 1], "dims": [4, 8, 8, 16]}}
SIDES = {"vit": (32, 16), "convnext": (96, 32)}
NETS = {"vit": VIT, "convnext": CONVNEXT}


def dino_model(net: str = "vit", **model: Any) -> RadiographModel:
    return build_model(ModelConfig(**NETS[net], **model), num_classes=1, image_size=SIDES[net][0], seed=0)


def dino_task(method: str, net: str = "vit", *, local: int = 2, drop_path: float = 0.0, **config: Any) -> DinoTask:
    """Return a task in training mode, student and teacher apart, weights large enough for losses that tell."""
    crops = {"count": local, "size": SIDES[net][1]}
    kinds: dict[str, Any] = {"dino": (DinoTask, DinoConfig), "dinov2": (Dinov2Task, Dinov2Config)}
    make, kind = kinds[method]
    torch.manual_seed(0)
    task: DinoTask = make(dino_model(net, drop_path=drop_path), kind(**SMALL | config, local_crops=crops), fresh=True)
    with torch.no_grad():
        for parameter in task.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for centre in task.centres():
            centre.value.normal_(std=0.1)
    return task.train()


def crop_batch(images: int = 3, net: str = "vit", *, local: int = 2, seed: int = 0) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    large, small = SIDES[net]
    return {
        "image": torch.randint(0, 256, (images, 2, 1, large, large), dtype=torch.uint8, generator=rng),
        "local": torch.randint(0, 256, (images, local, 1, small, small), dtype=torch.uint8, generator=rng),
        "seed": torch.randint(0, 2**62, (images,), generator=rng),
    }


def plain_loss(task: DinoTask, ranks: list[dict[str, torch.Tensor]]) -> torch.Tensor:
    """Return the loss of the batches of all ranks together, in float64, one image and one crop after the other."""
    c, temperature = task.config, float(task.temperature)
    dinov2 = isinstance(task, Dinov2Task)
    task = task.double()
    taught, learned, taught_patches, learned_patches, spread = [], [], [], [], torch.zeros(())
    for batch in ranks:
        images = len(batch["image"])
        masks = None
        if dinov2 and task.masks_patches:
            masks = block_masks(
                batch["seed"].tolist(), grid_of(task.model, batch), crops=2, ratio=c.mask_ratio, share=c.mask_share
            )
        pooled: list[list[torch.Tensor]] = [[], []]
        for image in range(images):
            for crop in range(2):
                pixels = batch["image"][image : image + 1, crop]
                place = crop * images + image
                with torch.no_grad():
                    seen, patches = plain_features(task.teacher, pixels)
                    taught.append((crop, logits_of(task.teacher_head, seen)))
                ours, our_patches = plain_features(task.model, pixels, masks, place, getattr(task, "mask_token", None))
                pooled[crop].append(ours[0])
                learned.append((crop, logits_of(task.head, ours)))
                if masks is not None:
                    head = task.head if task.patch_head is None else task.patch_head
                    teacher_head = task.teacher_head if task.patch_head is None else task.teacher_patch_head
                    hidden = masks.mask[place].nonzero()[:, 0]
                    for patch in hidden:
                        taught_patches.append(logits_of(teacher_head, patches[:, patch]).detach())
                        learned_patches.append((1 / len(hidden), logits_of(head, our_patches[:, patch])))
            for number in range(batch["local"].shape[1]):
                ours, _ = plain_features(task.model, batch["local"][image : image + 1, number])
                learned.append((2 + number, logits_of(task.head, ours)))
        if dinov2:
            spread = spread + sum(plain_koleo(torch.stack(one)) for one in pooled) / len(ranks)
    targets = plain_targets(torch.cat([row for _, row in taught]), temperature, task.centre)
    crops_per_image = 2 + ranks[0]["local"].shape[1]
    terms = []
    for place, (crop, _) in enumerate(taught):
        image = place // 2
        for other, logits in learned[image * crops_per_image : (image + 1) * crops_per_image]:
            if other != crop:
                terms.append(-(targets[place] * (logits[0] / c.student_temperature).log_softmax(0)).sum())
    loss = torch.stack(terms).mean()
    if dinov2 and learned_patches:
        targets = plain_targets(torch.cat(taught_patches), temperature, task.patch_centre)
        entropies = [
            weight * -(target * (logits[0] / c.student_temperature).log_softmax(0)).sum()
            for target, (weight, logits) in zip(targets, learned_patches, strict=True)
        ]
        loss = loss + c.ibot_weight * torch.stack(entropies).sum() / len(taught)
    return loss + c.koleo_weight * spread if dinov2 else loss


def grid_of(model: RadiographModel, batch: dict[str, torch.Tensor]) -> tuple[int, int]:
    patch = model.net.patch_embed.patch_size[0] if isinstance(model.net, VisionTransformer) else 32
    return (batch["image"].shape[-1] // patch,) * 2


def plain_features(
    model: RadiographModel,
    pixels: torch.Tensor,
    masks: Masks | None = None,
    place: int = 0,
    token: nn.Parameter | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (1, D) and (1, N, F) of one crop, masked as lightly does it, or square by square."""
    net, images = model.net, (pixels.double() / 255 - model.mean) / model.std
    if isinstance(net, VisionTransformer):
        if masks is None:
            tokens = net.forward_features(images)
        else:
            own = MaskedVisionTransformerTIMM(
                net, nn.Parameter(torch.zeros(1, 1, net.embed_dim)), "skip", pos_embed_initialization="skip"
            )
            del own.mask_token
            own.mask_token = token.view(1, 1, -1)
            mask = torch.cat([torch.zeros(1, dtype=torch.bool), masks.mask[place]])
            tokens = own.encode(images, mask=mask[None])
        return tokens[:, 0], tokens[:, 1:]
    if masks is not None:
        images, cells = images.clone(), images.shape[-1] // 32
        for cell in masks.mask[place].nonzero()[:, 0].tolist():
            row, column = 32 * (cell // cells), 32 * (cell % cells)
            images[:, :, row : row + 32, column : column + 32] = token
    features = net.forward_features(images)
    return net.head.norm(features.mean((2, 3), keepdim=True)).flatten(1), features.flatten(2).transpose(1, 2)


def logits_of(head: nn.Module, rows: torch.Tensor) -> torch.Tensor:
    """Return the head's cosines of a row, written with the layers' weights, in float64."""
    layers = [layer for layer in head.rows if isinstance(layer, nn.Linear)]
    for layer in layers[:-1]:
        rows = functional.gelu(rows @ layer.weight.T + layer.bias)
    rows = rows @ layers[-1].weight.T + layers[-1].bias
    weight = head.prototypes.weight
    return (rows / rows.norm(dim=1, keepdim=True)) @ (weight / weight.norm(dim=1, keepdim=True)).T


def plain_targets(logits: torch.Tensor, temperature: float, centre: Any) -> torch.Tensor:
    if centre is not None:
        return ((logits - centre.value) / temperature).softmax(dim=1)
    return plain_sinkhorn(logits, temperature)


def plain_sinkhorn(logits: torch.Tensor, temperature: float, iterations: int = 3) -> torch.Tensor:
    """Return SwAV's assignments as its appendix has them, in float64."""
    q = torch.exp(logits.double() / temperature).T
    q = q / q.sum()
    for _ in range(iterations):
        q = q / q.sum(dim=1, keepdim=True) / len(q)
        q = q / q.sum(dim=0, keepdim=True) / q.shape[1]
    return (q * q.shape[1]).T


def plain_koleo(rows: torch.Tensor) -> torch.Tensor:
    rows = rows / rows.norm(dim=1, keepdim=True)
    places = range(len(rows))
    near = [min((rows[one] - rows[two]).norm() for two in places if two != one) for one in places]
    return torch.stack([-torch.log(distance) for distance in near]).mean()
