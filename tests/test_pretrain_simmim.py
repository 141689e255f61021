"""SimMIM: squares by image, the loss of the paper, for transformers by tokens and for CNNs by pixels."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from engines import on_ranks
from helpers import finetune_tree, make_shards, tiny_vit
from ranks import forks
from stopping import check_resumed_to_the_bit
from tiny_nets import TINY_NETS, tiny_model

from cxrdist.config import override
from cxrdist.errors import UsageError
from cxrdist.models.build import build_model
from cxrdist.models.config import ModelConfig
from cxrdist.models.weights import load_weights
from cxrdist.pretrain.build import build_task, example_batch
from cxrdist.pretrain.config import PretrainConfig
from cxrdist.pretrain.methods import SimmimConfig
from cxrdist.pretrain.simmim import SimmimTask, count_masked, random_squares
from cxrdist.train.dryrun import imagine, profile_pass

FAMILIES = ("vit", "dinov3", "beit", "swin", "convnext", "resnet", "densenet")
COARSE = ("convnext", "resnet")
"""Networks whose last feature map has a stride of 32 pixels; 8 in the others."""


def task_of(family: str = "vit", **changes) -> SimmimTask:
    torch.manual_seed(0)
    square = 32 if family in COARSE else 8
    return SimmimTask(tiny_model(family), SimmimConfig(**{"mask_patch": square, **changes}), fresh=True)


def batch_of(family: str = "vit", images: int = 3) -> dict[str, torch.Tensor]:
    side = 64 if family in COARSE else 32
    pixels = np.random.default_rng(0).integers(0, 256, (images, 1, side, side), np.uint8)
    return {"image": torch.from_numpy(pixels), "seed": torch.arange(1, images + 1)}


def config_of(shards, **changes) -> PretrainConfig:
    tree = finetune_tree(shards, steps=4) | {"shards": [str(shards)], "method": {"name": "simmim", "mask_patch": 8}}
    tree["model"] = changes.pop("model", tree["model"])
    return PretrainConfig.build(override(tree, {name.replace("__", "."): v for name, v in changes.items()}), where="t")


@pytest.mark.parametrize(("side", "ratio", "masked"), [(6, 0.6, 22), (5, 0.6, 15), (2, 0.99, 3), (7, 0.01, 1)])
def test_in_every_image_the_ratio_of_squares_rounded_up_is_masked(side, ratio, masked):
    squares = random_squares(torch.arange(5), side, ratio)
    assert squares.shape == (5, side, side)
    assert squares.sum(dim=(1, 2)).tolist() == [masked] * 5
    assert masked == count_masked(side**2, ratio) == min(math.ceil(side**2 * ratio), side**2 - 1)


def test_the_squares_of_an_image_depend_on_its_seed_alone():
    together = random_squares(torch.tensor([5, 6, 7, 8]), 6, 0.6)
    torch.rand(100)
    assert torch.equal(torch.cat([random_squares(torch.tensor([seed]), 6, 0.6) for seed in (5, 6, 7, 8)]), together)
    assert len({tuple(squares.flatten().tolist()) for squares in together}) == 4


def test_every_square_is_masked_about_as_often():
    often = random_squares(torch.arange(2000), 4, 0.6).float().mean(0)
    assert count_masked(16, 0.6) == 10
    assert (often - 10 / 16).abs().max() < 5 * math.sqrt(10 / 16 * 6 / 16 / 2000)


@pytest.mark.parametrize(("family", "square"), [("vit", 16), ("swin", 4), ("resnet", 32), ("densenet", 16)])
def test_the_loss_is_the_paper_s(family, square):
    task, batch = task_of(family, mask_patch=square).eval(), batch_of(family)
    outputs = []
    task.predict.register_forward_hook(lambda module, inputs, output: outputs.append(output.detach().numpy()))
    with torch.no_grad():
        loss = task.loss(batch).item()
    images = ((batch["image"] / 255 - task.model.mean) / task.model.std).numpy()
    side, stride = images.shape[-1], task.stride
    squares = random_squares(batch["seed"], side // square, 0.6).numpy()
    errors = []
    for image in range(3):
        for row in range(side):
            for column in range(side):
                if not squares[image, row // square, column // square]:
                    continue
                for channel in range(3):
                    cell = outputs[0][image, row // stride, column // stride]
                    # As in the shuffle of the authors' decoder: the channel, then row and column within the cell.
                    guess = cell.reshape(3, stride, stride)[channel, row % stride, column % stride]
                    errors.append(abs(guess - images[image, channel, row, column]))
    assert loss == pytest.approx(np.mean(errors), rel=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_masked_is_not_seen(family):
    task, batch = task_of(family).eval(), batch_of(family)
    given = []
    task.predict.register_forward_hook(lambda module, inputs, output: given.append(output.detach()))
    squares = random_squares(batch["seed"], 2 if family in COARSE else 4, 0.6)
    hidden = squares.repeat_interleave(task.config.mask_patch, 1).repeat_interleave(task.config.mask_patch, 2)[:, None]
    with torch.no_grad():
        for image in (
            batch["image"],
            torch.where(hidden, 255 - batch["image"], batch["image"]),
            torch.where(hidden, batch["image"], 255 - batch["image"]),
        ):
            task.loss(batch | {"image": image})
    assert torch.equal(given[0], given[1])
    assert not torch.equal(given[0], given[2])
    # Only in the loss: the network itself is left as it was.
    changed = [torch.where(hidden, 255 - batch["image"], batch["image"]), batch["image"]]
    with torch.no_grad():
        assert not torch.equal(*(task(batch | {"image": image})["look"].features for image in changed))


@pytest.mark.parametrize("family", FAMILIES)
def test_all_that_is_trained_has_a_gradient_also_under_autocast(family):
    task = task_of(family)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = task(batch_of(family))["loss"]
    assert loss.dtype == torch.float32
    loss.backward()
    assert [name for name, p in task.named_parameters() if p.requires_grad != (p.grad is not None)] == []
    assert all(p.grad.isfinite().all() for p in task.parameters() if p.requires_grad)
    assert task.mask_token.grad.abs().sum() > 0


@pytest.mark.parametrize("family", ["dinov3", "resnet"])
def test_a_plan_needs_no_values(family, tmp_path):
    backbone, args = TINY_NETS[family]
    square = 32 if family in COARSE else 8
    config = config_of(
        tmp_path, model={"backbone": backbone, "args": args}, method__mask_patch=square, input__image_size=64
    )
    task = imagine(lambda **given: build_task(config, **given))
    profile = profile_pass(task, lambda images: example_batch(config, images), 2, precision="bf16")
    assert profile.flops > 0 and profile.activations > 0


@forks
@pytest.mark.parametrize("family", ["vit", "densenet"])
def test_the_mean_over_ranks_is_the_loss_of_the_whole_batch_and_its_gradient(family):
    task, batch = task_of(family), batch_of(family, images=4)

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
        torch.testing.assert_close((one + two) / 2, p.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("family", [pytest.param("vit", marks=pytest.mark.slow), "densenet"])
def test_a_run_stopped_and_resumed_is_the_run_uninterrupted_to_the_bit(family, tmp_path):
    shards = make_shards(tmp_path / "data", patients=20)
    backbone, args = TINY_NETS[family]
    config = config_of(shards, model={"backbone": backbone, "args": args})
    whole = check_resumed_to_the_bit(config, tmp_path)
    net = build_model(ModelConfig(backbone=backbone, args=args), num_classes=3, image_size=32, seed=9).net
    report = load_weights(net, whole)
    assert report.missing == report.unexpected == report.misshapen == []


def test_the_loss_falls():
    torch.manual_seed(0)
    task = task_of(mask_patch=16)
    side = torch.arange(32)
    pixels = ((side[:, None] + side) * 4).byte().expand(8, 1, 32, 32)
    optimizer = torch.optim.AdamW((p for p in task.parameters() if p.requires_grad), lr=3e-3)
    losses = []
    for step in range(60):
        loss = task({"image": pixels, "seed": torch.arange(8) + 8 * step})["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])


@pytest.mark.parametrize(
    ("family", "square", "sentence"),
    [("vit", 12, "patch of 8 pixels, got 12. Nearest: 8"), ("resnet", 48, "stride of 32 pixels, got 48. Nearest: 32")],
)
def test_squares_that_patches_do_not_fill_are_refused(family, square, sentence):
    with pytest.raises(UsageError, match=f"`method.mask_patch` must be a multiple of the backbone's {sentence}"):
        task_of(family, mask_patch=square)


@pytest.mark.parametrize(("square", "side"), [(32, 80), (32, 32), (64, 32)])
def test_an_image_that_squares_do_not_fill_is_refused_before_training(square, side):
    sentence = f"multiple of `method.mask_patch`={square}, twice it or more, got {side}"
    with pytest.raises(UsageError, match=sentence):
        config_of(Path("toy"), method__mask_patch=square, input__image_size=side)


@pytest.mark.parametrize(
    ("backbone", "side", "name"), [("crossvit_tiny_240", 240, "CrossVit"), ("levit_128s", 224, "Levit")]
)
def test_a_backbone_without_a_usable_feature_map_is_refused(backbone, side, name):
    with torch.device("meta"):
        model = build_model(ModelConfig(backbone=backbone), num_classes=1, image_size=side, seed=0)
    with pytest.raises(UsageError, match=f"needs a backbone whose last feature map divides the image, got {name}"):
        SimmimTask(model, SimmimConfig(), fresh=True)


def test_loaded_weights_are_left_as_they_are():
    model = build_model(ModelConfig(**tiny_vit()), num_classes=1, image_size=32, seed=0)
    before = {name: value.clone() for name, value in model.net.state_dict().items()}
    assert model.net.training
    SimmimTask(model, SimmimConfig(mask_patch=8), fresh=False)
    assert model.net.training and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.net.state_dict().items())
