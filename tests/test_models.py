"""Backbones of any family, weights from any file that runs nothing, model folders that timm reads."""

import argparse
import pickle

import numpy as np
import pytest
import timm
import torch
from helpers import tiny_vit
from safetensors.torch import save_file

from cxrdist.errors import UsageError, UserError
from cxrdist.models.build import build_model
from cxrdist.models.config import ModelConfig
from cxrdist.models.folder import load_model, save_model
from cxrdist.models.weights import load_weights, read_weights

SIZE = 32
SMALL = {
    "vit": tiny_vit(),
    "vit_dinov2": {"backbone": "vit_small_patch14_reg4_dinov2", "args": {"patch_size": 8, "embed_dim": 32, "depth": 1,
                                                                         "num_heads": 2}},
    "resnet": {"backbone": "resnet18"},
    "convnext": {"backbone": "convnext_atto", "args": {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]}},
    "densenet": {"backbone": "densenet121", "args": {"block_config": [1, 1], "growth_rate": 8}},
    "swin": {"backbone": "swin_tiny_patch4_window7_224", "args": {"embed_dim": 16, "depths": [1, 1], "window_size": 4,
                                                                  "num_heads": [2, 2]}},
}  # fmt: skip


def build(family: str = "vit", *, seed: int = 0, num_classes: int = 2, image_size: int = SIZE, **changes):
    section = SMALL[family]
    args = section.get("args", {}) | changes
    config = ModelConfig(backbone=section["backbone"], args=args)
    return build_model(config, num_classes=num_classes, image_size=image_size, seed=seed)


def grey(count: int = 3, size: int = SIZE) -> torch.Tensor:
    return torch.randint(0, 256, (count, 1, size, size), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def same_weights(left: torch.nn.Module, right: torch.nn.Module, *, head: bool = True) -> bool:
    one, other = left.state_dict(), right.state_dict()
    return all(torch.equal(one[name], other[name]) for name in one if head or not name.startswith("head."))


@pytest.mark.parametrize("family", SMALL)
def test_any_family_takes_grey_images_and_gives_a_logit_per_finding(family):
    model = build(family).eval()
    assert model(grey()).shape == (3, 2)


@pytest.mark.parametrize("backbone", ["vit_small_patch16_224", "resnet18", "convnext_atto", "densenet121"])
def test_normalisation_uses_the_constants_of_the_backbone(backbone):
    model = build_model(ModelConfig(backbone=backbone), num_classes=1, image_size=64, seed=0)
    facts = timm.get_pretrained_cfg(backbone)
    images = grey(2, 64)
    by_hand = np.stack([(images[:, 0].numpy() / 255.0 - m) / s for m, s in zip(facts.mean, facts.std, strict=True)], 1)
    torch.testing.assert_close(model.normalise(images), torch.from_numpy(by_hand).float())
    torch.testing.assert_close(model.normalise(images / 255), model.normalise(images))
    deep = images.to(torch.int32) * 257
    torch.testing.assert_close(model.normalise((deep / 65535).float()), model.normalise(images))


def test_the_seed_alone_decides_the_random_weights():
    torch.manual_seed(123)
    before = torch.random.get_rng_state()
    first, again, other = build(seed=1), build(seed=1), build(seed=2)
    assert torch.equal(torch.random.get_rng_state(), before)  # nor does building disturb anybody's stream
    assert same_weights(first, again)
    assert not same_weights(first, other)


def test_an_unknown_backbone_is_refused_with_the_nearest():
    with pytest.raises(UsageError, match=r"must be a timm model, got 'resnet_18'\. Did you mean 'resnet18'\?"):
        build_model(ModelConfig(backbone="resnet_18"), num_classes=1, image_size=32, seed=0)


def test_arguments_that_the_backbone_does_not_take_are_refused():
    with pytest.raises(UsageError, match=r"`model.args` must suit 'resnet18', got .*no_such_thing"):
        build("resnet", no_such_thing=3)
    with pytest.raises(UsageError, match=r"`model\.args\.img_size` must be `input\.image_size`=32, got 64"):
        build("vit", img_size=64)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda weights: weights,
        lambda weights: {"state_dict": weights, "epoch": 3, "args": argparse.Namespace(lr=0.1)},
        lambda weights: {"model": {f"module.{name}": value for name, value in weights.items()}},
        lambda weights: {"state_dict": {f"module.model.net.{name}": value for name, value in weights.items()}},
        lambda weights: {"teacher": {f"backbone.{k}": v for k, v in weights.items()} | {"head.mlp": torch.ones(2)}},
        lambda weights: {"state_dict": {f"module.base_encoder.{k}": v for k, v in weights.items()}
                         | {f"module.momentum_encoder.{k}": v + 1 for k, v in weights.items()}},
    ],
    ids=["plain", "timm", "ddp", "nested", "dino", "moco"],
)  # fmt: skip
def test_weights_load_from_the_files_that_training_scripts_write(tmp_path, wrap):
    source, net = build(seed=1).net, build(seed=2).net
    torch.save(wrap(source.state_dict()), tmp_path / "weights.pth")
    report = load_weights(net, tmp_path / "weights.pth")
    assert same_weights(source, net, head=False)
    assert report.missing == report.misshapen == []
    assert not torch.equal(net.head.weight, source.head.weight)  # the head is not taken over


def test_weights_load_from_safetensors_a_model_folder_and_a_run_folder(tmp_path):
    source = build(seed=1)
    save_file(source.net.state_dict(), tmp_path / "weights.safetensors")
    write_model(source, tmp_path / "run" / "model")
    for path in ("weights.safetensors", "run/model", "run"):
        net = build(seed=2, num_classes=5).net
        load_weights(net, tmp_path / path)
        assert same_weights(source.net, net, head=False)


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))  # what would run: it makes a file


def test_a_malicious_pickle_is_refused_and_not_executed(tmp_path):
    proof = tmp_path / "executed"
    torch.save({"model": Malicious(str(proof))}, tmp_path / "zip.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Malicious(str(proof))))
    for name in ("zip.pth", "plain.pth"):
        with pytest.raises(UserError, match=rf"must hold tensors only .* got '{name}'"):
            read_weights(tmp_path / name)
    assert not proof.exists()


@pytest.mark.parametrize("content", [b"", b"not weights", b"PK\x03\x04 torn", b"\x80\x02."])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_bytes_that_are_no_weights_are_a_sentence(tmp_path, content, suffix):
    path = tmp_path / f"weights.{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match="must hold tensors only"):
        read_weights(path)


def test_a_tensor_without_names_and_a_missing_file_are_sentences(tmp_path):
    torch.save(torch.ones(3), tmp_path / "one.pth")
    with pytest.raises(UserError, match="must hold tensors only"):
        read_weights(tmp_path / "one.pth")
    with pytest.raises(UserError, match="must be a weight file, a model folder or a run folder"):
        read_weights(tmp_path / "none.pth")


@pytest.mark.parametrize("family", ["resnet", "convnext", "vit"])
def test_weights_of_another_architecture_are_refused(tmp_path, family):
    torch.save(build("densenet").net.state_dict(), tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"at least 90% of the backbone, got 0% from 'weights.pth' \(not filled: "):
        load_weights(build(family).net, tmp_path / "weights.pth")
    save_file(build("vit", depth=1).net.state_dict(), tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match=r"got \d+% .*not filled: blocks"):
        load_weights(build("vit", depth=3).net, tmp_path / "weights.safetensors")


def test_position_and_patch_embeddings_are_resampled_to_another_grid(tmp_path):
    source = build("vit", seed=1).net
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    finer = build("vit", seed=2, image_size=64).net
    report = load_weights(finer, tmp_path / "weights.pth")
    assert report.misshapen == report.missing == []
    assert finer.pos_embed.shape[1] == 1 + 8 * 8
    by_timm = timm.layers.resample_abs_pos_embed(source.pos_embed, [8, 8])
    torch.testing.assert_close(finer.pos_embed, by_timm)
    other_patch = build("vit", seed=2, patch_size=16, image_size=64).net
    assert "patch_embed.proj.weight" in load_weights(other_patch, tmp_path / "weights.pth").matched


def test_what_is_left_over_is_named_in_the_log(tmp_path, caplog):
    weights = build(seed=1).net.state_dict()
    weights["extra.weight"] = torch.ones(1)
    del weights["norm.bias"]
    torch.save(weights, tmp_path / "weights.pth")
    with caplog.at_level("INFO", logger="cxrdist"):
        report = load_weights(build(seed=2).net, tmp_path / "weights.pth")
    assert report.missing == ["norm.bias"]
    assert report.unexpected == ["extra.weight"]
    assert "1 left random: norm.bias." in caplog.text
    assert "1 not used: extra.weight." in caplog.text


def write_model(model, folder, backbone: str = SMALL["vit"]["backbone"]) -> None:
    facts = {"kind": "finetune", "image_size": SIZE, "fit": "pad"}
    save_model(model, folder, backbone=backbone, findings=["effusion", "edema"], facts=facts)


@pytest.mark.parametrize("family", SMALL)
def test_a_model_folder_reads_back_and_timm_reads_it_too(tmp_path, family):
    model = build(family, seed=4).eval()
    write_model(model, tmp_path / "model", SMALL[family]["backbone"])
    images = grey()
    with torch.no_grad():
        logits = model(images)
        again, findings, facts = load_model(tmp_path)  # the run folder around it
        assert findings == ["effusion", "edema"]
        assert facts["image_size"] == SIZE
        assert not again.training
        assert torch.equal(again(images), logits)
        by_timm = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True).eval()
        assert torch.equal(by_timm(model.normalise(images)), logits)
    assert by_timm.pretrained_cfg["input_size"] == [3, SIZE, SIZE]
    assert by_timm.pretrained_cfg["mean"] == pytest.approx(model.mean.flatten().tolist())


def test_a_folder_that_is_no_model_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match=r"must hold `config\.json` and `model\.safetensors` of ours"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text('{"architecture": "resnet18"}')
    with pytest.raises(UserError, match="of ours"):
        load_model(tmp_path)
