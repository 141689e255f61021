"""Programs that others start: launchers, and compilers of what is built when it is first used."""

import os
import shutil
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path

from cxrdist.doctor.finding import Finding, Probe

OWN = ("cxrdist", "torchrun", "deepspeed", "ray")
"""They come with this program's libraries."""
OTHERS = ("sbatch", "srun", "ssh", "pdsh", "docker", "podman", "kubectl")


def launchers() -> Iterator[Finding]:
    """Programs that start a run on several GPUs or machines."""
    beside = Path(sys.executable).parent
    own = {name: (shutil.which(name), (beside / name).is_file()) for name in OWN}
    others = [name for name in OTHERS if shutil.which(name)]
    yield judge_launchers({name: _place(path, there, beside) for name, (path, there) in own.items()}, others)


def judge_launchers(own: Mapping[str, str], others: list[str]) -> Finding:
    """Return the finding for launchers.

    Args:
        own: How each of `OWN` is found: ``path`` (by its name), ``beside`` (only beside this Python), ``other`` (its
            name leads to that of another Python), or ``none``.
        others: Which of `OTHERS` are there.
    """
    missing, foreign, beside = ([name for name in own if own[name] == how] for how in ("none", "other", "beside"))
    if missing:
        remedy = "Install cxrdist anew into a fresh virtual environment: they come with its libraries."
        return Finding("launchers", "note", f"without {', '.join(missing)}", remedy)
    activate = "`source VENV/bin/activate`, also in what starts on other machines (`~/.bashrc`, a job's first lines)."
    if foreign:
        text = f"{', '.join(foreign)} in PATH: of another Python than this one"
        return Finding("launchers", "note", text, activate)
    if beside:
        return Finding("launchers", "note", f"{', '.join(beside)} not in PATH, only beside Python", activate)
    text = ", ".join([*own, *others])
    if "pdsh" not in others:
        text += "; no pdsh, which only `deepspeed` with a hostfile needs"
    return Finding("launchers", "ok", text)


def compiler() -> Iterator[Finding]:
    """What it takes to build the operators that deepspeed and torch build when they are first used."""
    missing = missing_tools()
    if missing:
        remedy = (
            "Install them (Debian: `apt-get install g++ ninja-build python3-dev`): `train.offload`, `train.compile` "
            "and several ranks on a CPU build code when they are first used. All else works without."
        )
        yield Finding("compiler", "note", f"without {', '.join(missing)}", remedy)
    else:
        yield Finding("compiler", "ok", f"{_compilers()[0].rpartition('/')[2]}, ninja, Python's headers")


def missing_tools() -> list[str]:
    """Return what is not here of what it takes to build operators."""
    ninja = shutil.which("ninja") or shutil.which("ninja", path=str(Path(sys.executable).parent))
    headers = (Path(sysconfig.get_path("include")) / "Python.h").is_file()
    parts = {"a C++ compiler": bool(_compilers()), "ninja": bool(ninja), "Python's headers": headers}
    return [name for name, there in parts.items() if not there]


PROBES: Mapping[str, Probe] = {"compiler": compiler, "launchers": launchers}


def _compilers() -> list[str]:
    return [name for name in (os.environ.get("CXX", ""), "c++", "g++", "clang++") if name and shutil.which(name)]


def _place(path: str | None, beside: bool, folder: Path) -> str:
    if path is None:
        return "beside" if beside else "none"
    here = {folder, folder.resolve(), Path(sys.executable).resolve().parent}
    return "path" if not beside or Path(path).parent in here or Path(path).resolve().parent in here else "other"
