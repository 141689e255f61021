"""What of a network is trained, and when: all, the head first, the head alone, low-rank adapters, or nothing."""

from typing import Any

from torch.nn.modules.batchnorm import _BatchNorm

from cxrdist.finetune.config import ProtocolConfig
from cxrdist.finetune.lora import add_lora, merge_lora
from cxrdist.models.head import classifier_name, head_parameters
from cxrdist.seeds import Purpose, derive


def begin_protocol(net: Any, config: ProtocolConfig, *, seed: int) -> None:
    """Freeze what is not trained and add what is, in place; before the optimizer is built, after weights are loaded.

    Raises:
        UsageError: If the network has no layer that could be adapted.
    """
    if config.name == "lora":
        add_lora(net, config.lora, seed=derive(seed, Purpose.INIT, 2))
    elif config.name in ("probe", "knn"):
        net.requires_grad_(False)
        for parameter in head_parameters(net):
            parameter.requires_grad_(True)


def end_protocol(net: Any) -> None:
    """Make `net` the plain timm network that a model folder holds, in place."""
    merge_lora(net)


def still_backbone(net: Any, config: ProtocolConfig, *, head_only: bool = False) -> None:
    """Put what is not trained into evaluation mode; call it after `net.train()`.

    Without a trained backbone there is no drop path and no dropout in it, and batch norm neither uses nor counts the
    statistics of the batch: features are those of the finished model.  Below adapters only batch norm is still.

    Args:
        net: A timm network in training mode.
        config: What is trained.
        head_only: Whether ``head_then_full`` is in its first phase.
    """
    if config.name in ("probe", "knn") or head_only:
        net.eval()
        net.get_submodule(classifier_name(net)).train()
    elif config.name == "lora":
        for module in net.modules():
            if isinstance(module, _BatchNorm):
                module.eval()


def head_steps(config: ProtocolConfig, steps: int) -> int:
    """Return the number of first steps, of `steps`, that train the head alone."""
    return max(1, round(config.head_share * steps)) if config.name == "head_then_full" else 0


def set_phase(task: Any, optimizer: Any, step: int, steps: int) -> None:
    """Hold the backbone in the first steps of ``head_then_full`` and release it after; before `set_lr`, at every step.

    A function of the step alone.  A group held has learning rate 0: AdamW, SGD and LAMB all multiply their whole
    change by it, decay included, so the weights keep their bits, at every ZeRO stage.  Its gradient is
    computed nevertheless and moves the optimizer's running means: at its release the backbone's second moments are
    those of its own gradients, where means of zeros would make the first steps too long.

    Args:
        task: Has ``protocol``, ``model.net`` and ``head_only``; its `train` calls `still_backbone`.
        optimizer: That of `build_optimizer` with ``task.head_first`` true, or the engine's around it; None for a task
            that is only looked at.
        step: Optimizer step, from 0.
        steps: Of the whole run.
    """
    held = step < head_steps(task.protocol, steps)
    for group in () if optimizer is None else optimizer.param_groups:
        group["held"] = held and group["backbone"]
    if held != task.head_only:
        task.head_only = held
        if task.training:
            task.train()
