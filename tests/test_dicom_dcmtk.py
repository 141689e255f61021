"""Our 8-bit pictures of real radiographs against those of DCMTK, which nobody here wrote."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.uid import JPEG2000, JPEG2000Lossless

from cxrdist.dicom import quantise, read_radiograph
from cxrdist.dicom.display import Window
from cxrdist.dicom.file import DicomFile, open_dicom
from cxrdist.dicom.radiograph import quiet
from cxrdist.errors import ImageRejectedError

TOOLS = ("dcm2pnm", "dcmj2pnm", "dcml2pnm")
MISSING = [tool for tool in TOOLS if shutil.which(tool) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.realdata,
    pytest.mark.skipif("CXRDIST_REALDATA" not in os.environ, reason="CXRDIST_REALDATA does not name a folder"),
    pytest.mark.skipif(bool(MISSING), reason=f"DCMTK is not installed: no {', '.join(MISSING)} (Debian: dcmtk)"),
]
ROOT = Path(os.environ.get("CXRDIST_REALDATA", ".")) / "dicom"
KEEP = {"burned_in_text": "flag", "declared_text": "flag"}
JPEG_2000 = (JPEG2000, JPEG2000Lossless)
WRITTEN_BY_GDCM = "CR-MONO1-10-chest_"
OVERSHOOTING = "00002195_002.dcm"


@dataclass(frozen=True)
class Shown:
    """A picture as DCMTK shows it."""

    pixels: np.ndarray
    """(H, W) uint8."""
    warnings: str


def show(path: Path, syntax: str, *window: str) -> Shown:
    """Return the picture by the DCMTK tool that has the codec, in the window that the arguments ask for."""
    family = syntax.removeprefix("1.2.840.10008.1.2.4.")
    tool = "dcm2pnm" if family == syntax else "dcml2pnm" if family in ("80", "81") else "dcmj2pnm"
    target = path.with_name("shown.pgm")
    done = subprocess.run(
        [tool, "--no-overlays", "--write-raw-pnm", *window, str(path), str(target)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return Shown(cv2.imread(str(target), cv2.IMREAD_UNCHANGED), done.stderr)


def header_of(path: Path) -> DicomFile:
    with quiet():
        return open_dicom(path.read_bytes(), max_pixels=10**8, limit=10**9)


def window_of(file: DicomFile, voi: object) -> list[str]:
    """Return DCMTK's options for what brought our picture to the display range."""
    if voi == "lut":
        return ["--use-voi-lut", "1"]
    if voi == "window":
        return ["--use-window", "1"]
    if voi == "none":  # 8 bits shown as they are: PS3.3 C.11.2.1.2 with c = 128, w = 256 is x / 255
        return ["--set-window", "128", "256"]
    with quiet():
        picture = file.picture()
    values = picture.values[picture.words].astype(float)
    slope, intercept = file.header.modality if isinstance(file.header.modality, tuple) else (1.0, 0.0)
    low, high = np.quantile(values * slope + intercept, [0.005, 0.995], method="inverted_cdf")
    # LINEAR is black at c - w / 2 and white at c + w / 2 - 1.
    return ["--set-window", str((low + high + 1) / 2), str(high - low + 1)]


def difference(ours: np.ndarray, shown: Shown) -> np.ndarray:
    return np.abs(quantise(ours, 8).astype(int) - shown.pixels)


def test_every_real_file_that_dcmtk_can_show_looks_the_same_within_one_grey_level(tmp_path):
    agreeing, undecodable, rejected = [], [], []
    for path in sorted(ROOT.rglob("*.dcm")):
        copy = Path(shutil.copy(path, tmp_path / "file.dcm"))
        try:
            got = read_radiograph(copy, **KEEP)
        except ImageRejectedError as error:
            rejected.append((path.name, error.reason))
            continue
        file = header_of(copy)
        if file.syntax in JPEG_2000:  # DCMTK's public version has no codec for it
            undecodable.append(path.name)
            continue
        options = window_of(file, got.notes["voi"])
        shown = show(copy, file.syntax, *options)
        if "cannot select VOI window 1" in shown.warnings:
            # GDCM wrote these files with the window's elements as VR UN; DCMTK does not look into those and shows
            # the whole range instead.  With the same numbers given on the command line it agrees.
            assert path.name.startswith(WRITTEN_BY_GDCM) and "--use-window" in options
            assert difference(got.pixels, shown).max() > 1
            window = file.header.voi
            assert isinstance(window, Window) and window.function == "LINEAR"
            shown = show(copy, file.syntax, "--set-window", str(window.center), str(window.width))
        assert shown.pixels.shape == got.pixels.shape, path.name
        assert difference(got.pixels, shown).max() <= 1, path.name
        agreeing.append(path.name)
    assert (len(agreeing), len(undecodable)) == (47, 12)
    assert rejected == [("CR_CHEST_header_only_japanese_name_chrJapMulti.dcm", "unreadable")]


def test_jpeg_2000_looks_the_same_once_another_library_has_decoded_it(tmp_path):
    agreeing = []
    for path in sorted(ROOT.rglob("*.dcm")):
        copy = Path(shutil.copy(path, tmp_path / "file.dcm"))
        source = header_of(copy)
        if source.syntax not in JPEG_2000:
            continue
        got = read_radiograph(copy, **KEEP)
        ds = dcmread(copy)
        ds.decompress(decoding_plugin="gdcm", generate_instance_uid=False)
        ds.save_as(copy)
        file = header_of(copy)
        options = window_of(file, got.notes["voi"])
        shown = show(copy, file.syntax, *options)
        if "cannot select VOI window 1" in shown.warnings:
            window = file.header.voi
            assert path.name.startswith(WRITTEN_BY_GDCM) and isinstance(window, Window)
            shown = show(copy, file.syntax, "--set-window", str(window.center), str(window.width))
        different = difference(got.pixels, shown)
        if path.name == OVERSHOOTING:
            # Lossy values reach 4114 under a BitsStored of 12.  DCMTK drops their 13th bit, so the blackest become
            # white (MONOCHROME1); we clip them.
            wrapped = source.picture().words > 4095
            assert wrapped.any() and (different[wrapped] > 200).all() and (got.pixels[wrapped] < 0.01).all()
            different = different[~wrapped]
        assert different.max() <= 1, path.name
        agreeing.append(path.name)
    assert len(agreeing) == 12
