"""A Ray cluster for the time of one command: the one at `address`, or a local one of our own."""

import contextlib
import logging
import os
import re
import signal
import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TypeVar

from cxrdist import __version__
from cxrdist.dispatch import Map
from cxrdist.dispatch.nodes import check_versions
from cxrdist.errors import UsageError, UserError
from cxrdist.log import get_logger

T = TypeVar("T")
R = TypeVar("R")
log = get_logger(__name__)

AHEAD_PER_CORE = 2
RETRIES = 3
"""How often an item is tried again whose machine or process died."""

OBJECT_STORE_BYTES = 200 * 2**20
"""Shared memory of a local cluster; what travels through it is configurations, not images."""

REFUSED = "InvalidAuthToken"
TOKEN = (
    "The cluster at {!r} must be given its token, got none or another. Set RAY_AUTH_MODE=token, and let "
    "RAY_AUTH_TOKEN_PATH name a file with the token of its head (`ray get-auth-token` prints it there)."
)

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
def cluster(address: str | None, *, name: str = "", check: bool = True) -> Iterator[None]:
    """Connect to the cluster at `address` for the block; without one, start a local cluster and end it afterwards.

    A cluster that happens to run on this machine is never taken: only what is named.  Token authentication stays on.
    The dashboard's list of jobs shows `name`, unless the job was submitted under another.  Unless not to `check`, the
    nodes of the cluster at `address` are asked for their versions before anything starts there; see `check_versions`.

    Raises:
        UserError: If there is no cluster at `address`, or if a node of it has another program.
    """
    os.environ.update(SETTINGS)
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if address:
        _knock(address)
    import ray  # noqa: PLC0415 - half a second, and only commands that use a cluster need it

    handler = signal.getsignal(signal.SIGTERM)
    told = ray.job_config.JobConfig(metadata={"job_name": name} if name else None)
    common = {"log_to_driver": False, "logging_level": logging.ERROR, "job_config": told}
    try:
        if address:
            with _silent():
                context = ray.init(address=address, **common)
        else:
            context = ray.init(
                address="local", include_dashboard=True, object_store_memory=OBJECT_STORE_BYTES, **common
            )
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        _refuse_other_versions(str(error))
        # A token that is missing or wrong is in the text of the cause alone; the error tells of a lost connection.
        if isinstance(error, ray.exceptions.AuthenticationError) or REFUSED in f"{error} {error.__cause__}":
            raise UserError(TOKEN.format(address)) from None
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        if address:
            raise UserError(
                f"`--address` must name a running Ray cluster that this machine is part of, got {address!r}: {first}. "
                "Start the command on one of its machines; http://HOST:8265 has the head run a training, study or pack."
            ) from None
        raise UserError(f"Ray must start on this machine, got: {first} The same command with `-v` says more.") from None
    finally:
        # Ray has put a handler of its own there, which ends the process at once.
        with contextlib.suppress(ValueError):  # not in the main thread
            signal.signal(signal.SIGTERM, handler)
    try:
        if context.dashboard_url:
            # A token that stands in the environment alone is in no file from which that command could read it.
            token = "" if os.environ.get("RAY_AUTH_TOKEN") else " (its token: `ray get-auth-token`)"
            log.info("Ray dashboard: http://%s%s", context.dashboard_url, token)
        # Ray prints pages of each machine that died; on standard output there shall be a command's result only.
        with (
            Path(os.devnull).open("w", encoding="utf-8") as nowhere,
            contextlib.redirect_stdout(sys.stderr if log.isEnabledFor(logging.DEBUG) else nowhere),
        ):
            if address and check:
                check_versions()
            yield
    finally:
        ray.shutdown()


def ray_map(folders: Sequence[Path] = (), *, ordered: bool = True) -> Map:
    """Return a map over the connected cluster, a core an item; see `cluster`.

    `function`, items and results must pickle, and every machine must have this program.  An item whose machine dies is
    done again elsewhere.

    Args:
        folders: What the work reads and writes by its path; must be the same folders on every machine.
        ordered: Results in the order of the items, or as they come.

    Raises:
        UserError: While iterating: an error of the work, or a machine without one of `folders`.
    """

    def spread(function: Callable[[T], R], items: Iterable[T], /) -> Iterator[R]:
        import ray  # noqa: PLC0415

        task = ray.remote(num_cpus=1, max_retries=RETRIES)(_work)
        shared = ray.put(function)  # once, with all that it carries, not with every item
        ahead = AHEAD_PER_CORE * max(int(ray.cluster_resources().get("CPU", 1)), 1)
        waiting = iter(items)
        pending = [task.remote(shared, item, tuple(folders)) for item in islice(waiting, ahead)]
        try:
            while pending:
                ready = pending[:1] if ordered else ray.wait(pending, num_returns=1)[0]
                pending = [each for each in pending if each not in ready]
                pending += [task.remote(shared, item, tuple(folders)) for item in islice(waiting, len(ready))]
                for result in ray.get(ready):
                    if isinstance(result, UserError):
                        raise result
                    yield result
        except ray.exceptions.RayError as error:
            raise UserError(
                f"Work on the cluster must come to an end, got {type(error).__name__}. Every machine must have cxrdist "
                f"{__version__} and memory for the work; the same command goes on where it stopped."
            ) from None
        finally:
            for each in pending:
                ray.cancel(each, force=True)

    return spread


def _work(function: Callable[[T], R], item: T, folders: tuple[Path, ...]) -> R | UserError:
    missing = [folder for folder in folders if not folder.is_dir()]
    if missing:
        return UserError(
            f"A folder must be the same on every machine of the cluster, got one without {str(missing[0])!r}. "
            f"Put it on a shared file system, or work on this machine with `--workers`."
        )
    try:
        return function(item)
    except UserError as error:  # Ray would wrap it into an error of its own
        return error


@contextmanager
def _silent() -> Iterator[None]:
    """Throw away what is written to standard error in the block, unless more is to be said.

    Ray's compiled code warns there each second while it tries, whatever level of logging it is told.
    """
    if log.isEnabledFor(logging.DEBUG):
        yield
        return
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _refuse_other_versions(message: str) -> None:
    """Raise `UserError` if `message` is Ray's, that the cluster was started with another Ray or Python."""
    if not message.startswith("Version mismatch"):
        return
    ray_there, ray_here = re.findall(r"Ray: (\S+)", message)[:2]
    python_there, python_here = re.findall(r"Python: (\S+)", message)[:2]
    raise UserError(
        f"The cluster must have this command's Ray and Python, got Ray {ray_there} and Python {python_there} there, "
        f"Ray {ray_here} and Python {python_here} here. Install what the cluster has, down to the last digit, or start "
        "its nodes with what is here."
    )


def _knock(address: str) -> None:
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit() or "://" in address:
        if address == "auto":
            return
        raise UsageError(f"`--address` must be HOST:PORT or `auto`, got {address!r}. Example: --address 10.0.0.5:6379")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"`--address` must name a running Ray cluster, got {address!r}: {error}. "
            "`ray status` on its head node says whether it runs."
        ) from None
