"""Weights from files, folders and the hub's cache: what is read, what is fitted, what is said, what is refused."""

import argparse
import json
import pathlib
import shutil
import socket
import sys
import types
from collections import OrderedDict

import huggingface_hub.constants
import numpy as np
import omegaconf
import pytest
import timm
import torch
from helpers import tiny_vit
from safetensors.torch import save_file

from cxrdist.errors import UsageError, UserError
from cxrdist.models.build import build_model
from cxrdist.models.config import ModelConfig
from cxrdist.models.folder import load_model, save_model
from cxrdist.models.locate import absolute_weights, weight_files
from cxrdist.models.reading import read_weights
from cxrdist.models.weights import load_weights

SIDE = 32


def build(backbone: str = tiny_vit()["backbone"], *, image_size: int = SIDE, seed: int = 0, constants=None, **args):
    args = (tiny_vit()["args"] if "vit" in backbone else {}) | args
    mean, std = constants or (None, None)
    config = ModelConfig(backbone=backbone, args=args, mean=mean, std=std)
    return build_model(config, num_classes=2, image_size=image_size, seed=seed)


def same_backbone(left, right) -> bool:
    one, other = left.net.state_dict(), right.net.state_dict()
    return all(torch.equal(one[name], other[name]) for name in one if not name.startswith("head."))


# --- Where weights lie ---


@pytest.mark.parametrize("kind", ["safetensors", "bin", "pth", "pt", "pth.tar", "pt.tar", "ckpt"])
def test_a_weight_file_of_any_suffix_loads(tmp_path, kind):
    source, model = build(seed=1), build(seed=2)
    path = tmp_path / f"weights.{kind}"
    if kind == "safetensors":
        save_file(source.net.state_dict(), path)
    else:
        torch.save({"state_dict": source.net.state_dict()}, path)
    load_weights(model, str(path))
    assert same_backbone(source, model)


def shards_of(weights: dict, folder, *, safe: bool) -> None:
    """Write `weights` to two files and the index that transformers writes beside these."""
    suffix, stem = ("safetensors", "model") if safe else ("bin", "pytorch_model")
    names = sorted(weights)
    where = {}
    for k, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :])):
        file = f"{stem}-{k + 1:05d}-of-00002.{suffix}"
        tensors = {name: weights[name] for name in part}
        save_file(tensors, folder / file) if safe else torch.save(tensors, folder / file)
        where |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 1}, "weight_map": where}
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("layout", ["safetensors", "bin", "safetensors in two", "bin in two", "open_clip"])
def test_a_model_folder_of_any_library_loads(tmp_path, layout):
    source, model = build(seed=1), build(seed=2)
    weights = source.net.state_dict()
    if layout.endswith("two"):
        shards_of(weights, tmp_path, safe=layout.startswith("safetensors"))
    elif layout == "safetensors":
        save_file(weights, tmp_path / "model.safetensors")
    else:
        torch.save(weights, tmp_path / ("pytorch_model.bin" if layout == "bin" else "open_clip_pytorch_model.bin"))
    load_weights(model, tmp_path)
    assert same_backbone(source, model)


@pytest.mark.parametrize(
    ("index", "sentence"),
    [
        ({"weight_map": {"a": "lost.safetensors"}}, r"must hold every file .* got none for lost\.safetensors"),
        ({"weight_map": {"a": "../outside.safetensors"}}, r"got none for \.\./outside\.safetensors"),
        ({"weight_map": {}}, "got none for any tensor"),
        ({"weights": 3}, "must map tensors to files"),
        ([], "must map tensors to files"),
    ],
)
def test_an_index_that_names_no_files_beside_it_is_a_sentence(tmp_path, index, sentence):
    save_file({"a": torch.ones(1)}, tmp_path / "outside.safetensors")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=sentence):
        weight_files(folder)


def test_a_timm_name_means_the_same_everywhere_and_a_path_is_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert absolute_weights("timm:resnet18.a1_in1k") == "timm:resnet18.a1_in1k"
    assert absolute_weights("a/b.pth") == str(tmp_path / "a/b.pth")


def test_weights_of_a_configuration_are_text_whether_path_or_name(tmp_path):
    assert ModelConfig(weights=tmp_path / "x.pth").weights == str(tmp_path / "x.pth")
    assert ModelConfig(weights="timm:resnet18.a1_in1k").weights == "timm:resnet18.a1_in1k"
    with pytest.raises(UsageError, match="`weights` must be text, got 3"):
        ModelConfig.build({"weights": 3}, where="run.yaml")


# --- The hub's cache ---

NAME = "vit_tiny_patch16_224.augreg_in21k"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The folder that `huggingface_hub` keeps its files in, and no network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))

    def refuse(*_: object) -> None:
        raise AssertionError("nothing may be fetched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return tmp_path / "hub"


def put(cache, repository: str, name: str, weights: dict) -> None:
    """Lay a file into the cache as `huggingface_hub` does: content by hash, names as links, the branch as a file."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    blob, commit = "a1b2" * 16, "0f" * 20
    (folder / "blobs").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "snapshots" / commit).mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    write = save_file if name.endswith("safetensors") else torch.save
    write(weights, folder / "blobs" / blob)
    (folder / "snapshots" / commit / name).symlink_to(f"../../blobs/{blob}")


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_a_timm_name_loads_from_the_cache_without_a_network(cache, file):
    source, model = build(seed=1), build(seed=2)
    put(cache, f"timm/{NAME}", file, source.net.state_dict())
    model.mean.zero_()
    report = load_weights(model, f"timm:{NAME}")
    assert same_backbone(source, model)
    assert model.mean.flatten().tolist() == [0.5] * 3  # timm's facts of this name
    assert report.constants.says == f"timm's facts about {NAME}"


def test_a_timm_name_without_a_tag_is_that_of_timms_default(cache):
    source, model = build(seed=1), build(seed=2)
    default = timm.get_pretrained_cfg("vit_tiny_patch16_224").hf_hub_id
    put(cache, default, "model.safetensors", source.net.state_dict())
    load_weights(model, "timm:vit_tiny_patch16_224")
    assert same_backbone(source, model)


def test_a_file_that_torch_hub_kept_is_found_too(cache, tmp_path):
    source, model = build(seed=1), build(seed=2)
    folder = tmp_path / "torch" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save({"model": source.net.state_dict()}, folder / "mae_pretrain_vit_base.pth")
    load_weights(model, "timm:vit_base_patch16_224.mae")
    assert same_backbone(source, model)


def test_what_is_not_in_the_cache_is_a_sentence_with_the_way_to_get_it(cache):
    with pytest.raises(UserError) as caught:
        load_weights(build(), f"timm:{NAME}")
    for part in (f"without 'timm/{NAME}'", str(cache), f"`hf download timm/{NAME}`", "HF_HOME"):
        assert part in str(caught.value)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224.augreg_in12k", "vit_tiny_path16_224"])
def test_a_name_that_timm_does_not_know_is_a_sentence_with_the_nearest(cache, name):
    with pytest.raises(UserError, match=r"must name weights that timm knows .* Did you mean 'vit_tiny_patch16_224"):
        load_weights(build(), f"timm:{name}")


# --- What training scripts save beside weights ---


def leftovers() -> dict:
    settings = omegaconf.OmegaConf.create({"lr": 0.1, "model": {"depth": [1, 2]}})
    return {
        "args": argparse.Namespace(lr=0.1, out=pathlib.PosixPath("/data/out")),
        "best": np.float64(0.5),
        "counts": np.arange(3),
        "hyper_parameters": settings,
        "epoch": 3,
        "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}},
        "lr_schedulers": [{"base": torch.ones(1)}],
    }


@pytest.mark.parametrize("zipped", [True, False], ids=["now", "before torch 1.6"])
def test_harmless_leftovers_are_passed_over(tmp_path, zipped):
    tree = {"state_dict": OrderedDict(a=torch.ones(2)), **leftovers()}
    torch.save(tree, tmp_path / "x.ckpt", _use_new_zipfile_serialization=zipped)
    weights = read_weights(tmp_path / "x.ckpt")
    assert list(weights) == ["state_dict.a"]
    assert torch.equal(weights["state_dict.a"], torch.ones(2))


class EasyDict(dict):
    """What many scripts keep their settings in."""


def test_settings_of_a_library_that_is_not_installed_are_passed_over(tmp_path, monkeypatch):
    library = types.ModuleType("easydict")
    library.EasyDict = EasyDict
    monkeypatch.setattr(EasyDict, "__module__", "easydict")
    monkeypatch.setitem(sys.modules, "easydict", library)
    tree = {"state_dict": {"a": torch.ones(1)}, "settings": EasyDict(lr=0.1), "callbacks": {EasyDict: 3}}
    torch.save(tree, tmp_path / "x.ckpt")
    monkeypatch.delitem(sys.modules, "easydict")
    assert list(read_weights(tmp_path / "x.ckpt")) == ["state_dict.a"]


class Settings:
    """Of a program that nobody else knows."""


@pytest.mark.parametrize("zipped", [True, False], ids=["now", "before torch 1.6"])
def test_an_unknown_class_is_named_with_a_way_out(tmp_path, zipped):
    tree = {"state_dict": {"a": torch.ones(1)}, "settings": Settings()}
    torch.save(tree, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"got 'x\.pth' with `[\w.]*Settings`\. Convert it .*state_dict\(\)"):
        read_weights(tmp_path / "x.pth")


def test_a_whole_network_and_an_archive_of_code_are_refused_with_a_way_out(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "net.pth")
    with pytest.raises(UserError, match=r"with `torch\.nn\.modules\.linear\.Linear`"):
        read_weights(tmp_path / "net.pth")
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), str(tmp_path / "jit.pt"))
    with pytest.raises(UserError, match=r"a TorchScript archive\. Convert it: `torch\.save\(torch\.jit\.load"):
        read_weights(tmp_path / "jit.pt")


# --- Constants follow the weights ---


def timm_folder(folder, weights, mean, std) -> None:
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"architecture": "x", "pretrained_cfg": {"mean": mean, "std": std}}))


def test_constants_are_those_of_the_folder(tmp_path):
    source = build(seed=1)
    timm_folder(tmp_path, source.net.state_dict(), [0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    for path in (tmp_path, tmp_path / "model.safetensors"):
        model = build(seed=2)
        load_weights(model, path)
        assert model.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
        assert model.std.flatten().tolist() == pytest.approx([0.4, 0.5, 0.6])
        assert model.normalise(torch.full((1, 1, 1, 1), 0.5))[0, 0] == pytest.approx((0.5 - 0.1) / 0.4)


@pytest.mark.parametrize(
    ("name", "tree"),
    [
        ("preprocessor_config.json", {"image_mean": [0.53], "image_std": [0.25]}),
        ("open_clip_config.json", {"preprocess_cfg": {"mean": [0.53] * 3, "std": [0.25] * 3}}),
        ("config.json", {"architecture": "x", "mean": [0.53] * 3, "std": [0.25] * 3}),
    ],
)
def test_constants_of_other_libraries_folders_are_read(tmp_path, name, tree):
    save_file(build(seed=1).net.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / name).write_text(json.dumps(tree))
    model = build(seed=2)
    load_weights(model, tmp_path)
    assert model.mean.flatten().tolist() == pytest.approx([0.53] * 3)
    assert model.std.flatten().tolist() == pytest.approx([0.25] * 3)


@pytest.mark.parametrize("broken", ["[]", '{"mean": "x", "std": [1, 1, 1]}', '{"mean": [1, 1], "std": [0, 0]}'])
def test_a_configuration_that_says_nothing_usable_changes_nothing(tmp_path, broken):
    save_file(build(seed=1).net.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(broken)
    model = build(seed=2)
    before = model.mean.clone()
    load_weights(model, tmp_path)
    assert torch.equal(model.mean, before)


def test_a_configuration_that_is_cut_off_is_refused_because_it_says_how_images_are_normalised(tmp_path):
    save_file(build(seed=1).net.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"pretrained_cfg": {"mean": [0.4')
    with pytest.raises(UserError, match=r"`config\.json` says how images are normalised and must be JSON"):
        load_weights(build(seed=2), tmp_path)


def test_weights_that_are_not_finite_are_refused_by_name(tmp_path):
    state = build(seed=1).net.state_dict()
    state["norm.weight"][3] = torch.nan
    save_file(state, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=r"must hold finite numbers, got others in norm\.weight \[in x\.safetensors\]"):
        load_weights(build(seed=2), tmp_path / "x.safetensors")


def test_constants_that_the_user_set_stay(tmp_path):
    timm_folder(tmp_path, build(seed=1).net.state_dict(), [0.1] * 3, [0.4] * 3)
    model = build(seed=2, constants=((0.502,) * 3, (0.0856,) * 3))
    load_weights(model, tmp_path)
    assert model.mean.flatten().tolist() == pytest.approx([0.502] * 3)
    with pytest.raises(UsageError, match="must be set together"):
        ModelConfig.build({"mean": [0.5, 0.5, 0.5]}, where="run.yaml")


def test_constants_stay_with_a_model_that_is_saved_and_started_from(tmp_path):
    timm_folder(tmp_path, build(seed=1).net.state_dict(), [0.1] * 3, [0.4] * 3)
    model = build(seed=2)
    load_weights(model, tmp_path)
    save_model(model, tmp_path / "run/model", backbone=tiny_vit()["backbone"], findings=["a", "b"],
               facts={"kind": "finetune", "image_size": SIDE, "fit": "pad"})  # fmt: skip
    again, _, _ = load_model(tmp_path / "run")
    assert torch.equal(again.mean, model.mean)
    next_one = build(seed=3)
    load_weights(next_one, tmp_path / "run")
    assert torch.equal(next_one.std, model.std)


# --- Shapes ---


def test_positions_are_resampled_as_by_timm_and_said_so(tmp_path, caplog):
    source, model = build(seed=1), build(image_size=48, seed=2)
    save_file(source.net.state_dict(), tmp_path / "w.safetensors")
    with caplog.at_level("INFO", logger="cxrdist"):
        report = load_weights(model, tmp_path / "w.safetensors")
    assert report.resampled == ["pos_embed"]
    assert "1 resampled: pos_embed." in caplog.text
    expected = timm.layers.resample_abs_pos_embed(source.net.pos_embed, [6, 6], antialias=True)
    torch.testing.assert_close(model.net.pos_embed, expected)
    assert torch.equal(model.net.pos_embed[:, 0], source.net.pos_embed[:, 0])  # the class token's


def test_patches_are_resampled_so_that_a_resampled_image_gives_the_same(tmp_path):
    source, model = build(seed=1), build(image_size=2 * SIDE, patch_size=16, seed=2)
    save_file(source.net.state_dict(), tmp_path / "w.safetensors")
    report = load_weights(model, tmp_path / "w.safetensors")
    assert report.resampled == ["patch_embed.proj.weight"]  # the grid is as it was
    expected = timm.layers.resample_patch_embed(source.net.patch_embed.proj.weight, [16, 16])
    torch.testing.assert_close(model.net.patch_embed.proj.weight, expected)


def test_register_tokens_are_kept_and_the_class_position_goes_into_its_token(tmp_path):
    backbone = "vit_small_patch14_reg4_dinov2"
    source = build(backbone, seed=1).net.state_dict()
    whole = torch.cat([torch.full_like(source["cls_token"], 0.3), source["pos_embed"]], dim=1)  # as DINOv2 saves it
    model = build(backbone, seed=2, image_size=48)
    save_file(source | {"pos_embed": whole}, tmp_path / "w.safetensors")
    report = load_weights(model, tmp_path / "w.safetensors")
    assert report.changed == ["the position of the class token was added to it"]
    assert torch.equal(model.net.reg_token, source["reg_token"])
    torch.testing.assert_close(model.net.cls_token, source["cls_token"] + 0.3)
    expected = timm.layers.resample_abs_pos_embed(source["pos_embed"], [6, 6], num_prefix_tokens=0)
    torch.testing.assert_close(model.net.pos_embed, expected)


def test_a_token_without_a_position_gets_none(tmp_path):
    source, model = build(no_embed_class=True, seed=1), build(seed=2)
    save_file(source.net.state_dict(), tmp_path / "w.safetensors")
    load_weights(model, tmp_path / "w.safetensors")
    assert not model.net.pos_embed[:, 0].any()
    with torch.no_grad():
        images = torch.rand(1, 3, SIDE, SIDE)
        expected, found = source.net.eval().forward_features(images), model.net.eval().forward_features(images)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("old", "new"), [("token", "avg"), ("avg", "token")])
def test_the_last_norm_finds_its_place_whatever_is_pooled(tmp_path, old, new):
    source, model = build(global_pool=old, seed=1), build(global_pool=new, seed=2)
    name = "norm" if old == "token" else "fc_norm"
    torch.nn.init.uniform_(source.net.get_submodule(name).weight)
    save_file(source.net.state_dict(), tmp_path / "w.safetensors")
    report = load_weights(model, tmp_path / "w.safetensors")
    assert report.missing == report.unexpected == []
    other = {"norm": "fc_norm", "fc_norm": "norm"}[name]
    assert torch.equal(model.net.get_submodule(other).weight, source.net.get_submodule(name).weight)


@pytest.mark.parametrize("scaled", ["file", "backbone"])
def test_layer_scale_on_one_side_only_changes_nothing(tmp_path, scaled):
    plain, scale = tiny_vit()["backbone"], "vit_small_patch14_dinov2"
    source, model = (
        build(name, seed=k) for k, name in enumerate((scale, plain) if scaled == "file" else (plain, scale))
    )
    for name, value in source.net.named_parameters():
        if "gamma" in name or name.endswith("bias"):
            torch.nn.init.normal_(value, generator=torch.Generator().manual_seed(len(name)))
    save_file(source.net.state_dict(), tmp_path / "w.safetensors")
    report = load_weights(model, tmp_path / "w.safetensors")
    assert report.missing == report.unexpected == []
    assert "LayerScale" in report.changed[0]
    images = torch.rand(1, 3, SIDE, SIDE)
    with torch.no_grad():
        expected, found = source.net.eval().forward_features(images), model.net.eval().forward_features(images)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_parts_of_blocks_that_the_backbone_lacks_are_a_warning(tmp_path, caplog):
    weights = build(seed=1).net.state_dict()
    for extra, warned in (("projector.0.weight", False), ("blocks.0.attn.q_norm.weight", True)):
        caplog.clear()
        save_file(weights | {extra: torch.ones(1)}, tmp_path / "w.safetensors")
        assert load_weights(build(seed=2), tmp_path / "w.safetensors").unexpected == [extra]
        assert ("computes something else" in caplog.text) == warned


@pytest.mark.parametrize("backbone", [tiny_vit()["backbone"], "convnext_atto", "densenet121"])
def test_a_network_for_one_channel_gives_the_same_for_three(tmp_path, backbone):
    small = {"convnext_atto": {"depths": [1] * 4, "dims": [8] * 4}, "densenet121": {"block_config": [1, 1]}}
    args = small.get(backbone, {})
    one, three = build(backbone, in_chans=1, seed=1, **args), build(backbone, seed=2, **args)
    save_file(one.net.state_dict(), tmp_path / "w.safetensors")
    report = load_weights(three, tmp_path / "w.safetensors")
    assert report.missing == report.misshapen == []
    assert "from 1 to 3 channels" in report.changed[0]
    grey = torch.rand(1, 1, SIDE, SIDE)
    with torch.no_grad():
        expected = one.net.eval().forward_features(grey)
        found = three.net.eval().forward_features(grey.expand(-1, 3, -1, -1))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_network_for_three_channels_gives_the_same_for_one(tmp_path):
    three, one = build(seed=1), build(in_chans=1, seed=2)
    save_file(three.net.state_dict(), tmp_path / "w.safetensors")
    load_weights(one.net, tmp_path / "w.safetensors")
    grey = torch.rand(1, 1, SIDE, SIDE)
    with torch.no_grad():
        expected = three.net.eval().forward_features(grey.expand(-1, 3, -1, -1))
        torch.testing.assert_close(one.net.eval().forward_features(grey), expected, rtol=1e-4, atol=1e-5)


# --- What fits too little ---


def test_a_file_of_another_kind_is_refused_by_what_it_looks_like(tmp_path):
    tree = {f"module.encoder_q.{name}": value for name, value in timm.create_model("resnet18").state_dict().items()}
    torch.save({"state_dict": tree}, tmp_path / "moco.pth")
    with pytest.raises(UserError, match=r"got 0% from 'moco\.pth' .* which looks like MoCo"):
        load_weights(build(), tmp_path / "moco.pth")


def test_a_backbone_stays_as_it_was_when_a_file_is_refused(tmp_path):
    model, before = build(seed=2), build(seed=2)
    save_file(build(depth=1, embed_dim=16, seed=1).net.state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="at least 90%"):
        load_weights(model, tmp_path / "w.safetensors")
    assert same_backbone(model, before)


def test_a_moved_run_folder_loads(tmp_path):
    source = build(seed=1)
    save_model(source, tmp_path / "run/model", backbone=tiny_vit()["backbone"], findings=["a", "b"],
               facts={"kind": "finetune", "image_size": SIDE, "fit": "pad"})  # fmt: skip
    shutil.move(tmp_path / "run", tmp_path / "elsewhere")
    model = build(seed=2)
    load_weights(model, tmp_path / "elsewhere")
    assert same_backbone(source, model)
