"""Floating point operations of a training step, counted where they are called.

A multiplication and an addition are two operations.  Only matrix products, convolutions and attention are counted, as
in every published figure.
"""

from cxrdist.log import get_logger
from cxrdist.train.config import Precision
from cxrdist.train.dryrun import imagine, profile_pass
from cxrdist.train.task import BuildTask, MakeBatch

log = get_logger(__name__)


def flops_per_image(build_task: BuildTask, example: MakeBatch, precision: Precision) -> float | None:
    """Return the operations of a forward and a backward pass per image, nothing computed and nothing allocated.

    None where they cannot be counted: a layer that looks at values, or an operator that knows no shape of its result.
    What checkpointing computes again is counted only if `build_task` turns it on: up to a forward pass more.
    """
    try:
        # Two images, as a task may mix pairs.
        return float(profile_pass(imagine(build_task), example, 2, precision=precision).flops)
    except (NotImplementedError, RuntimeError) as error:
        first = (str(error).splitlines() or [""])[0]
        log.debug("The operations of a step cannot be counted (%s: %s).", type(error).__name__, first)
        return None
