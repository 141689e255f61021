"""ResNet, DenseNet, ConvNeXt and Swin in other libraries' names compute what those libraries' networks compute."""

import re

import pytest
import timm
import torch
import torchvision
from torch.nn import functional as F  # noqa: N812 - as everywhere
from torchvision.models.convnext import CNBlockConfig

from cxrdist.models.build import build_model
from cxrdist.models.config import ModelConfig
from cxrdist.models.weights import load_weights

SIDE = 64
IMAGENET = [0.485, 0.456, 0.406]
Tree = dict[str, torch.Tensor]


def build(backbone: str, image_size: int = SIDE, **args):
    config = ModelConfig(backbone=backbone, args=args)
    return build_model(config, num_classes=2, image_size=image_size, seed=7).eval()


def images() -> torch.Tensor:
    return torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def lively(net: torch.nn.Module) -> torch.nn.Module:
    """Give every parameter and running mean of `net` a value of its own: ones and zeros would hide a mistake."""
    generator = torch.Generator().manual_seed(0)
    for name, value in net.state_dict().items():
        if value.is_floating_point():
            noise = torch.randn(value.shape, generator=generator)
            around = 1.0 if "running_var" in name or (value.ndim == 1 and name.endswith("weight")) else 0.0
            spread = 0.1 if value.ndim < 2 else (1.0 / value[0].numel()) ** 0.5
            value.copy_((around + spread * noise).abs() if "running_var" in name else around + spread * noise)
    return net.eval()


def under(prefix: str, tree: Tree) -> Tree:
    return {f"{prefix}{name}": value for name, value in tree.items()}


def other(tree: Tree) -> Tree:
    return {name: value + 1 for name, value in tree.items()}


def rewritten(tree: Tree, *rules: tuple[str, str]) -> Tree:
    found = {}
    for name, value in tree.items():
        for pattern, new in rules:
            name = re.sub(pattern, new, name)  # noqa: PLW2901
        found[name] = value
    return found


def saved(tmp_path, tree):
    torch.save(tree, tmp_path / "weights.pth.tar")
    return tmp_path / "weights.pth.tar"


@torch.no_grad()
def pooled(model, pictures) -> torch.Tensor:
    return model.net.forward_head(model.net.forward_features(pictures), pre_logits=True)


def check(tmp_path, model, tree, *, says: str, mean, theirs) -> None:
    report = load_weights(model, saved(tmp_path, tree))
    assert report.source == says
    assert report.misshapen == []
    assert all(name.endswith("num_batches_tracked") for name in report.missing)
    assert all(name.startswith(("projection_head.", "prototypes.")) for name in report.unexpected)
    assert model.mean.flatten().tolist() == pytest.approx(mean)
    with torch.no_grad():
        torch.testing.assert_close(pooled(model, images()), theirs(images()), rtol=1e-4, atol=1e-5)


# --- ResNet: the methods that pretrain one ---


@pytest.fixture(scope="module")
def resnet():
    net = torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1])
    net.fc = torch.nn.Identity()
    return lively(net)


def head(name: str, width: int = 8) -> Tree:
    return {f"{name}.weight": torch.ones(width, 512), f"{name}.bias": torch.ones(width)}


def numbered(tree: Tree) -> Tree:
    order = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
    return rewritten(tree, *((rf"^{name}\.", f"{k}.") for k, name in enumerate(order)))


OPTIMIZER = {"state": {0: {"step": 3, "exp_avg": torch.ones(2), "exp_avg_sq": torch.ones(2)}}, "param_groups": []}
METHODS = {
    "torchvision": (lambda t: t | head("fc"), "the backbone's own names", IMAGENET),
    "convirt": (lambda t: t, "the backbone's own names", IMAGENET),
    "moco v1": (
        lambda t: {"arch": "resnet18", "state_dict": under("module.encoder_q.", t | head("fc"))
                   | under("module.encoder_k.", other(t | head("fc"))) | {"module.queue": torch.ones(4, 4)}},
        "MoCo, query encoder", IMAGENET),
    "moco v2, MoCo-CXR, MedAug": (
        lambda t: {"arch": "resnet18", "epoch": 20, "optimizer": OPTIMIZER,
                   "state_dict": under("module.encoder_q.", t | head("fc.0", 512) | head("fc.2"))
                   | under("module.encoder_k.", other(t | head("fc.0", 512) | head("fc.2")))
                   | {"module.queue": torch.ones(4, 4), "module.queue_ptr": torch.zeros(1, dtype=torch.int64)}},
        "MoCo v2, query encoder", IMAGENET),
    "moco v3": (
        lambda t: {"state_dict": under("module.base_encoder.", t | head("fc.0"))
                   | under("module.momentum_encoder.", other(t | head("fc.0")))
                   | head("module.predictor.0")},
        "MoCo v3, base encoder", IMAGENET),
    "simclr": (
        lambda t: {"state_dict": under("backbone.", t | head("fc.0", 512) | head("fc.2")), "arch": "resnet18"},
        "the backbone's own names", IMAGENET),
    "simclr with a projector": (
        lambda t: under("encoder.", t) | head("projector.0") | head("projector.2"),
        "SimCLR or alike", IMAGENET),
    "simclr in a sequence": (
        lambda t: {"state_dict": under("backbone.", numbered(t)) | head("projection_head.layers.0")},
        "SimCLR or alike, ResNet in a sequence", IMAGENET),
    "byol by its learner": (
        lambda t: under("online_encoder.net.", t) | under("target_encoder.net.", other(t)) | head("online_predictor.0"),
        "BYOL, online network", IMAGENET),
    "byol by its networks": (
        lambda t: {"online_network_state_dict": under("encoder.", numbered(t)) | head("projetion.net.0"),
                   "target_network_state_dict": under("encoder.", other(numbered(t)))},
        "BYOL, ResNet in a sequence, online network", IMAGENET),
    "swav": (
        lambda t: under("module.", t | head("projection_head.0") | {"prototypes.weight": torch.ones(4, 8)}),
        "SwAV", IMAGENET),
    "a supervised script that averages parameters": (
        lambda t: {"state_dict": other(t),
                   "state_dict_ema": {name: value for name, value in t.items() if "num_batches" not in name}},
        "the backbone's own names, moving average", IMAGENET),
    "vissl": (
        lambda t: {"classy_state_dict": {"base_model": {"model": {"trunk": under("_feature_blocks.", t)}}}},
        "the backbone's own names", IMAGENET),
    "dino": (
        lambda t: {"student": under("module.backbone.", other(t)),
                   "teacher": under("backbone.", t) | head("head.mlp.0") | head("head.last_layer")},
        "DINO, teacher branch", IMAGENET),
    "gloria": (
        lambda t: {"pytorch-lightning_version": "1.1.4", "hyper_parameters": {"lr": 1e-5},
                   "state_dict": under("gloria.img_encoder.model.", t) | head("gloria.img_encoder.global_embedder")
                   | {"gloria.text_encoder.model.embeddings.word_embeddings.weight": torch.ones(9, 4)}},
        "GLoRIA, image tower", [0.5, 0.5, 0.5]),
}  # fmt: skip


@pytest.mark.parametrize("name", METHODS)
def test_a_resnet_of_any_method_computes_the_same(tmp_path, resnet, name):
    wrap, says, mean = METHODS[name]
    model = build("resnet18", layers=[1, 1, 1, 1])
    check(tmp_path, model, wrap(dict(resnet.state_dict())), says=says, mean=mean, theirs=resnet)


def test_the_branch_that_is_not_taken_is_named_in_the_log(tmp_path, resnet, caplog):
    tree = METHODS["moco v2, MoCo-CXR, MedAug"][0](dict(resnet.state_dict()))
    with caplog.at_level("INFO", logger="cxrdist"):
        load_weights(build("resnet18", layers=[1, 1, 1, 1]), saved(tmp_path, tree))
    assert "(MoCo v2, query encoder; not taken: key encoder)" in caplog.text
    assert "MoCo-CXR" in caplog.text  # its files look the same, and want other constants


# --- DenseNet ---


@pytest.fixture(scope="module")
def densenet():
    net = torchvision.models.DenseNet(growth_rate=8, block_config=(2, 1), num_init_features=16)
    net.classifier = torch.nn.Identity()
    return lively(net)


def before_0_4(tree: Tree) -> Tree:
    return rewritten(tree, (r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2."))


@pytest.mark.parametrize(
    ("wrap", "says"),
    [
        (lambda t: t, "torchvision DenseNet"),
        (before_0_4, "torchvision DenseNet"),
        (lambda t: {"state_dict": under("module.densenet121.", before_0_4(t))}, "torchvision DenseNet"),
        (lambda t: {"state_dict": under("gloria.img_encoder.model.", t)}, "GLoRIA, torchvision DenseNet, image tower"),
        (lambda t: {"state_dict": under("encoder_q.", t) | under("encoder_k.", other(t))
                    | {"encoder_q.classifier_group.0.weight": torch.ones(3, 3)}},
         "S2MTS2, torchvision DenseNet, query encoder"),
    ],
    ids=["torchvision", "torchvision 0.3", "CheXNet", "GLoRIA", "S2MTS2"],
)  # fmt: skip
def test_a_densenet_computes_the_same(tmp_path, densenet, wrap, says):
    model = build("densenet121", growth_rate=8, block_config=[2, 1])
    tree = wrap(dict(densenet.state_dict()))
    report = load_weights(model, saved(tmp_path, tree))
    assert report.source == says
    assert report.missing == report.misshapen == []
    assert model.mean.flatten().tolist() == pytest.approx([0.5] * 3 if "GLoRIA" in says else IMAGENET)
    with torch.no_grad():
        torch.testing.assert_close(pooled(model, images()), densenet(images()), rtol=1e-4, atol=1e-5)


# --- ConvNeXt ---


@pytest.fixture(scope="module")
def convnext():
    setting = [CNBlockConfig(8, 16, 2), CNBlockConfig(16, 24, 1), CNBlockConfig(24, 32, 1), CNBlockConfig(32, None, 1)]
    net = lively(torchvision.models.ConvNeXt(setting, num_classes=3))
    net.classifier[2] = torch.nn.Identity()
    return net


def official_convnext(tree: Tree) -> Tree:
    rules = [(rf"^features\.{2 * i + 1}\.", f"stages.{i}.") for i in range(4)]
    rules += [(rf"^features\.{2 * i}\.", f"downsample_layers.{i}.") for i in range(4)]
    rules += [(r"block\.0\.", "dwconv."), (r"block\.2\.", "norm."), (r"block\.3\.", "pwconv1.")]
    rules += [(r"block\.5\.", "pwconv2."), (r"layer_scale$", "gamma"), (r"^classifier\.0\.", "norm.")]
    found = rewritten(tree, *rules)
    return {name: value.flatten() if name.endswith("gamma") else value for name, value in found.items()}


def dinov3_convnext(tree: Tree) -> Tree:
    found = official_convnext(tree)
    return found | {f"norms.3.{part}": found[f"norm.{part}"] for part in ("weight", "bias")}


def transformers_convnext(tree: Tree) -> Tree:
    found = rewritten(
        official_convnext(tree),
        (r"^norm\.", "layernorm."), (r"(\d)\.norm\.", r"\1.layernorm."), (r"gamma$", "layer_scale_parameter"),
        (r"^stages\.(\d)\.", r"encoder.stages.\1.layers."),
        (r"^downsample_layers\.0\.0\.", "embeddings.patch_embeddings."),
        (r"^downsample_layers\.0\.1\.", "embeddings.layernorm."),
        (r"^downsample_layers\.(\d)\.", r"encoder.stages.\1.downsampling_layer."),
    )  # fmt: skip
    return under("convnext.", found)


def transformers_dinov3_convnext(tree: Tree) -> Tree:
    return rewritten(
        official_convnext(tree),
        (r"^norm\.", "layer_norm."), (r"(\d)\.norm\.", r"\1.layer_norm."), (r"dwconv", "depthwise_conv"),
        (r"pwconv", "pointwise_conv"), (r"^stages\.(\d)\.", r"stages.\1.layers."),
        (r"^downsample_layers\.(\d)\.", r"stages.\1.downsample_layers."),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("writer", "says"),
    [
        (lambda t: t, "torchvision ConvNeXt"),
        (lambda t: {"model": official_convnext(t)}, "official ConvNeXt"),
        (dinov3_convnext, "official DINOv3 ConvNeXt"),
        (transformers_convnext, "transformers ConvNeXt"),
        (transformers_dinov3_convnext, "transformers DINOv3 ConvNeXt"),
    ],
    ids=["torchvision", "official", "DINOv3", "transformers", "transformers DINOv3"],
)
def test_a_convnext_computes_the_same(tmp_path, convnext, writer, says):
    model = build("convnext_atto", depths=[2, 1, 1, 1], dims=[8, 16, 24, 32], conv_mlp=False)
    tree = writer(dict(convnext.state_dict()))
    check(tmp_path, model, tree, says=says, mean=IMAGENET, theirs=convnext)


# --- Swin ---


def swin(window: int) -> torch.nn.Module:
    net = torchvision.models.SwinTransformer([4, 4], 16, [2, 1], [2, 4], [window, window], num_classes=3)
    net.head = torch.nn.Identity()
    return lively(net)


def official_swin(tree: Tree) -> Tree:
    """Microsoft's, which goes down at the end of a stage, not at the start of the next."""
    found = rewritten(
        tree,
        (r"^features\.0\.0\.", "patch_embed.proj."), (r"^features\.0\.2\.", "patch_embed.norm."),
        (r"^features\.1\.", "layers.0.blocks."), (r"^features\.2\.", "layers.0.downsample."),
        (r"^features\.3\.", "layers.1.blocks."), (r"mlp\.0\.", "mlp.fc1."), (r"mlp\.3\.", "mlp.fc2."),
    )  # fmt: skip
    return found | {"layers.0.blocks.1.attn_mask": torch.zeros(4, 16, 16)}


@pytest.mark.parametrize(
    "writer", [lambda t: t, lambda t: {"model": official_swin(t)}], ids=["torchvision", "official"]
)
def test_a_swin_computes_the_same(tmp_path, writer):
    theirs = swin(4)
    model = build("swin_tiny_patch4_window7_224", embed_dim=16, depths=[2, 1], num_heads=[2, 4], window_size=4)
    report = load_weights(model, saved(tmp_path, writer(dict(theirs.state_dict()))))
    assert (report.missing, report.misshapen, report.unexpected) == ([], [], [])
    with torch.no_grad():
        torch.testing.assert_close(pooled(model, images()), theirs(images()), rtol=1e-4, atol=1e-5)


def test_position_biases_of_another_window_are_resampled_as_by_timm(tmp_path):
    theirs = swin(8)
    model = build("swin_tiny_patch4_window7_224", embed_dim=16, depths=[2, 1], num_heads=[2, 4], window_size=4)
    report = load_weights(model, saved(tmp_path, dict(theirs.state_dict())))
    name = "layers.0.blocks.0.attn.relative_position_bias_table"
    assert name in report.resampled
    table = theirs.state_dict()["features.1.0.attn.relative_position_bias_table"]
    by_timm = timm.layers.resize_rel_pos_bias_table(table, new_window_size=(4, 4), new_bias_shape=(49, 2))
    torch.testing.assert_close(model.net.state_dict()[name], by_timm)


# --- CLIP's ResNet ---


def openai_resnet(tree: Tree) -> Tree:
    """OpenAI's names of timm's parts of the modified ResNet."""
    found = rewritten(
        tree,
        (r"^stem\.conv(\d)\.conv\.", r"conv\1."), (r"^stem\.conv(\d)\.bn\.", r"bn\1."),
        (r"^stages\.0\.", "layer1."), (r"^stages\.1\.", "layer2."), (r"^stages\.2\.", "layer3."),
        (r"^stages\.3\.", "layer4."), (r"conv(\d)_\dx\d\.conv\.|conv(\d)_kxk\.conv\.", r"conv\1\2."),
        (r"conv(\d)_\dx\d\.bn\.|conv(\d)_kxk\.bn\.", r"bn\1\2."), (r"shortcut\.conv\.conv\.", "downsample.0."),
        (r"shortcut\.conv\.bn\.", "downsample.1."), (r"^head\.pos_embed", "attnpool.positional_embedding"),
        (r"^head\.([qkv])\.", r"attnpool.\1_proj."), (r"^head\.proj\.", "attnpool.c_proj."),
    )  # fmt: skip
    return under("visual.", found)


def modified_resnet(w: Tree, pictures: torch.Tensor) -> torch.Tensor:
    """Return the features before the pooling, (B, C, H, W), by the definition of Radford et al. 2021."""

    def layer(x: torch.Tensor, conv: str, norm: str, **how: int) -> torch.Tensor:
        at = (w[f"visual.{norm}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(F.conv2d(x, w[f"visual.{conv}.weight"], **how), *at)

    x = layer(pictures, "conv1", "bn1", stride=2, padding=1).relu()
    for k in (2, 3):
        x = layer(x, f"conv{k}", f"bn{k}", padding=1).relu()
    x = F.avg_pool2d(x, 2)
    for stage, depth in enumerate((3, 4, 6, 3), start=1):
        for block in range(depth):
            at, smaller = f"layer{stage}.{block}", stage > 1 and block == 0
            inner = layer(x, f"{at}.conv1", f"{at}.bn1").relu()
            inner = layer(inner, f"{at}.conv2", f"{at}.bn2", padding=1).relu()
            inner = layer(F.avg_pool2d(inner, 2) if smaller else inner, f"{at}.conv3", f"{at}.bn3")
            x = F.avg_pool2d(x, 2) if smaller else x
            if block == 0:
                x = layer(x, f"{at}.downsample.0", f"{at}.downsample.1")
            x = (x + inner).relu()
    return x


@pytest.mark.parametrize("side", [SIDE, 96])
def test_clips_resnet_loads_at_any_size(tmp_path, side):
    theirs, model = build("resnet50_clip"), build("resnet50_clip", side)
    lively(theirs.net)
    tree = openai_resnet(dict(theirs.net.state_dict()))
    assert {"visual.layer1.0.conv2.weight", "visual.layer1.0.downsample.0.weight", "visual.conv3.weight"} <= tree.keys()
    report = load_weights(model, saved(tmp_path, tree))
    assert report.source == "CLIP ResNet, image tower"
    assert report.missing == report.misshapen == report.unexpected == []
    assert report.resampled == ([] if side == SIDE else ["head.pos_embed"])
    assert model.mean.flatten().tolist() == pytest.approx([0.48145466, 0.4578275, 0.40821073])
    mine, named = model.net.state_dict(), theirs.net.state_dict()
    with torch.no_grad():
        found = model.net.forward_features(images())
        torch.testing.assert_close(found, modified_resnet(tree, images()), rtol=1e-3, atol=1e-4)
    kept = [name for name in named if name not in report.resampled and not name.startswith("head.proj.")]
    assert all(torch.equal(mine[name], named[name]) for name in kept)
