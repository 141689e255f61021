"""Where this program and its libraries write: room, permissions, and what else breaks there.

What is told are the roles of folders and the names of variables, and not where they lead.
"""

import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from cxrdist.doctor import measure
from cxrdist.doctor.finding import Finding, Probe, size

GIB = 2**30
LEAST_DISK, SOME_DISK = 1 * GIB, 20 * GIB
LEAST_FILES = 10_000
"""Files that can still be made: file systems run out of them as well, long before they run out of bytes."""
LEAST_SHARED, SOME_SHARED = 256 * 2**20, 2 * GIB
"""Containers get 64 MiB where nobody asks for more; reading processes hand their batches over there."""
CACHES = ("TORCH_EXTENSIONS_DIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
"""Variables that name folders into which libraries write what they build."""
WEIGHTS = ("HF_HOME", "HF_HUB_CACHE", "TORCH_HOME")
"""Variables that name folders of weights, which may be closed once all is in them."""
LONGEST_TEMPORARY = 38
"""Characters of the temporary folder: sockets have at most 107, and Ray's own names below it take up to 69."""
USUAL = Path("/tmp")
STALE_S = 1800.0
"""Seconds that building one operator surely does not take."""


def disk() -> Iterator[Finding]:
    """Free space where this program writes."""
    for name, folder in _folders():
        yield judge_folder(name, _variable(name), _unwritable(folder), measure.space(folder)[1], _files(folder))
    for name in (*CACHES, *WEIGHTS):
        fault = _unwritable(Path(os.environ[name])) if os.environ.get(name) else ""
        if fault and name in WEIGHTS:
            remedy = "Nothing, if the weights are in it; a download would fail."
            yield Finding(f"disk: {name}", "note", f"not writable: {fault}", remedy)
        elif fault:
            remedy = f"`unset {name}`, or let it name a folder that may be written to."
            yield Finding(f"disk: {name}", "problem", f"not writable: {fault}", remedy)


def judge_folder(name: str, variable: str, fault: str, free: float | None, files: float | None) -> Finding:
    """Return the finding for a folder.

    Args:
        name: Its role.
        variable: The one that names it; empty for none.
        fault: Why nothing can be written there; empty where it can.
        free: Bytes.
        files: How many can still be made.
    """
    label = f"disk: {name}"
    if fault:
        elsewhere = f"let {variable} name a folder" if variable else "work in a folder"
        remedy = f"Make room there (`df -h`, `df -i`, `quota`), or {elsewhere} that may be written to."
        return Finding(label, "problem", f"not writable: {fault}", remedy)
    if free is None:
        return Finding(label, "note", "the system does not tell how much is free", "`df -h` there.")
    if files is not None and files < LEAST_FILES:
        remedy = "Remove what is no longer needed: `du --inodes -d 2 | sort -n | tail` names the folders of most files."
        return Finding(label, "problem", f"{size(free)} free, but only {files:.0f} more files", remedy)
    if free < SOME_DISK:
        remedy = "Make room: checkpoints, shards and reports of one study take tens of GiB."
        return Finding(label, "problem" if free < LEAST_DISK else "note", f"{size(free)} free", remedy)
    return Finding(label, "ok", f"{size(free)} free")


def temporary() -> Iterator[Finding]:
    """Whether the folder for temporary files is the one that was asked for, and short enough for Ray's sockets."""
    for name in ("TMPDIR", "RAY_TMPDIR"):
        fault = _unwritable(Path(os.environ[name])) if os.environ.get(name) else ""
        if fault:  # Python goes elsewhere without a word, others fail
            remedy = f"Make room there, or name another: `export {name}=/tmp`."
            yield Finding(name, "problem", f"leads to a folder that is not writable: {fault}", remedy)
    fault = "" if os.environ.get("TMPDIR") else _unwritable(USUAL)
    if fault:
        remedy = "Make room there, or let TMPDIR name a folder that may be written to, with a short path."
        yield Finding("temporary folder", "problem", f"/tmp is not writable: {fault}", remedy)
    rays = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or str(USUAL)
    if len(rays) > LONGEST_TEMPORARY:
        text = f"has {len(rays)} characters, more than the {LONGEST_TEMPORARY} that names of sockets leave"
        yield Finding("temporary folder of Ray", "problem", text, "`export RAY_TMPDIR=/tmp`: Ray does not start.")


def building() -> Iterator[Finding]:
    """Whether what torch and deepspeed build can be loaded where it is built, and whether a build waits for ever."""
    places = {"temporary folder": ("TMPDIR", Path(_temporary())), "cache folder": ("XDG_CACHE_HOME", _cache())}
    if os.environ.get("TORCH_EXTENSIONS_DIR"):
        places["TORCH_EXTENSIONS_DIR"] = ("TORCH_EXTENSIONS_DIR", Path(os.environ["TORCH_EXTENSIONS_DIR"]))
    for name, (variable, folder) in places.items():
        if _refuses_programs(folder):
            remedy = f"Let {variable} name a folder of a file system that is not mounted with `noexec`."
            text = "mounted with `noexec`: what torch or deepspeed build there cannot be loaded"
            yield Finding(f"noexec: {name}", "note", text, remedy)
    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or _cache() / "torch_extensions")
    stale: list[Path] = []
    with suppress(OSError):  # that it may not be read is told elsewhere
        stale = [path for pattern in ("*/lock", "*/*/lock") for path in root.glob(pattern) if _age(path) > STALE_S]
    if stale:
        where = '"${TORCH_EXTENSIONS_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/torch_extensions}"'
        text = f"a killed build has left its lock ({len(stale)} in all): the next build waits for ever"
        yield Finding("torch extensions", "problem", text, f"`find {where} -name lock -mmin +30 -delete`.")


def shared_memory() -> Iterator[Finding]:
    """Size of /dev/shm."""
    total, free = measure.space(measure.SHARED_MEMORY)
    if not measure.SHARED_MEMORY.is_dir() or total is None or free is None:
        remedy = "Set `input.workers=0`: reading processes hand their batches over there."
        yield Finding("shared memory", "problem", "no /dev/shm", remedy)
        return
    yield judge_shared_memory(total, free, _unwritable(measure.SHARED_MEMORY))


def judge_shared_memory(total: float, free: float, fault: str = "") -> Finding:
    """Return the finding for /dev/shm: its size and what is free of it, both in bytes, and why it refuses files."""
    text = f"{size(total)}, {size(free)} of it free, in /dev/shm"
    remedy = (
        "Start the container with `--shm-size=8g`; in Kubernetes mount an `emptyDir` with `medium: Memory` there; "
        "without a container: `sudo mount -o remount,size=8g /dev/shm`."
    )
    if total >= SOME_SHARED:
        remedy = "See `ls -l /dev/shm`, and remove there what programs that were killed have left."
    if fault and min(total, free) >= LEAST_SHARED:
        remedy = "`sudo mount -o remount,rw /dev/shm && sudo chmod 1777 /dev/shm`."
        return Finding("shared memory", "problem", f"not writable: {fault}", remedy)
    if min(total, free) < LEAST_SHARED:
        return Finding("shared memory", "problem", text, remedy)
    return (
        Finding("shared memory", "note", text, remedy) if free < SOME_SHARED else Finding("shared memory", "ok", text)
    )


PROBES: Mapping[str, Probe] = {
    "disk": disk, "temporary files": temporary, "building": building, "shared memory": shared_memory,
}  # fmt: skip


def _folders() -> Iterator[tuple[str, Path]]:
    # As `cxrdist.pack` has it, which may be unable to load.
    data = os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")  # noqa: PTH111 - `home` may raise
    yield "data folder", Path(data) / "cxrdist"
    yield "cache folder", _cache()
    yield "temporary folder", Path(_temporary())
    yield "current folder", Path()


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))  # noqa: PTH111


def _temporary() -> str:
    try:
        return tempfile.gettempdir()
    except OSError:  # none can be written to; the first that Python would have taken
        return os.environ.get("TMPDIR") or str(USUAL)


def _variable(name: str) -> str:
    variables = {"data folder": "XDG_DATA_HOME", "cache folder": "XDG_CACHE_HOME", "temporary folder": "TMPDIR"}
    return variables.get(name, "")


def _above(folder: Path) -> Path:
    """Return `folder`, or the nearest folder above it that exists."""
    return next((one for one in (folder, *folder.absolute().parents) if one.exists()), folder)


def _unwritable(folder: Path) -> str:
    """Return why no file can be made in `folder`, or in the folder in which it would be made; nothing if one can.

    Tried, since neither permissions nor owners tell it of every file system.
    """
    try:
        with tempfile.NamedTemporaryFile(dir=_above(folder), prefix=".cxrdist-doctor-") as file:
            file.write(b"0" * 4096)
    except OSError as error:
        return error.strerror or type(error).__name__
    return ""


def _files(folder: Path) -> float | None:
    """Return how many files can still be made; None: the file system has no limit, or does not tell."""
    try:
        there = os.statvfs(_above(folder))
    except OSError:
        return None
    return float(there.f_favail) if there.f_files else None


def _refuses_programs(folder: Path) -> bool:
    try:
        return bool(os.statvfs(_above(folder)).f_flag & os.ST_NOEXEC)
    except (OSError, AttributeError):  # the flag is Linux's
        return False


def _age(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return 0.0
