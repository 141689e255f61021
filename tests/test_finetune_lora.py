"""Low-rank adapters: nothing at first, plain weights at the end, and every one of them learns."""

import copy

import pytest
import torch
from tiny_nets import SIZE, TRANSFORMERS, tiny_model

from cxrdist.errors import UsageError
from cxrdist.finetune.lora import LoraConfig, LoraLinear, add_lora, merge_lora
from cxrdist.models.build import RadiographModel
from cxrdist.models.head import head_parameters

IMAGES = torch.rand(2, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def lively(family: str) -> RadiographModel:
    """Return a model that tells a change anywhere: fresh ones have layer scales and heads of nearly nothing."""
    model = tiny_model(family)
    generator = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        middle = 1.0 if parameter.ndim == 1 and not name.endswith("bias") else 0.0
        parameter.data = middle + 0.15 * torch.randn(parameter.shape, generator=generator)
    return model


def disturb(net: torch.nn.Module) -> None:
    """Give the adapters values as training would."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in net.named_parameters():
        if name.endswith("lora_b"):
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("family", TRANSFORMERS)
@torch.no_grad()
def test_adapters_change_nothing_at_first_and_merge_into_plain_weights(family):
    model = lively(family).eval()
    plain = copy.deepcopy(model)
    add_lora(model.net, LoraConfig(), seed=0)
    torch.testing.assert_close(model(IMAGES), plain(IMAGES), atol=1e-6, rtol=0)
    disturb(model.net)
    adapted = model(IMAGES)
    assert not torch.allclose(adapted, plain(IMAGES), atol=1e-2)
    merge_lora(model.net)
    torch.testing.assert_close(model(IMAGES), adapted, atol=1e-6, rtol=5e-6)
    assert list(model.net.state_dict()) == list(plain.net.state_dict())
    again = copy.deepcopy(plain)
    again.net.load_state_dict(model.net.state_dict(), strict=True)  # as a model folder's reader does
    torch.testing.assert_close(again(IMAGES), adapted, atol=1e-6, rtol=5e-6)


@pytest.mark.parametrize("family", TRANSFORMERS)
def test_every_adapter_and_the_head_learn_and_nothing_else_does(family):
    model = lively(family).eval()  # some have drop path by default
    names = add_lora(model.net, LoraConfig(rank=2), seed=0)
    disturb(model.net)
    model(IMAGES).square().sum().backward()
    learning = {name for name, p in model.net.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    head = {id(p) for p in head_parameters(model.net)}
    of_head = {name for name, p in model.net.named_parameters() if id(p) in head}
    assert learning == {f"{name}.{part}" for name in names for part in ("lora_a", "lora_b")} | of_head
    assert {name for name, p in model.net.named_parameters() if p.requires_grad} == learning
    blocks = sum(1 for name in names if name.endswith("fc2"))
    assert blocks == sum(1 for name, _ in model.net.named_modules() if name.endswith("mlp.fc2"))
    assert sum(name.endswith(("qkv", "q_proj")) for name in names) == blocks


def test_a_layer_s_change_is_the_paper_s_product():
    model = tiny_model()
    weight = model.net.blocks[0].attn.qkv.weight.detach().clone()
    add_lora(model.net, LoraConfig(rank=4, alpha=10, targets=["qkv"]), seed=0)
    disturb(model.net)
    layer = model.net.blocks[0].attn.qkv
    assert layer.lora_a.shape == (4, 32)
    assert layer.lora_b.shape == (96, 4)
    torch.testing.assert_close(layer.merged().weight, weight + 10 / 4 * layer.lora_b @ layer.lora_a)
    assert not isinstance(model.net.blocks[0].mlp.fc1, LoraLinear)


def test_adapters_start_from_their_seed_and_leave_the_global_stream_alone():
    one, same, other = tiny_model(), tiny_model(), tiny_model()
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    for model, seed in ((one, 0), (same, 0), (other, 1)):
        add_lora(model.net, LoraConfig(), seed=seed)
    assert torch.equal(torch.rand(1), expected)
    a, b, c = (model.net.blocks[0].attn.qkv.lora_a for model in (one, same, other))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_dropout_is_on_the_adapters_input_and_in_training_only():
    layer = LoraLinear(torch.nn.Linear(8, 8), rank=2, alpha=2, dropout=0.5)
    torch.nn.init.ones_(layer.lora_b)
    x = torch.ones(4, 8)
    torch.manual_seed(0)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


def test_a_network_without_such_layers_and_an_unknown_target_are_refused():
    with pytest.raises(UsageError, match="needs a backbone with linear layers in its blocks, got ResNet"):
        add_lora(tiny_model("resnet").net, LoraConfig(), seed=0)
    with pytest.raises(UsageError, match=r"`protocol\.lora\.targets` must be one of .*got 'qvk'\. Did you mean 'qkv'"):
        add_lora(tiny_model().net, LoraConfig(targets=["proj", "qvk"]), seed=0)
