"""What a run must remember: weights, their mean and the optimizer's state in pieces, and how far it is.

Each rank writes what lies on it, and any other number of ranks under any other ZeRO stage reads it back.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch

from cxrdist.train.consolidate import BUFFER, saved_buffers
from cxrdist.train.ema import Ema
from cxrdist.train.fragments import fragments, restore, scalars
from cxrdist.train.pieces import Piece, Reader
from cxrdist.world import World


@dataclass
class Progress:
    """How far a run is."""

    step: int = 0
    """Optimizer steps done."""
    validation_due: bool = False
    """Whether this step is to be validated and is not yet."""
    score: float | None = None
    """Validation macro AUROC of this very step, where it was validated and is defined."""
    best_step: int | None = None
    """Step of the best validation so far."""
    best_score: float | None = None
    """Its score."""
    since_best: int = 0
    """Validations since the best one."""
    stopped_early: bool = False
    """Whether too many validations in a row were no better."""
    skipped: int = 0
    """Steps up to this one that fp16 has left out in a row: `cxrdist.train.guard.Guard.skipped`."""

    def validated(self, score: float | None, *, patience: int | None) -> None:
        """Take note of a validation of this step; `patience` is how many in a row may be no better, None any number."""
        self.validation_due, self.score = False, score
        if score is not None and (self.best_score is None or score > self.best_score):
            self.best_step, self.best_score, self.since_best = self.step, score, 0
        else:
            self.since_best += 1
        self.stopped_early = patience is not None and self.since_best >= patience


def pieces_on_rank(engine: Any, ema: Ema | None, world: World) -> list[Piece]:
    """Return what this rank writes of the engine's state; what several ranks hold is written by one of them."""
    held = fragments(engine) + (ema.fragments() if ema is not None else [])
    # Turns are counted over what is shared, which is the same on all ranks; of the rest each may have another number.
    shared = [fragment for fragment in held if fragment.shared]
    own = [fragment for fragment in held if not fragment.shared] + shared[world.rank :: world.world_size]
    pieces = [
        Piece(fragment.name, kind, fragment.shape, fragment.start, tensor)
        for fragment in own
        for kind, tensor in fragment.tensors.items()
    ]
    if world.is_main:
        pieces += [
            Piece(name, BUFFER, tuple(buffer.shape), 0, buffer.flatten())
            for name, buffer in saved_buffers(engine.module).items()
        ]
    return pieces


def facts_of(engine: Any, state: Progress) -> dict[str, Any]:
    """Return the numbers that go with the pieces, ready for JSON."""
    return {"progress": asdict(state), "scalars": scalars(engine)}


def restore_state(engine: Any, ema: Ema | None, reader: Reader) -> Progress:
    """Fill the engine and the mean from a checkpoint and return its progress; all ranks must call it together."""
    restore(engine, reader.read, reader.facts["scalars"])
    if ema is not None:
        ema.restore(reader.read)
    with torch.no_grad():
        for name, buffer in saved_buffers(engine.module).items():
            buffer.copy_(reader.full(name, BUFFER))
    return Progress(**reader.facts["progress"])
