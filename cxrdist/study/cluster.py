"""A Ray cluster for the time of one command: the one at `address`, or a local one of our own."""

import contextlib
import logging
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from cxrdist.errors import UserError
from cxrdist.log import get_logger
from cxrdist.study.config import Resources

log = get_logger(__name__)

OBJECT_STORE_BYTES = 200 * 2**20
"""Shared memory of a local cluster; what travels through it is configurations, not images."""

CONNECT_TIMEOUT_S = 10.0
"""How long a cluster's machine may take to answer; Ray itself would try for a minute."""

SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Tune would move each trial into a folder of its own, where relative paths lead nowhere.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # Tune's newer output prints boxes and hints even when it is told to be silent.
    "RAY_AIR_NEW_OUTPUT": "0",
    # Tune's handler would end one wave on Ctrl-C and let us start the next.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
}


@contextmanager
def cluster(address: str | None) -> Iterator[None]:
    """Connect to the cluster at `address` for the block; without one, start a local cluster and end it afterwards.

    A cluster that happens to run on this machine is never taken: only what is named.  Token authentication stays on.

    Raises:
        UserError: If there is no cluster at `address`.
    """
    os.environ.update(SETTINGS)
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if address:
        _knock(address)
    import ray  # noqa: PLC0415 - half a second, and only commands that use a cluster need it

    handler = signal.getsignal(signal.SIGTERM)
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address:
            context = ray.init(address=address, **quiet)
        else:
            context = ray.init(address="local", include_dashboard=True, object_store_memory=OBJECT_STORE_BYTES, **quiet)
    except (OSError, ValueError, RuntimeError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        if address:
            raise UserError(f"`--address` must name a running Ray cluster, got {address!r}: {first}") from None
        raise UserError(f"Ray must start on this machine, got: {first} `cxrdist study run -v` says more.") from None
    finally:
        # Ray has put a handler of its own there, which ends the process at once.
        with contextlib.suppress(ValueError):  # not in the main thread
            signal.signal(signal.SIGTERM, handler)
    try:
        if context.dashboard_url:
            log.info("Ray dashboard: http://%s (its token: `ray get-auth-token`)", context.dashboard_url)
        yield
    finally:
        ray.shutdown()


def check_room(resources: Resources) -> None:
    """Make sure that one trial fits on the connected cluster: Ray would wait for ever, and say nothing.

    Raises:
        UserError: If it does not fit.
    """
    import ray  # noqa: PLC0415

    if resources.autoscaling:
        return
    places = 0
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for machine in machines:
        places += int(
            1e-6  # 0.3 / 0.1 is below 3
            + min(
                machine.get(kind, 0.0) / amount
                for kind, amount in (("CPU", resources.cpus_per_worker), ("GPU", resources.gpus_per_worker))
                if amount
            )
        )
    if places < resources.workers:
        has = ", ".join(f"{one.get('CPU', 0):g} CPUs and {one.get('GPU', 0):g} GPUs" for one in machines[:4])
        raise UserError(
            f"A trial must fit on the cluster, got {resources.workers} workers of {resources.cpus_per_worker:g} CPUs "
            f"and {resources.gpus_per_worker:g} GPUs for {len(machines)} machine{'s' * (len(machines) != 1)} ({has}). "
            "Lower `resources` in the study, or set `resources.autoscaling` if the cluster grows on demand."
        )


def _knock(address: str) -> None:
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if not colon or not port.isdigit():
        if address == "auto":
            return
        raise UserError(f"`--address` must be HOST:PORT or `auto`, got {address!r}. Example: --address 10.0.0.5:6379")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"`--address` must name a running Ray cluster, got {address!r}: {error}. "
            "`ray status` on its head node says whether it runs."
        ) from None
