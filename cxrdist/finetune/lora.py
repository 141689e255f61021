"""Low-rank adapters on linear layers (Hu et al. 2021, LoRA).

An adapted layer keeps the names of its weight and bias and has two parameters more, ``lora_a`` (rank, in) and
``lora_b`` (out, rank).  After `merge_lora` the network is a plain one again.
"""

import math
from typing import Any

import torch
from torch import nn
from torch.nn.functional import dropout, linear

from cxrdist.errors import UsageError, unknown
from cxrdist.finetune.config import LoraConfig
from cxrdist.models.head import head_parameters

USUAL_TARGETS = (
    *("qkv", "q_proj", "k_proj", "v_proj", "proj"),
    *("fc1", "fc2", "fc1_g", "fc1_x", "w1", "w2", "w3", "w12"),  # plain and gated (SwiGLU) perceptrons
)
"""Last parts of the names of the linear layers of attention and perceptron, over the transformers of timm."""


class LoraLinear(nn.Linear):
    """``x W' + b`` with ``W' = W + scale * B A``; A is random and B zero at first, so that nothing changes."""

    def __init__(self, plain: nn.Linear, *, rank: int, alpha: float, dropout: float) -> None:
        """Take over the weight and the bias of `plain`; both are frozen by `add_lora`."""
        nn.Module.__init__(self)  # the weight is there already
        self.in_features, self.out_features = plain.in_features, plain.out_features
        self.weight, self.bias = plain.weight, plain.bias
        self.scale, self.dropout = alpha / rank, dropout
        self.lora_a = nn.Parameter(plain.weight.new_empty(rank, plain.in_features))
        self.lora_b = nn.Parameter(plain.weight.new_zeros(plain.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the adapted layer's output."""
        change = linear(linear(dropout(x, self.dropout, self.training), self.lora_a), self.lora_b)
        return linear(x, self.weight, self.bias) + self.scale * change

    def merged(self) -> nn.Linear:
        """Return the plain layer of the same function."""
        plain = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device=self.weight.device)
        change = self.lora_b.double() @ self.lora_a.double()
        plain.weight = nn.Parameter((self.weight.double() + self.scale * change).to(self.weight.dtype).detach())
        if self.bias is not None:
            plain.bias = nn.Parameter(self.bias.detach())
        return plain.train(self.training)


def add_lora(net: Any, config: LoraConfig, *, seed: int) -> list[str]:
    """Adapt the linear layers of `net` and freeze all but adapters and classifier; return the adapted layers' names.

    Args:
        net: A timm network, changed in place, its weights loaded already.
        config: What to adapt.
        seed: Of the adapters' first values.

    Raises:
        UsageError: If no layer, or none of one of the targets, has such a name.
    """
    head = {id(parameter) for parameter in head_parameters(net)}
    layers = {
        name: module
        for name, module in net.named_modules()
        # Not a subclass: the output layer of `nn.MultiheadAttention` is one, and its forward is never called.
        if type(module) is nn.Linear and id(module.weight) not in head
    }
    wanted = set(config.targets or USUAL_TARGETS)
    chosen = {name: layer for name, layer in layers.items() if _last(name) in wanted}
    missing = sorted(set(config.targets) - {_last(name) for name in chosen})
    if not layers or (not chosen and not missing):
        raise UsageError(
            f"`protocol` 'lora' needs a backbone with linear layers in its blocks, got {type(net).__name__}. "
            "Choose a transformer, or another `protocol.name`."
        )
    if missing:
        raise UsageError(unknown("`protocol.lora.targets`", missing[0], sorted({_last(name) for name in layers})))
    for parameter in net.parameters():
        parameter.requires_grad_(id(parameter) in head)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, layer in chosen.items():
            adapted = LoraLinear(layer, rank=config.rank, alpha=config.alpha, dropout=config.dropout)
            net.set_submodule(name, adapted.train(layer.training))
            _call_the_layer(net.get_submodule(name.rpartition(".")[0]))
    return list(chosen)


def merge_lora(net: Any) -> None:
    """Make every adapted layer of `net` a plain one of the same function, in place."""
    for name, module in list(net.named_modules()):
        if isinstance(module, LoraLinear):
            net.set_submodule(name, module.merged())


def _call_the_layer(attention: Any) -> None:
    """Let an attention with biases of its own for q and v call its layer, where it would take the weight only."""
    if getattr(attention, "q_bias", None) is not None and hasattr(attention, "qkv_bias_separate"):
        attention.qkv_bias_separate = True


def _last(name: str) -> str:
    return name.rpartition(".")[2]
