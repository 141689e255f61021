"""The order of samples as a pure function.  Shapes: N samples, B global batch, m micro-batch, W ranks.

Training reads one endless stream: the N samples of epoch 0 in a random order, then those of epoch 1, and so on.
Position p of the stream is sample ``order(epoch = p // N)[p % N]``, and the global batch of step t is the positions
``[t B, (t + 1) B)``.  So every epoch holds every sample exactly once, a batch may straddle two epochs, no batch is
short, and nothing depends on ranks, workers or restarts: the state of the whole loader is the step number.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from cxrdist.errors import UsageError
from cxrdist.seeds import Purpose, stream
from cxrdist.world import World


@lru_cache(maxsize=2)
def epoch_order(n_samples: int, seed: int, epoch: int) -> np.ndarray:
    """Return the order of one epoch: a permutation of ``range(n_samples)``, int64 of shape (N,), read-only."""
    order = stream(seed, Purpose.ORDER, epoch).permutation(n_samples)
    order.flags.writeable = False
    return order


def sample_at(position: int, n_samples: int, seed: int) -> tuple[int, int]:
    """Return (epoch, sample) of one position of the stream."""
    epoch, within = divmod(position, n_samples)
    return epoch, int(epoch_order(n_samples, seed, epoch)[within])


@dataclass(frozen=True)
class Batching:
    """How a global batch is divided: ``global_batch_size = micro_batch_size * accumulation * world_size``."""

    global_batch_size: int
    micro_batch_size: int
    accumulation: int

    @classmethod
    def plan(cls, *, global_batch_size: int, micro_batch_size: int | None, world_size: int) -> "Batching":
        """Return the division for `world_size` ranks; without `micro_batch_size` there is no accumulation.

        Raises:
            UsageError: If the global batch cannot be divided so.
        """
        per_rank, rest = divmod(global_batch_size, world_size)
        if rest or not per_rank:
            raise UsageError(
                f"`global_batch_size` must be a multiple of the number of ranks, got {global_batch_size} "
                f"for {world_size} ranks. Nearest above: --set train.global_batch_size={(per_rank + 1) * world_size}"
            )
        micro = micro_batch_size or per_rank
        if per_rank % micro:
            raise UsageError(
                f"`micro_batch_size` must divide the {per_rank} images of each rank and step "
                f"(`global_batch_size`={global_batch_size} / {world_size} ranks), got {micro}."
            )
        return cls(global_batch_size, micro, per_rank // micro)

    def positions(self, step: int, micro_step: int, world: World) -> range:
        """Return the stream positions of one rank's micro-batch; all ranks and micro-steps together tile the batch."""
        block = micro_step * world.world_size + world.rank
        start = step * self.global_batch_size + block * self.micro_batch_size
        return range(start, start + self.micro_batch_size)


def iter_positions(batching: Batching, world: World, *, start_step: int, stop_step: int) -> Iterator[list[int]]:
    """Yield one rank's micro-batches of positions from `start_step` (included) to `stop_step` (excluded)."""
    for step in range(start_step, stop_step):
        for micro_step in range(batching.accumulation):
            yield list(batching.positions(step, micro_step, world))


def rank_share(n_samples: int, world: World) -> np.ndarray:
    """Return the samples that one rank evaluates; over all ranks each sample once, none padded."""
    return np.arange(world.rank, n_samples, world.world_size)
