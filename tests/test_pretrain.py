"""Masked autoencoding: masks by image, the loss of the paper, weights that a fine-tuning takes whole."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from engines import on_ranks
from helpers import finetune_tree, make_shards, tiny_vit
from ranks import forks

from cxrdist.config import Config, override
from cxrdist.errors import UsageError
from cxrdist.finetune.config import FinetuneConfig
from cxrdist.finetune.run import finetune
from cxrdist.models.build import build_model
from cxrdist.models.config import ModelConfig
from cxrdist.models.weights import load_weights
from cxrdist.pretrain.build import build_task, example_batch
from cxrdist.pretrain.config import PretrainConfig
from cxrdist.pretrain.mae import MaeTask, random_masks
from cxrdist.pretrain.methods import MaeConfig
from cxrdist.pretrain.run import pretrain
from cxrdist.train.dryrun import imagine, profile_pass
from cxrdist.train.run_folder import flatten
from cxrdist.world import World

SMALL = {"decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("data"))


def config_of(shards, **changes) -> PretrainConfig:
    tree = finetune_tree(shards, steps=40) | {"shards": [str(shards)], "method": SMALL}
    tree["train"]["checkpoint_every"] = 40
    return PretrainConfig.build(override(tree, {name.replace("__", "."): v for name, v in changes.items()}), where="t")


def task_of(**changes) -> MaeTask:
    torch.manual_seed(0)
    model = build_model(ModelConfig(**tiny_vit()), num_classes=1, image_size=32, seed=0)
    return MaeTask(model, MaeConfig(**SMALL, **changes), fresh=True)


def pixels_of(images: int) -> dict[str, torch.Tensor]:
    pixels = np.random.default_rng(0).integers(0, 256, (images, 1, 32, 32), np.uint8)
    return {"image": torch.from_numpy(pixels), "seed": torch.arange(1, images + 1)}


@pytest.mark.parametrize(
    ("patches", "ratio", "masked"), [(16, 0.75, 12), (100, 0.9, 90), (196, 0.75, 147), (4, 0.99, 3)]
)
def test_the_share_of_masked_patches_is_the_ratio(patches, ratio, masked):
    keep, hidden = random_masks(torch.arange(5), patches, prefix=1, ratio=ratio)
    assert hidden.shape == (5, masked)
    for kept_row, hidden_row in zip(keep.tolist(), hidden.tolist(), strict=True):
        assert kept_row[0] == 0  # the class token is never masked
        assert sorted(kept_row + hidden_row) == list(range(patches + 1))


def test_a_mask_depends_on_the_seed_of_its_image_alone():
    seeds = torch.tensor([5, 6, 7, 8])
    _, together = random_masks(seeds, 64, 1, 0.75)
    torch.rand(100)
    for place, seed in enumerate(seeds):
        _, alone = random_masks(seed[None], 64, 1, 0.75)
        assert torch.equal(alone[0], together[place])
    assert len({tuple(row.tolist()) for row in together}) == 4


@pytest.mark.parametrize("normalise", [True, False])
def test_the_loss_is_the_papers(normalise):
    task = task_of(normalise_patches=normalise).eval()
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (3, 1, 32, 32), np.uint8)
    seeds = torch.tensor([1, 2, 3])
    outputs = []
    task.predict.register_forward_hook(lambda module, inputs, output: outputs.append(output.detach().numpy()))
    with torch.no_grad():
        loss = float(task.loss({"image": torch.from_numpy(pixels), "seed": seeds}))
    _, masked = random_masks(seeds, 16, 1, 0.75)
    errors = []
    for image, grey in enumerate(pixels[:, 0] / 255.0):
        for place, token in enumerate(masked[image].tolist()):
            row, column = divmod(token - 1, 4)
            patch = grey[row * 8 : row * 8 + 8, column * 8 : column * 8 + 8]
            values = np.repeat(((patch - 0.5) / 0.5).reshape(-1, 1), 3, axis=1).reshape(-1)  # pixel by pixel, RGB
            if normalise:
                values = (values - values.mean()) / np.sqrt(values.var(ddof=1) + 1e-6)
            errors.append(np.square(outputs[0][image, place] - values).mean())
    assert loss == pytest.approx(np.mean(errors), rel=1e-4)


@pytest.mark.parametrize(
    "backbone", ["vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2", "vit_base_patch16_siglip_224"]
)
def test_all_that_is_trained_has_a_gradient_also_under_autocast(backbone):
    model = build_model(ModelConfig(backbone=backbone, args=tiny_vit()["args"]), num_classes=1, image_size=32, seed=0)
    task = MaeTask(model, MaeConfig(**SMALL), fresh=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = task(pixels_of(2))["loss"]
    assert loss.dtype == torch.float32
    loss.backward()
    assert [name for name, p in task.named_parameters() if p.requires_grad != (p.grad is not None)] == []


@forks
def test_the_mean_over_ranks_is_the_loss_of_the_whole_batch_and_its_gradient():
    task, batch = task_of(), pixels_of(4)

    def part(world, device):
        share = {name: value[2 * world.rank : 2 * world.rank + 2] for name, value in batch.items()}
        loss = task(share)["loss"]
        loss.backward()
        return loss.item(), [p.grad for p in task.parameters() if p.requires_grad]

    (first, ours), (second, theirs) = on_ranks(2, part)
    loss = task(batch)["loss"]
    loss.backward()
    assert (first + second) / 2 == pytest.approx(loss.item(), rel=1e-5)
    for p, one, two in zip([p for p in task.parameters() if p.requires_grad], ours, theirs, strict=True):
        torch.testing.assert_close((one + two) / 2, p.grad, rtol=1e-4, atol=1e-6)


def test_a_plan_needs_no_values(tmp_path):
    config = config_of(tmp_path)
    profile = profile_pass(imagine(partial(build_task, config)), partial(example_batch, config), 2, precision="bf16")
    assert profile.flops > 0 and profile.activations > 0


def test_pretraining_lowers_the_loss_repeats_to_the_bit_and_starts_a_fine_tuning(shards, tmp_path):
    for name in ("one", "two"):
        outcome = pretrain(config_of(shards), tmp_path / name, world=World())
        assert (outcome.chosen_step, outcome.score) == (40, None)
    one, two = (tmp_path / name / "model/model.safetensors" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    lines = map(json.loads, (tmp_path / "one/metrics.jsonl").read_text().splitlines())
    losses = [line["loss"] for line in lines if line["kind"] == "train"]
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])
    net = build_model(ModelConfig(**tiny_vit()), num_classes=3, image_size=32, seed=9).net
    report = load_weights(net, tmp_path / "one")
    assert report.missing == report.unexpected == report.misshapen == []
    tree = finetune_tree(shards, steps=2, evaluate_every=2)
    tree["model"]["weights"] = str(tmp_path / "one")
    assert finetune(FinetuneConfig.build(tree, where="t"), tmp_path / "tuned", world=World()) is not None


def test_pretraining_reads_no_label(shards, tmp_path):
    config = config_of(shards, train__steps=2)
    assert pretrain(config, tmp_path / "run", world=World()) is not None
    assert not (tmp_path / "run/predictions").exists()
    assert pretrain(config, tmp_path / "run", world=World(), resume="auto") is None


def test_loaded_weights_are_not_initialised_anew():
    model = build_model(ModelConfig(**tiny_vit()), num_classes=1, image_size=32, seed=0)
    before = {name: value.clone() for name, value in model.net.state_dict().items()}
    MaeTask(model, MaeConfig(**SMALL), fresh=False)
    assert all(torch.equal(value, before[name]) for name, value in model.net.state_dict().items())


def test_a_backbone_that_is_no_vision_transformer_is_refused():
    model = build_model(ModelConfig(backbone="resnet18"), num_classes=1, image_size=32, seed=0)
    with pytest.raises(UsageError, match="`method` 'mae' needs a vision transformer, got ResNet"):
        MaeTask(model, MaeConfig(), fresh=True)


def test_an_image_that_is_no_multiple_of_the_patch_is_refused():
    with pytest.raises(UsageError, match="multiple of the backbone's patch of 8 pixels, got 36"):
        build_model(ModelConfig(**tiny_vit()), num_classes=1, image_size=36, seed=0)


@pytest.mark.parametrize("kind", [FinetuneConfig, PretrainConfig])
def test_a_name_set_alone_changes_no_other(kind: type[Config]):
    base = {"shards": ["toy"] if kind is PretrainConfig else "toy"}
    before = flatten(kind.build(base, where="t").tree())
    for name, value in before.items():
        if name == "shards":
            continue
        after = flatten(kind.build(override(base, {name: value}), where="t").tree())
        assert after == before, name
    assert before["optim.betas"] == ([0.9, 0.95] if kind is PretrainConfig else [0.9, 0.999])
    assert before["input.augment.zoom"] == ([1.0, 1.6] if kind is PretrainConfig else [0.9, 1.1])


@pytest.mark.parametrize(
    ("method", "sentence"),
    [
        ({"decoder_width": 30}, "must have a `decoder_width` that is a multiple of 4, got 30"),
        ({"decoder_heads": 7}, "divides `decoder_width`, got 7 heads for a width of 512"),
        ({"decoder_width": 24}, "divides `decoder_width`, got 16 heads for a width of 24"),
    ],
)
def test_a_decoder_that_does_not_divide_is_refused_before_training(method, sentence):
    with pytest.raises(UsageError, match=f"`method` .*{sentence}"):
        PretrainConfig.build({"shards": ["toy"], "method": method}, where="t")
