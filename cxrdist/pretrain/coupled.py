"""How the batches of a method may be divided whose loss compares the images of a batch with each other."""

from cxrdist.data.order import Batching
from cxrdist.errors import UsageError
from cxrdist.pretrain.config import PretrainConfig
from cxrdist.pretrain.methods import CoupledConfig


def undivided(config: PretrainConfig) -> bool:
    """Return whether each rank must compute its share of a global batch at once: the loss would be another else."""
    return isinstance(config.method, CoupledConfig) and not config.method.accumulate


def divisor(config: PretrainConfig, world_size: int) -> int:
    """Return what a micro-batch must be a multiple of on one of `world_size` ranks: all of its share, or 1."""
    return max(1, config.train.global_batch_size // world_size) if undivided(config) else 1


def check_division(config: PretrainConfig, batching: Batching) -> None:
    """Refuse micro-batches where the images of a step are to be compared with each other, all at once.

    Raises:
        UsageError: If a step has several, and `method.accumulate` is off.
    """
    if undivided(config) and batching.accumulation > 1:
        share = batching.micro_batch_size * batching.accumulation
        raise UsageError(
            f"`train.micro_batch_size` must be all {share} images of a rank and step with method "
            f"{config.method.name!r}, which compares them with each other, got {batching.micro_batch_size}. Leave it "
            "null and take more ranks, a smaller `train.global_batch_size` or `train.activation_checkpointing`, or set "
            "`method.accumulate` to compare within micro-batches."
        )
