"""What this machine gives to any process: cores, memory, disk, limits, clock.  Needs only the standard library."""

import locale
import os
import platform
import resource
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from cxrdist.doctor import measure
from cxrdist.doctor.finding import Finding, Probe, State, size

GIB = 2**30
RELEASED = datetime(2026, 11, 1, tzinfo=UTC)
"""A clock before this is wrong."""
PYTHON = (3, 11)

LEAST_DISK, SOME_DISK = 1 * GIB, 20 * GIB
LEAST_SHARED, SOME_SHARED = 256 * 2**20, 2 * GIB
"""Containers get 64 MiB where nobody asks for more; reading processes hand their batches over there."""
LEAST_MEMORY = 2 * GIB
FEW_FILES, SOME_FILES = 1024, 4096
FEW_PROCESSES = 4096


def python() -> Iterator[Finding]:
    """Version and build."""
    version = platform.python_version()
    bits = 64 if sys.maxsize > 2**32 else 32
    if sys.version_info < PYTHON or bits == 32:
        wanted = ".".join(map(str, PYTHON))
        yield Finding("python", "problem", f"{version}, {bits} bits", f"Install a 64-bit Python {wanted} or later.")
        return
    yield Finding(
        "python", "ok", f"{platform.python_implementation()} {version}, {platform.system()} {platform.machine()}"
    )


def program() -> Iterator[Finding]:
    """Version and code of this program."""
    from cxrdist.dispatch.versions import CODE, PROGRAM, versions_here  # noqa: PLC0415 - may be what is broken

    told = versions_here()
    yield Finding("cxrdist", "ok", f"{told[PROGRAM]}, code {told[CODE]}")


def cores() -> Iterator[Finding]:
    """Cores that this process may use."""
    there, allowed = os.cpu_count(), measure.cores()
    if allowed is None:
        yield Finding("cores", "note", "the system does not tell", "Set `workers` and OMP_NUM_THREADS by hand.")
        return
    quota = measure.cpu_quota()
    text = f"{allowed:g} of {there}"
    if quota is not None and quota < (there or 0):
        remedy = f"Libraries start {there} threads for {allowed:g} cores: set OMP_NUM_THREADS={max(1, int(allowed))}."
        yield Finding("cores", "note", f"{text}, by a quota of the container", remedy)
        return
    yield Finding("cores", "ok", text)


def memory() -> Iterator[Finding]:
    """Memory that this process may use."""
    total, available = measure.memory(), measure.meminfo("MemAvailable")
    if total is None:
        yield Finding("memory", "note", "the system does not tell")
        return
    by_group = measure.memory_limit() == total
    text = size(total) + (", by a limit of the container" if by_group else "")
    if available is not None and not by_group:
        text += f", {size(available)} of it free"
    if min(total, total if available is None else available) < LEAST_MEMORY:
        yield Finding("memory", "problem", text, "End other programs, or raise the container's limit (`--memory`).")
        return
    yield Finding("memory", "ok", text)


def disk() -> Iterator[Finding]:
    """Free space where this program writes; what it tells are the roles of folders and not where they are."""
    for name, folder in _folders():
        _, free = measure.space(folder)
        label = f"disk: {name}"
        fault = _unwritable(folder)
        if fault:
            remedy = "Work in a folder that may be written to."
            if name != "current folder":
                remedy = f"Let {_variable(name)} name a folder that may be written to."
            yield Finding(label, "problem", f"not writable: {fault}", remedy)
        elif free is None:
            yield Finding(label, "note", "the system does not tell how much is free")
        elif free < SOME_DISK:
            remedy = "Make room: checkpoints, shards and reports of one study take tens of GiB."
            yield Finding(label, "problem" if free < LEAST_DISK else "note", f"{size(free)} free", remedy)
        else:
            yield Finding(label, "ok", f"{size(free)} free")


def shared_memory() -> Iterator[Finding]:
    """Size of /dev/shm."""
    total, free = measure.space(measure.SHARED_MEMORY)
    if not measure.SHARED_MEMORY.is_dir() or total is None or free is None:
        remedy = "Set `input.workers=0`: reading processes hand their batches over there."
        yield Finding("shared memory", "problem", "no /dev/shm", remedy)
        return
    text = f"{size(total)}, {size(free)} of it free, in /dev/shm"
    remedy = "Start the container with `--shm-size=8g`; in Kubernetes mount an `emptyDir` with `medium: Memory` there."
    if total >= SOME_SHARED and free < LEAST_SHARED:
        remedy = "Remove what programs that were killed have left in /dev/shm."
    if min(total, free) < LEAST_SHARED:
        yield Finding("shared memory", "problem", text, remedy)
    elif min(total, free) < SOME_SHARED:
        yield Finding("shared memory", "note", text, remedy)
    else:
        yield Finding("shared memory", "ok", text)


def limits() -> Iterator[Finding]:
    """Open files, locked memory, processes."""
    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    remedy = f"`ulimit -n {_limit(most)}` before the command; for a service or container its own `nofile` limit."
    text = f"{_limit(files)} (may be raised to {_limit(most)})"
    state = _judge(files, FEW_FILES, SOME_FILES)
    yield Finding("limit of open files", state, text, "" if state == "ok" else remedy)
    locked, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    fast = Path("/sys/class/infiniband").is_dir()
    text = "none" if locked == resource.RLIM_INFINITY else size(locked)
    if fast and locked != resource.RLIM_INFINITY:
        remedy = "InfiniBand needs memory that stays: `ulimit -l unlimited`, for containers `--ulimit memlock=-1`."
        yield Finding("limit of locked memory", "problem", text, remedy)
    else:
        yield Finding("limit of locked memory", "ok", text if fast else f"{text}; no InfiniBand here that needs more")
    processes, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    few = processes != resource.RLIM_INFINITY and processes < FEW_PROCESSES
    remedy = "`ulimit -u`, or the container's limit of processes: each thread counts, and Ray starts hundreds."
    yield Finding("limit of processes", "note" if few else "ok", _limit(processes), remedy if few else "")


def clock() -> Iterator[Finding]:
    """Whether the clocks can be right."""
    now = datetime.now(UTC)
    before, start = time.monotonic(), time.time()
    time.sleep(0.05)
    gone, passed = time.monotonic() - before, time.time() - start
    told = f"{now:%Y-%m-%d %H:%M} UTC"
    if now < RELEASED:
        remedy = "Set the clock (`timedatectl set-ntp true`): checks of certificates and of what is newest fail."
        yield Finding("clock", "problem", f"{told}, which is before this program was written", remedy)
    elif not time.get_clock_info("monotonic").monotonic or gone <= 0:
        yield Finding("clock", "problem", "the clock for durations does not go forward", "Restart the machine.")
    elif abs(passed - gone) > 1:
        remedy = "The clock is being set right now; look again in a minute."
        yield Finding("clock", "note", f"{told}, jumped by {passed - gone:+.0f} s", remedy)
    else:
        yield Finding("clock", "ok", told)


def language() -> Iterator[Finding]:
    """Whether names of files and output are UTF-8."""
    names, text = sys.getfilesystemencoding(), locale.getpreferredencoding(False)
    if {names.lower().replace("-", ""), text.lower().replace("-", "")} == {"utf8"}:
        yield Finding("locale", "ok", "UTF-8")
        return
    remedy = "`export LANG=C.UTF-8`: tables and file names of data sets hold more than ASCII."
    yield Finding("locale", "note", f"file names {names}, text {text}", remedy)


def compiler() -> Iterator[Finding]:
    """What it takes to build the operators that deepspeed and torch build when they are first used."""
    import shutil  # noqa: PLC0415

    compilers = [name for name in (os.environ.get("CXX", ""), "c++", "g++", "clang++") if name and shutil.which(name)]
    ninja = shutil.which("ninja") or shutil.which("ninja", path=str(Path(sys.executable).parent))
    headers = (Path(sysconfig.get_path("include")) / "Python.h").is_file()
    parts = {"a C++ compiler": bool(compilers), "ninja": bool(ninja), "Python's headers": headers}
    missing = [name for name, there in parts.items() if not there]
    if missing:
        remedy = (
            "Install them (Debian: g++ ninja-build python3-dev): `train.offload`, `train.compile` and several ranks on "
            "a CPU build code when they are first used. All else works without."
        )
        yield Finding("compiler", "note", f"without {', '.join(missing)}", remedy)
    else:
        yield Finding("compiler", "ok", f"{compilers[0].rpartition('/')[2]}, ninja, Python's headers")


PROBES: dict[str, Probe] = {
    "python": python, "cxrdist": program, "cores": cores, "memory": memory, "disk": disk,
    "shared memory": shared_memory, "limits": limits, "clock": clock, "locale": language, "compiler": compiler,
}  # fmt: skip


def _folders() -> Iterator[tuple[str, Path]]:
    # As `cxrdist.pack` has it, which may be unable to load.
    data = os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")  # noqa: PTH111 - `home` may raise
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111
    yield "data folder", Path(data) / "cxrdist"
    yield "cache folder", Path(cache)
    try:
        yield "temporary folder", Path(tempfile.gettempdir())
    except OSError:  # none can be written to; the first that Python would have taken
        yield "temporary folder", Path(os.environ.get("TMPDIR", "/tmp"))
    yield "current folder", Path()


def _variable(name: str) -> str:
    return {"data folder": "XDG_DATA_HOME", "cache folder": "XDG_CACHE_HOME"}.get(name, "TMPDIR")


def _unwritable(folder: Path) -> str:
    """Return why no file can be made in `folder`, or in the folder in which it would be made; nothing if one can.

    Tried, since neither permissions nor owners tell it of every file system.
    """
    try:
        place = next((one for one in (folder, *folder.absolute().parents) if one.exists()), folder)
        with tempfile.NamedTemporaryFile(dir=place, prefix=".cxrdist-doctor-") as file:
            file.write(b"0" * 4096)
    except OSError as error:
        return error.strerror or type(error).__name__
    return ""


def _judge(value: float, few: float, some: float) -> State:
    if value == resource.RLIM_INFINITY or value >= some:
        return "ok"
    return "problem" if value < few else "note"


def _limit(value: int) -> str:
    return "unlimited" if value == resource.RLIM_INFINITY else str(value)
