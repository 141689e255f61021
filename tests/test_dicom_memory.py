"""Reading takes a few bytes a pixel, whatever the format; measured in a process of its own."""

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, RLELossless

from tests.helpers import make_dicom

SIDE = 4000
MEASURE = """
import sys
from pathlib import Path
from cxrdist.dicom import read_radiograph

def most():
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))

small, large = map(Path, sys.argv[1:3])
read_radiograph(small, size=64, burned_in_text="flag")
before = most()
read_radiograph(large, size=512, equalize=sys.argv[3], burned_in_text="flag")
print(most() - before)
"""


def scene(side, top=4095):
    return (np.add.outer(np.arange(side), np.arange(side) // 7) % (top + 1)).astype(np.uint16)


def write(path: Path, kind: str, side: int) -> Path:
    grey = scene(side)
    eight = (grey >> 4).astype(np.uint8)
    colour = np.dstack([eight, eight // 2, eight])
    if "." in kind:
        path = path.with_suffix(kind[-4:])
        cv2.imwrite(str(path), colour if "rgb" in kind else grey)
    elif kind == "rgb":
        make_dicom(path, colour)
    else:
        syntax = {"little": ExplicitVRLittleEndian, "big": ExplicitVRBigEndian, "rle": RLELossless}[kind]
        make_dicom(path, grey, BitsStored=12, syntax=syntax)
    return path


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell a process its memory")
@pytest.mark.parametrize(
    ("kind", "equalize", "most"),
    [
        ("little", "none", 9),  # 2 for the words, 4 for the display, and one that the system keeps in hand
        ("little", "global", 9),
        ("little", "tayebi2024", 14),  # 8 for the spline
        ("big", "none", 9),
        ("rle", "none", 9),
        ("grey.png", "none", 9),
        ("rgb", "none", 9),
        ("rgb.png", "none", 9),
        ("rgb.jpg", "none", 9),
    ],
)
def test_reading_takes_a_few_bytes_a_pixel(tmp_path, kind, equalize, most):
    small, large = write(tmp_path / "small", kind, 128), write(tmp_path / "large", kind, SIDE)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(small), str(large), equalize],
        capture_output=True, text=True, check=True, timeout=100,
    )  # fmt: skip
    assert int(done.stdout) / SIDE**2 < most
