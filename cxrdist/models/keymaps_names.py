"""Renaming by rules, shared by the key maps."""

import re
from collections.abc import Sequence

import torch

from cxrdist.models.reading import Weights

Rule = tuple[str, str | None]
"""A pattern that is searched in a name, and what takes its place; None leaves the whole tensor out."""


def renamed(weights: Weights, rules: Sequence[Rule]) -> Weights:
    """Return `weights` with all rules applied to each name, one after the other."""
    names = ((_renamed(name, rules), value) for name, value in weights.items())
    return {name: value for name, value in names if name is not None}


def _renamed(name: str, rules: Sequence[Rule]) -> str | None:
    for pattern, replacement in rules:
        if replacement is not None:
            name = re.sub(pattern, replacement, name)
        elif re.search(pattern, name):
            return None
    return name


def fused(weights: Weights) -> Weights:
    """Join ``attn.q``, ``attn.k`` and ``attn.v`` of each block to ``attn.qkv``; a bias that is not there is zero."""
    found = {name: value for name, value in weights.items() if not re.search(r"\battn\.[qkv]\.(weight|bias)$", name)}
    for name in weights:
        if match := re.search(r"^(.*\battn\.)q\.weight$", name):
            block = match[1]
            found[f"{block}qkv.weight"] = torch.cat([weights[f"{block}{part}.weight"] for part in "qkv"])
            biases = [weights.get(f"{block}{part}.bias") for part in "qkv"]
            if any(bias is not None for bias in biases):
                zero = torch.zeros_like(weights[name][:, 0])
                found[f"{block}qkv.bias"] = torch.cat([zero if bias is None else bias for bias in biases])
    return found
