"""A loss or a gradient that is not finite stops the run before the weights take it in, and its batch is kept.

The engine leaves the weights as they are where the norm of the gradient is not finite, and every rank sees the same
norm: so a good step costs no message between ranks.  `carried` makes a bad loss of one rank a bad norm on all.
"""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save

from cxrdist.data.loader import Batch
from cxrdist.errors import UserError
from cxrdist.log import get_logger
from cxrdist.train.config import Precision
from cxrdist.train.engine import gather
from cxrdist.train.run_folder import BAD_BATCH, RunFolder, write_json
from cxrdist.world import World

log = get_logger(__name__)

FACTS = "batch.json"
NAMED = 8
"""Samples and ranks named in a sentence."""
MOST_SKIPPED = 32
"""Steps that fp16 may leave out in a row: halving the loss scale comes from 2^24, where it rarely is, to 1 in 24."""


class NotFiniteError(UserError):
    """A step was not made because its loss or gradient is not finite; the weights are those of the step before."""


@dataclass(frozen=True)
class RankFacts:
    """What one rank had in the step."""

    rank: int
    losses: list[float]
    """Of each micro-batch."""
    keys: list[list[str]]
    """Keys of the samples, by micro-batch."""

    def bad(self) -> list[int]:
        """Return the micro-batches whose loss is not finite."""
        return [number for number, loss in enumerate(self.losses) if not math.isfinite(loss)]

    def suspects(self) -> list[str]:
        """Return the keys of the micro-batches whose loss is not finite, or of all where every loss is."""
        return [key for number in self.bad() or range(len(self.keys)) for key in self.keys[number]]


def carried(loss: torch.Tensor) -> torch.Tensor:
    """Return `loss`, with a gradient that is not finite wherever `loss` itself is not; waits for nothing.

    A loss can be infinite or NaN while its gradient is finite (a masked term, a clamp): then no other rank would know.
    """
    return loss * torch.where(torch.isfinite(loss.detach()), 1.0, math.nan).to(loss.dtype)


class Guard:
    """Looks at each step's losses and overflow, on every rank."""

    def __init__(
        self,
        folder: RunFolder,
        world: World,
        *,
        precision: Precision,
        seed: int,
        keys: Callable[[np.ndarray], Sequence[str]],
    ) -> None:
        """Guard the run in `folder`; `keys` gives the keys of samples by their numbers (B,), `seed` is the run's."""
        self.folder, self.world, self.precision, self.seed, self.keys = folder.path, world, precision, seed, keys
        self.skipped = 0
        """Steps left out in a row until now; a resumed run puts in what `Progress` remembers."""

    def check(
        self, step: int, losses: Sequence[float], *, norm: float | None, overflowed: bool, batches: Sequence[Batch]
    ) -> None:
        """Pass a good step; keep the batches of a bad one and stop.  Every rank calls it together, after the step.

        With fp16 a gradient may overflow: the loss scale is lowered and the step left out.  That stops the run only
        if a loss itself is not finite, or if it happens `MOST_SKIPPED` times in a row.

        Args:
            step: Number of the optimizer step, from 1.
            losses: Of this rank's micro-batches; the backward pass must have begun with `carried`.
            norm: Of the gradient, where known.
            overflowed: Whether the engine left the step out; the same on every rank.
            batches: This rank's micro-batches.

        Raises:
            NotFiniteError: On every rank, with the same sentence.
        """
        if not overflowed:
            assert all(map(math.isfinite, losses)), "a loss that is not finite came without its gradient"
            self.skipped = 0
            return
        self.skipped += 1
        keys = [list(self.keys(batch["sample"].cpu().numpy())) for batch in batches]
        ranks: list[RankFacts] = gather(RankFacts(self.world.rank, list(losses), keys))
        if self.precision == "fp16" and self.skipped < MOST_SKIPPED and not any(facts.bad() for facts in ranks):
            return
        where = self._keep(step, norm, ranks, batches)
        raise NotFiniteError(self._sentence(step, norm, ranks) + " " + where + _way_out(self.precision))

    def _sentence(self, step: int, norm: float | None, ranks: list[RankFacts]) -> str:
        bad = [facts for facts in ranks if facts.bad()]
        if bad:
            value = bad[0].losses[bad[0].bad()[0]]
            who = ("ranks " if len(bad) > 1 else "rank ") + shortened([str(facts.rank) for facts in bad])
            what = f"The loss must be finite, got {value} at step {step} on {who}"
        else:
            times = f" and in the {self.skipped - 1} steps before it" if self.skipped > 1 else ""
            what = f"The gradient must be finite, got a norm of {norm} at step {step}{times}, with finite losses"
        keys = [key for facts in bad or ranks for key in facts.suspects()]
        return f"{what}; stopped before the optimizer step [samples {shortened(keys)}]."

    def _keep(self, step: int, norm: float | None, ranks: list[RankFacts], batches: Sequence[Batch]) -> str:
        """Write the batches of all ranks; return a sentence on where they are, or why they are not."""
        folder = self.folder / BAD_BATCH
        problems = [problem for problem in gather(_write(folder, self.world.rank, batches)) if problem]
        if self.world.is_main and not problems:
            facts = {
                "step": step,
                "world_size": self.world.world_size,
                "precision": self.precision,
                "seed": self.seed,
                "norm": None if norm is None else repr(norm),
                # As text: JSON has no word for infinity or NaN.
                "ranks": [
                    {"rank": one.rank, "losses": [repr(loss) for loss in one.losses], "keys": one.keys} for one in ranks
                ],
            }
            try:
                write_json(folder / FACTS, facts)
                (folder / FACTS).chmod(0o600)
            except (UserError, OSError) as error:
                problems = [str(error)]
        (problems,) = gather(problems)[:1]
        if problems:
            return f"Its batch could not be kept ({problems[0]})."
        return f"Its batch is in {BAD_BATCH}: see where it began with --replay."


def _write(folder: Path, rank: int, batches: Sequence[Batch]) -> str | None:
    """Write one rank's micro-batches, for its user's eyes only, as they are images; return what went wrong."""
    tensors = {
        f"{number}/{name}": value.detach().cpu().contiguous()
        for number, batch in enumerate(batches)
        for name, value in batch.items()
    }
    path = rank_file(folder, rank)
    hidden = path.with_name(f".{path.name}")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)  # it may be there from before
        hidden.unlink(missing_ok=True)
        if rank == 0:
            (folder / FACTS).unlink(missing_ok=True)  # of an earlier stop; written last, it says what is there
        with open(hidden, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(save(tensors))
        hidden.replace(path)
    except OSError as error:
        return str(error.strerror)
    return None


def rank_file(folder: Path, rank: int) -> Path:
    """Return the file of one rank's micro-batches, tensors named ``<micro-batch>/<name>``."""
    return folder / f"rank-{rank:05d}.safetensors"


def shortened(names: Sequence[str]) -> str:
    """Return the first `NAMED` of `names`, and how many more there are."""
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")


def _way_out(precision: Precision) -> str:
    return " Lower `optim.lr`" + ("." if precision == "fp32" else " or set `train.precision` to fp32.")
