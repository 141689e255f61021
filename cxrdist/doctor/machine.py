"""What this machine gives to any process: cores, memory, limits, clock.  Needs only the standard library."""

import locale
import os
import platform
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

from cxrdist.doctor import measure
from cxrdist.doctor.finding import Finding, Probe, State, size

GIB = 2**30
RELEASED = datetime(2026, 11, 1, tzinfo=UTC)
"""A clock before this is wrong."""
PYTHON = (3, 11)
CLOCK_SOURCE = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")

LEAST_MEMORY = 2 * GIB
MANY_CORES = 4
"""Fewer are few for a process that trains, where the machine has these."""
FEW_FILES, SOME_FILES, RAISED = 1024, 4096, 65_536
FEW_PROCESSES, SOME_PROCESSES = 4096, 65_536
SLOW_CLOCKS = ("hpet", "acpi_pm", "pit", "jiffies", "refined-jiffies")
BY_ROOT = "Else, as root: `* - {} {}` into /etc/security/limits.conf, and a new login."


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
    """Cores that this process may use, and the threads that libraries start for them."""
    there, allowed, quota = os.cpu_count(), measure.cores(), measure.cpu_quota()
    yield judge_cores(there, allowed, by_quota=quota is not None and quota < (there or 0))


def judge_cores(there: int | None, allowed: float | None, *, by_quota: bool, threads: str | None = None) -> Finding:
    """Return the finding for cores: the machine's, this process's, and why those are fewer.

    Args:
        there: Cores of the machine.
        allowed: Cores that this process may use.
        by_quota: They are fewer by a quota, which libraries do not see.
        threads: What OMP_NUM_THREADS says; None: as the environment has it.
    """
    told = os.environ.get("OMP_NUM_THREADS", "") if threads is None else threads
    if allowed is None:
        return Finding("cores", "note", "the system does not tell", "Set `workers` and OMP_NUM_THREADS by hand.")
    text, fitting = f"{allowed:g} of {there}", max(1, int(allowed))
    first = told.partition(",")[0].strip()  # one number for each level of nested loops
    if told and not (first.isdecimal() and int(first)):
        return Finding("cores", "note", f"{text}; OMP_NUM_THREADS is no number", f"`export OMP_NUM_THREADS={fitting}`.")
    if told and int(first) > fitting:
        text = f"{text}; OMP_NUM_THREADS={int(first)} starts more threads than that"
        return Finding("cores", "note", text, f"`export OMP_NUM_THREADS={fitting}`.")
    if by_quota and not told:
        remedy = f"Libraries start {there} threads for {allowed:g} cores: `export OMP_NUM_THREADS={fitting}`."
        return Finding("cores", "note", f"{text}, by a quota of the container", remedy)
    if allowed < MANY_CORES <= (there or 0):
        remedy = "Ask for more where jobs get what they ask for: `--cpus-per-task=8` (Slurm), `--cpus` (containers)."
        return Finding("cores", "note", f"{text}: images are read slowly", remedy)
    return Finding("cores", "ok", text + (f", OMP_NUM_THREADS={int(first)}" if told else ""))


def memory() -> Iterator[Finding]:
    """Memory that this process may use."""
    total, available = measure.memory(), measure.meminfo("MemAvailable")
    if total is None:
        yield Finding("memory", "note", "the system does not tell", "`free -g` may.")
        return
    by_group = measure.memory_limit() == total
    text = size(total) + (", by a limit of the container" if by_group else "")
    if available is not None and not by_group:
        text += f", {size(available)} of it free"
    if min(total, total if available is None else available) < LEAST_MEMORY:
        yield Finding("memory", "problem", text, "End other programs, or raise the container's limit (`--memory`).")
        return
    yield Finding("memory", "ok", text)


def limits() -> Iterator[Finding]:
    """Open files, processes."""
    yield judge_open_files(*resource.getrlimit(resource.RLIMIT_NOFILE))
    own, group = resource.getrlimit(resource.RLIMIT_NPROC)[0], measure.process_limit()
    if group is not None and (own == resource.RLIM_INFINITY or group < own):
        remedy = (
            "Each thread counts, and Ray starts hundreds. Container: `--pids-limit=-1`; Kubernetes: `podPidsLimit` of "
            "the kubelet; a service: `TasksMax=infinity`."
        )
        few = group < FEW_PROCESSES
        text = f"{group:.0f}, by a limit of the container or service"
        yield Finding("limit of processes", "note" if few else "ok", text, remedy if few else "")
        return
    few = own != resource.RLIM_INFINITY and own < FEW_PROCESSES
    remedy = f"`ulimit -u {SOME_PROCESSES}` before the command: each thread counts, and Ray starts hundreds. {BY_ROOT}"
    remedy = remedy.format("nproc", SOME_PROCESSES)
    yield Finding("limit of processes", "note" if few else "ok", _limit(own), remedy if few else "")


def judge_open_files(soft: int, hard: int) -> Finding:
    """Return the finding for the files that a process may have open, and up to where it may raise that (-1: any)."""
    text = f"{_limit(soft)} (may be raised to {_limit(hard)})"
    state = _judge(soft, FEW_FILES, SOME_FILES)
    if state == "ok":
        return Finding("limit of open files", state, text)
    if _judge(hard, FEW_FILES, SOME_FILES) == "ok":
        most = RAISED if hard == resource.RLIM_INFINITY else min(hard, RAISED)
        return Finding("limit of open files", state, text, f"`ulimit -n {most}` before the command.")
    remedy = f"Container: `--ulimit nofile={RAISED}:{RAISED}`; a service: `LimitNOFILE={RAISED}`. {BY_ROOT}"
    return Finding("limit of open files", state, text, remedy.format("nofile", RAISED))


def clock() -> Iterator[Finding]:
    """Whether the clocks can be right."""
    before, start = time.monotonic(), time.time()
    time.sleep(0.05)
    gone, passed = time.monotonic() - before, time.time() - start
    yield judge_clock(datetime.now(UTC), gone, passed, set_by_network=measure.clock_is_set(), source=_clock_source())


def judge_clock(
    now: datetime, gone: float, passed: float, *, set_by_network: bool | None = None, source: str = ""
) -> Finding:
    """Return the finding for the clocks.

    Args:
        now: What the clock says.
        gone: Seconds that went by between two looks, by the clock for durations.
        passed: The same, by the clock that tells the time.
        set_by_network: Whether the kernel says that something keeps it right; None: it does not tell.
        source: What the kernel takes the time from.
    """
    told = f"{now:%Y-%m-%d %H:%M} UTC"
    if now < RELEASED:
        remedy = "Set the clock (`timedatectl set-ntp true`): checks of certificates and of what is newest fail."
        return Finding("clock", "problem", f"{told}, which is before this program was written", remedy)
    if not time.get_clock_info("monotonic").monotonic or gone <= 0:
        return Finding("clock", "problem", "the clock for durations does not go forward", "Restart the machine.")
    if abs(passed - gone) > 1:
        remedy = "The clock is being set right now; look again in a minute."
        return Finding("clock", "note", f"{told}, jumped by {passed - gone:+.0f} s", remedy)
    if source in SLOW_CLOCKS:
        remedy = (
            "Each look at the clock is slow: start the kernel with `clocksource=tsc tsc=reliable`, or take another "
            "kind of virtual machine."
        )
        return Finding("clock", "note", f"{told}, read from {source}", remedy)
    if set_by_network is False:
        remedy = (
            "Nothing on one machine; several compare their clocks: `sudo timedatectl set-ntp true` (a container has "
            "its host's clock)."
        )
        return Finding("clock", "note", f"{told}, kept right by nothing that the kernel knows of", remedy)
    return Finding("clock", "ok", told + (", kept right by the network" if set_by_network else ""))


def language() -> Iterator[Finding]:
    """Whether names of files and output are UTF-8."""
    names, text = sys.getfilesystemencoding(), locale.getpreferredencoding(False)
    if {names.lower().replace("-", ""), text.lower().replace("-", "")} == {"utf8"}:
        yield Finding("locale", "ok", "UTF-8")
        return
    remedy = "`export LANG=C.UTF-8`: tables and file names of data sets hold more than ASCII."
    yield Finding("locale", "note", f"file names {names}, text {text}", remedy)


PROBES: Mapping[str, Probe] = {
    "python": python, "cxrdist": program, "cores": cores, "memory": memory, "limits": limits, "clock": clock,
    "locale": language,
}  # fmt: skip


def _clock_source() -> str:
    try:
        return CLOCK_SOURCE.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""


def _judge(value: float, few: float, some: float) -> State:
    if value == resource.RLIM_INFINITY or value >= some:
        return "ok"
    return "problem" if value < few else "note"


def _limit(value: int) -> str:
    return "unlimited" if value == resource.RLIM_INFINITY else str(value)
