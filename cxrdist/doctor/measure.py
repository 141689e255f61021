"""Raw facts of a machine.  Sent to the nodes of a cluster by value, so it uses the standard library alone.

Where the system does not tell, a fact is None.
"""

import ctypes
import getpass
import os
import re
import resource
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

SHARED_MEMORY = Path("/dev/shm")
DEVICES = Path("/sys/bus/pci/devices")
GROUPS, OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
GPU_QUERY = "index,name,memory.total,memory.used,ecc.errors.uncorrected.volatile.total,driver_version"
GPU_TIMEOUT_S = 20.0
SIGHT_S, SIGHT_EVERY_S = 6.0, 0.3
"""How long a file of another machine may take to be seen; network file systems remember what a folder had."""
LONGEST = 300
"""Characters of a library's own message."""
WARNING = "[W"
"""How lines of torch's compiled code begin that tell of no error."""


def now() -> float:
    """Return seconds since 1970 by this machine's clock."""
    return time.time()


def describe(folders: list[str]) -> dict[str, Any]:
    """Return what a node has: cores, memory, shared memory, limits, GPUs, and free bytes of `folders`."""
    return {
        "cores": cores(),
        "memory": memory(),
        "shared_memory": space(SHARED_MEMORY)[0],
        "temporary": space(Path(tempfile.gettempdir()))[1],
        "open_files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "nvidia_smi": gpus(),
        "free": {folder: space(Path(folder))[1] for folder in folders if Path(folder).is_dir()},
    }


def cores() -> float | None:
    """Return how many cores this process may use: by its affinity, and by the quota of its control group."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quota = cpu_quota()
    if allowed is None or quota is None:
        return quota or allowed
    return min(float(allowed), quota)


def cpu_quota() -> float | None:
    """Return the cores that the control group allows, version 2 or 1; None: no limit."""
    limits = []
    for folder in _groups("", "unified"):
        quota, _, period = _read(folder / "cpu.max").partition(" ")
        if quota.isdecimal() and period.isdecimal():
            limits.append(int(quota) / int(period))
    for folder in _groups("cpu", "cpu"):
        quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
        if quota.isdecimal() and period.isdecimal() and int(period):
            limits.append(int(quota) / int(period))
    return min(limits, default=None)


def memory() -> float | None:
    """Return bytes of memory that this process may use: the machine's, or the limit of its control group."""
    total = meminfo("MemTotal")
    limit = memory_limit()
    return limit if total is None or (limit is not None and limit < total) else total


def memory_limit() -> float | None:
    """Return the bytes that the control group allows, version 2 or 1; None: no limit."""
    texts = [_read(folder / "memory.max") for folder in _groups("", "unified")]
    texts += [_read(folder / "memory.limit_in_bytes") for folder in _groups("memory", "memory")]
    # Version 1 writes "no limit" as nearly 2^63.
    return min((float(text) for text in texts if text.isdecimal() and int(text) < 2**60), default=None)


def process_limit() -> float | None:
    """Return how many processes and threads the control group allows, version 2 or 1; None: no limit."""
    texts = [_read(folder / "pids.max") for folder in (*_groups("", "unified"), *_groups("pids", "pids"))]
    return min((float(text) for text in texts if text.isdecimal()), default=None)


def clock_is_set() -> bool | None:
    """Return whether the kernel says that something keeps its clock right; None: it does not tell."""
    unset, room = 5, 256  # TIME_ERROR of adjtimex(2), and more bytes than its struct has
    try:
        told = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(room))  # all zero: only asks
    except (OSError, AttributeError):
        return None
    return None if told < 0 else told != unset


def meminfo(name: str) -> float | None:
    """Return a line of /proc/meminfo in bytes."""
    for line in _read(Path("/proc/meminfo")).splitlines():
        if line.startswith(f"{name}:"):
            return 1024.0 * int(line.split()[1])
    return None


def space(folder: Path) -> tuple[float | None, float | None]:
    """Return all and free bytes of the file system of `folder`, or of the nearest folder above that exists."""
    for place in (folder, *folder.absolute().parents):
        try:
            there = os.statvfs(place)
        except OSError:
            continue
        return float(there.f_blocks * there.f_frsize), float(there.f_bavail * there.f_frsize)
    return None, None


def gpus() -> list[dict[str, str]] | None:
    """Return what nvidia-smi tells of each GPU, whatever CUDA_VISIBLE_DEVICES says; None: it is not there or fails."""
    code, told = _nvidia_smi()
    if code != 0:
        return None
    names = GPU_QUERY.split(",")
    rows = [[cell.strip() for cell in line.split(",")] for line in told.splitlines() if line.strip()]
    return [dict(zip(names, row, strict=True)) for row in rows if len(row) == len(names)]


def gpu_fault() -> str | None:
    """Return why nvidia-smi fails, in its words; empty if it does not; None: it is not here."""
    code, told = _nvidia_smi()
    if code is None:
        return None
    return "" if code == 0 else tidy(" ".join(told.split())) or f"exit code {code}"


def gpus_on_bus() -> int:
    """Return how many GPUs of NVIDIA's the machine has, whether or not a driver is there and a container sees them."""
    found = 0
    for device in DEVICES.glob("*"):
        maker, kind = _read(device / "vendor"), _read(device / "class")
        found += maker == "0x10de" and kind.startswith(("0x0300", "0x0302"))  # VGA or 3D controller
    return found


def free_port(host: str) -> int:
    """Return a port of this machine that is free at this moment."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def write_marks(folders: list[str], name: str) -> dict[str, str]:
    """Write a file of this name into each folder, and return what is wrong with it: nothing where it went well."""
    faults = {}
    for folder in folders:
        try:
            if not Path(folder).is_dir():
                faults[folder] = "no such folder"
                continue
            with (Path(folder) / name).open("x", encoding="utf-8") as file:
                file.write(name)
                file.flush()
                os.fsync(file.fileno())
            faults[folder] = ""
        except OSError as error:
            faults[folder] = error.strerror or type(error).__name__
    return faults


def read_marks(names: dict[str, list[str]]) -> dict[str, list[str]]:
    """Return which of the files of each folder can be read here; waits a moment for what is not seen at once."""
    until = time.monotonic() + SIGHT_S
    while True:
        seen = {folder: [name for name in files if _has(Path(folder) / name)] for folder, files in names.items()}
        if all(len(seen[folder]) == len(files) for folder, files in names.items()) or time.monotonic() > until:
            return seen
        time.sleep(SIGHT_EVERY_S)


def remove_marks(folders: list[str], names: list[str]) -> None:
    """Remove these files from each folder, as far as they are there."""
    for folder in folders:
        for name in names:
            try:
                (Path(folder) / name).unlink()
            except OSError:
                continue


def new_mark() -> str:
    """Return a name that no file has."""
    return f".cxrdist-doctor-{secrets.token_hex(8)}"


def run_script(source: str, arguments: list[str], limit_s: float, variables: dict[str, str]) -> dict[str, Any]:
    """Run Python code in a process of its own, with the libraries of this one; return its output and exit code.

    Of its errors only the last line, tidied here, where what it names is known.  The code is -1 where it took longer.
    A worker that Ray gave no GPU hides them from its children: undone here.
    """
    environment = {**os.environ, **variables, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    if not environment.get("CUDA_VISIBLE_DEVICES"):
        environment.pop("CUDA_VISIBLE_DEVICES", None)
    command = [sys.executable, "-c", source, *arguments]
    try:
        ended = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=limit_s, env=environment, check=False
        )
    except subprocess.TimeoutExpired as error:
        out = error.stdout or b""
        return {"code": -1, "out": out if isinstance(out, str) else out.decode(errors="replace"), "err": ""}
    lines = [line.strip() for line in ended.stderr.splitlines()]
    why = [tidy(line) for line in lines if line and not line.startswith(WARNING)][-1:]
    return {"code": ended.returncode, "out": ended.stdout, "err": "".join(why)}


def tidy(text: str) -> str:
    """Return a library's message without this machine's name, its user, and where things lie: it gets published."""
    for place, name in _private():
        text = text.replace(place, name)
    for word in _names():
        text = re.sub(rf"\b{re.escape(word)}\b", "...", text)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def _nvidia_smi() -> tuple[int | None, str]:
    """Return the exit code of the query, and what it printed; None: it is not here."""
    if shutil.which("nvidia-smi") is None:
        return None, ""
    command = ["nvidia-smi", f"--query-gpu={GPU_QUERY}", "--format=csv,noheader,nounits"]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=GPU_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return 1, f"no answer within {GPU_TIMEOUT_S:g} s"
    except OSError as error:
        return 1, error.strerror or type(error).__name__
    return ended.returncode, ended.stdout if ended.returncode == 0 else ended.stdout + ended.stderr


def _has(path: Path) -> bool:
    try:
        return path.read_text(encoding="utf-8") == path.name
    except (OSError, ValueError):
        return False


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return ""


def _groups(controller: str, mount: str) -> list[Path]:
    """Return the folders of this process's control group and those above it, whose limits hold as well.

    In a container the group's own path leads nowhere, and the mount itself is the group.
    """
    roots = [GROUPS / mount, GROUPS if not controller else GROUPS / f"{mount},cpuacct"]
    own = ""
    for line in _read(OWN_GROUPS).splitlines():
        _, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if controller in names.split(","):  # version 2 names none, so its line has ""
            own = path.strip("/")
    found = []
    for root in roots:
        place = root / own
        while True:
            found.append(place)
            if place == root:
                break
            place = place.parent
    return found


def _private() -> Iterator[tuple[str, str]]:
    for place, name in ((sys.prefix, "PREFIX"), (os.path.expanduser("~"), "~")):  # noqa: PTH111 - `home` may raise
        if len(place) > 1:
            yield place, name
    with suppress(OSError):
        here = str(Path.cwd())
        if len(here) > 1:
            yield here, "."
    for place in sys.path:
        if len(place) > 1:
            yield place, "LIBRARIES"


def _names() -> list[str]:
    names = []
    for ask in (socket.gethostname, getpass.getuser):
        with suppress(Exception):
            names.append(ask())
    return [name for name in names if len(name) > 3]  # `root` and shorter tell nothing, and are parts of words
