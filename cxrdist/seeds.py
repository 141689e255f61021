"""Random streams.  One stream per (seed, purpose, counters ...), so no draw depends on how many were made before it.

`numpy.random.SeedSequence` mixes its entropy words so that near seeds give unrelated streams
(O'Neill 2015, "Developing a seed_seq alternative").
"""

from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """What a stream is for.  Values are part of the reproducibility promise: append, never renumber."""

    ORDER = 1
    AUGMENT = 2
    MASK = 3
    INIT = 4
    STEP = 5
    BOOTSTRAP = 6
    SUBSET = 7
    PHANTOM = 8
    SPLIT = 9
    MIXUP = 10
    PERMUTATION = 11
    SEEDS = 12
    CROPS = 13
    PARTNER = 14
    SWEEP = 15
    POPULATION = 16


def stream(seed: int, purpose: Purpose, *counters: int) -> np.random.Generator:
    """Return the generator of one stream; `counters` are non-negative (epoch, sample, redraw ...)."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, int(purpose), *counters])))


def derive(seed: int, purpose: Purpose, *counters: int) -> int:
    """Return a 63-bit seed of one stream, for libraries that take an integer (`torch.manual_seed`)."""
    words = np.random.SeedSequence([seed, int(purpose), *counters]).generate_state(1, np.uint64)
    return int(words[0] >> np.uint64(1))
