"""A Ray cluster for the time of one command: the one at `address`, or a local one of our own."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from cxrdist.errors import UserError
from cxrdist.log import get_logger

log = get_logger(__name__)

OBJECT_STORE_BYTES = 200 * 2**20
"""Shared memory of a local cluster; what travels through it is configurations, not images."""


@contextmanager
def cluster(address: str | None) -> Iterator[None]:
    """Connect to the cluster at `address` for the block; without one, start a local cluster and end it afterwards.

    A cluster that happens to run on this machine is never taken: only what is named.  Token authentication stays on.

    Raises:
        UserError: If there is no cluster at `address`.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Tune would move each trial into a folder of its own, where relative paths lead nowhere.
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray  # noqa: PLC0415 - half a second, and only commands that use a cluster need it

    if address:
        try:
            context = ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError, RuntimeError) as error:
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"`--address` must name a running Ray cluster, got {address!r}: {first}") from None
    else:
        context = ray.init(
            address="local",
            include_dashboard=True,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=OBJECT_STORE_BYTES,
        )
    if context.dashboard_url:
        log.info("Ray dashboard: http://%s (its token: `ray get-auth-token`)", context.dashboard_url)
    try:
        yield
    finally:
        ray.shutdown()
