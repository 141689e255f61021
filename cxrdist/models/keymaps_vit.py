"""Names of vision transformers in other libraries, as timm's `VisionTransformer` and `Eva` (DINOv3) have them."""

import torch
from torch import nn

from cxrdist.models.keymaps_names import Rule, fused, renamed
from cxrdist.models.reading import Weights

PACKED_GATE: tuple[Rule, ...] = ((r"\bmlp\.w12\.", "mlp.fc1."), (r"\bmlp\.w3\.", "mlp.fc2."))
"""SwiGLU with both halves in one matrix, gate first: DINOv2's ViT-g (Shazeer 2020)."""

SPLIT_GATE: tuple[Rule, ...] = (
    (r"\bmlp\.w1\.", "mlp.fc1_g."),
    (r"\bmlp\.w2\.", "mlp.fc1_x."),
    (r"\bmlp\.w3\.", "mlp.fc2."),
)

DINOV2: tuple[Rule, ...] = (
    (r"^mask_token$", None),
    # FSDP groups the blocks: ``blocks.1.10.`` is block 10, in group 1.
    (r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."),
    (r"^register_tokens$", "reg_token"),
    *PACKED_GATE,
)

MAE: tuple[Rule, ...] = ((r"^mask_token$|^decoder_", None),)

DINOV3: tuple[Rule, ...] = (
    (r"^mask_token$|^rope_embed\.|^local_cls_norm\.|bias_mask$", None),
    (r"^storage_tokens$", "reg_token"),
    (r"\bls([12])\.gamma$", r"gamma_\1"),
    *SPLIT_GATE,
)

TRANSFORMERS_DINOV3: tuple[Rule, ...] = (
    (r"^embeddings\.mask_token$|^rope_embeddings\.", None),
    (r"^embeddings\.patch_embeddings\.", "patch_embed.proj."),
    (r"^embeddings\.register_tokens$", "storage_tokens"),
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^(model\.)?layer\.", "blocks."),
    (r"\battention\.([qkv])_proj\.", r"attn.\1."),
    (r"\battention\.o_proj\.", "attn.proj."),
    (r"\blayer_scale([12])\.lambda1$", r"ls\1.gamma"),
)

TRANSFORMERS: tuple[Rule, ...] = (
    (r"^embeddings\.mask_token$|^pooler\.", None),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^encoder\.layer\.", "blocks."),
    (r"\battention\.attention\.(q)uery\.|\battention\.attention\.(k)ey\.|\battention\.attention\.(v)alue\.",
     r"attn.\1\2\3."),
    (r"\battention\.output\.dense\.", "attn.proj."),
    (r"\blayernorm_before\.", "norm1."),
    (r"\blayernorm_after\.", "norm2."),
    (r"\bintermediate\.dense\.", "mlp.fc1."),
    (r"^(blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
    (r"\bmlp\.weights_in\.", "mlp.fc1."),
    (r"\bmlp\.weights_out\.", "mlp.fc2."),
    (r"\blayer_scale([12])\.lambda1$", r"ls\1.gamma"),
    (r"^layernorm\.", "norm."),
)  # fmt: skip

REFERS: tuple[Rule, ...] = (
    (r"^embeddings\.patch_embeddings\.", "patch_embed.proj."),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^encoder\.encoder_norm\.", "norm."),
    (r"^encoder\.layer\.", "blocks."),
    (r"\battention_norm\.", "norm1."),
    (r"\bffn_norm\.", "norm2."),
    (r"\bffn\.", "mlp."),
    (r"\battn\.(q)uery\.|\battn\.(k)ey\.|\battn\.(v)alue\.", r"attn.\1\2\3."),
    (r"\battn\.out\.", "attn.proj."),
)

CLIP: tuple[Rule, ...] = (
    (r"^conv1\.", "patch_embed.proj."),
    (r"^positional_embedding$", "pos_embed"),
    (r"^class_embedding$", "cls_token"),
    (r"^ln_pre\.", "norm_pre."),
    (r"^ln_post\.", "norm."),
    (r"^proj$", None),  # into the space that images and texts share
    (r"^transformer\.resblocks\.", "blocks."),
    (r"\bln_([12])\.", r"norm\1."),
    (r"\battn\.in_proj_", "attn.qkv."),
    (r"\battn\.out_proj\.", "attn.proj."),
    (r"\bmlp\.c_fc\.", "mlp.fc1."),
    (r"\bmlp\.c_proj\.", "mlp.fc2."),
)

TRANSFORMERS_CLIP: tuple[Rule, ...] = (
    (r"^embeddings\.position_ids$", None),
    (r"^embeddings\.patch_embedding\.", "patch_embed.proj."),
    (r"^embeddings\.position_embedding\.weight$", "pos_embed"),
    (r"^embeddings\.class_embedding$", "cls_token"),
    (r"^pre_layrnorm\.", "norm_pre."),  # spelt so
    (r"^post_layernorm\.", "norm."),
    (r"^encoder\.layers\.", "blocks."),
    (r"\blayer_norm([12])\.", r"norm\1."),
    (r"\bself_attn\.([qkv])_proj\.", r"attn.\1."),
    (r"\bself_attn\.out_proj\.", "attn.proj."),
)

TORCHVISION: tuple[Rule, ...] = (
    (r"^conv_proj\.", "patch_embed.proj."),
    (r"^class_token$", "cls_token"),
    (r"^encoder\.pos_embedding$", "pos_embed"),
    (r"^encoder\.ln\.", "norm."),
    (r"^encoder\.layers\.encoder_layer_", "blocks."),
    (r"\bln_([12])\.", r"norm\1."),
    (r"\bself_attention\.in_proj_", "attn.qkv."),
    (r"\bself_attention\.out_proj\.", "attn.proj."),
    (r"\bmlp\.(0|linear_1)\.", "mlp.fc1."),
    (r"\bmlp\.(3|linear_2)\.", "mlp.fc2."),
    (r"^heads\.(head\.)?", "head."),
)


def from_dinov2(weights: Weights, _: nn.Module) -> Weights:
    """github.com/facebookresearch/dinov2, with and without registers; the teacher of its training as well."""
    return renamed(weights, DINOV2)


def from_mae(weights: Weights, _: nn.Module) -> Weights:
    """github.com/facebookresearch/mae, its pretraining files: the decoder is left out."""
    return renamed(weights, MAE)


def from_dinov3(weights: Weights, net: nn.Module) -> Weights:
    """github.com/facebookresearch/dinov3, as timm's `Eva` has it.

    Keys have no bias there (a mask is multiplied to it), and timm has each network with and without the others'.
    The biases of the distilled networks are zero; others that the backbone has no place for stay, and are reported.
    """
    found = renamed(weights, DINOV3)
    places = net.state_dict().keys()
    for name in [name for name in found if name.endswith("attn.qkv.bias")]:
        query, _, value = found[name].chunk(3)
        block = name.removesuffix("qkv.bias")
        if f"{block}q_bias" in places:
            found |= {f"{block}q_bias": query, f"{block}v_bias": value}
            del found[name]
        elif name not in places and not query.any() and not value.any():
            del found[name]
    return found


def from_transformers_dinov3(weights: Weights, net: nn.Module) -> Weights:
    """Transformers' DINOv3ViTModel."""
    # With a gate, `gate_proj` is w1 and `up_proj` is w2; without one, `up_proj` is the first layer.
    gated = any(".mlp.gate_proj." in name for name in weights)
    up, down = ("w2", "w3") if gated else ("fc1", "fc2")
    mlp = ((r"\bgate_proj\.", "w1."), (r"\bup_proj\.", f"{up}."), (r"\bdown_proj\.", f"{down}."))
    return from_dinov3(fused(renamed(weights, (*TRANSFORMERS_DINOV3, *mlp))), net)


def from_transformers(weights: Weights, _: nn.Module) -> Weights:
    """Transformers' ViT, DeiT, ViT-MAE, DINOv2 with and without registers (RAD-DINO is one)."""
    return fused(renamed(weights, TRANSFORMERS))


def from_refers(weights: Weights, _: nn.Module) -> Weights:
    """github.com/funnyzhou/REFERS, and the port of Google's ViT that it builds on (jeonsworld/ViT-pytorch)."""
    return fused(renamed(weights, REFERS))


def from_clip(weights: Weights, _: nn.Module) -> Weights:
    """The image tower of OpenAI's CLIP, OpenCLIP's own ViT, CXR-RePaiR-CLIP and CheXzero."""
    return _clip_shapes(renamed(weights, CLIP))


def from_transformers_clip(weights: Weights, _: nn.Module) -> Weights:
    """The image tower of transformers' CLIP."""
    return _clip_shapes(fused(renamed(weights, TRANSFORMERS_CLIP)))


def from_torchvision(weights: Weights, _: nn.Module) -> Weights:
    """Torchvision's VisionTransformer; its MLP had other names before 0.13."""
    return renamed(weights, TORCHVISION)


def _clip_shapes(weights: Weights) -> Weights:
    """Give the tokens and positions, (D,) and (N, D) in CLIP, the batch dimension of timm's."""
    shapes: dict[str, torch.Tensor] = {}
    if "cls_token" in weights:
        shapes["cls_token"] = weights["cls_token"].view(1, 1, -1)
    if "pos_embed" in weights:
        shapes["pos_embed"] = weights["pos_embed"].unsqueeze(0)
    return weights | shapes
