"""Drawn data sets lie on disk as the real ones do, with their traps, and are the same bytes every time."""

from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest

from cxrdist.dicom import read_radiograph
from cxrdist.errors import ImageRejectedError, UsageError, UserError
from cxrdist.phantom import write_phantoms
from cxrdist.phantom.layouts import chexpert, nih14, vindr_cxr
from tests.phantoms import files_in, plan_of, spine_and_lungs

SIDE = 64
PATIENTS = 48
FIRST = ("chexpert", "nih14", "vindr_cxr")
"""The layouts that are tested here; the others have files of their own."""

CHEXPERT_HEADER = (
    "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,"
    "Edema,Consolidation,Pneumonia,Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,Support Devices"
)
NIH_HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)
VINDR_HEADER = (
    "image_id,rad_id,Aortic enlargement,Atelectasis,Calcification,Cardiomegaly,Clavicle fracture,Consolidation,Edema,"
    "Emphysema,Enlarged PA,ILD,Infiltration,Lung Opacity,Lung cavity,Lung cyst,Mediastinal shift,Nodule/Mass,"
    "Pleural effusion,Pleural thickening,Pneumothorax,Pulmonary fibrosis,Rib fracture,Other lesion,COPD,Lung tumor,"
    "Pneumonia,Tuberculosis,Other diseases,No finding"
)
WHITE_LIST = {
    *("PatientSex", "PatientAge", "PatientSize", "PatientWeight", "PhotometricInterpretation", "Rows", "Columns"),
    *("PixelSpacing", "PixelAspectRatio", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
    *("SmallestImagePixelValue", "LargestImagePixelValue", "WindowCenter", "WindowWidth", "RescaleIntercept"),
    *("RescaleSlope", "LossyImageCompression", "SamplesPerPixel", "NumberOfFrames", "PixelData"),
}


@pytest.fixture(scope="module")
def roots(tmp_path_factory) -> dict[str, Path]:
    top = tmp_path_factory.mktemp("phantoms")
    for name in FIRST:
        write_phantoms(name, top / name, patients=PATIENTS, size=SIDE, shown=False)
    return {name: top / name for name in FIRST}


def test_the_number_of_workers_does_not_change_a_byte(tmp_path):
    options = {"patients": 20, "size": 48, "seed": 5, "shown": False}
    alone = write_phantoms("nih14", tmp_path / "alone", **options)
    pair = write_phantoms("nih14", tmp_path / "pair", workers=2, **options)
    assert files_in(tmp_path / "alone") == files_in(tmp_path / "pair")
    assert (alone.images, alone.findings) == (pair.images, pair.findings)


def test_writing_again_replaces_what_was_there_and_the_seed_matters(tmp_path):
    def write(**options) -> dict[str, bytes]:
        write_phantoms("nih14", tmp_path / "out", patients=4, size=48, shown=False, **options)
        return files_in(tmp_path / "out")

    first, other, again = write(seed=1), write(seed=2), write(seed=1)
    assert first == again
    assert first != other


def test_a_folder_with_other_files_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="written into an empty folder"):
        write_phantoms("nih14", tmp_path, patients=3, size=48, shown=False)
    assert files_in(tmp_path) == {"thesis.txt": b"years of work"}


def test_a_link_in_our_own_folder_is_removed_and_not_followed(tmp_path):
    write_phantoms("nih14", tmp_path / "out", patients=2, size=48, shown=False)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "thesis.txt").write_text("years of work")
    (tmp_path / "out" / "link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    write_phantoms("nih14", tmp_path / "out", patients=2, size=48, shown=False)
    assert (tmp_path / "elsewhere" / "thesis.txt").is_file()
    assert not (tmp_path / "out" / "link").exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"layout": "chexprt"}, "Did you mean 'chexpert'"),
        ({"prevalence": {"cardiomegali": 0.3}}, "Did you mean 'cardiomegaly'"),
        ({"prevalence": {"cardiomegaly": 1.3}}, "must lie in 0.0 .. 0.95, got 1.3"),
        ({"difficulty": 2.0}, "`difficulty` must lie in 0.0 .. 1.0, got 2.0"),
        ({"patients": 1}, "`patients` must lie in 2"),
        ({"size": 10}, "`size` must lie in 48"),
        ({"seed": -1}, "`seed` must lie in 0"),
    ],
)
def test_wrong_arguments_are_named(options, sentence, tmp_path):
    with pytest.raises(UsageError, match=sentence):
        write_phantoms(**{"layout": "chexpert", "out": tmp_path / "out", "patients": 4, "shown": False, **options})
    assert not (tmp_path / "out").exists()


def test_only_the_findings_asked_for_are_drawn(tmp_path):
    options = {"patients": 40, "size": 48, "shown": False, "traps": False}
    summary = write_phantoms("nih14", tmp_path, prevalence={"cardiomegaly": 0.5}, **options)
    assert set(summary.findings) == {"cardiomegaly", "no_finding"}
    assert 0.25 < summary.findings["cardiomegaly"] / summary.images < 0.75


def test_the_held_out_share_is_as_asked(tmp_path):
    options = {"patients": 20, "size": 48, "traps": False, "shown": False}
    few, many = (write_phantoms("vindr_cxr", tmp_path, held_out=share, **options) for share in (0.1, 0.6))
    assert (few.held_out, few.images) == (2, 20) and (many.held_out, many.images) == (12, 20)


def test_chexpert_has_the_columns_and_the_coding_of_the_real_one(roots):
    root = roots["chexpert"] / "CheXpert-v1.0-small"
    assert (root / "train.csv").read_text().splitlines()[0] == CHEXPERT_HEADER
    assert (root / "valid.csv").read_text().splitlines()[0] == CHEXPERT_HEADER
    assert list(chexpert.LABELS) == CHEXPERT_HEADER.split(",")[5:]
    train, valid = pd.read_csv(root / "train.csv"), pd.read_csv(root / "valid.csv")
    assert (
        train["Path"]
        .str.fullmatch(r"CheXpert-v1\.0-small/train/patient\d{5}/study\d+/view\d_(frontal|lateral)\.jpg")
        .all()
    )
    assert not set(train["Path"].str.extract(r"(patient\d+)")[0]) & set(valid["Path"].str.extract(r"(patient\d+)")[0])
    labels = train[list(chexpert.LABELS)]
    assert set(np.unique(labels.to_numpy()[labels.notna().to_numpy()])) == {-1.0, 0.0, 1.0}
    assert labels.isna().mean().mean() > 0.4
    assert set(labels["No Finding"].dropna()) == {1.0}
    assert valid[list(chexpert.LABELS)].isin([0.0, 1.0]).all(axis=None)
    lateral = train["Frontal/Lateral"] == "Lateral"
    assert lateral.any()
    assert (train.loc[lateral, "AP/PA"].isna()).all()
    assert set(train.loc[~lateral, "AP/PA"]) <= {"AP", "PA", "LL"}
    assert "Unknown" in set(train["Sex"]) | set(valid["Sex"])
    assert 0 in set(train["Age"]) | set(valid["Age"])


def test_chexpert_labels_belong_to_the_study(roots):
    train = pd.read_csv(roots["chexpert"] / "CheXpert-v1.0-small" / "train.csv")
    study = train["Path"].str.rsplit("/", n=1).str[0]
    rows = train[list(chexpert.LABELS)].fillna(9).groupby(study)
    assert (rows.size() > 1).any()
    assert (rows.nunique() == 1).all(axis=None)


def test_nih_has_the_bracketed_header_and_disjoint_lists(roots):
    root = roots["nih14"]
    table = root / "Data_Entry_2017_v2020.csv"
    assert table.read_text().splitlines()[0] == NIH_HEADER == nih14.HEADER
    rows = pd.read_csv(table)
    assert len(rows.columns) == 11
    assert (rows["Image Index"].str[:8].astype(int) == rows["Patient ID"]).all()
    assert set(rows["Finding Labels"].str.split("|").explode()) <= {*nih14.LABELS, "No Finding"}
    assert set(rows["View Position"]) == {"PA", "AP"}
    lists = [(root / name).read_text().split() for name in ("train_val_list.txt", "test_list.txt")]
    assert sorted(lists[0] + lists[1]) == sorted(rows["Image Index"])
    assert not {name[:8] for name in lists[0]} & {name[:8] for name in lists[1]}
    follow_up = rows.groupby("Patient ID")["Follow-up #"]
    assert (follow_up.max() == follow_up.size() - 1).all()


def test_vindr_has_three_readers_and_a_consensus(roots):
    folder = roots["vindr_cxr"] / "annotations"
    train_header = (folder / "image_labels_train.csv").read_text().splitlines()[0]
    test_header = (folder / "image_labels_test.csv").read_text().splitlines()[0]
    assert train_header == VINDR_HEADER
    assert test_header == VINDR_HEADER.replace("rad_id,", "").replace("Other diseases", "Other disease")
    train, test = (pd.read_csv(folder / f"image_labels_{part}.csv") for part in ("train", "test"))
    assert (train.groupby("image_id")["rad_id"].nunique() == 3).all()
    assert (train.groupby("image_id").size() == 3).all()
    assert not set(train["image_id"]) & set(test["image_id"])
    names = list(vindr_cxr.LABELS)
    findings = [name for name in names if name != "No finding"]
    for table in (train, test.rename(columns={"Other disease": "Other diseases"})):
        assert ((table["No finding"] == 1) == (table[findings].sum(axis=1) == 0)).all()
    votes = train.groupby("image_id")[names].sum()
    assert votes.isin([1, 2]).any(axis=None), "readers disagree somewhere"
    abnormal = votes["No finding"] < 2
    assert (abnormal & (votes[findings].max(axis=1) < 2)).any(), "an abnormal image has no majority"


def test_vindr_files_hold_white_listed_tags_in_every_variant(roots):
    seen = set()
    for path in sorted(roots["vindr_cxr"].rglob("*.dicom")):
        try:
            header = pydicom.dcmread(path)
        except pydicom.errors.InvalidDicomError:
            continue
        assert {element.keyword for element in header} <= WHITE_LIST
        seen.add((header.file_meta.TransferSyntaxUID.name, header.PhotometricInterpretation, header.BitsStored))
    assert {syntax for syntax, _, _ in seen} == {
        "Explicit VR Little Endian",
        "JPEG 2000 Image Compression (Lossless Only)",
    }
    assert {photometric for _, photometric, _ in seen} == {"MONOCHROME1", "MONOCHROME2"}
    assert {bits for _, _, bits in seen} == {12, 14}


@pytest.mark.parametrize("layout", FIRST)
def test_every_file_decodes_to_bright_spine_and_dark_lungs(layout, roots):
    unreadable = 0
    for path in sorted(roots[layout].rglob("*")):
        if path.suffix not in {".jpg", ".png", ".dicom"} or "lateral" in path.name:
            continue
        try:
            shown = read_radiograph(path).pixels
        except ImageRejectedError:
            unreadable += 1
            continue
        spine, lungs = spine_and_lungs(shown)
        assert spine > max(min(lungs), 0.5), path.suffix
    assert unreadable == 1, "one planted file is cut short"


@pytest.mark.parametrize("layout", FIRST)
def test_traps_are_planted(layout, roots):
    assert {"index.html", ".DS_Store"} <= {path.name for path in roots[layout].rglob("*")}
    missing = [item.path for item in plan_of(roots[layout])[0] if not (roots[layout] / item.path).is_file()]
    assert len(missing) == 1, "one file that the table names is missing"


def test_nih_has_a_few_colour_files_with_an_alpha_channel(tmp_path):
    write_phantoms("nih14", tmp_path, patients=40, size=48, prevalence={}, traps=False, shown=False)
    kinds = [path.read_bytes()[25] for path in sorted((tmp_path / "images").glob("*.png"))]  # PNG colour type
    assert 6 in kinds
    assert kinds.count(0) > 0.8 * len(kinds)
