"""JSRT's raw films and object-CXR's foreign objects."""

import numpy as np
import pytest

from cxrdist.datasets import import_dataset, read_facts
from cxrdist.dicom import PixelHints, RawImage, read_radiograph
from tests.trees.files import by_name, imported, reasons
from tests.trees.jsrt import make_jsrt, make_object_cxr


@pytest.mark.parametrize("end", ["\r\n", "\n", "\r"])
@pytest.mark.parametrize("one_folder", [False, True])
def test_jsrts_tables_are_read_whatever_parts_their_lines_and_cells(tmp_path, one_folder, end):
    named = make_jsrt(tmp_path, one_folder=one_folder, end=end)
    found = imported(tmp_path, "jsrt", named)
    assert not read_facts("jsrt").has_patient_ids
    assert reasons(found) == {"missing_file": 1, "no_label_row": 1}
    assert {row.patient: (row.findings["nodule"], row.sex, row.age) for row in found.rows} == {
        "jpcln001": (1, "M", 53),
        "jpcln002": (1, "F", None),
        "jpcnn001": (0, "F", 59),
        "jpcnn002": (0, "M", None),
        "jpcnn003": (0, "M", 61),
    }
    assert {row.projection for row in found.rows} == {"PA"}
    hints = PixelHints(raw=RawImage(rows=2048, columns=2048, bits=12, big_endian=True), invert=True)
    assert {row.pixels for row in found.rows} == {hints}


def test_jsrts_air_is_dark_once_it_is_read(tmp_path):
    make_jsrt(tmp_path)
    facts = read_facts("jsrt", changes={"pixels.raw.rows": 40, "pixels.raw.columns": 30})
    row = by_name(import_dataset(facts, tmp_path))["JPCLN001.IMG"]
    film = np.full((40, 30), 3900, ">u2")  # blackened around the patient
    film[10:30, 8:22] = 600
    row.path.write_bytes(film.tobytes())
    pixels = read_radiograph(row.path, hints=row.pixels).pixels
    assert pixels.shape == (40, 30) and pixels[0].max() < 0.2 and pixels[20, 15] > 0.8


@pytest.mark.parametrize("image", ["image_name", "image"])
def test_object_cxr_has_a_blank_cell_where_there_is_nothing_and_dev_tests(tmp_path, image):
    named = make_object_cxr(tmp_path, image=image)
    found = imported(tmp_path, "object_cxr", named)
    assert not read_facts("object_cxr").has_patient_ids
    assert reasons(found) == {"missing_file": 1, "no_label_row": 2}
    rows = by_name(found)
    assert not [row for row in found.rows if row.source.startswith("test")]
    assert {name: row.findings for name, row in rows.items()} == {
        "00001.jpg": {"foreign_object": 1},
        "00002.jpg": {"foreign_object": 0},
        "00003.jpg": {"foreign_object": 1},
        "08001.jpg": {"foreign_object": 0},
        "08002.jpg": {"foreign_object": 1},
    }
    assert {name for name, row in rows.items() if row.split == "test"} == {"08001.jpg", "08002.jpg"}
