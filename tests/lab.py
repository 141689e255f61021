"""Hosts on one machine, each with its own network address, name, process table, home and temporary folder of Ray.

They are Linux namespaces without names: nothing of them outlives its processes, and those end with this process.  The
file system is shared, like a cluster's shared disk.  No route leads out.  A network of its own is there in each lab, so
that two of them may have the same addresses.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

START_S = 20
BOOT = """hostname $0; mount --bind $1 /etc/hosts; mkdir -p /tmp/ray; mount -t tmpfs none /tmp/ray
ip link set lo up; echo up; exec >/dev/null; while :; do sleep 3600 & wait $!; done"""
"""The first process of a host; it reaps what its children leave."""


class Host:
    """A host that can be powered off and cut off."""

    def __init__(self, lab: "Lab", number: int) -> None:
        self.lab, self.name, self.address = lab, f"host{number}", f"10.77.0.{number}"
        self.home = lab.folder / f"{self.name}.home"
        self.home.mkdir()
        spaces = ["unshare", "--net", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        self._outer = _until_up([*spaces, "--", "bash", "-c", BOOT, self.name, str(lab.hosts)])
        children = Path(f"/proc/{self._outer.pid}/task/{self._outer.pid}/children")
        self._first = children.read_text(encoding="ascii").split()[0]
        self._link = f"v{number}"
        lab.network("link", "add", self._link, "type", "veth", "peer", "name", "eth0", "netns", self._first)
        lab.network("link", "set", self._link, "master", "br0", "up")
        for command in (["addr", "add", f"{self.address}/24", "dev", "eth0"], ["link", "set", "eth0", "up"]):
            subprocess.run(["nsenter", "-t", self._first, "-n", "ip", *command], check=True)

    def start(self, *command: str | Path, **options: Any) -> subprocess.Popen[str]:
        """Start a command there, in this process's working folder; `options` are those of `Popen`."""
        environment = {**os.environ, "GLOO_SOCKET_IFNAME": "eth0", **options.pop("env", {}), "HOME": str(self.home)}
        enter = ["nsenter", "-t", self._first, "-m", "-u", "-n", "-p", "--", "env", "-C", str(Path.cwd())]
        return subprocess.Popen([*enter, *map(str, command)], text=True, env=environment, **options)

    def run(self, *command: str | Path, seconds: float = 120, **options: Any) -> str:
        """Run a command there; return what it prints."""
        process = self.start(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)
        out, err = process.communicate(timeout=seconds)
        assert process.returncode == 0, (command, out, err)
        return str(out)

    def kill(self) -> None:
        """Power off: every process there ends at once, and its address is gone."""
        self._outer.kill()
        self._outer.wait()

    def cut(self) -> None:
        """Pull the network cable: nobody is told."""
        self.lab.network("link", "set", self._link, "down")

    def mend(self) -> None:
        """Plug it in again."""
        self.lab.network("link", "set", self._link, "up")


class Lab:
    """Some hosts on one switch."""

    def __init__(self, folder: Path, count: int) -> None:
        """Start `count` hosts; `folder` is an empty one for their homes."""
        self.folder, self.hosts = folder, folder / "hosts"
        names = "".join(f"10.77.0.{number} host{number}\n" for number in range(1, count + 1))
        self.hosts.write_text(f"127.0.0.1 localhost\n{names}", encoding="ascii")
        self._started: list[Host] = []
        self._switch = _until_up(["unshare", "--net", "bash", "-c", "echo up; exec sleep infinity"])
        try:
            self.network("link", "add", "br0", "type", "bridge")
            self.network("link", "set", "br0", "up")
            for number in range(1, count + 1):
                self._started.append(Host(self, number))
        except BaseException:
            self.close()
            raise

    def __getitem__(self, number: int) -> Host:
        return self._started[number - 1]

    def network(self, *command: str) -> None:
        """Run ``ip`` on the switch."""
        subprocess.run(["nsenter", "-t", str(self._switch.pid), "-n", "ip", *command], check=True)

    def close(self) -> None:
        """End everything."""
        for host in self._started:
            host.kill()
        self._switch.kill()
        self._switch.wait()


@contextmanager
def lab(folder: Path, count: int) -> Iterator[Lab]:
    """Have `count` hosts for the block."""
    hosts = Lab(folder, count)
    try:
        yield hosts
    finally:
        hosts.close()


def why_not() -> str:
    """Return why no lab can be had here; empty if it can."""
    if os.name != "posix" or not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "hosts need root"
    for program in ("ip", "unshare", "nsenter", "setpriv", "mount", "hostname"):
        if shutil.which(program) is None:
            return f"hosts need the program `{program}`"
    add = "ip link add br0 type bridge && ip link add v1 type veth peer name eth0 && mount -t tmpfs none /mnt"
    tried = subprocess.run(
        ["unshare", "-nmpu", "--fork", "--mount-proc", "sh", "-c", add], capture_output=True, text=True, check=False
    )
    return f"hosts need namespaces: {tried.stderr.strip()}" if tried.returncode else ""


def _until_up(command: list[str]) -> "subprocess.Popen[bytes]":
    """Start a command that ends with this process, and wait for the line that it prints."""
    process = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *command], stdout=subprocess.PIPE)
    assert process.stdout is not None
    started = time.monotonic()
    line = process.stdout.readline()
    assert line == b"up\n", (command, line)
    assert time.monotonic() - started < START_S
    return process
