"""The process that decodes for this one may die or hang: that is one bad image, and the next one is read."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest
from pydicom.uid import JPEG2000Lossless, JPEGLosslessSV1

from cxrdist.dicom import isolation, read_radiograph
from cxrdist.errors import ImageRejectedError, UserError
from tests.helpers import make_dicom


def scene():
    return np.add.outer(np.arange(60) * 30, np.arange(70) * 20).astype(np.uint16)


def deadly(path):
    """Write JPEG data on which GDCM ends its process: the marker of its Huffman table is gone."""
    data = bytearray(make_dicom(path, scene(), syntax=JPEGLosslessSV1, BitsStored=12).read_bytes())
    start = data.index(b"\xff\xd8\xff")
    data[data.index(b"\xff\xc4", start)] = 0xA9
    path.write_bytes(data)
    return path


def reason(path):
    with pytest.raises(ImageRejectedError) as caught:
        read_radiograph(path)
    return str(caught.value)


def test_an_image_that_ends_the_decoder_is_unreadable_and_the_next_one_is_read(tmp_path, capfd):
    bad = deadly(tmp_path / "DOE.dcm")
    good = make_dicom(tmp_path / "good.dcm", scene(), syntax=JPEGLosslessSV1, BitsStored=12)
    expected = read_radiograph(good).pixels
    for _ in range(2):
        assert reason(bad) == "unreadable: the compressed pixel data is damaged or truncated"
        np.testing.assert_array_equal(read_radiograph(good).pixels, expected)
    assert capfd.readouterr() == ("", ""), "what decoders print is for nobody"


def test_the_bad_image_does_end_a_process_that_decodes_it_itself(tmp_path):
    code = f"""
from unittest.mock import patch
from pathlib import Path
from cxrdist.dicom import codecs, decode, read_radiograph
with patch.object(decode, "decode_apart", codecs.decode_pixels):
    read_radiograph(Path({str(deadly(tmp_path / "a.dcm"))!r}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, timeout=60)
    if done.returncode >= 0:
        pytest.skip("this GDCM survives it")


def test_a_decoder_that_does_not_end_is_ended_and_the_next_image_is_read(tmp_path, monkeypatch):
    path = make_dicom(tmp_path / "a.dcm", scene(), syntax=JPEG2000Lossless, BitsStored=12)
    read_radiograph(path)
    isolation._DECODER._process.send_signal(19)  # SIGSTOP: it hangs
    monkeypatch.setattr(isolation, "MOST_SECONDS", 0.3)
    begun = time.monotonic()
    assert "takes more than" in reason(path)
    assert time.monotonic() - begun < 10
    monkeypatch.setattr(isolation, "MOST_SECONDS", 60)
    assert read_radiograph(path).pixels.shape == (60, 70)


def test_one_process_serves_all_images_and_a_fork_takes_its_own(tmp_path):
    path = make_dicom(tmp_path / "a.dcm", scene(), syntax=JPEG2000Lossless, BitsStored=12)
    read_radiograph(path)
    decoder = isolation._DECODER
    read_radiograph(path)
    assert isolation._DECODER is decoder and decoder.usable
    child = os.fork()
    if child == 0:
        os._exit(0 if not decoder.usable and read_radiograph(path).pixels.shape == (60, 70) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert decoder.usable and read_radiograph(path).pixels.shape == (60, 70)


def test_a_machine_on_which_no_process_starts_is_told_so(tmp_path, monkeypatch):
    path = make_dicom(tmp_path / "a.dcm", scene(), syntax=JPEG2000Lossless, BitsStored=12)
    monkeypatch.setattr(isolation, "_DECODER", None)
    monkeypatch.setattr(isolation.sys, "executable", "/bin/false")
    with pytest.raises(UserError, match="A process that decodes compressed images must start") as caught:
        read_radiograph(path)
    assert not isinstance(caught.value, ImageRejectedError) and str(path) not in str(caught.value)


def test_the_process_ends_with_the_one_it_serves(tmp_path):
    path = make_dicom(tmp_path / "a.dcm", scene(), syntax=JPEG2000Lossless, BitsStored=12)
    code = f"""
import os, sys
from pathlib import Path
from cxrdist.dicom import isolation, read_radiograph
read_radiograph(Path({str(path)!r}))
print(isolation._DECODER._process.pid, flush=True)
os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, timeout=60)
    pid = int(done.stdout)
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("the decoder outlives its owner")
