"""Reads image files in a process of its own, which may die of them.  No test; see `test_hostile_input.py`.

``python reading_process.py SECONDS BYTES < paths``: one JSON line per file, after a line that says which is next.
SECONDS is the most for a file, BYTES the most memory above what the process has when it starts to read.
"""

import json
import os
import resource
import signal
import sys
import time
from pathlib import Path

import cv2

from cxrdist.dicom import MAX_PIXELS, isolation, read_radiograph
from cxrdist.errors import REJECT_REASONS, ImageRejectedError


def outcome(path: Path) -> dict[str, object]:
    try:
        got = read_radiograph(path, burned_in_text="flag", declared_text="flag")
    except ImageRejectedError as error:
        assert error.reason in REJECT_REASONS
        return {"reason": error.reason, "detail": error.detail}
    pixels = got.pixels
    assert pixels.ndim == 2 and pixels.dtype == "float32" and 0 < pixels.size <= MAX_PIXELS
    assert 0 <= pixels.min() < pixels.max() <= 1, "a NaN fails here as well"
    assert 8 <= got.bits <= 16 and got.sex in ("F", "M", None) and (got.age is None or 0 <= got.age <= 90)
    return {"shape": pixels.shape, "notes": got.notes}


def peak_bytes() -> int:
    """Return the most memory that this process has had, and the one that decodes for it."""
    decoder = isolation._DECODER
    return most_of("self") + (most_of(decoder._process.pid) if decoder and decoder.usable else 0)


def most_of(process: int | str) -> int:
    # Not `ru_maxrss`: it survives the start of a program, and is then that of the process that started it.
    line = next(line for line in Path(f"/proc/{process}/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def main() -> None:
    seconds, more = float(sys.argv[1]), int(sys.argv[2])
    cv2.setNumThreads(1)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * os.sysconf("SC_PAGE_SIZE") + more,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin:
        print(json.dumps({"next": line.strip()}), flush=True)
        signal.setitimer(signal.ITIMER_REAL, seconds)  # nobody handles it: the process ends, inside of C code as well
        began = time.process_time()
        try:
            told = outcome(Path(line.strip()))
        except BaseException as error:
            told = {"crash": f"{type(error).__name__}: {error}"}
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps({**told, "seconds": time.process_time() - began, "peak": peak_bytes()}), flush=True)


if __name__ == "__main__":
    main()
