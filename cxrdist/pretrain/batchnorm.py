"""Batch norm over the images of all ranks.

Where a loss compares the images of a batch, statistics of each rank's own part would tell which images it holds, and
the network could tell a pair by them (Chen et al. 2020, SimCLR, section 2.2 "Global BN", which names it as the other
way beside shuffling the images over the ranks, He et al. 2020, MoCo, section 3.3).

torch has `nn.SyncBatchNorm` for GPUs only, and under other names of classes.  Here a network keeps its modules, their
parameters and buffers: what is saved is the plain network.
"""

from typing import Any

import torch
import torch.distributed
from timm.layers import BatchNormAct2d
from torch import nn
from torch.nn.modules._functions import SyncBatchNorm as Kernels
from torch.nn.modules.batchnorm import _BatchNorm

from cxrdist.errors import UsageError
from cxrdist.pretrain.gathering import gather_values, world_size


def join_batch_norm(network: nn.Module) -> None:
    """Let every batch norm in `network` normalise by the statistics of all ranks' images, from now on.

    Those of a micro-batch, where a step has several.  In evaluation mode, and with one rank, nothing changes.

    Raises:
        UsageError: If there is a batch norm of another kind.
    """
    for module in network.modules():
        kind = type(module)
        if kind in JOINT:
            module.__class__ = JOINT[kind]
        elif isinstance(module, _BatchNorm) and kind not in JOINT.values():
            raise UsageError(
                f"A backbone's batch norm must be torch's or timm's for images, got {kind.__name__}. "
                "Choose another `model.backbone`."
            )


class JointBatchNorm1d(nn.BatchNorm1d):
    """Batch norm of features (B, C), over all ranks."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Return `values` normalised."""
        return _joint(self, values) if self.training and world_size() > 1 else super().forward(values)


class JointBatchNorm2d(nn.BatchNorm2d):
    """Batch norm of feature maps (B, C, H, W), over all ranks."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Return `values` normalised."""
        return _joint(self, values) if self.training and world_size() > 1 else super().forward(values)


class JointBatchNormAct2d(BatchNormAct2d):
    """timm's batch norm of feature maps with an activation after it, over all ranks."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Return `values` normalised and activated."""
        if self.training and world_size() > 1:
            activated: torch.Tensor = self.act(self.drop(_joint(self, values)))
            return activated
        whole: torch.Tensor = super().forward(values)
        return whole


JOINT: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: JointBatchNorm1d,
    nn.BatchNorm2d: JointBatchNorm2d,
    BatchNormAct2d: JointBatchNormAct2d,
}


@torch.compiler.disable  # a compiled graph cannot hold what ranks say to each other in the backward pass
def _joint(norm: _BatchNorm, values: torch.Tensor) -> torch.Tensor:
    """Return `values` (B, C, ...) as `norm`, in training mode, normalises the joint batch."""
    mean, var = norm.running_mean, norm.running_var
    momentum = 0.0 if norm.momentum is None else norm.momentum
    if norm.track_running_stats and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if norm.momentum is None:  # the mean over all batches
            momentum = 1.0 / float(norm.num_batches_tracked)
    result: torch.Tensor
    if values.is_cuda:
        group = torch.distributed.group.WORLD
        result = Kernels.apply(values, norm.weight, norm.bias, mean, var, norm.eps, momentum, group, world_size())
    else:
        result = _Normalise.apply(values, norm.weight, norm.bias, mean, var, norm.eps, momentum)
    return result


class _Normalise(torch.autograd.Function):
    """What torch's kernels do, without CUDA."""

    @staticmethod
    def forward(
        ctx: Any,
        values: torch.Tensor,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        running_mean: torch.Tensor | None,
        running_var: torch.Tensor | None,
        eps: float,
        momentum: float,
    ) -> torch.Tensor:
        own = torch.var_mean(_wide(values), _but_channels(values), correction=0)
        vars_RC, means_RC = gather_values(torch.stack(own)[None]).unbind(1)
        mean = means_RC.mean(0)
        var = (vars_RC + (means_RC - mean).square()).mean(0)  # within the ranks, and between them
        count = values.numel() // len(mean) * world_size()
        if running_mean is not None and running_var is not None:
            running_mean.lerp_(mean.to(running_mean), momentum)
            running_var.lerp_((var * (count / (count - 1))).to(running_var), momentum)
        scale = (var + eps).rsqrt()
        ctx.save_for_backward(values, weight, mean, scale)
        ctx.count = count
        normalised = _centred(values, mean, scale)
        if weight is not None:
            normalised = normalised * _over(weight, values)
        if bias is not None:
            normalised = normalised + _over(bias, values)
        return normalised.to(values.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        values, weight, mean, scale = ctx.saved_tensors
        gradient = _wide(gradients[0])
        normalised = _centred(values, mean, scale)
        # Of bias and weight: of this rank's images, as of every parameter.
        own = torch.stack([gradient.sum(_but_channels(values)), (gradient * normalised).sum(_but_channels(values))])
        of_bias, of_weight = own.unbind() if weight is not None else (None, None)
        of_values = None
        if ctx.needs_input_grad[0]:
            total = own.clone()
            torch.distributed.all_reduce(total)
            through_mean, through_var = total / ctx.count
            of_values = gradient - _over(through_mean, values) - normalised * _over(through_var, values)
            of_values = of_values * _over(scale if weight is None else scale * weight, values)
            of_values = of_values.to(values.dtype)
        return of_values, of_weight, of_bias, None, None, None, None


def _wide(values: torch.Tensor) -> torch.Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _but_channels(values: torch.Tensor) -> list[int]:
    return [0, *range(2, values.ndim)]


def _over(values_C: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    return values_C.view(1, -1, *[1] * (values.ndim - 2))


def _centred(values: torch.Tensor, mean_C: torch.Tensor, scale_C: torch.Tensor) -> torch.Tensor:
    return (_wide(values) - _over(mean_C, values)) * _over(scale_C, values)
