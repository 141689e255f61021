"""The optimizer step where DeepSpeed's own would be wrong: stage 0, and fp16 under every stage.

DeepSpeed 0.19.8 under `torch_autocast`: at stage 0 it steps with a gradient that is not finite; at stages 1 to 3 with
fp16 it measures and clips the gradient while it is still scaled, never lowers the scale after an overflow, and counts
a step once per parameter group.  Both are put right through the places that DeepSpeed has for a loss scaler.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch


class LossScale:
    """Dynamic loss scale (Micikevicius et al. 2018, "Mixed Precision Training"), as DeepSpeed's ZeRO optimizers use it.

    DeepSpeed asks for the scale again after it has reported a good step, to divide that step's gradient: so the scale
    grows only when the next loss is scaled.
    """

    def __init__(self, *, initial: float = 2.0**16, grow_after: int = 2000) -> None:
        self.cur_scale = initial
        self.dynamic = True
        self.grow_after = grow_after
        self.good_steps = 0

    def scale_loss(self, loss: torch.Tensor) -> torch.Tensor:
        """Return the loss times the scale."""
        if self.good_steps >= self.grow_after:
            self.cur_scale, self.good_steps = self.cur_scale * 2, 0
        return loss * self.cur_scale

    def update_scale(self, overflow: bool) -> None:
        """Take note of a step that was made, or was left out because the gradient overflowed."""
        if overflow:
            self.cur_scale, self.good_steps = max(self.cur_scale / 2, 1.0), 0
        else:
            self.good_steps += 1

    def state(self) -> dict[str, float]:
        """Return what a resumed run needs."""
        return {"loss_scale": self.cur_scale, "loss_scale_good_steps": float(self.good_steps)}

    def restore(self, state: dict[str, float]) -> None:
        """Take over what `state` returned; a run that had another precision before has none."""
        self.cur_scale = state.get("loss_scale", self.cur_scale)
        self.good_steps = int(state.get("loss_scale_good_steps", self.good_steps))


class FiniteStep:
    """Stage 0's step, in the place of the `torch.amp.GradScaler` that DeepSpeed would have there.

    It measures and clips the gradient, and steps only if its norm is finite: one pass over the gradients and one
    synchronisation a step.  As the ZeRO optimizers do, it leaves `_global_grad_norm` and `overflow` at the optimizer.
    """

    def __init__(self, *, clip: float, loss_scale: LossScale | None) -> None:
        self.clip = clip
        self.loss_scale = loss_scale

    def scale(self, loss: torch.Tensor) -> torch.Tensor:
        """Return the loss that the backward pass begins with."""
        return loss if self.loss_scale is None else self.loss_scale.scale_loss(loss)

    def unscale_(self, optimizer: torch.optim.Optimizer) -> None:
        """Do nothing: `step` unscales and clips at once."""

    def step(self, optimizer: Any) -> None:
        """Clip the gradient and make the step, or leave the weights as they are if the gradient is not finite."""
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        scale = 1.0 if self.loss_scale is None else self.loss_scale.cur_scale
        norm = global_norm(gradients) / scale
        optimizer.overflow = not math.isfinite(norm)
        optimizer._global_grad_norm = norm
        if not optimizer.overflow:
            # The same rule as in the ZeRO optimizers, so that the stages agree.
            divisor = scale * (max(1.0, (norm + 1e-6) / self.clip) if self.clip > 0 else 1.0)
            if divisor != 1.0 and gradients:
                torch._foreach_mul_(gradients, 1.0 / divisor)
            optimizer.step()
        if self.loss_scale is not None:
            self.loss_scale.update_scale(optimizer.overflow)

    def update(self) -> None:
        """Do nothing: `step` has done it."""


def global_norm(tensors: Iterable[torch.Tensor]) -> float:
    """Return the L2 norm of all `tensors` together; this waits for the device."""
    tensors = list(tensors)
    if not tensors:
        return 0.0
    return float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors))).item())


def install(engine: Any, *, clip: float, scaled: bool) -> None:
    """Put our loss scale, if the loss is `scaled`, and our step at stage 0 into `engine`."""
    loss_scale = LossScale() if scaled else None
    if engine.zero_optimization_stage() == 0:
        engine.torch_autocast_z0_gradscaler = FiniteStep(clip=clip, loss_scale=loss_scale)
        engine.clip_fp32_gradients = lambda: None
    elif loss_scale is not None:
        engine.optimizer.torch_autocast_gradscaler = None
        engine.optimizer.loss_scaler = loss_scale


def loss_scaler_of(engine: Any) -> LossScale | None:
    """Return the loss scale of `engine`, or None where the loss is not scaled."""
    if engine.zero_optimization_stage() == 0:
        scaler = getattr(engine.torch_autocast_z0_gradscaler, "loss_scale", None)
    else:
        scaler = engine.optimizer.loss_scaler
    return scaler if isinstance(scaler, LossScale) else None
