"""Whatever bytes an image file holds: a radiograph, or a refusal with a reason; no crash, no hang, no flood.

Files are read in a process of their own that may use 1 GiB more than it starts with, and some seconds for a file.  What
it reads is made to be damaged: at random (the seed is printed), or with intent.
"""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.uid import JPEGLosslessSV1

from cxrdist.dicom import read_radiograph
from cxrdist.errors import ImageRejectedError
from tests.bombs import bombs, largest
from tests.damage import SECRETS, clean_files, damaged
from tests.helpers import make_dicom

GIB = 2**30
READER = Path(__file__).with_name("reading_process.py")
pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and limits of Linux"),
    pytest.mark.filterwarnings("ignore::UserWarning:pydicom"),  # about what is damaged here
]


def read_apart(paths: list[Path], *, seconds: float = 10, memory: int = GIB) -> dict[Path, dict]:
    """Read files elsewhere; return what became of each, and fail if anything of a file is repeated."""
    told: dict[Path, dict] = {}
    left = list(paths)
    while left:
        ended = subprocess.run(
            [sys.executable, str(READER), str(seconds), str(memory)],
            input="\n".join(map(str, left)) + "\n",
            capture_output=True,
            text=True,
            errors="replace",
            env=os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1", "PYTHONWARNINGS": "always"},
            check=False,
        )
        current = None
        for line in map(json.loads, ended.stdout.splitlines()):
            if "next" in line:
                current = Path(line["next"])
            elif current is not None:
                told[current] = line
        repeated = [secret for secret in SECRETS if secret in ended.stderr]
        repeated += [secret for secret in SECRETS for line in told.values() if secret in str(line.get("detail"))]
        assert not repeated, f"{repeated} of a file's name or content are repeated"
        if ended.returncode == 0:
            break
        assert current is not None, ended.stderr
        told[current] = {"crash": f"the process ended with {ended.returncode}: {ended.stderr[-300:]}"}
        left = left[left.index(current) + 1 :]
    assert set(told) == set(paths)
    return told


def check(told: dict[Path, dict], how: dict[Path, str] | None = None) -> None:
    crashes = {(how or {}).get(path, path.name): line["crash"] for path, line in told.items() if "crash" in line}
    assert not crashes
    slowest = max(told, key=lambda path: told[path]["seconds"])
    print(f"slowest: {(how or {}).get(slowest, slowest.name)}, {told[slowest]['seconds']:.2f} s")
    most = max(told, key=lambda path: told[path]["peak"])
    print(f"most memory: {(how or {}).get(most, most.name)}, {told[most]['peak'] / 2**20:.0f} MiB")
    assert told[most]["peak"] < GIB, (how or {}).get(most, most.name)


def check_damaged(folder: Path, clean: list[Path], count: int, seed: int) -> None:
    """Damage `clean` files in `count` ways and check that each becomes a radiograph or a refusal."""
    print(f"seed {seed}")
    rng = random.Random(seed)
    whole = [path.read_bytes() for path in clean]
    how = {}
    for number in range(count):
        chosen = rng.randrange(len(clean))
        way, data = damaged(whole[chosen], whole, rng)
        path = folder / f"DOE_JANE_{number}"
        path.write_bytes(data)
        how[path] = f"{number}: {clean[chosen].name} {way}"
    told = read_apart(list(how))
    check(told, how)
    assert 0.1 * count < sum("shape" in line for line in told.values()) < 0.9 * count, "harm was done, but not to all"


def real_files(largest_bytes: int) -> list[Path]:
    root = Path(os.environ["CXRDIST_REALDATA"])
    found = [path for path in (root / "dicom").rglob("*.dcm") if path.stat().st_size < largest_bytes]
    for pattern in ("kermany/**/*.jp*g", "nih_cxr14/images/*.png", "covid_chestxray/images/*"):
        found += [path for path in sorted(root.glob(pattern))[::40] if path.stat().st_size < largest_bytes]
    return sorted(found)


@pytest.fixture
def clean(tmp_path) -> list[Path]:
    return clean_files(tmp_path / "clean")


def test_the_files_that_are_damaged_can_be_read_before(clean):
    told = read_apart(clean)
    check(told)
    assert not [path.name for path, line in told.items() if "reason" in line]


def test_files_damaged_at_random_are_read_or_refused(tmp_path, clean):
    check_damaged(tmp_path, clean, 2500, seed=20240610)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_files_damaged_at_random_in_thousands_of_ways_are_read_or_refused(tmp_path, clean, seed):
    check_damaged(tmp_path, clean, 5000, seed=seed)


@pytest.mark.realdata
@pytest.mark.skipif("CXRDIST_REALDATA" not in os.environ, reason="needs real radiographs")
def test_real_files_damaged_at_random_are_read_or_refused(tmp_path):
    check_damaged(tmp_path, real_files(60_000), 400, seed=20240611)


@pytest.mark.slow
@pytest.mark.realdata
@pytest.mark.skipif("CXRDIST_REALDATA" not in os.environ, reason="needs real radiographs")
def test_real_files_damaged_at_random_in_many_ways_are_read_or_refused(tmp_path):
    check_damaged(tmp_path, real_files(300_000), 2500, seed=3)


def test_small_files_that_unfold_to_much_are_read_or_refused_in_time(tmp_path):
    files = list(bombs(tmp_path, megabytes=4))
    told = read_apart(files, seconds=20)
    check(told)
    assert max(line["seconds"] for line in told.values()) < 5
    assert {"too_large", "unreadable", "constant_image"} <= {line.get("reason") for line in told.values()}


@pytest.mark.slow
def test_small_files_that_unfold_to_half_a_gibibyte_are_read_or_refused_in_time(tmp_path):
    files = list(bombs(tmp_path, megabytes=512))
    told = read_apart(files, seconds=60)
    check(told)
    assert max(line["seconds"] for line in told.values()) < 20
    refused = {path.name.removeprefix("DOE_"): line.get("reason") for path, line in told.items()}
    assert refused["deflated_bomb.dcm"] == refused["gzip_bomb.dcm.gz"] == "too_large"
    assert refused["many_elements.dcm"] == refused["many_scans.jpg"] == "unreadable"


@pytest.mark.slow
def test_the_largest_images_allowed_are_read_within_a_gibibyte(tmp_path):
    told = read_apart(largest(tmp_path / "largest"), seconds=60)
    check(told)
    assert not {path.name: line["reason"] for path, line in told.items() if "reason" in line}


def test_what_hangs_or_kills_the_reader_is_noticed(tmp_path):
    """The other tests can fail: a reader that is given no time ends, and that is told with the file's name."""
    path = make_dicom(tmp_path / "a.dcm", np.arange(1600, dtype=np.uint16).reshape(40, 40))
    assert "ended with -14" in read_apart([path], seconds=1e-6)[path]["crash"]
    large = make_dicom(tmp_path / "b.dcm", np.arange(4 * 10**6, dtype=np.uint16).reshape(2000, 2000))
    assert "crash" in read_apart([large], memory=2**20)[large] or "reason" in read_apart([large], memory=2**20)[large]


def test_lossless_jpeg_of_fewer_than_eight_bits_is_read(tmp_path):
    stored = (np.arange(48 * 40).reshape(48, 40) % 128).astype(np.uint8)
    path = make_dicom(tmp_path / "a.dcm", stored, syntax=JPEGLosslessSV1)
    ds = dcmread(path)
    ds.BitsStored, ds.HighBit = 7, 6
    ds.save_as(path)
    np.testing.assert_array_equal(np.rint(read_radiograph(path).pixels * 127), stored)


@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_what_is_no_plain_file_is_refused_and_never_waited_for(tmp_path, kind):
    path = tmp_path / "DOE.dcm"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(ImageRejectedError) as refused:
        read_radiograph(path)
    assert refused.value.reason == "unreadable"
