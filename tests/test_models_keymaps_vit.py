"""Vision transformers in the names of every library give the features that the papers define.

One reference forward, written from the papers (Dosovitskiy 2021, Oquab 2023, Darcet 2024, Siméoni 2025), runs on plain
parameters; a writer for each library stores the same parameters in a file under that library's names; what timm's
network computes after loading that file must equal the reference.
"""

import math
import re

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch.nn import functional as F  # noqa: N812 - as everywhere

from cxrdist.models.build import build_model
from cxrdist.models.config import ModelConfig
from cxrdist.models.weights import load_weights

SIDE, PATCH, WIDTH, DEPTH, HEADS, HIDDEN = 32, 8, 32, 2, 2, 64
GRID = SIDE // PATCH
TINY = {"patch_size": PATCH, "embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS}
IMAGENET = [0.485, 0.456, 0.406]
OPENAI = [0.48145466, 0.4578275, 0.40821073]


def draw(*, registers: int = 0, positions: bool = True, gate: bool = False, seed: int = 0) -> dict:
    """Parameters of a small vision transformer, none at a value that hides a mistake."""
    generator = torch.Generator().manual_seed(seed)

    def some(*shape, scale=0.2, around=0.0):
        return around + scale * torch.randn(*shape, generator=generator)

    block = lambda: {  # noqa: E731
        "n1": (some(WIDTH, around=1.0), some(WIDTH)),
        **{part: (some(WIDTH, WIDTH), some(WIDTH)) for part in ("q", "k", "v", "out")},
        "scale1": some(WIDTH, around=0.5),
        "n2": (some(WIDTH, around=1.0), some(WIDTH)),
        "gate": (some(HIDDEN, WIDTH), some(HIDDEN)) if gate else None,
        "up": (some(HIDDEN, WIDTH), some(HIDDEN)),
        "down": (some(WIDTH, HIDDEN), some(WIDTH)),
        "scale2": some(WIDTH, around=0.5),
    }
    return {
        "patch": (some(WIDTH, 3, PATCH, PATCH), some(WIDTH)),
        "class": some(WIDTH),
        "registers": some(registers, WIDTH) if registers else None,
        "positions": some(1 + GRID * GRID, WIDTH) if positions else None,
        "pre": (some(WIDTH, around=1.0), some(WIDTH)),
        "blocks": [block() for _ in range(DEPTH)],
        "norm": (some(WIDTH, around=1.0), some(WIDTH)),
    }


def reference(p: dict, images: torch.Tensor, *, eps=1e-6, scale=False, pre=False, rope=False) -> torch.Tensor:
    """Return the normalised tokens (B, 1 + R + N, D): class, registers, patches row by row."""
    tokens = F.conv2d(images, *p["patch"], stride=PATCH).flatten(2).transpose(1, 2)
    tokens = torch.cat([p["class"].expand(len(images), 1, -1), tokens], dim=1)
    if p["positions"] is not None:
        tokens = tokens + p["positions"]
    if p["registers"] is not None:  # after the positions: registers have none
        registers = p["registers"].expand(len(images), -1, -1)
        tokens = torch.cat([tokens[:, :1], registers, tokens[:, 1:]], dim=1)
    if pre:
        tokens = F.layer_norm(tokens, (WIDTH,), *p["pre"], 1e-5)
    for b in p["blocks"]:
        inner = F.layer_norm(tokens, (WIDTH,), *b["n1"], eps)
        query, key, value = (split_heads(F.linear(inner, *b[part])) for part in "qkv")
        if rope:
            query, key = rotated(query), rotated(key)
        attention = (query @ key.transpose(-2, -1) / math.sqrt(WIDTH // HEADS)).softmax(dim=-1)
        inner = F.linear((attention @ value).transpose(1, 2).flatten(2), *b["out"])
        tokens = tokens + inner * (b["scale1"] if scale else 1.0)
        inner = F.layer_norm(tokens, (WIDTH,), *b["n2"], eps)
        up = F.linear(inner, *b["up"])
        hidden = F.silu(F.linear(inner, *b["gate"])) * up if b["gate"] else F.gelu(up)
        tokens = tokens + F.linear(hidden, *b["down"]) * (b["scale2"] if scale else 1.0)
    return F.layer_norm(tokens, (WIDTH,), *p["norm"], eps)


def split_heads(tokens: torch.Tensor) -> torch.Tensor:
    return tokens.unflatten(2, (HEADS, -1)).transpose(1, 2)


def rotated(tokens: torch.Tensor) -> torch.Tensor:
    """DINOv3's rotary embedding of the patches: axes in [-1, 1] at the patches' centres, periods 100^(4i / head)."""
    head = tokens.shape[-1]
    periods = 100.0 ** (4 * torch.arange(head // 4) / head)
    centres = 2 * (torch.arange(GRID) + 0.5) / GRID - 1
    rows, columns = centres.repeat_interleave(GRID), centres.repeat(GRID)
    angles = torch.cat([2 * math.pi * axis[:, None] / periods for axis in (rows, columns)], dim=1).repeat(1, 2)
    patches = tokens[:, :, -GRID * GRID :]
    first, second = patches.chunk(2, dim=-1)
    turned = patches * angles.cos() + torch.cat([-second, first], dim=-1) * angles.sin()
    return torch.cat([tokens[:, :, : -GRID * GRID], turned], dim=2)


def pair(name: str, values: tuple) -> dict[str, torch.Tensor]:
    return {f"{name}.weight": values[0], f"{name}.bias": values[1]}


def stacked(b: dict) -> tuple:
    return torch.cat([b[part][0] for part in "qkv"]), torch.cat([b[part][1] for part in "qkv"])


def plain_names(p: dict) -> dict:
    """The names of timm, DeiT, DINO, MoCo v3 and MAE."""
    found = {"cls_token": p["class"].view(1, 1, -1), **pair("patch_embed.proj", p["patch"]), **pair("norm", p["norm"])}
    if p["positions"] is not None:
        found["pos_embed"] = p["positions"][None]
    for i, b in enumerate(p["blocks"]):
        at = f"blocks.{i}"
        found |= pair(f"{at}.norm1", b["n1"]) | pair(f"{at}.norm2", b["n2"])
        found |= pair(f"{at}.attn.qkv", stacked(b)) | pair(f"{at}.attn.proj", b["out"])
        found |= pair(f"{at}.mlp.fc1", b["up"]) | pair(f"{at}.mlp.fc2", b["down"])
    return found


def dinov2(p: dict, *, group: bool = False) -> dict:
    found = plain_names(p) | {"mask_token": torch.ones(1, WIDTH)}
    for i, b in enumerate(p["blocks"]):
        found |= {f"blocks.{i}.ls1.gamma": b["scale1"], f"blocks.{i}.ls2.gamma": b["scale2"]}
        if b["gate"]:
            for part in ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"):
                del found[f"blocks.{i}.mlp.{part}"]
            both = tuple(torch.cat(two) for two in zip(b["gate"], b["up"], strict=True))
            found |= pair(f"blocks.{i}.mlp.w12", both) | pair(f"blocks.{i}.mlp.w3", b["down"])
    if p["registers"] is not None:
        found["register_tokens"] = p["registers"][None]
    if group:  # FSDP: one block in a group here
        found = {re.sub(r"^blocks\.(\d+)\.", r"blocks.\1.\1.", name): value for name, value in found.items()}
    return found


def dinov3(p: dict) -> dict:
    found = plain_names(p) | {"mask_token": torch.ones(1, WIDTH), "storage_tokens": p["registers"][None]}
    found["rope_embed.periods"] = torch.ones(WIDTH // HEADS // 4)
    found |= pair("local_cls_norm", p["norm"])
    for i, b in enumerate(p["blocks"]):
        found |= {f"blocks.{i}.ls1.gamma": b["scale1"], f"blocks.{i}.ls2.gamma": b["scale2"]}
        mask = torch.ones(3 * WIDTH)
        mask[WIDTH : 2 * WIDTH] = 0
        found[f"blocks.{i}.attn.qkv.bias_mask"] = mask
        if b["gate"]:
            for part in ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"):
                del found[f"blocks.{i}.mlp.{part}"]
            for name, part in (("w1", "gate"), ("w2", "up"), ("w3", "down")):
                found |= pair(f"blocks.{i}.mlp.{name}", b[part])
    return found


def transformers_dinov3(p: dict) -> dict:
    found = {
        "embeddings.cls_token": p["class"].view(1, 1, -1),
        "embeddings.mask_token": torch.ones(1, 1, WIDTH),
        "embeddings.register_tokens": p["registers"][None],
        **pair("embeddings.patch_embeddings", p["patch"]),
        **pair("norm", p["norm"]),
    }
    for i, b in enumerate(p["blocks"]):
        at = f"layer.{i}"
        found |= pair(f"{at}.norm1", b["n1"]) | pair(f"{at}.norm2", b["n2"])
        for name, part in (("q_proj", "q"), ("k_proj", "k"), ("v_proj", "v"), ("o_proj", "out")):
            found |= pair(f"{at}.attention.{name}", b[part])
        del found[f"{at}.attention.k_proj.bias"]
        for name, part in (("gate_proj", "gate"), ("up_proj", "up"), ("down_proj", "down")):
            found |= pair(f"{at}.mlp.{name}", b[part]) if b[part] else {}
        found |= {f"{at}.layer_scale1.lambda1": b["scale1"], f"{at}.layer_scale2.lambda1": b["scale2"]}
    return found


def transformers_vit(p: dict, *, version: int = 1) -> dict:
    """ViT (1) and DINOv2 (2), which differ in the names of norms and MLP."""
    found = {
        "embeddings.cls_token": p["class"].view(1, 1, -1),
        "embeddings.position_embeddings": p["positions"][None],
        **pair("embeddings.patch_embeddings.projection", p["patch"]),
        **pair("layernorm", p["norm"]),
    }
    if version == 2:
        found["embeddings.mask_token"] = torch.ones(1, WIDTH)
        if p["registers"] is not None:
            found["embeddings.register_tokens"] = p["registers"][None]
    for i, b in enumerate(p["blocks"]):
        at = f"encoder.layer.{i}"
        for name, part in (("query", "q"), ("key", "k"), ("value", "v")):
            found |= pair(f"{at}.attention.attention.{name}", b[part])
        found |= pair(f"{at}.attention.output.dense", b["out"])
        if version == 1:
            found |= pair(f"{at}.layernorm_before", b["n1"]) | pair(f"{at}.layernorm_after", b["n2"])
            found |= pair(f"{at}.intermediate.dense", b["up"]) | pair(f"{at}.output.dense", b["down"])
            continue
        found |= pair(f"{at}.norm1", b["n1"]) | pair(f"{at}.norm2", b["n2"])
        found |= {f"{at}.layer_scale1.lambda1": b["scale1"], f"{at}.layer_scale2.lambda1": b["scale2"]}
        if b["gate"]:
            both = tuple(torch.cat(two) for two in zip(b["gate"], b["up"], strict=True))
            found |= pair(f"{at}.mlp.weights_in", both) | pair(f"{at}.mlp.weights_out", b["down"])
        else:
            found |= pair(f"{at}.mlp.fc1", b["up"]) | pair(f"{at}.mlp.fc2", b["down"])
    return found


def refers(p: dict) -> dict:
    found = {
        "transformer.embeddings.cls_token": p["class"].view(1, 1, -1),
        "transformer.embeddings.position_embeddings": p["positions"][None],
        **pair("transformer.embeddings.patch_embeddings", p["patch"]),
        **pair("transformer.encoder.encoder_norm", p["norm"]),
    }
    for i, b in enumerate(p["blocks"]):
        at = f"transformer.encoder.layer.{i}"
        found |= pair(f"{at}.attention_norm", b["n1"]) | pair(f"{at}.ffn_norm", b["n2"])
        for name, part in (("query", "q"), ("key", "k"), ("value", "v"), ("out", "out")):
            found |= pair(f"{at}.attn.{name}", b[part])
        found |= pair(f"{at}.ffn.fc1", b["up"]) | pair(f"{at}.ffn.fc2", b["down"])
    return found


def clip(p: dict) -> dict:
    """OpenAI's whole model, with the text tower's names."""
    found = {
        "positional_embedding": torch.ones(77, 16),
        "text_projection": torch.ones(16, 8),
        "logit_scale": torch.ones(()),
        "token_embedding.weight": torch.ones(100, 16),
        **pair("transformer.resblocks.0.ln_1", (torch.ones(16), torch.ones(16))),
        "visual.class_embedding": p["class"],
        "visual.positional_embedding": p["positions"],
        "visual.proj": torch.ones(WIDTH, 8),
        "visual.conv1.weight": p["patch"][0],
        **pair("visual.ln_pre", p["pre"]),
        **pair("visual.ln_post", p["norm"]),
    }
    for i, b in enumerate(p["blocks"]):
        at = f"visual.transformer.resblocks.{i}"
        found |= pair(f"{at}.ln_1", b["n1"]) | pair(f"{at}.ln_2", b["n2"]) | pair(f"{at}.attn.out_proj", b["out"])
        found |= dict(zip((f"{at}.attn.in_proj_weight", f"{at}.attn.in_proj_bias"), stacked(b), strict=True))
        found |= pair(f"{at}.mlp.c_fc", b["up"]) | pair(f"{at}.mlp.c_proj", b["down"])
    return found


def transformers_clip(p: dict) -> dict:
    at = "vision_model.embeddings"
    found = {
        "text_model.encoder.layers.0.self_attn.q_proj.weight": torch.ones(4, 4),
        f"{at}.class_embedding": p["class"],
        f"{at}.position_embedding.weight": p["positions"],
        f"{at}.position_ids": torch.arange(1 + GRID * GRID)[None],
        f"{at}.patch_embedding.weight": p["patch"][0],
        **pair("vision_model.pre_layrnorm", p["pre"]),
        **pair("vision_model.post_layernorm", p["norm"]),
    }
    for i, b in enumerate(p["blocks"]):
        at = f"vision_model.encoder.layers.{i}"
        found |= pair(f"{at}.layer_norm1", b["n1"]) | pair(f"{at}.layer_norm2", b["n2"])
        for name, part in (("q_proj", "q"), ("k_proj", "k"), ("v_proj", "v"), ("out_proj", "out")):
            found |= pair(f"{at}.self_attn.{name}", b[part])
        found |= pair(f"{at}.mlp.fc1", b["up"]) | pair(f"{at}.mlp.fc2", b["down"])
    return found


def mae(p: dict) -> dict:
    decoder = {
        "decoder_pos_embed": torch.ones(1, 17, 16),
        **pair("decoder_embed", (torch.ones(16, WIDTH), torch.ones(16))),
    }
    decoder |= pair("decoder_blocks.0.norm1", (torch.ones(16),) * 2) | pair("decoder_norm", (torch.ones(16),) * 2)
    return plain_names(p) | decoder | {"mask_token": torch.ones(1, 1, 16)}


def under(prefix: str, weights: dict) -> dict:
    return {f"{prefix}{name}": value for name, value in weights.items()}


def other(weights: dict) -> dict:
    return {name: value + 1 for name, value in weights.items()}


def build(backbone: str, *, image_size: int = SIDE, seed: int = 7, **args):
    config = ModelConfig(backbone=backbone, args=TINY | args)
    return build_model(config, num_classes=2, image_size=image_size, seed=seed).eval()


@torch.no_grad()
def features(model, images):
    return model.net.forward_features(images)


def images() -> torch.Tensor:
    return torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def saved(tmp_path, tree):
    torch.save(tree, tmp_path / "weights.pth")
    return tmp_path / "weights.pth"


def check(report, *, says: str, mean: list[float] | None, model) -> None:
    assert report.source == says
    assert (report.missing, report.misshapen, report.unexpected) == ([], [], [])
    if mean:
        assert model.mean.flatten().tolist() == pytest.approx(mean)


@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("gate", [False, True], ids=["mlp", "swiglu"])
@pytest.mark.parametrize("kind", ["release", "teacher", "transformers"])
def test_dinov2_gives_the_features_that_its_paper_defines(tmp_path, registers, gate, kind):
    size = "giant" if gate else "small"
    args = {"mlp_ratio": 4.0} if gate else {"mlp_ratio": 2.0}
    model = build(f"vit_{size}_patch14{'_reg4' if registers else ''}_dinov2", **args)
    p = draw(registers=registers, gate=gate)
    trees = {
        "release": (dinov2(p), "official DINOv2"),
        "teacher": (
            {"teacher": under("backbone.", dinov2(p, group=True)) | under("dino_head.", pair("mlp.0", p["norm"])),
             "student": under("backbone.", other(dinov2(p, group=True)))},
            "DINO, official DINOv2, teacher branch",
        ),
        "transformers": (transformers_vit(p, version=2), "transformers DINOv2"),
    }  # fmt: skip
    tree, says = trees[kind]
    report = load_weights(model, saved(tmp_path, tree))
    check(report, says=says, mean=IMAGENET, model=model)
    expected = reference(p, images(), scale=True)
    torch.testing.assert_close(features(model, images()), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("gate", [False, True], ids=["mlp", "swiglu"])
@pytest.mark.parametrize("biases", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("writer", [dinov3, transformers_dinov3])
def test_dinov3_gives_the_features_that_its_paper_defines(tmp_path, gate, biases, writer):
    p = draw(registers=4, positions=False, gate=gate)
    for b in p["blocks"]:
        b["k"] = (b["k"][0], torch.zeros(WIDTH))
        if not biases:  # as in the distilled networks
            b["q"], b["v"] = ((b[part][0], torch.zeros(WIDTH)) for part in "qv")
    size = "huge_plus" if gate else "small"
    model = build(f"vit_{size}_patch16_dinov3{'_qkvb' if biases else ''}", mlp_ratio=2.0)
    tree = writer(p)
    if writer is dinov3:  # a key's bias is masked there, whatever its value
        for i in range(DEPTH):
            tree[f"blocks.{i}.attn.qkv.bias"][WIDTH : 2 * WIDTH] = 3.0
    report = load_weights(model, saved(tmp_path, tree))
    says = "official DINOv3" if writer is dinov3 else "transformers DINOv3"
    check(report, says=says, mean=IMAGENET, model=model)
    expected = reference(p, images(), scale=True, rope=True, eps=1e-5)
    torch.testing.assert_close(features(model, images()), expected, rtol=1e-5, atol=1e-5)


def test_biases_of_dinov3_that_the_backbone_has_no_place_for_are_reported(tmp_path):
    p = draw(registers=4, positions=False)
    report = load_weights(build("vit_small_patch16_dinov3", mlp_ratio=2.0), saved(tmp_path, dinov3(p)))
    assert report.unexpected == ["blocks.0.attn.qkv.bias", "blocks.1.attn.qkv.bias"]


PLAIN = {
    "plain": (plain_names, "the backbone's own names", None),
    "supervised": (
        lambda p: {"model": plain_names(p) | pair("head", (torch.ones(9, WIDTH), torch.ones(9))), "epoch": 3},
        "the backbone's own names", None),
    "moving average": (
        lambda p: {"state_dict": other(plain_names(p)), "state_dict_ema": plain_names(p)},
        "the backbone's own names, moving average", None),
    "mae": (lambda p: {"model": mae(p)}, "MAE", IMAGENET),
    "dino": (
        lambda p: {"student": under("module.backbone.", other(plain_names(p))),
                   "teacher": under("backbone.", plain_names(p)) | under("head.", pair("mlp.0", p["norm"])),
                   "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}},
        "DINO, teacher branch", IMAGENET),
    "moco v3": (
        lambda p: {"state_dict": under("module.base_encoder.", plain_names(p))
                   | under("module.base_encoder.head.", pair("0", p["norm"]))
                   | under("module.momentum_encoder.", other(plain_names(p)))
                   | under("module.predictor.", pair("0", p["norm"]))},
        "MoCo v3, base encoder", IMAGENET),
    "open_clip's timm tower": (
        lambda p: under("visual.trunk.", plain_names(p)) | {"text.transformer.embeddings.weight": torch.ones(2, 2),
                                                            "visual.head.proj.weight": torch.ones(2, WIDTH)},
        "OpenCLIP, image tower", None),
    "transformers": (transformers_vit, "transformers ViT", None),
    "transformers classifier": (
        lambda p: under("vit.", transformers_vit(p)) | pair("classifier", (torch.ones(2, WIDTH), torch.ones(2))),
        "transformers ViT", None),
    "refers": (refers, "REFERS", IMAGENET),
}  # fmt: skip


@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_vit_under_any_librarys_names_computes_the_same(tmp_path, name):
    writer, says, mean = PLAIN[name]
    p = draw()
    model = build("vit_small_patch16_224", mlp_ratio=2.0)
    before = model.mean.clone()
    check(load_weights(model, saved(tmp_path, writer(p))), says=says, mean=mean, model=model)
    if mean is None:
        assert torch.equal(model.mean, before)
    torch.testing.assert_close(features(model, images()), reference(p, images()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("wrap", [lambda tree: tree, lambda tree: {"state_dict": under("module.", tree)}])
def test_clip_towers_compute_the_same(tmp_path, wrap):
    p = draw()
    p["patch"] = (p["patch"][0], torch.zeros(WIDTH))  # CLIP's patches have no bias
    for writer, says in ((clip, "CLIP ViT, image tower"), (transformers_clip, "transformers CLIP, image tower")):
        model = build("vit_base_patch32_clip_224", mlp_ratio=2.0)
        report = load_weights(model, saved(tmp_path, wrap(writer(p))))
        check(report, says=says, mean=OPENAI, model=model)
        expected = reference(p, images(), pre=True, eps=1e-5)
        torch.testing.assert_close(features(model, images()), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("old", [False, True], ids=["0.13", "0.12"])
def test_torchvisions_vit_computes_the_same(tmp_path, old):
    torch.manual_seed(0)
    theirs = torchvision.models.VisionTransformer(SIDE, PATCH, DEPTH, HEADS, WIDTH, HIDDEN, num_classes=4).eval()
    torch.nn.init.normal_(theirs.class_token)
    tree = dict(theirs.state_dict())
    if old:
        tree = {re.sub(r"mlp\.3\.", "mlp.linear_2.", re.sub(r"mlp\.0\.", "mlp.linear_1.", name)): value
                for name, value in tree.items()}  # fmt: skip
    model = build("vit_small_patch16_224", mlp_ratio=2.0)
    check(load_weights(model, saved(tmp_path, tree)), says="torchvision ViT", mean=IMAGENET, model=model)
    theirs.heads = torch.nn.Identity()
    with torch.no_grad():
        expected = theirs(images())
    torch.testing.assert_close(features(model, images())[:, 0], expected, rtol=1e-5, atol=1e-5)


def test_half_precision_files_load_into_a_full_precision_backbone(tmp_path):
    p = draw()
    save_file({name: value.half() for name, value in plain_names(p).items()}, tmp_path / "half.safetensors")
    model = build("vit_small_patch16_224", mlp_ratio=2.0)
    load_weights(model, tmp_path / "half.safetensors")
    assert model.net.norm.weight.dtype == torch.float32
    torch.testing.assert_close(features(model, images()), reference(p, images()), rtol=0.02, atol=0.02)
