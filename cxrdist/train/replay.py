"""The step that stopped a run, made again outside the engine: where the first number that is not finite came from."""

import json
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from cxrdist.data.loader import Batch, on_device
from cxrdist.errors import UserError
from cxrdist.models.precision import AUTOCAST
from cxrdist.seeds import Purpose, derive
from cxrdist.train.chosen import load_chosen
from cxrdist.train.config import Precision
from cxrdist.train.guard import FACTS, rank_file, shortened
from cxrdist.train.run_folder import BAD_BATCH, RunFolder


@dataclass
class Replay:
    """What one micro-batch of one rank shows."""

    step: int
    rank: int
    micro_step: int
    recorded_loss: float
    """What the run had."""
    loss: float
    """What the replay has; the same number where weights, precision and device are those of the run."""
    norm: float = 0.0
    """L2 norm of this micro-batch's gradient."""
    module: str | None = None
    """First module, in the order of the forward pass, with an output that is not finite; empty is the task itself."""
    module_input_finite: bool = True
    """Whether what that module got was finite; if not, the fault lies between it and the module before."""
    gradient_module: str | None = None
    """First module, in the order of the backward pass, whose output has a gradient that is not finite."""
    operation: str | None = None
    """PyTorch's name of the first backward operation that gave a NaN."""
    samples: list[str] = field(default_factory=list)
    """Keys of the samples that, each alone, give a loss or a gradient that is not finite."""
    all_samples: int = 0
    weights: list[str] = field(default_factory=list)
    """Parameters and buffers that were not finite before the step."""
    gradients: list[str] = field(default_factory=list)
    """Parameters whose gradient is not finite."""
    image: dict[str, Any] = field(default_factory=dict)
    """Type, smallest and largest value of the images, and how many values are not finite."""

    @property
    def finite(self) -> bool:
        """Whether nothing is wrong here."""
        return math.isfinite(self.loss) and math.isfinite(self.norm) and self.module is None

    def tree(self) -> dict[str, Any]:
        """Return all of it for JSON; numbers that are not finite become text."""
        tree = asdict(self) | {"finite": self.finite}
        return {
            name: repr(value) if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in tree.items()
        }

    def text(self) -> str:
        """Return all of it in a few lines."""
        lines = [
            f"Step {self.step}, rank {self.rank}, micro-batch {self.micro_step}: loss {self.loss} "
            f"(in the run {self.recorded_loss}), norm of its gradient {self.norm:.4g}."
        ]
        if self.image["not_finite"]:
            lines.append(f"Images: {self.image['not_finite']} values are not finite.")
        else:
            lines.append(f"Images: {self.image['dtype']}, from {self.image['min']:g} to {self.image['max']:g}.")
        if self.weights:
            lines.append(f"Weights not finite before the step: {shortened(self.weights)}.")
        if self.module is not None:
            lines.append(f"First output not finite: {_forward_place(self.module, self.module_input_finite)}.")
        elif self.gradient_module is not None:
            after = self.operation or "an operation"
            lines.append(
                f"All outputs are finite. First gradient not finite: at the output of "
                f"{self.gradient_module or 'the task'}, from {after} after it."
            )
        elif self.gradients and self.operation:
            lines.append(f"All outputs are finite. First gradient not finite: from {self.operation}.")
        if self.gradients:
            lines.append(f"Gradients not finite: {len(self.gradients)} parameters ({shortened(self.gradients)}).")
        elif not math.isfinite(self.norm) and math.isfinite(self.loss):
            lines.append("Each value of the gradient is finite, but too large for a norm.")
        if self.samples:
            lines.append(
                f"Samples not finite alone: {len(self.samples)} of {self.all_samples} ({shortened(self.samples)})."
            )
        elif not self.finite:
            lines.append("Each sample alone is finite: it is the batch as a whole.")
        if self.finite:
            lines.append(
                "Nothing here is not finite: the cause lies with another rank, in the sum over micro-batches, "
                "or in weights other than those of the run."
            )
        return "\n".join(lines)


def replay_newest(out: Path, build_task: Callable[[], nn.Module], *, steps: int) -> list[Replay]:
    """Make the step again that stopped the run in `out`, of `steps` steps, from its newest checkpoint.

    Raises:
        UserError: If no run was stopped there by a step that was not finite.
    """
    task = build_task()
    step = load_chosen(task, RunFolder(out), step=None)
    at_step = getattr(task, "at_step", None)  # as the loop calls it
    if at_step is not None:
        at_step(step, steps, None)
    return replay(out, task, step=step, device=torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def replay(
    folder: Path,
    task: nn.Module,
    *,
    step: int,
    device: torch.device | None = None,
    rank: int | None = None,
) -> list[Replay]:
    """Make the step of the bad batch in run folder `folder` again with `task`; return what is not finite.

    `task` has the weights from before the step, those after `step` steps, and is left with them; it is no engine, and
    not compiled.  Without `rank` the ranks whose loss was not finite are looked at, or all where every loss was.  If
    everything is finite, the first micro-batch alone is returned.

    Raises:
        UserError: If no batch is there, or not that of `rank`, or if the weights are those of another step.
    """
    facts = _read_facts(folder)
    if step != facts["step"] - 1:
        raise UserError(
            f"A replay needs the checkpoint from before the bad step, of step {facts['step'] - 1}, got that of step "
            f"{step} [in {folder.name}]. Continue the run with --resume auto: it comes to the bad step again, "
            "and keeps the checkpoint before it."
        )
    device = device or torch.device("cpu")
    task.to(device).train()
    precision: Precision = facts["precision"]
    ranks = facts["ranks"]
    bad = [one for one in ranks if any(not math.isfinite(float(loss)) for loss in one["losses"])]
    chosen = [one for one in ranks if one["rank"] == rank] if rank is not None else bad or ranks
    if not chosen:
        raise UserError(f"`rank` must be one of the {len(ranks)} of the run, got {rank} [in {folder.name}].")
    found: list[Replay] = []
    for one in chosen:
        for micro_step, batch in enumerate(_read_batches(folder, one["rank"], len(one["losses"]))):
            result = Replay(
                step=facts["step"],
                rank=one["rank"],
                micro_step=micro_step,
                recorded_loss=float(one["losses"][micro_step]),
                loss=math.nan,
                all_samples=len(batch["sample"]),
            )
            seed = derive(facts["seed"], Purpose.STEP, facts["step"] - 1, micro_step, one["rank"])
            _look(result, task, on_device(batch, device), one["keys"][micro_step], precision, seed)
            found.append(result)
    task.zero_grad(set_to_none=True)
    return [result for result in found if not result.finite] or found[:1]


def _look(result: Replay, task: nn.Module, batch: Batch, keys: list[str], precision: Precision, seed: int) -> None:
    pixels = batch["image"].float()
    finite = pixels[torch.isfinite(pixels)]
    result.image = {
        "dtype": str(batch["image"].dtype).removeprefix("torch."),
        "min": float(finite.min()) if len(finite) else None,
        "max": float(finite.max()) if len(finite) else None,
        "not_finite": pixels.numel() - len(finite),
    }
    tensors = (*task.named_parameters(), *task.named_buffers())
    result.weights = [name for name, tensor in tensors if not _is_finite(tensor)]
    run = _Run(task, precision, seed)
    with _watched(task, result):
        result.loss = run(batch)
    result.gradients = run.gradients_not_finite()
    result.norm = run.norm()
    if result.finite:
        return
    result.operation = run.operation(batch)
    for number, key in enumerate(keys):
        # Twice, because batch norm and contrastive losses have no answer for one.
        alone = {name: value[[number, number]] for name, value in batch.items()}
        if not math.isfinite(run(alone)) or run.gradients_not_finite():
            result.samples.append(key)


@dataclass
class _Run:
    """Forward and backward passes of a task as the engine makes them, with the buffers put back after each."""

    task: nn.Module
    precision: Precision
    seed: int

    def __call__(self, batch: Batch) -> float:
        """Return the loss, and leave the gradients at the parameters."""
        self.task.zero_grad(set_to_none=True)
        torch.manual_seed(self.seed)
        device = batch["image"].device.type
        with _unchanged(self.task):
            with torch.autocast(device, dtype=AUTOCAST[self.precision], enabled=self.precision != "fp32"):
                loss = self.task(batch)["loss"]
            loss.backward()
        return float(loss.item())

    def gradients_not_finite(self) -> list[str]:
        return [
            name
            for name, parameter in self.task.named_parameters()
            if parameter.grad is not None and not _is_finite(parameter.grad)
        ]

    def norm(self) -> float:
        gradients = [parameter.grad for parameter in self.task.parameters() if parameter.grad is not None]
        return float(torch.nn.utils.get_total_norm(gradients))

    def operation(self, batch: Batch) -> str | None:
        """Return the backward operation that PyTorch's anomaly mode names; it sees NaN but not infinity."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with torch.autograd.detect_anomaly(check_nan=True):
                    self(batch)
        except RuntimeError as error:
            name = str(error).partition("Function '")[2].partition("'")[0]
            return name or None
        return None


@contextmanager
def _watched(task: nn.Module, result: Replay) -> Iterator[None]:
    """Note in `result` the first module with an output, and with a gradient of its output, that is not finite."""

    def on_gradient(name: str) -> Callable[[torch.Tensor], None]:
        def note(gradient: torch.Tensor) -> None:
            if result.gradient_module is None and not _is_finite(gradient):
                result.gradient_module = name

        return note

    def on_output(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def note(module: nn.Module, inputs: Any, output: Any) -> None:
            tensors = list(_tensors(output))
            if result.module is None and not all(map(_is_finite, tensors)):
                result.module = name
                result.module_input_finite = all(map(_is_finite, _tensors(inputs)))
            for tensor in tensors:
                if tensor.requires_grad:
                    tensor.register_hook(on_gradient(name))

        return note

    hooks = [module.register_forward_hook(on_output(name)) for name, module in task.named_modules()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _unchanged(task: nn.Module) -> Iterator[None]:
    """Put the buffers back after the block: batch norm counts in every forward pass."""
    before = [buffer.clone() for buffer in task.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(task.buffers(), before, strict=True):
                buffer.copy_(value)


def _tensors(tree: Any) -> Iterator[torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, dict):
        for value in tree.values():
            yield from _tensors(value)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from _tensors(value)


def _is_finite(tensor: torch.Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


def _forward_place(module: str, input_finite: bool) -> str:
    if not module:
        return "the loss, computed from finite outputs of all modules"
    return f"{module}" if input_finite else f"{module}, from an input that is not finite already"


def _read_facts(folder: Path) -> dict[str, Any]:
    path = folder / BAD_BATCH / FACTS
    if not path.is_file():
        raise UserError(
            f"A replay needs the batch of a step that was not finite, got none [in {folder.name}]. "
            "It is kept when a run stops for that reason."
        )
    facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return facts


def _read_batches(folder: Path, rank: int, count: int) -> list[Batch]:
    path = rank_file(folder / BAD_BATCH, rank)
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError):
        raise UserError(
            f"A replay needs the micro-batches of rank {rank}, got no readable {path.name} [in {folder.name}]. "
            "Copy it from the machine of that rank, or choose another rank."
        ) from None
    batches: list[Batch] = [{} for _ in range(count)]
    for name, tensor in tensors.items():
        number, _, kind = name.partition("/")
        batches[int(number)][kind] = tensor
    return batches
