"""Masked patches: how many, where, of which crops; and what a network makes of them."""

import numpy as np
import pytest
import torch
from tiny_nets import TINY_NETS

from cxrdist.errors import UsageError
from cxrdist.models.build import build_model
from cxrdist.models.config import ModelConfig
from cxrdist.pretrain.dense import dense_features, grid_at, mask_token
from cxrdist.pretrain.dinov2 import Dinov2Task
from cxrdist.pretrain.masks import block_mask, block_masks, ladder
from cxrdist.pretrain.methods import Dinov2Config
from cxrdist.pretrain.task import pooled_features

GRID = (14, 14)


def masks_of(seeds, *, ratio=(0.1, 0.5), share=0.5, grid=GRID):
    return block_masks(list(seeds), grid, crops=2, ratio=ratio, share=share)


def model_of(family: str, size: int = 64, **args):
    backbone, own = TINY_NETS[family]
    if family.startswith("dino"):
        args["init_values"] = 1.0  # layer scales that let the blocks count
    return build_model(ModelConfig(backbone=backbone, args=own | args), num_classes=1, image_size=size, seed=0)


@pytest.mark.parametrize("number", [1, 3, 20, 98, 150, 195])
def test_a_mask_has_exactly_as_many_patches_as_asked_for(number):
    for seed in range(5):
        assert block_mask(GRID, number, np.random.default_rng(seed)).sum() == number


def test_patches_are_masked_in_blocks():
    """A masked patch has far more masked neighbours than if each were drawn alone."""
    alike, share = [], 0.3
    for seed in range(50):
        mask = block_mask(GRID, round(share * 196), np.random.default_rng(seed))
        alike += [*(mask[:, 1:] & mask[:, :-1])[mask[:, :-1]], *(mask[1:] & mask[:-1])[mask[:-1]]]
    assert np.mean(alike) > 2 * share


def test_the_numbers_climb_evenly_through_the_range_and_half_of_the_crops_have_none():
    numbers = ladder(128, 196, ratio=(0.1, 0.5), share=0.5)
    assert len(numbers) == 64
    assert numbers == sorted(numbers)
    assert 0.1 * 196 - 1 < numbers[0] < numbers[-1] < 0.5 * 196
    assert np.mean(numbers) == pytest.approx(0.3 * 196, abs=1)
    assert np.diff(numbers).max() - np.diff(numbers).min() <= 1
    assert ladder(2, 16, ratio=(0.1, 0.5), share=0.1) == [4]  # one crop at least


@pytest.mark.parametrize("images", [1, 2, 7, 32])
def test_shapes_depend_on_the_number_of_images_alone(images):
    rng = np.random.default_rng(images)
    shapes = set()
    for _ in range(4):
        masks = masks_of(rng.integers(0, 2**62, images).tolist())
        shapes.add((tuple(masks.mask.shape), tuple(masks.index.shape), tuple(masks.weight.shape)))
        assert masks.index.tolist() == masks.mask.flatten().nonzero()[:, 0].tolist()
    assert len(shapes) == 1


def test_each_masked_crop_weighs_the_same_whatever_it_hides():
    masks = masks_of(range(8))
    crop = masks.index // 196
    for place in crop.unique():
        assert float(masks.weight[crop == place].sum()) == pytest.approx(1 / 16)
    assert len(crop.unique()) == 8


def test_seeds_say_which_crops_are_masked_and_how():
    one, again, other = masks_of(range(8)), masks_of(range(8)), masks_of(range(8, 16))
    assert torch.equal(one.mask, again.mask)
    assert not torch.equal(one.mask, other.mask)
    # The images in another order: the same masks, in that order.
    swapped = masks_of(reversed(range(8)))
    assert torch.equal(swapped.mask.unflatten(0, (2, 8)).flip(1), one.mask.unflatten(0, (2, 8)))
    counts = torch.stack([masks_of(range(8 * k, 8 * k + 8)).mask.any(1).float() for k in range(200)]).mean(0)
    assert ((counts > 0.35) & (counts < 0.65)).all()  # no place of the batch is preferred


@pytest.mark.parametrize("family", ["vit", "dinov2", "dinov3", "eva02", "beit", "convnext", "resnet", "densenet"])
def test_what_is_masked_has_no_influence_and_what_is_not_has(family):
    model = model_of(family).eval()
    rows, columns = grid_at(model, 64)
    patch = 64 // rows
    token = mask_token(model)
    mask = torch.zeros(2, rows * columns, dtype=torch.bool)
    mask[0, 1] = True
    images = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    other = images.clone()
    other[:, :, :patch, patch : 2 * patch] = 1 - other[:, :, :patch, patch : 2 * patch]
    plain, masked, changed = (
        dense_features(model, pixels, mask_BN=given, token=token)
        for pixels, given in ((images, None), (images, mask), (other, mask))
    )
    assert plain[1].shape[:2] == (2, rows * columns)
    for before, hidden, after in zip(plain, masked, changed, strict=True):
        assert not torch.allclose(before[0], hidden[0], atol=1e-5)
        torch.testing.assert_close(hidden[0], after[0])
        torch.testing.assert_close(before[1], hidden[1], rtol=1e-4, atol=1e-5)
        assert not torch.allclose(hidden[1], after[1], atol=1e-5)
    torch.testing.assert_close(plain[0], pooled_features(model, images))
    masked[1].square().sum().backward()
    assert token.grad is not None and token.grad.any()
    assert not model.net.patch_embed._forward_hooks if hasattr(model.net, "patch_embed") else True


@pytest.mark.parametrize("family", ["vit", "dinov2", "dinov3"])
def test_small_crops_see_the_positions_of_a_network_built_for_large_ones(family):
    model = model_of(family, dynamic_img_size=True).eval()
    images = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    pooled, patches = dense_features(model, images)
    assert patches.shape[:2] == (2, 16)
    pooled.sum().backward()
    if getattr(model.net, "pos_embed", None) is not None:
        assert model.net.pos_embed.grad.abs().sum(-1).gt(0).float().mean() > 0.9
    # Positions matter: the same patches at other places are another image.
    turned, _ = dense_features(model, images.flip(-1))
    assert not torch.allclose(pooled, turned, atol=1e-4)


@pytest.mark.parametrize(("family", "size", "patch"), [("vit", 36, 8), ("resnet", 48, 32)])
def test_a_side_that_is_no_multiple_of_patch_or_stride_is_refused(family, size, patch):
    with pytest.raises(UsageError, match=rf"multiple of the backbone's {patch} pixels, got {size}. Nearest: 32, "):
        grid_at(model_of(family), size)


@pytest.mark.parametrize("change", [{"ibot_weight": 0}, {"mask_share": 0}])
def test_without_masks_nothing_of_them_is_there(change):
    config = Dinov2Config(hidden_width=8, bottleneck=4, prototypes=6, local_crops={"count": 0}, **change)
    task = Dinov2Task(model_of("vit"), config, fresh=True).train()
    assert not [name for name, _ in task.named_parameters() if "mask" in name or "patch_head" in name]
    batch = {"image": torch.randint(0, 256, (2, 2, 1, 64, 64), dtype=torch.uint8), "seed": torch.arange(2)}
    task(batch)["loss"].backward()
    assert all(p.grad is not None for p in task.parameters() if p.requires_grad)


def test_a_head_can_only_be_shared_by_features_of_one_width():
    config = Dinov2Config(hidden_width=8, bottleneck=4, prototypes=6, shared_head=True)
    model = model_of("convnext", head_hidden_size=24)
    with pytest.raises(UsageError, match=r"`method.shared_head` needs image and patches of one width, got 24 and 32"):
        Dinov2Task(model, config, fresh=True)


@pytest.mark.parametrize("ratio", [(0.0, 0.5), (0.5, 0.4), (0.5, 1.0)])
def test_shares_of_masked_patches_that_are_no_range_are_refused(ratio):
    with pytest.raises(ValueError, match="must be two shares in rising order, between 0 and 1"):
        Dinov2Config(mask_ratio=ratio)
