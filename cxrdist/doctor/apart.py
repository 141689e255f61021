"""Looking at libraries in a process of its own: one that crashes or hangs while it loads is a finding, not our end.

Run as a module it is that process: the names of probes are its arguments, and it prints a line of JSON for each.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress

from cxrdist.doctor.finding import REMEDY, Finding, Probe, look

PROBE_TIMEOUT_S = 180.0
"""For all of them together; a first import from a network file system takes a minute."""
HANGS = "Something blocks (a GPU driver, a network file system): `python -X importtime -c 'import {0}'` shows where."


def look_apart(probes: Sequence[str], *, timeout_s: float = PROBE_TIMEOUT_S) -> Iterator[Finding]:
    """Yield the findings of these probes of `libraries`; after a crash, the rest is looked at in another process."""
    left = list(probes)
    while left:
        told, ended = _run(left, timeout_s)
        for name, findings in told.items():
            yield from findings
            left.remove(name)
        if left:
            remedy = HANGS.format(left[0]) if ended.startswith("did not end") else REMEDY
            yield Finding(left.pop(0), "problem", f"the process that loaded it {ended}", remedy)


def _run(probes: Sequence[str], timeout_s: float) -> tuple[dict[str, list[Finding]], str]:
    """Return what one process said, by probe, and how it ended."""
    # Libraries come from where this process would take them, and not from the current folder.
    command = [sys.executable, "-P", "-m", "cxrdist.doctor.apart", *probes]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    )
    assert process.stdout is not None
    silenced = threading.Event()

    def silence() -> None:
        silenced.set()
        process.kill()

    timer = threading.Timer(timeout_s, silence)
    timer.start()
    told: dict[str, list[Finding]] = {}
    try:
        for line in process.stdout:
            with suppress(ValueError, KeyError, TypeError):
                said = json.loads(line)
                told[said["probe"]] = [Finding(**finding) for finding in said["findings"]]
        process.wait()
    finally:
        timer.cancel()
        process.kill()
        process.wait()
        process.stdout.close()
    return told, _end(process.returncode, silenced.is_set(), timeout_s)


def _end(code: int, silenced: bool, timeout_s: float) -> str:
    if silenced:
        return f"did not end within {timeout_s:g} s"
    if code < 0:
        with suppress(ValueError):
            return f"was ended by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


def serve(probes: Mapping[str, Probe], names: Sequence[str]) -> None:
    """Print a line of JSON for each probe, and nothing that libraries print."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    for name in names:
        findings = [finding.tree() for finding in look(name, probes[name])]
        print(json.dumps({"probe": name, "findings": findings}), file=answers, flush=True)


if __name__ == "__main__":
    from cxrdist.doctor.libraries import PROBES

    serve(PROBES, sys.argv[1:])
    os._exit(0)  # threads of libraries that are loaded for nothing need not be asked to end
