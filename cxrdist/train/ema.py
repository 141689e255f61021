"""A running mean of the weights (Polyak & Juditsky 1992), beside the fp32 masters of each rank.

As each rank keeps the mean of the weights that it masters, it is right under every ZeRO stage and costs four bytes per
parameter, divided among the ranks from stage 1 on.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from cxrdist.train.fragments import WEIGHT, Fragment, Read, publish, trainable, weights

EMA = "ema"
"""The kind of the mean's fragments."""


class Ema:
    """``mean = decay mean + (1 - decay) weight`` after every step, from the weights it is made with on."""

    def __init__(self, engine: Any, decay: float) -> None:
        self.engine = engine
        self.decay = decay
        moving = trainable(engine)
        self._weights = [fragment for fragment in weights(engine) if fragment.name in moving]
        self._means = [fragment.tensors[WEIGHT].clone() for fragment in self._weights]

    @torch.no_grad()
    def update(self) -> None:
        """Move the mean towards the weights, after an optimizer step was made."""
        if self._means:
            torch._foreach_lerp_(self._means, self._masters(), 1 - self.decay)

    def fragments(self) -> list[Fragment]:
        """Return this rank's fragments of the mean, of kind `EMA`; none of what is frozen, which is its own mean."""
        return [
            Fragment(w.name, w.shape, w.start, {EMA: mean}, w.shared)
            for w, mean in zip(self._weights, self._means, strict=True)
        ]

    @torch.no_grad()
    def restore(self, read: Read) -> None:
        """Fill the mean from `read`, after `cxrdist.train.fragments.restore`."""
        for fragment, mean in zip(self._weights, self._means, strict=True):
            mean.copy_(read(fragment.name, EMA, fragment.start, fragment.start + mean.numel()))

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Let the engine compute with the mean during the block, and with the very same bits as before after it.

        Every rank must enter and leave together; no step may be made inside.  If the block raises, the masters come
        back, but the working weights keep the mean until the next step or `publish`: an error on one rank alone must
        not wait for the others.
        """
        self._exchange()
        try:
            publish(self.engine)
            yield
        except BaseException:
            self._exchange()
            raise
        self._exchange()
        publish(self.engine)

    @torch.no_grad()
    def _exchange(self) -> None:
        """Exchange weights and means in place, one fragment at a time, so that no second copy is needed."""
        for weight, mean in zip(self._masters(), self._means, strict=True):
            kept = weight.clone()
            weight.copy_(mean)
            mean.copy_(kept)

    def _masters(self) -> list[torch.Tensor]:
        return [fragment.tensors[WEIGHT] for fragment in self._weights]
