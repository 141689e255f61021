"""A map that goes to the connected cluster where that is worth it, and stays in this process where it is not."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from cxrdist.dispatch import Map, thread_map
from cxrdist.dispatch.cluster import ray_map
from cxrdist.log import get_logger

T = TypeVar("T")
R = TypeVar("R")
log = get_logger(__name__)

WORTH_S = 30.0
"""Work that this process does in less stays here: a cluster's processes take seconds to start, and to load code.

2,000 redraws of 42 columns over 2,000 patients: 0.5 s on one core, and 0.3 s on two, by threads; over a cluster of the
same two cores 14 s the first time, 0.4 s and more after that.
"""
PATIENCE_S = 60.0
"""How long a core of the cluster may take to come free."""


def adaptive_map(threads: int, *, worth_s: float = WORTH_S, patience_s: float = PATIENCE_S) -> Map:
    """Return an ordered map over the connected cluster, or over `threads` of this process where the work is short.

    How long an item takes is told by the first, which is done here.  Where no cluster is connected, or no core of it
    comes free because other work holds them all, everything is done here.  For work that releases the GIL, and pickles.

    Args:
        threads: At least 1.
        worth_s: Work that takes longer on so many threads goes to the cluster.
        patience_s: How long a core may take to come free.
    """

    def spread(function: Callable[[T], R], items: Iterable[T], /) -> Iterator[R]:
        here = thread_map(threads)
        listed = list(items)
        if _cores_of_cluster() <= threads or len(listed) < 2:
            yield from here(function, listed)
            return
        started = time.monotonic()
        yield function(listed[0])
        left_s = (time.monotonic() - started) * (len(listed) - 1) / threads
        there = left_s > worth_s and _core_comes_free(patience_s)
        yield from (ray_map() if there else here)(function, listed[1:])

    return spread


def _cores_of_cluster() -> float:
    """Return how many cores the connected cluster has; 0 without one."""
    ray = sys.modules.get("ray")  # not imported for the question
    return float(ray.cluster_resources().get("CPU", 0)) if ray is not None and ray.is_initialized() else 0.0


def _core_comes_free(patience_s: float) -> bool:
    import ray  # noqa: PLC0415

    answer = ray.remote(num_cpus=1)(_nothing).remote()
    if ray.wait([answer], timeout=patience_s)[0]:
        return True
    ray.cancel(answer, force=True)
    log.info("No core of the cluster came free in %.0f s, so this machine works alone.", patience_s)
    return False


def _nothing() -> None:
    pass
