"""Real radiographs in every transfer syntax that could be found or made."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest

from cxrdist.dicom import Radiograph
from cxrdist.dicom import read_radiograph as read_with_policy
from cxrdist.errors import REJECT_REASONS, ImageRejectedError

pytestmark = [
    pytest.mark.realdata,
    pytest.mark.skipif("CXRDIST_REALDATA" not in os.environ, reason="CXRDIST_REALDATA does not name a folder"),
]
ROOT = Path(os.environ.get("CXRDIST_REALDATA", "."))
LOSSLESS = {
    "CR-MONO1-10-chest": "ELE ILE EBE DEFL RLE RLE_dcmtk JPLL14 JPLL JPLL_dcmtk_fragmented JLSL J2KR",
    "RG1_thirdres_15bit": "ELE RLE JPLL JLSL J2KR",
    "NIH_google_512_8bit": "ILE RLE JPLL JLSL J2KR",
}


def read_radiograph(path: Path) -> Radiograph:
    """Read a file whatever is written in its pixels: some hospitals burn PORTABLE and UPRIGHT into theirs."""
    return read_with_policy(path, burned_in_text="flag", declared_text="flag")


def test_every_file_is_rendered_or_rejected_with_a_reason():
    paths = sorted((ROOT / "dicom").rglob("*.dcm"))
    assert len(paths) == 60
    rejected = {}
    for path in paths:
        try:
            got = read_radiograph(path)
        except ImageRejectedError as error:
            rejected[path.name] = error.reason
            assert error.reason in REJECT_REASONS and path.stem not in error.detail
            continue
        assert got.pixels.dtype == np.float32
        assert 0 <= got.pixels.min() < got.pixels.max() <= 1
    assert rejected == {"CR_CHEST_header_only_japanese_name_chrJapMulti.dcm": "unreadable"}


@pytest.mark.parametrize("stem", LOSSLESS)
def test_lossless_transcodings_of_one_image_give_identical_pixels(stem):
    first, *others = (
        read_radiograph(ROOT / "dicom/transcoded" / f"{stem}_{syntax}.dcm") for syntax in LOSSLESS[stem].split()
    )
    for other in others:
        np.testing.assert_array_equal(other.pixels, first.pixels)


def test_wrapped_radiographs_look_like_the_png_they_were_made_of():
    with (ROOT / "dicom/wrapped_nih/labels.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        got = read_radiograph(ROOT / row["path"])
        png = read_radiograph(ROOT / "nih_cxr14/images" / row["Image Index"])
        small = got.pixels[: 512 // 8 * 8, : 512 // 8 * 8].reshape(64, 8, 64, 8).mean((1, 3))
        size = png.pixels.shape[0] // 64 * 64
        like = png.pixels[:size, :size].reshape(64, size // 64, 64, size // 64).mean((1, 3))
        assert np.corrcoef(small.ravel(), like.ravel())[0, 1] > 0.95, row["transfer_syntax"]  # the same way round
        assert got.projection == row["View Position"]
