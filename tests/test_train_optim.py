"""The optimizer: which parameter has which rate and decay, and what the schedule makes of it."""

import copy
import math
import re

import numpy as np
import pytest
import torch
from tiny_nets import SIZE, TINY_NETS, tiny_model
from torch import nn

from cxrdist.errors import UsageError
from cxrdist.models.head import classifier_name, head_parameters, set_classifier
from cxrdist.pretrain.mae import MaeTask
from cxrdist.pretrain.methods import MaeConfig
from cxrdist.train.config import OptimConfig
from cxrdist.train.optim import (
    build_optimizer,
    check_optimizer,
    lr_at,
    parameter_groups,
    set_lr,
    set_weight_decay,
    weight_decay_at,
)


class Task(nn.Module):
    """As little as a task is to the optimizer."""

    def __init__(self, model: nn.Module, *, head_first: bool = False) -> None:
        super().__init__()
        self.model, self.head_first = model, head_first


def settings(task: nn.Module, **changes) -> dict[str, dict]:
    """Return the group of each parameter by the parameter's name in the network."""
    asked = {"weight_decay": 0.1, "layer_decay": 1.0} | changes
    groups = parameter_groups(task, **asked)
    by_id = {id(parameter): group for group in groups for parameter in group["params"]}
    return {
        name.removeprefix("model.net."): by_id[id(parameter)]
        for name, parameter in task.named_parameters()
        if parameter.requires_grad
    }


@pytest.mark.parametrize("family", TINY_NETS)
@pytest.mark.parametrize("head_first", [False, True])
def test_every_trainable_parameter_is_in_exactly_one_group_and_no_two_groups_are_alike(family, head_first):
    task = Task(tiny_model(family), head_first=head_first)
    next(task.parameters()).requires_grad_(False)
    groups = parameter_groups(task, weight_decay=0.1, layer_decay=0.5)
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in task.parameters() if p.requires_grad)
    kinds = [(group["lr_scale"], group["weight_decay"], group["backbone"]) for group in groups]
    assert len(set(kinds)) == len(kinds)
    head = {id(parameter) for parameter in head_parameters(task.model.net)}
    for group in groups:
        assert {id(parameter) in head for parameter in group["params"]} <= (
            {not group["backbone"]} if head_first else {True, False}
        )


@pytest.mark.parametrize("family", TINY_NETS)
def test_only_matrices_and_kernels_decay(family):
    net = tiny_model(family).net
    # By kind of module, not by name: what a linear layer or a convolution multiplies with.
    matrices = {
        f"{name}.weight" for name, module in net.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))
    } - {f"layers.{i}.blocks.{j}.attn.cpb_mlp.{k}.weight" for i in range(2) for j in range(2) for k in (0, 2)}
    decayed = {name for name, group in settings(Task(tiny_model(family))).items() if group["weight_decay"]}
    assert decayed == matrices


def test_without_layer_decay_there_are_two_groups_and_without_decay_one():
    task = Task(tiny_model())
    assert len(parameter_groups(task, weight_decay=0.1, layer_decay=1)) == 2
    assert len(parameter_groups(task, weight_decay=0.0, layer_decay=1)) == 1
    assert len(parameter_groups(task, weight_decay=0.0, layer_decay=1, matrices_apart=True)) == 2


def beit_layer(name: str, depth: int) -> int:
    """The rule of BEiT's `get_num_layer_for_vit`, but for the last norm, which timm counts to the last block."""
    if name in ("cls_token", "reg_token", "pos_embed", "mask_token") or name.startswith("patch_embed"):
        return 0
    block = re.match(r"blocks\.(\d+)\.", name)
    if block:
        return int(block.group(1)) + 1
    return depth if name.startswith("norm.") else depth + 1


@pytest.mark.parametrize("family", ["vit", "dinov2", "dinov3", "eva02"])
def test_transformers_decay_their_rate_by_the_rule_of_beit(family):
    model = tiny_model(family)
    depth = len(model.net.blocks)
    for name, group in settings(Task(model), layer_decay=0.6).items():
        assert group["lr_scale"] == pytest.approx(0.6 ** (depth + 1 - beit_layer(name, depth))), name


@pytest.mark.parametrize(
    ("family", "lowest_to_highest"),
    [
        ("swin", ["patch_embed.proj", *(f"layers.{i}.blocks.{j}" for i in (0, 1) for j in (0, 1)), "head.fc"]),
        (
            "convnext",
            ["stem.0", "stages.0.blocks.0", "stages.2.blocks.0", "stages.2.blocks.1", "stages.3.blocks.0", "head.fc"],
        ),
        ("resnet", ["conv1.0", "layer1.0.conv1", "layer2.0.conv1", "layer4.0.conv1", "fc"]),
        (
            "densenet",
            [
                "features.conv0",
                *(f"features.denseblock{i}.denselayer{j}" for i in (1, 2) for j in (1, 2)),
                "classifier",
            ],
        ),
    ],
)
def test_other_families_learn_slower_the_lower_the_layer(family, lowest_to_highest):
    groups = settings(Task(tiny_model(family)), layer_decay=0.5)
    scales = [
        next(group["lr_scale"] for name, group in groups.items() if name.startswith(prefix + "."))
        for prefix in lowest_to_highest
    ]
    assert scales == sorted(scales)
    assert len(set(scales)) == len(scales)
    assert scales[-1] == 1.0
    assert scales[-2] == 0.5


def test_a_decoder_learns_at_full_rate_and_the_encoder_below_it_does_not():
    task = MaeTask(tiny_model(), MaeConfig(decoder_width=32, decoder_depth=1, decoder_heads=2), fresh=True)
    groups = settings(task, layer_decay=0.5)
    assert {group["lr_scale"] for name, group in groups.items() if name.startswith(("decoder", "predict"))} == {1.0}
    assert groups["blocks.2.mlp.fc1.weight"]["lr_scale"] == 0.5
    assert groups["decoder.mask_token"]["weight_decay"] == 0
    assert not any(name.startswith("head.") for name in groups)


def test_a_backbone_without_an_order_of_layers_is_refused_layer_decay():
    task = Task(nn.Module())
    task.model.net = nn.Linear(2, 2)
    assert len(parameter_groups(task, weight_decay=0.1, layer_decay=1)) == 2
    with pytest.raises(UsageError, match=r"`optim\.layer_decay` needs a backbone whose layers timm orders, got 0\.5"):
        parameter_groups(task, weight_decay=0.1, layer_decay=0.5)


@pytest.mark.parametrize("family", TINY_NETS)
def test_a_network_whose_classifier_is_taken_away_returns_its_features(family):
    model = tiny_model(family).eval()
    images = torch.rand(2, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model(images)
        classifier = model.net.get_submodule(classifier_name(model.net))
        set_classifier(model.net, nn.Identity())
        assert torch.equal(classifier(model(images)), logits)


@pytest.mark.parametrize(
    ("name", "lr", "family"),
    [("adamw", 0.02, "vit"), ("sgd", 0.5, "vit"), ("lamb", 0.2, "vit"), ("lars", 1.0, "resnet")],
)
def test_every_optimizer_takes_the_groups_and_lowers_a_loss(name, lr, family):
    torch.manual_seed(0)
    task = Task(tiny_model(family))
    config = OptimConfig(name=name, lr=lr, layer_decay=0.8, weight_decay=0.01)
    optimizer = build_optimizer(config, task)
    images, targets = torch.rand(4, 1, SIZE, SIZE), torch.tensor([[0.0, 1], [1, 0], [1, 1], [0, 0]])
    losses = []
    for step in range(20):
        set_lr(optimizer, lr_at(config, step, 20))
        loss = nn.functional.binary_cross_entropy_with_logits(task.model(images), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def test_sgd_is_nesterov_s_by_its_formula():
    task = nn.Linear(3, 1, bias=False)
    weight, momentum = task.weight.detach().clone(), torch.zeros(1, 3)
    optimizer = build_optimizer(OptimConfig(name="sgd", lr=0.1, momentum=0.8, weight_decay=0.5), task)
    for step in range(3):
        task.weight.grad = torch.full((1, 3), 1.0 + step)
        optimizer.step()
        gradient = 1.0 + step + 0.5 * weight
        momentum = 0.8 * momentum + gradient
        weight = weight - 0.1 * (gradient + 0.8 * momentum)
    torch.testing.assert_close(task.weight.detach(), weight)
    assert not build_optimizer(OptimConfig(name="sgd", momentum=0), task).defaults["nesterov"]


def test_lamb_steps_each_layer_by_its_own_norm_and_leaves_clipping_to_the_engine():
    task = nn.Linear(3, 2, bias=False)
    before = task.weight.detach().clone()
    task.weight.grad = 100 * torch.ones(2, 3)
    build_optimizer(OptimConfig(name="lamb", lr=0.1, weight_decay=0.3), task).step()
    update = 100 / (100 + 1e-6) + 0.3 * before  # the first bias-corrected step of Adam, and the decay
    torch.testing.assert_close(task.weight.detach(), before - 0.1 * before.norm() / update.norm() * update)
    a_thousandfold = nn.Linear(3, 2, bias=False)
    optimizer = build_optimizer(OptimConfig(name="lamb"), a_thousandfold)
    a_thousandfold.weight.grad = 1000 * torch.ones(2, 3)
    optimizer.step()
    mean = optimizer.state[a_thousandfold.weight]["exp_avg"]
    torch.testing.assert_close(mean, 100 * torch.ones(2, 3))


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_lars_adapts_matrices_by_its_formula_and_leaves_biases_to_sgd(weight_decay):
    """Equation 6 of You et al. 2017 with trust 0.001, and momentum as torch's SGD has it."""
    task = nn.Linear(3, 2)
    config = OptimConfig(name="lars", lr=2.0, momentum=0.8, weight_decay=weight_decay)
    optimizer = build_optimizer(config, task)
    weight, bias = task.weight.detach().clone(), task.bias.detach().clone()
    velocity, bias_velocity = torch.zeros(2, 3), torch.zeros(2)
    for step in range(3):
        gradient = torch.randn(2, 3, generator=torch.Generator().manual_seed(step))
        task.weight.grad, task.bias.grad = gradient.clone(), gradient[:, 0].clone()
        optimizer.step()
        trust = 0.001 * weight.norm() / (gradient.norm() + weight_decay * weight.norm())
        velocity = 0.8 * velocity + trust * (gradient + weight_decay * weight)
        bias_velocity = 0.8 * bias_velocity + gradient[:, 0]
        weight, bias = weight - 2.0 * velocity, bias - 2.0 * bias_velocity
    torch.testing.assert_close(task.weight.detach(), weight)
    torch.testing.assert_close(task.bias.detach(), bias)


@pytest.mark.parametrize("name", ["lamb", "lars"])
def test_what_scales_whole_layers_is_refused_where_layers_are_divided(name):
    check_optimizer(OptimConfig(name=name), 0)
    check_optimizer(OptimConfig(name="adamw"), 3)
    with pytest.raises(UsageError, match=rf"`optim\.name` '{name}' must have `train\.zero_stage` 0, got 2"):
        check_optimizer(OptimConfig(name=name), 2)


def test_a_group_s_rate_is_the_schedule_s_times_its_scale_and_none_while_it_is_held():
    task = Task(tiny_model(), head_first=True)
    optimizer = build_optimizer(OptimConfig(layer_decay=0.5), task)
    for group in optimizer.param_groups:
        group["held"] = group["backbone"]
    set_lr(optimizer, 2.0)
    for group in optimizer.param_groups:
        assert group["lr"] == (0 if group["backbone"] else 2 * group["lr_scale"])


@pytest.mark.parametrize("name", ["adamw", "sgd", "lamb", "lars"])
def test_a_rate_of_zero_leaves_weights_their_bits_under_decay(name):
    task = Task(tiny_model(), head_first=True)
    before = copy.deepcopy(task.state_dict())
    optimizer = build_optimizer(OptimConfig(name=name, weight_decay=0.5), task)
    for _ in range(3):
        for parameter in task.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
        set_lr(optimizer, 0.0)
        optimizer.step()
    assert all(torch.equal(value, before[key]) for key, value in task.state_dict().items())


def test_schedules_end_where_they_say():
    line = OptimConfig(lr=2.0, warmup=0.2, schedule="linear", final_lr=0.1)
    assert [lr_at(line, step, 10) for step in (0, 1, 2, 6, 10)] == pytest.approx([1.0, 2.0, 2.0, 1.1, 0.2])
    cosine = OptimConfig(lr=2.0, warmup=0.0, final_lr=0.0)
    assert lr_at(cosine, 3, 9) == pytest.approx(1 + math.cos(math.pi / 3))
    assert {lr_at(OptimConfig(lr=2.0, warmup=0.0, schedule="constant"), step, 9) for step in range(9)} == {2.0}


def test_weight_decay_goes_from_its_first_value_to_its_last_by_a_half_cosine():
    """The schedule of DINO (Caron et al. 2021), whose code has it as an array over all steps."""
    config = OptimConfig(weight_decay=0.04, final_weight_decay=0.4)
    theirs = 0.4 + 0.5 * (0.04 - 0.4) * (1 + np.cos(np.pi * np.arange(10) / 10))
    assert [weight_decay_at(config, step, 10) for step in range(10)] == pytest.approx(theirs)
    assert weight_decay_at(config, 10, 10) == 0.4
    assert {weight_decay_at(OptimConfig(weight_decay=0.3), step, 9) for step in range(9)} == {0.3}


@pytest.mark.parametrize("name", ["adamw", "sgd", "lamb", "lars"])
def test_weight_decay_that_begins_at_zero_reaches_matrices_and_nothing_else(name):
    torch.manual_seed(0)
    steps, weights = [], []
    for final in (0.0, 0.5):
        task = Task(tiny_model())
        config = OptimConfig(name=name, weight_decay=0.0, final_weight_decay=final)
        optimizer = build_optimizer(config, task)
        set_weight_decay(optimizer, weight_decay_at(config, 9, 9))
        steps.append({name: group["weight_decay"] for name, group in by_name(task, optimizer).items()})
        for parameter in task.parameters():
            parameter.grad = torch.ones_like(parameter)
        set_lr(optimizer, 0.1)
        optimizer.step()
        weights.append({name: value.detach() for name, value in task.named_parameters()})
    decayed = {name for name, group in settings(task).items() if group["weight_decay"]}
    assert {name for name, decay in steps[1].items() if decay == 0.5} == decayed
    assert not any(steps[0].values())
    moved = {name for name, value in weights[0].items() if not torch.equal(value, weights[1][name])}
    assert {name.removeprefix("model.net.") for name in moved} == decayed


def by_name(task: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict]:
    by_id = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
    return {name.removeprefix("model.net."): by_id[id(parameter)] for name, parameter in task.named_parameters()}
