"""Which network a file holds, and what timm calls its parts.

A weight file is told by its names alone.  A *layout* is one library's way of naming a network's parts; its anchors are
names that every network of that layout has.  What stands before an anchor is the network's *branch*: a file of a
self-supervised method holds several networks of one layout (teacher and student, query and key encoder).
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import nn

from cxrdist.models import keymaps_conv as conv
from cxrdist.models import keymaps_vit as vit
from cxrdist.models.pretrained import Constants
from cxrdist.models.reading import Weights

IMAGENET = Constants((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "ImageNet's")
OPENAI = Constants((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711), "CLIP's")
HALF = Constants((0.5,) * 3, (0.5,) * 3, "GLoRIA's own")


@dataclass(frozen=True)
class Layout:
    """One library's names of the parts of a network."""

    name: str
    anchors: tuple[str, ...]
    """Names that every network of this layout has; of alternatives joined by ``|``, one."""
    convert: Callable[[Weights, nn.Module], Weights]
    """Give the parts the names that they have in this timm network."""
    constants: Constants | None = None


LAYOUTS = (
    Layout("official DINOv3", ("patch_embed.proj.weight", "storage_tokens|rope_embed.periods", "blocks.0.norm1.weight"),
           vit.from_dinov3, IMAGENET),
    Layout("official DINOv2", ("patch_embed.proj.weight", "mask_token", "blocks.0.ls1.gamma|blocks.0.0.ls1.gamma"),
           vit.from_dinov2, IMAGENET),
    Layout("MAE", ("patch_embed.proj.weight", "decoder_embed.weight", "mask_token"), vit.from_mae, IMAGENET),
    Layout("REFERS", ("embeddings.patch_embeddings.weight", "encoder.layer.0.attention_norm.weight"),
           vit.from_refers, IMAGENET),
    Layout("transformers DINOv3", ("embeddings.patch_embeddings.weight", "embeddings.register_tokens",
                                   "layer.0.attention.q_proj.weight|model.layer.0.attention.q_proj.weight"),
           vit.from_transformers_dinov3, IMAGENET),
    Layout("transformers DINOv2", ("embeddings.patch_embeddings.projection.weight",
                                   "encoder.layer.0.attention.attention.query.weight",
                                   "encoder.layer.0.layer_scale1.lambda1"),
           vit.from_transformers, IMAGENET),
    Layout("transformers ViT", ("embeddings.patch_embeddings.projection.weight",
                                "encoder.layer.0.attention.attention.query.weight"), vit.from_transformers),
    Layout("transformers CLIP", ("embeddings.patch_embedding.weight", "embeddings.class_embedding",
                                 "encoder.layers.0.self_attn.q_proj.weight"), vit.from_transformers_clip, OPENAI),
    Layout("CLIP ViT", ("conv1.weight", "class_embedding", "transformer.resblocks.0.attn.in_proj_weight"),
           vit.from_clip, OPENAI),
    Layout("CLIP ResNet", ("conv1.weight", "attnpool.positional_embedding", "layer1.0.conv1.weight"),
           conv.from_clip, OPENAI),
    Layout("torchvision ViT", ("conv_proj.weight", "encoder.layers.encoder_layer_0.ln_1.weight"),
           vit.from_torchvision, IMAGENET),
    Layout("torchvision Swin", ("features.0.0.weight", "features.0.2.weight", "features.1.0.attn.qkv.weight"),
           conv.swin_from_torchvision, IMAGENET),
    Layout("torchvision ConvNeXt", ("features.0.0.weight", "features.1.0.block.0.weight", "features.1.0.layer_scale"),
           conv.convnext_from_torchvision, IMAGENET),
    Layout("official DINOv3 ConvNeXt", ("downsample_layers.0.0.weight", "norms.3.weight"),
           conv.from_convnext, IMAGENET),
    Layout("official ConvNeXt", ("downsample_layers.0.0.weight", "stages.0.0.dwconv.weight"),
           conv.from_convnext, IMAGENET),
    Layout("transformers ConvNeXt", ("embeddings.patch_embeddings.weight", "encoder.stages.0.layers.0.dwconv.weight"),
           conv.convnext_from_transformers, IMAGENET),
    Layout("transformers DINOv3 ConvNeXt", ("stages.0.downsample_layers.0.weight",
                                            "stages.0.layers.0.depthwise_conv.weight"),
           conv.dinov3_convnext_from_transformers, IMAGENET),
    Layout("torchvision DenseNet", ("features.conv0.weight", "features.denseblock1.denselayer1.norm.1.weight"
                                                             "|features.denseblock1.denselayer1.norm1.weight"),
           conv.from_densenet, IMAGENET),
    Layout("ResNet in a sequence", ("0.weight", "1.running_mean", "4.0.conv1.weight"), conv.from_numbered_resnet),
)  # fmt: skip
"""From the particular to the general: where two say the same of a file, the first has its name."""

SAME_NAMES = Layout("the backbone's own names", (), lambda weights, _: weights)
"""timm's names, which are those of most official repositories, torchvision's ResNet and plain supervised files."""

METHODS: tuple[tuple[str, str, Constants | None], ...] = (
    (r"(^|\.)encoder_q\.classifier_group\.", "S2MTS2", IMAGENET),
    (r"(^|\.)encoder_q\.fc\.2\.", "MoCo v2", IMAGENET),
    (r"(^|\.)encoder_q\.", "MoCo", IMAGENET),
    (r"(^|\.)momentum_encoder\.", "MoCo v3", IMAGENET),
    (r"(^|\.)gloria\.img_encoder\.|(^|\.)img_encoder\.global_embedder\.", "GLoRIA", HALF),
    (r"(^|\.)online_(encoder|network|net)\w*\.", "BYOL", IMAGENET),
    (r"(^|\.)prototypes\.", "SwAV", IMAGENET),
    (r"(^|\.)dino_head\.", "DINO", None),
    (r"(^|\.)teacher\.(\w+\.)*head\.(mlp|last_layer)", "DINO", IMAGENET),
    (r"(^|\.)visual\.trunk\.", "OpenCLIP", None),
    (r"(^|\.)(projector|projection_head|projetion)\.", "SimCLR or alike", IMAGENET),
)
"""Name that a method's files have, the method, and the constants its code uses (with an ImageNet-trained backbone)."""

BRANCHES = (
    (r"teacher", 1, "teacher branch"),
    (r"student", -1, "student branch"),
    (r"(\w+_)?ema(_\w+)?", 1, "moving average"),
    (r"encoder_q", 0, "query encoder"),
    (r"encoder_k", -1, "key encoder"),
    (r"base_encoder", 0, "base encoder"),
    (r"momentum_\w+", -1, "momentum encoder"),
    (r"online_\w+", 0, "online network"),
    (r"target_\w+", -1, "target network"),
    (r"visual|vision_model|vision_tower|img_encoder|image_encoder", 0, "image tower"),
)
"""Part of a branch's name, how much it is to be preferred, and what it is.

The preferences are those that the methods document for use downstream: DINO's teacher, MoCo's query encoder, MoCo v3's
base encoder, BYOL's online network, a moving average where a supervised script kept one.
"""


HINTS = {
    "MoCo": "MoCo-CXR's and MedAug's files look the same; set `model.mean` 0.502 and `model.std` 0.0856 for these",
    "CLIP ViT": "CXR-RePaiR-CLIP's and CheXzero's files look the same; set `model.mean` 0.398 and `model.std` 0.3272 "
    "for these. They and OpenAI's were trained with QuickGELU: take a `_quickgelu_` backbone",
    "official DINOv3": "the networks trained on satellite images look the same and have other constants",
}
"""What names alone cannot tell (constants from the methods' own code, as shares of white)."""


NEARLY = 0.8
"""Share of the best match's names that a preferred branch must match."""


@dataclass(frozen=True)
class Found:
    """A network in a weight file."""

    layout: Layout
    prefix: str
    """What stands before each of its names."""
    weights: Weights
    """Its tensors by the backbone's names."""
    method: str | None
    branch: str | None
    preference: int
    constants: Constants | None

    @property
    def says(self) -> str:
        """Layout, method and branch in words."""
        named = self.layout is not SAME_NAMES or self.method is None
        parts = (self.method, self.layout.name if named else None, self.branch)
        return ", ".join(part for part in parts if part)

    @property
    def hint(self) -> str | None:
        """What a user should know of files that look like this one."""
        return HINTS.get(self.layout.name) or HINTS.get((self.method or "").removesuffix(" v2"))


def networks(weights: Weights, net: nn.Module) -> list[Found]:
    """Return the networks that a weight file holds, the one that suits `net` best first; at least one."""
    method, constants = _method(weights)
    found = []
    for layout, prefix in _places(weights, net):
        part = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        preference, branch = _branch(prefix)
        found.append(
            Found(layout, prefix, layout.convert(part, net), method, branch, preference, constants or layout.constants)
        )
    wanted = net.state_dict().keys()
    matched = [len(wanted & one.weights.keys()) for one in found]
    # A moving average often has no buffers: of networks that match nearly as well, the preferred one is taken.
    ranks = [(count >= NEARLY * max(matched), one.preference, count) for count, one in zip(matched, found, strict=True)]
    # `sorted` is stable: of equals, the first layout stays first.
    order = sorted(range(len(found)), key=lambda k: ranks[k], reverse=True)
    return [found[k] for k in order]


def _places(weights: Weights, net: nn.Module) -> Iterable[tuple[Layout, str]]:
    for layout in LAYOUTS:
        for prefix in sorted(_prefixes(weights, layout.anchors)):
            yield layout, prefix
    ends = Counter[str]()
    wanted = net.state_dict().keys()
    for name in weights:
        pieces = name.split(".")
        ends.update(".".join([*pieces[:k], ""]) for k in range(len(pieces)) if ".".join(pieces[k:]) in wanted)
    most = max(ends.values(), default=0)
    likely = [prefix for prefix, count in sorted(ends.items()) if count > most / 2]
    for prefix in likely or [""]:
        yield SAME_NAMES, prefix


def _prefixes(weights: Weights, anchors: tuple[str, ...]) -> set[str]:
    first, *others = anchors
    prefixes = {name.removesuffix(first) for name in weights if name == first or name.endswith(f".{first}")}
    return {
        prefix
        for prefix in prefixes
        if all(any(f"{prefix}{name}" in weights for name in anchor.split("|")) for anchor in others)
    }


def _method(weights: Weights) -> tuple[str | None, Constants | None]:
    for pattern, method, constants in METHODS:
        if any(re.search(pattern, name) for name in weights):
            return method, constants
    return None, None


def _branch(prefix: str) -> tuple[int, str | None]:
    known = [
        (preference, says)
        for piece in prefix.split(".")
        for pattern, preference, says in BRANCHES
        if re.fullmatch(pattern, piece)
    ]
    return sum(preference for preference, _ in known), ", ".join(says for _, says in known) or None
