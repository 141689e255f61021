"""A Ray cluster of several machines on this one, in a process of its own: `ray.cluster_utils.Cluster` changes its own.

Run as a program it is that process: it reads a command a line and answers each with a line of JSON.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

QUICK = {
    # A dead machine is told after three seconds, by default after fourteen; one that is only slow is none.
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "10000",
    "RAY_health_check_failure_threshold": "3",
}
STORE_BYTES = 80 * 2**20


class Machines:
    """Machines of two CPUs each, which are none: as many as the test says."""

    def __init__(self, root: Path) -> None:
        """Start the first; tokens, keys and everything of Ray's stay in `root`, whose path must be short."""
        self.root = root
        token = root / "token"
        token.write_text("0123456789abcdef" * 4, encoding="ascii")
        token.chmod(0o600)
        self.environment = QUICK | {
            "HOME": str(root / "home"),
            "XDG_DATA_HOME": str(root / "home"),
            "RAY_TMPDIR": str(root),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
            "OMP_NUM_THREADS": "1",
            "RAY_worker_niceness": "0",  # on a busy machine they would never get a turn
        }
        (root / "home").mkdir()
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | self.environment,
        )
        self.address = str(self._answer())
        self.others: list[int] = []
        """All machines but the first, each by the process that is Ray there."""

    def grow(self, count: int) -> None:
        """Add machines until there are so many."""
        while len(self.others) < count - 1:
            self.others.append(self._ask("add"))

    def remove(self, machine: int) -> None:
        """End all processes of a machine with kill -9."""
        self.others.remove(machine)
        self._ask("remove", str(machine))

    def workers(self) -> dict[int, int]:
        """Return the processes that work on a job's rank at this moment, each with its machine (see `others`)."""
        found = {}
        for process in self.processes():
            with contextlib.suppress(psutil.Error, IndexError):
                title, _, rank = process.cmdline()[0].rpartition(":")
                if title.startswith("ray::") and rank.isdigit():
                    found[process.pid] = process.ppid()
        return found

    def processes(self) -> list[psutil.Process]:
        """Return all processes that have the home of these machines."""
        mine = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("HOME") == str(self.root / "home") and process.status() != "zombie":
                    mine.append(process)
        return mine

    def held(self) -> dict[str, Any]:
        """Return what somebody still holds: resources, placement groups and actors."""
        return dict(self._ask("held"))

    def close(self) -> None:
        """End all of them."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(60)
        finally:
            self._process.kill()
            for process in self.processes():
                with contextlib.suppress(psutil.Error):
                    process.kill()

    def _ask(self, *command: str) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(" ".join(command) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"the cluster ended with {self._process.wait()}"
        return json.loads(line)


@contextlib.contextmanager
def machines(count: int) -> Iterator[Machines]:
    """Have a cluster of `count` machines for the block."""
    root = Path(tempfile.mkdtemp(prefix="cxr"))  # paths of sockets are short
    try:
        cluster = Machines(root)
        try:
            cluster.grow(count)
            yield cluster
        finally:
            cluster.close()
    finally:
        shutil.rmtree(root, ignore_errors=True)


def serve() -> None:
    """Be the cluster."""
    # The tests that ask for machines need nothing of Ray themselves.
    import ray  # noqa: PLC0415
    from ray._private.state import actors  # noqa: PLC0415
    from ray.cluster_utils import Cluster  # noqa: PLC0415
    from ray.util import placement_group_table  # noqa: PLC0415

    machine = {"num_cpus": 2, "object_store_memory": STORE_BYTES, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=machine)
    ray.init(cluster.address, log_to_driver=False, logging_level="ERROR")
    nodes = {}

    def held() -> dict[str, Any]:
        total, free = ray.cluster_resources(), ray.available_resources()
        return {
            "cpus": total["CPU"] - free.get("CPU", 0),
            "places": sum(group["state"] != "REMOVED" for group in placement_group_table().values()),
            "actors": sum(actor["State"] != "DEAD" for actor in actors().values()),
        }

    sys.stdout = sys.stderr  # Ray prints of machines that died
    _tell(cluster.address)
    for line in sys.stdin:
        command, *words = line.split()
        if command == "add":
            node = cluster.add_node(**machine)
            pid = node.all_processes["raylet"][0].process.pid
            nodes[pid] = node
            _tell(pid)
        elif command == "remove":
            cluster.remove_node(nodes.pop(int(words[0])), allow_graceful=False)
            _tell(True)
        elif command == "held":
            end = time.monotonic() + 20  # Ray needs a moment
            while any(held().values()) and time.monotonic() < end:
                time.sleep(0.2)
            _tell(held())
    ray.shutdown()
    cluster.shutdown()


def _tell(answer: object) -> None:
    sys.__stdout__.write(json.dumps(answer) + "\n")
    sys.__stdout__.flush()


if __name__ == "__main__":
    serve()
