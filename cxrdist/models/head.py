"""The classifier of a timm network: the last layer, from features to logits."""

from typing import Any

from torch import nn


def head_parameters(net: Any) -> list[nn.Parameter]:
    """Return the parameters of the classifier of `net`; none for a network without one."""
    if not hasattr(net, "get_classifier"):
        return []
    found = net.get_classifier()
    modules = found if isinstance(found, (tuple, list)) else (found,)
    return [parameter for module in modules for parameter in module.parameters()]


def classifier_name(net: Any) -> str:
    """Return the name of the classifier among the modules of `net`, such as ``head.fc``."""
    classifier = net.get_classifier()
    return next(name for name, module in net.named_modules() if module is classifier)


def set_classifier(net: Any, classifier: nn.Module) -> None:
    """Put `classifier` in the place of the classifier of `net`; with `nn.Identity` the network returns features."""
    net.set_submodule(classifier_name(net), classifier)
