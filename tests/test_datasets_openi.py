"""OpenI: reports in XML, headings with qualifiers, one image under the names of three downloads."""

import zlib

import numpy as np
import pandas as pd
import pytest

from cxrdist.datasets import detect, import_dataset, read_facts
from cxrdist.pack import PackOptions
from cxrdist.pack.dataset import pack_dataset
from tests.helpers import make_dicom
from tests.trees.files import imported, ones, reasons
from tests.trees.openi import make_openi, make_openi_kaggle

FORMS = {
    "dicom": make_openi,
    "png": lambda root: make_openi(root, png=True, dicom=False),
    "both": lambda root: make_openi(root, png=True),
    "kaggle": make_openi_kaggle,
}


@pytest.mark.parametrize("form", FORMS)
def test_headings_are_labels_in_every_form_of_the_collection(tmp_path, form):
    named = FORMS[form](tmp_path)
    found = imported(tmp_path, "openi", named, projection="all")
    # Not indexed, a poor image, no headings at all; in the downloads a file without a report, too.
    assert reasons(found) == {"missing_file": 1, "no_label_row": 3 + (form != "kaggle")}
    told = {row.patient: ones(row) for row in found.rows}
    assert told == {
        "1": {"no_finding"},
        "2": {"cardiomegaly"},
        "10": {"lung_opacity", "atelectasis"},  # a qualifier that is a finding's name is none
        "13": {"hernia"},  # normal beside a heading is not normal
    }
    assert {value for row in found.rows for value in row.findings.values()} == {0, 1}
    splits = {row.patient: set() for row in found.rows}
    for row in found.rows:
        splits[row.patient].add(row.split)
    assert len(found.rows) == 6 and all(len(of_patient) == 1 for of_patient in splits.values())


def test_of_an_images_two_files_the_dicom_one_is_read(tmp_path):
    make_openi(tmp_path, png=True)
    found = import_dataset(detect(tmp_path), tmp_path, projection="all")
    assert {row.path.suffix for row in found.rows} == {".dcm"}
    assert {row.source.rsplit("/", 2)[-2] for row in found.rows} == {"1", "2", "10", "13"}


def test_the_downloads_may_be_roots_of_their_own(tmp_path):
    named = make_openi(tmp_path)
    roots = [tmp_path / "NLMCXR_reports", tmp_path / "NLMCXR_dcm", tmp_path / "NLMCXR_png"]
    imported(roots, "openi", named, projection="all")


def test_kaggle_tells_frontal_from_lateral_and_figures_do_so_where_asked(tmp_path):
    make_openi_kaggle(tmp_path / "kaggle")
    found = import_dataset(read_facts("openi"), tmp_path / "kaggle")
    assert reasons(found)["projection_filtered"] == 2 and all(row.notes == {"frontal": True} for row in found.rows)
    make_openi(tmp_path / "png", png=True, dicom=False)
    found = import_dataset(read_facts("openi", variant="first_is_frontal"), tmp_path / "png")
    assert reasons(found)["projection_filtered"] == 2 and all(row.notes == {"frontal": True} for row in found.rows)


def test_without_kaggle_the_headers_alone_know_the_projection(tmp_path):
    views = iter(["PA", "LL", "AP", None, "LATERAL", "PA", "PA", "PA", "PA", "PA"])

    def image(path):
        pixels = np.random.default_rng(zlib.crc32(path.name.encode())).integers(0, 4096, (20, 20)).astype(np.uint16)
        make_dicom(path, pixels, BitsStored=12, ViewPosition=next(views), PatientBirthDate="19500101")

    make_openi(tmp_path / "raw", image=image)
    options = PackOptions(size=16, id_key=tmp_path / "key/id.key", max_reject=1.0)
    pack_dataset(read_facts("openi"), tmp_path / "raw", tmp_path / "shards", options, shown=False)
    index = pd.read_parquet(tmp_path / "shards/index.parquet")
    # A lateral and an unknown one are left out; nobody guesses.
    assert sorted(index["projection"]) == ["AP", "PA", "PA"]
