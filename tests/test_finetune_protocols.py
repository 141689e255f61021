"""What is trained and what keeps its bits, protocol by protocol."""

import copy
from typing import Any

import pytest
import torch
from tiny_nets import SIZE, tiny_model
from torch import nn

from cxrdist.finetune.protocols import (
    ProtocolConfig,
    begin_protocol,
    end_protocol,
    head_steps,
    set_phase,
    still_backbone,
)
from cxrdist.models.head import head_parameters
from cxrdist.train.config import OptimConfig
from cxrdist.train.optim import build_optimizer, lr_at, set_lr

IMAGES = torch.rand(4, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
TARGETS = torch.tensor([[0.0, 1], [1, 0], [1, 1], [0, 0]])
STEPS = 6


class Task(nn.Module):
    """A task as fine-tuning has it, with a plain loss."""

    def __init__(self, family: str, protocol: ProtocolConfig) -> None:
        super().__init__()
        self.model = tiny_model(family, drop_path=0.0 if family in ("resnet", "densenet") else 0.3)
        self.protocol, self.head_only = protocol, False
        self.head_first = protocol.name == "head_then_full"
        begin_protocol(self.model.net, protocol, seed=0)

    def train(self, mode: bool = True) -> "Task":
        super().train(mode)
        if mode:
            still_backbone(self.model.net, self.protocol, head_only=self.head_only)
        return self

    def backbone(self) -> dict[str, torch.Tensor]:
        """Return a copy of all that is not the head: weights, and what batch norm counted."""
        head = {id(parameter) for parameter in head_parameters(self.model.net)}
        state = self.model.net.state_dict(keep_vars=True)
        return {name: value.detach().clone() for name, value in state.items() if id(value) not in head}


def run(task: Task, steps: range, optimizer: Any = None, *, name: str = "adamw") -> Any:
    """Train as the loop does and return the optimizer."""
    config = OptimConfig(name=name, lr=1e-2, weight_decay=0.5, warmup=0)
    optimizer = optimizer or build_optimizer(config, task)
    for step in steps:
        task.train()
        if task.head_first:
            set_phase(task, optimizer, step, STEPS)
        set_lr(optimizer, lr_at(config, step, STEPS))
        torch.manual_seed(step)
        nn.functional.binary_cross_entropy_with_logits(task.model(IMAGES), TARGETS).backward()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether all is equal, to the bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def head_of(task: Task) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in head_parameters(task.model.net)]


@pytest.mark.parametrize("family", ["vit", "resnet", "densenet", "convnext", "swin"])
def test_a_probe_leaves_the_backbone_its_bits_and_trains_on_its_true_features(family):
    task = Task(family, ProtocolConfig(name="probe"))
    before, head = task.backbone(), head_of(task)
    task.train()
    with torch.no_grad():
        training = task.model(IMAGES)
        assert torch.equal(training, task.eval().model(IMAGES))  # neither drop path nor statistics of the batch
    run(task, range(STEPS))
    assert same(task.backbone(), before)
    assert not any(torch.equal(now, then) for now, then in zip(head_of(task), head, strict=True))


def test_a_probe_keeps_no_activation_of_the_backbone():
    task = Task("vit", ProtocolConfig(name="probe")).train()
    shapes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: shapes.append(tuple(x.shape)) or x, lambda x: x):
        task.model(IMAGES).sum()
    assert set(shapes) <= {(4, 32), (2, 32), (32, 2)}


@pytest.mark.parametrize("family", ["vit", "resnet"])
@pytest.mark.parametrize("name", ["adamw", "sgd", "lamb"])
def test_head_then_full_trains_the_head_first_and_then_everything(family, name):
    task = Task(family, ProtocolConfig(name="head_then_full", head_share=0.5))
    before, head = task.backbone(), head_of(task)
    optimizer = run(task, range(3), name=name)
    assert same(task.backbone(), before)
    assert not any(torch.equal(now, then) for now, then in zip(head_of(task), head, strict=True))
    run(task, range(3, STEPS), optimizer, name=name)
    after = task.backbone()
    weights = {key for key, value in task.model.net.named_parameters() if value.ndim > 1}
    assert not any(torch.equal(after[key], before[key]) for key in weights & after.keys())


def test_the_phase_is_a_function_of_the_step():
    whole = Task("resnet", ProtocolConfig(name="head_then_full", head_share=0.5))
    run(whole, range(STEPS))
    for stop in (1, 3, 4):
        stopped = Task("resnet", ProtocolConfig(name="head_then_full", head_share=0.5))
        optimizer = run(stopped, range(stop))
        resumed = Task("resnet", ProtocolConfig(name="head_then_full", head_share=0.5))
        resumed.load_state_dict(stopped.state_dict())
        fresh = build_optimizer(OptimConfig(lr=1e-2, weight_decay=0.5, warmup=0), resumed)
        for group, other in zip(fresh.param_groups, optimizer.param_groups, strict=True):
            for parameter, twin in zip(group["params"], other["params"], strict=True):
                fresh.state[parameter] = copy.deepcopy(optimizer.state[twin])
        run(resumed, range(stop, STEPS), fresh)
        assert same(resumed.state_dict(), whole.state_dict())


def test_the_head_has_its_share_of_the_steps_and_one_at_least():
    protocol = ProtocolConfig(name="head_then_full", head_share=0.1)
    assert [head_steps(protocol, steps) for steps in (2, 10, 1000)] == [1, 1, 100]
    assert head_steps(ProtocolConfig(), 1000) == 0


def test_adapters_train_and_the_frozen_weights_keep_their_bits():
    task = Task("vit", ProtocolConfig(name="lora"))
    before = task.backbone()
    run(task, range(STEPS))
    after = task.backbone()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "lora_" in name}
    task.eval()
    with torch.no_grad():
        adapted = task.model(IMAGES)
        end_protocol(task.model.net)
        torch.testing.assert_close(task.model(IMAGES), adapted, atol=1e-6, rtol=1e-6)
    assert task.model.net.state_dict().keys() == tiny_model().net.state_dict().keys()


def test_adapters_learn_at_full_rate_below_a_decaying_backbone():
    task = Task("vit", ProtocolConfig(name="lora"))
    optimizer = build_optimizer(OptimConfig(layer_decay=0.5), task)
    assert {group["lr_scale"] for group in optimizer.param_groups} == {1.0}
