"""Names of ConvNeXt, Swin, ResNet and DenseNet in other libraries, as timm has them."""

import re

from timm.models.byobnet import checkpoint_filter_fn as clip_resnet_from_openai
from torch import nn

from cxrdist.models.keymaps_names import Rule, renamed
from cxrdist.models.reading import Weights

CONVNEXT: tuple[Rule, ...] = (
    (r"^norms\.", None),  # DINOv3's list of norms ends with `norm` once more
    (r"^downsample_layers\.0\.", "stem."),
    (r"^downsample_layers\.(\d+)\.", r"stages.\1.downsample."),
    (r"^stages\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
    (r"\bdwconv\.", "conv_dw."),
    (r"\bpwconv([12])\.", r"mlp.fc\1."),
    (r"\bgrn\.beta$", "mlp.grn.bias"),
    (r"\bgrn\.gamma$", "mlp.grn.weight"),
    (r"^norm\.", "head.norm."),
    (r"^head\.(weight|bias)$", r"head.fc.\1"),
)

CONVNEXT_TRANSFORMERS: tuple[Rule, ...] = (
    (r"^embeddings\.patch_embeddings\.", "stem.0."),
    (r"^embeddings\.layernorm\.", "stem.1."),
    (r"^encoder\.stages\.(\d+)\.downsampling_layer\.", r"stages.\1.downsample."),
    (r"^encoder\.stages\.(\d+)\.layers\.", r"stages.\1.blocks."),
    (r"\bdwconv\.", "conv_dw."),
    (r"\bpwconv([12])\.", r"mlp.fc\1."),
    (r"\bgrn\.(weight|bias)$", r"mlp.grn.\1"),
    (r"\blayer_scale_parameter$", "gamma"),
    (r"^layernorm\.", "head.norm."),
    (r"(?<!head)\.layernorm\.", ".norm."),
)

DINOV3_CONVNEXT_TRANSFORMERS: tuple[Rule, ...] = (
    (r"^(model\.)?stages\.0\.downsample_layers\.", "stem."),
    (r"^(model\.)?stages\.(\d+)\.downsample_layers\.", r"stages.\2.downsample."),
    (r"^(model\.)?stages\.(\d+)\.layers\.", r"stages.\2.blocks."),
    (r"\bdepthwise_conv\.", "conv_dw."),
    (r"\bpointwise_conv([12])\.", r"mlp.fc\1."),
    (r"^layer_norm\.", "head.norm."),
    (r"\blayer_norm\.", "norm."),
)

CONVNEXT_TORCHVISION: tuple[Rule, ...] = (
    (r"\bblock\.0\.", "conv_dw."),
    (r"\bblock\.2\.", "norm."),
    (r"\bblock\.3\.", "mlp.fc1."),
    (r"\bblock\.5\.", "mlp.fc2."),
    (r"\blayer_scale$", "gamma"),
    (r"^classifier\.0\.", "head.norm."),
    (r"^classifier\.2\.", "head.fc."),
)

SWIN_TORCHVISION: tuple[Rule, ...] = (
    (r"relative_position_index$", None),
    (r"^features\.0\.0\.", "patch_embed.proj."),
    (r"^features\.0\.2\.", "patch_embed.norm."),
    (r"\bmlp\.0\.", "mlp.fc1."),
    (r"\bmlp\.3\.", "mlp.fc2."),
    (r"^head\.", "head.fc."),
)

DENSENET: tuple[Rule, ...] = ((r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2."),)

NUMBERED_RESNET: tuple[Rule, ...] = (
    (r"^0\.", "conv1."),
    (r"^1\.", "bn1."),
    (r"^4\.", "layer1."),
    (r"^5\.", "layer2."),
    (r"^6\.", "layer3."),
    (r"^7\.", "layer4."),
)


def from_convnext(weights: Weights, net: nn.Module) -> Weights:
    """github.com/facebookresearch/ConvNeXt, ConvNeXt-V2 and dinov3."""
    return _convnext_shapes(renamed(weights, CONVNEXT), net)


def convnext_from_transformers(weights: Weights, net: nn.Module) -> Weights:
    """Transformers' ConvNeXt and ConvNeXt V2."""
    return _convnext_shapes(renamed(weights, CONVNEXT_TRANSFORMERS), net)


def dinov3_convnext_from_transformers(weights: Weights, net: nn.Module) -> Weights:
    """Transformers' DINOv3ConvNextModel."""
    return _convnext_shapes(renamed(weights, DINOV3_CONVNEXT_TRANSFORMERS), net)


def convnext_from_torchvision(weights: Weights, net: nn.Module) -> Weights:
    """Torchvision's ConvNeXt."""
    staged = renamed(_stages(weights), CONVNEXT_TORCHVISION)
    moved = renamed(staged, ((r"^features\.0\.", "stem."),))
    return _convnext_shapes(moved, net)


def swin_from_torchvision(weights: Weights, _: nn.Module) -> Weights:
    """Torchvision's Swin, first version."""
    named = renamed(weights, SWIN_TORCHVISION)
    return renamed(_stages(named), ((r"^stages\.", "layers."),))


def from_clip(weights: Weights, net: nn.Module) -> Weights:
    """The image tower of OpenAI's CLIP with its modified ResNet; timm's own rules know it by its prefix."""
    try:
        found: Weights = clip_resnet_from_openai({f"visual.{name}": value for name, value in weights.items()}, net)
    except (AttributeError, KeyError):  # not a network that timm would give them to
        return weights
    return found


def from_densenet(weights: Weights, _: nn.Module) -> Weights:
    """Torchvision's DenseNet, whose files keep the names that it had before 0.4 (``norm.1`` for ``norm1``)."""
    return renamed(weights, DENSENET)


def from_numbered_resnet(weights: Weights, _: nn.Module) -> Weights:
    """A torchvision ResNet whose children were put into a `Sequential`, as many SimCLR scripts and lightly do."""
    return renamed(weights, NUMBERED_RESNET)


def _stages(weights: Weights) -> Weights:
    """Number torchvision's ``features``: 1, 3, 5, 7 are the stages, 2, 4, 6 lead from one to the next."""
    found: Weights = {}
    for name, value in weights.items():
        new = name
        if match := re.match(r"features\.([1-9])\.(.*)", name):
            stage, within = divmod(int(match[1]), 2)
            new = f"stages.{stage}.{'blocks' if within else 'downsample'}.{match[2]}"
        found[new] = value
    return found


def _convnext_shapes(weights: Weights, net: nn.Module) -> Weights:
    """Give layer scale, response norm and the MLP the shapes of timm's: (C,), and 1x1 convolutions in some networks."""
    places = net.state_dict()
    return {
        name: value.reshape(places[name].shape)
        if name in places and value.numel() == places[name].numel() and name.endswith((".gamma", "grn.weight",
                                                                                      "grn.bias", "mlp.fc1.weight",
                                                                                      "mlp.fc2.weight"))
        else value
        for name, value in weights.items()
    }  # fmt: skip
