"""What the host's memory can still give to this process."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

INACTIVE = {"cgroup2": "inactive_file", "cgroup": "total_inactive_file"}
"""Cached files in ``memory.stat`` that are given back when memory is short; group and those in it together."""

LIMIT_AND_USE = {
    "cgroup2": ("memory.max", "memory.current"),
    "cgroup": ("memory.limit_in_bytes", "memory.usage_in_bytes"),
}


def available_host_memory(root: Path = Path("/")) -> int:
    """Return the bytes that this machine, and every control group around this process, can still give.

    A group gives its limit less what is used in it, cached files that can be dropped left out.  A limit may be on any
    group from the process's own up to the root (a SLURM step is in a task's, in a job's), so the least is taken.

    Args:
        root: Where ``/proc`` and the control groups are.
    """
    try:
        lines = (root / "proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        lines = []
    free = next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")), None)
    if free is None:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for version, folder in _control_groups(root):
        most, now = LIMIT_AND_USE[version]
        with suppress(OSError, ValueError):  # the root has no limit; "max"
            used = _number(folder / now) - _inactive(folder / "memory.stat", INACTIVE[version])
            free = min(free, _number(folder / most) - max(used, 0))
    return max(free, 0)


def _control_groups(root: Path) -> Iterator[tuple[str, Path]]:
    """Yield (file system's type, folder) of the groups for memory around this process, the innermost first."""
    try:
        groups = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
        mounts = (root / "proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    # ``hierarchy:controllers:path``; version 2 has hierarchy 0 and no controllers.
    named = [line.split(":", 2) for line in groups if line.count(":") >= 2]
    paths = {"cgroup2" if number == "0" else "cgroup": path for number, kinds, path in named
             if number == "0" or "memory" in kinds.split(",")}  # fmt: skip
    for line in mounts:
        # ``id parent device root mountpoint options [tags] - type source options``
        before, _, after = line.partition(" - ")
        version, options = after.split()[0], after.split()[-1].split(",")
        if version not in paths or (version == "cgroup" and "memory" not in options):
            continue
        mounted, point = before.split()[3:5]
        inside = PurePosixPath(paths[version])
        # A container sees its own group as the mount's root.
        inside = inside.relative_to(mounted) if inside.is_relative_to(mounted) else PurePosixPath()
        top = root / point.lstrip("/")
        yield from ((version, top / group) for group in (inside, *inside.parents) if ".." not in group.parts)


def _number(path: Path) -> int:
    return int(path.read_text(encoding="ascii"))


def _inactive(path: Path, name: str) -> int:
    with suppress(OSError):
        for line in path.read_text(encoding="ascii").splitlines():
            key, _, value = line.partition(" ")
            if key == name:
                return int(value)
    return 0
