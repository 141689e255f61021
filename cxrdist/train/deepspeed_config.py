"""What DeepSpeed is told, and what of a user's own `ds_config.json` it is told as well."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cxrdist.data.order import Batching
from cxrdist.errors import UsageError, nearest
from cxrdist.train.config import OptimConfig, TrainConfig

BUCKET = 25_000_000
"""Elements of the gradient that are reduced at once: 100 MB, twice with overlap; DeepSpeed's own are 2 GB each."""

AUTO = "auto"
"""Stands in files written for transformers' trainer where the trainer decides; here our configuration does."""

DECIDED = {
    "train_batch_size": "train.global_batch_size",
    "train_micro_batch_size_per_gpu": "train.micro_batch_size",
    "gradient_accumulation_steps": "train.micro_batch_size",
    "gradient_clipping": "optim.clip",
    "optimizer": "optim.name",
    "scheduler": "optim.schedule",
    "fp16.enabled": "train.precision",
    "bf16.enabled": "train.precision",
    "amp.enabled": "train.precision",
    "torch_autocast.enabled": "train.precision",
    "torch_autocast.dtype": "train.precision",
    "zero_optimization.stage": "train.zero_stage",
    "zero_optimization.offload_optimizer.device": "train.offload",
    "zero_optimization.offload_param.device": "train.offload",
    "zero_optimization.cpu_offload": "train.offload",
    "zero_optimization.cpu_offload_param": "train.offload",
}
"""What our configuration decides, with the option that does."""

ABSENT = {
    "fp16.enabled": False,
    "bf16.enabled": False,
    "amp.enabled": False,
    "zero_optimization.offload_optimizer.device": "none",
    "zero_optimization.offload_param.device": "none",
    "zero_optimization.cpu_offload": False,
    "zero_optimization.cpu_offload_param": False,
}
"""What a user's file may say where ours says nothing; autocast takes the place of DeepSpeed's own precisions."""

SECTIONS = ("zero_optimization", "torch_autocast", "fp16", "bf16", "amp")
"""Keys that hold objects."""

KNOWN = {
    "aio", "comms_logger", "communication_data_type", "csv_monitor", "dump_state", "flops_profiler",
    "gradient_predivide_factor", "memory_breakdown", "prescale_gradients", "steps_per_print", "tensorboard",
    "torch_autocast", "wall_clock_breakdown", "wandb", "zero_allow_untested_optimizer", "zero_optimization",
}  # fmt: skip
"""Sections that a user's file may have besides what is decided; DeepSpeed itself ignores what it does not know."""

REFUSED = {
    "compute_grad_norm", "elastic_checkpoint", "legacy_stage1", "round_robin_gradients", "zenflow",
    "zero_hpz_partition_size", "zero_quantized_gradients", "zero_quantized_nontrainable_weights",
    "zero_quantized_weights",
}  # fmt: skip
"""Settings of ZeRO under which checkpoints could not be read at another division, or the weights would be rounded."""


def deepspeed_config(train: TrainConfig, optim: OptimConfig, batching: Batching) -> dict[str, Any]:
    """Return DeepSpeed's configuration for a run, with the user's file `train.deepspeed` merged in.

    The optimizer is ours (`build_optimizer`) and the schedule a function of the step, so neither stands here.

    Raises:
        UsageError: If the user's file cannot be read or contradicts the run's configuration.
    """
    ours = {
        "train_batch_size": batching.global_batch_size,
        "train_micro_batch_size_per_gpu": batching.micro_batch_size,
        "gradient_accumulation_steps": batching.accumulation,
        "gradient_clipping": optim.clip,
        "zero_optimization": _zero(train),
        "torch_autocast": _autocast(train),
        # DeepSpeed would exchange a torch optimizer for its own, which is compiled at the first start.
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }
    return ours if train.deepspeed is None else _merged(ours, _read(train.deepspeed), str(train.deepspeed))


def _zero(train: TrainConfig) -> dict[str, Any]:
    zero: dict[str, Any] = {"stage": train.zero_stage}
    if train.zero_stage:
        zero |= {
            "overlap_comm": True,
            "contiguous_gradients": True,
            "reduce_bucket_size": BUCKET,
            "allgather_bucket_size": 8 * BUCKET,
        }
    if train.zero_stage == 3:
        zero |= {
            "stage3_prefetch_bucket_size": 2 * BUCKET,
            # Norms, biases and tokens, which would be gathered one by one, stay on every rank.
            "stage3_param_persistence_threshold": 100_000,
        }
    if train.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    if train.offload == "parameters":
        zero["offload_param"] = {"device": "cpu", "pin_memory": True}
    return zero


def _autocast(train: TrainConfig) -> dict[str, Any]:
    return {
        "enabled": train.precision != "fp32",
        "dtype": "float16" if train.precision == "fp16" else "bfloat16",
        # For the layers in this list DeepSpeed sums gradients over the ranks, and gathers stage 3's weights, in the
        # lower precision; by default for all linear layers.  With none, every stage sums in fp32, as stage 0 does, and
        # computes outside autocast with the very weights.  On slow networks a user's file may name layers.
        "lower_precision_safe_modules": [],
    }


def _read(path: Path) -> dict[str, Any]:
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UsageError(f"`train.deepspeed` must be a JSON file that can be read, got {path}: {error}.") from None
    if not isinstance(read, dict):
        raise UsageError(f"`train.deepspeed` must hold one JSON object, got a {type(read).__name__} in {path}.")
    return read


def _merged(ours: dict[str, Any], user: dict[str, Any], where: str) -> dict[str, Any]:
    given = _without_auto(user)
    decided = {key.split(".")[0] for key in DECIDED}
    for key in given:
        if key not in KNOWN | decided:
            raise UsageError(
                f"`train.deepspeed` must not set {key!r}, got it in {where}.{nearest(key, sorted(KNOWN))} Leave it out."
            )
    for key in SECTIONS:
        if not isinstance(given.get(key, {}), dict):
            raise UsageError(f"{key!r} must be an object, got {json.dumps(given[key])} in {where}. Correct the file.")
    for key in given.get("zero_optimization", {}):
        if key in REFUSED:
            raise UsageError(
                f"`train.deepspeed` must not set 'zero_optimization.{key}', got it in {where}: checkpoints could not "
                "be resumed at another number of ranks or ZeRO stage. Leave it out."
            )
    for path, option in DECIDED.items():
        for value in _at(given, path):
            own = next(_at(ours, path), ABSENT.get(path))
            if value != own:
                raise UsageError(
                    f"{path!r} must be {json.dumps(own)}, which `{option}` decides, got {json.dumps(value)} in "
                    f"{where}. Leave it out and set `{option}`."
                )
    return _nested(ours, {key: value for key, value in given.items() if key not in ("fp16", "bf16", "amp")})


def _without_auto(tree: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _without_auto(value) if isinstance(value, dict) else value for key, value in tree.items() if value != AUTO
    }


def _at(tree: Mapping[str, Any], path: str) -> Iterator[Any]:
    """Yield what stands at a dotted `path`, or nothing."""
    value: Any = tree
    for name in path.split("."):
        if not isinstance(value, Mapping) or name not in value:
            return
        value = value[name]
    yield value


def _nested(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        before = merged.get(key)
        merged[key] = _nested(before, value) if isinstance(before, dict) and isinstance(value, dict) else value
    return merged
