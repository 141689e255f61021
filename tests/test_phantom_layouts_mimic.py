"""MIMIC-CXR as drawn: two projects of the same images, and two data sets about them, with their traps."""

import gzip
import io
import re
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pydicom
import pytest

from cxrdist.dicom import read_radiograph
from cxrdist.phantom import write_phantoms
from cxrdist.phantom.layouts import mimic_derived
from cxrdist.phantom.layouts.chex14 import LABELS
from tests.phantoms import plan_of, spine_and_lungs

PATIENTS, SIDE, SEED = 14, 64, 3

METADATA = (
    "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns,StudyDate,StudyTime,"
    "ProcedureCodeSequence_CodeMeaning,ViewCodeSequence_CodeMeaning,PatientOrientationCodeSequence_CodeMeaning"
)
LABEL_NAMES = (
    "Atelectasis,Cardiomegaly,Consolidation,Edema,Enlarged Cardiomediastinum,Fracture,Lung Lesion,Lung Opacity,"
    "No Finding,Pleural Effusion,Pleural Other,Pneumonia,Pneumothorax,Support Devices"
)


@pytest.fixture(scope="module")
def roots(tmp_path_factory) -> dict[str, Path]:
    top = tmp_path_factory.mktemp("mimic")
    names = ("mimic_cxr", "mimic_cxr_jpg", "reflacx", "edema_severity")
    for name in names:
        write_phantoms(name, top / name, patients=PATIENTS, size=SIDE, seed=SEED, shown=False)
    return {name: top / name for name in names}


def table(roots: dict[str, Path], name: str, **options) -> pd.DataFrame:
    return pd.read_csv(roots["mimic_cxr_jpg"] / name, **options)


def images(root: Path, suffix: str) -> dict[str, Path]:
    return {path.name.split(".")[0]: path for path in sorted(root.rglob(f"*{suffix}*"))}


def read_header(path: Path) -> pydicom.Dataset:
    data = path.read_bytes()
    return pydicom.dcmread(io.BytesIO(gzip.decompress(data) if path.suffix == ".gz" else data))


def test_both_projects_hold_the_same_images_of_the_same_patients(roots):
    records = pd.read_csv(roots["mimic_cxr"] / "cxr-record-list.csv.gz")
    metadata = table(roots, "mimic-cxr-2.0.0-metadata.csv.gz")
    keys = ["dicom_id", "subject_id", "study_id"]
    assert records[keys].equals(metadata[keys])
    assert list(records.columns) == ["subject_id", "study_id", "dicom_id", "path"]
    names = (roots["mimic_cxr_jpg"] / "IMAGE_FILENAMES").read_text().split()
    assert [name.removesuffix(".jpg") for name in names] == [path.removesuffix(".dcm") for path in records["path"]]
    assert set(images(roots["mimic_cxr"], ".dcm")) == set(images(roots["mimic_cxr_jpg"], ".jpg"))


def test_one_file_is_packed_though_the_list_does_not_say_so(roots):
    packed = list(roots["mimic_cxr"].rglob("*.dcm.gz"))
    assert len(packed) == 1
    records = pd.read_csv(roots["mimic_cxr"] / "cxr-record-list.csv.gz")
    assert records["path"].str.endswith(f"/{packed[0].stem}").sum() == 1


def test_ids_and_folders_are_of_the_real_form(roots):
    records = pd.read_csv(roots["mimic_cxr"] / "cxr-record-list.csv.gz")
    ids = r"files/p(1\d)/p(1\d{7})/s(5\d{7})/([0-9a-f]{8}-){4}[0-9a-f]{8}\.dcm"
    for row in records.itertuples():
        match = re.fullmatch(ids, row.path)
        assert match
        assert (int(match[2]), int(match[3])) == (row.subject_id, row.study_id)
        assert str(row.subject_id).startswith(match[1])
    assert records["dicom_id"].is_unique
    assert (records.groupby("study_id")["subject_id"].nunique() == 1).all()


def test_a_jpeg_is_the_dicom_stretched_turned_and_equalised(roots):
    jpgs = images(roots["mimic_cxr_jpg"], ".jpg")
    compared = 0
    for name, path in images(roots["mimic_cxr"], ".dcm").items():
        header = read_header(path)
        try:
            stored = header.pixel_array.astype(float)
        except Exception:
            continue  # the torn one
        grey = ((stored - stored.min()) / (stored.max() - stored.min()) * 255).astype(np.uint8)
        grey = 255 - grey if header.PhotometricInterpretation == "MONOCHROME1" else grey
        shown = cv2.imread(str(jpgs[name]), cv2.IMREAD_GRAYSCALE)
        assert np.abs(cv2.equalizeHist(grey).astype(int) - shown).mean() < 3
        compared += 1
    assert compared >= len(jpgs) - 2


def test_dicom_files_come_in_every_variant_and_say_how_they_were_cleaned(roots):
    seen = set()
    for path in images(roots["mimic_cxr"], ".dcm").values():
        header = read_header(path)
        seen |= {("photometric", header.PhotometricInterpretation), ("bits", header.BitsStored)}
        seen |= {("syntax", header.file_meta.TransferSyntaxUID.name), ("container", header.BitsAllocated)}
        assert header.SOPClassUID == "1.2.840.10008.5.1.4.1.1.1.1"
        assert {item.CodeValue for item in header.DeidentificationMethodCodeSequence} >= {"113100", "113101"}
        assert header.SOPInstanceUID.startswith("2.25.") and header.StudyInstanceUID.startswith("2.25.")
        assert header.StudyDate.startswith("21")
        assert header.PatientName == ""
    assert {("photometric", "MONOCHROME1"), ("photometric", "MONOCHROME2"), ("container", 16)} <= seen
    assert {("bits", 12), ("bits", 14)} <= seen
    assert {("syntax", "Explicit VR Little Endian"), ("syntax", "Implicit VR Little Endian")} <= seen


def test_a_report_lies_beside_its_study_and_is_signed_by_nobody(roots):
    root = roots["mimic_cxr"]
    studies = pd.read_csv(root / "cxr-study-list.csv.gz")
    with zipfile.ZipFile(root / "mimic-cxr-reports.zip") as archive:
        for row in studies.itertuples():
            report = root / row.path
            assert report.with_suffix("").is_dir()
            text = report.read_text()
            assert "Unreal-Phantasma" in text
            assert archive.read(row.path).decode() == text


def test_blank_views_have_a_code_to_fall_back_on_and_one_has_not(roots):
    metadata = table(roots, "mimic-cxr-2.0.0-metadata.csv.gz", keep_default_na=False, dtype=str)
    assert ",".join(metadata.columns) == METADATA
    assert set(metadata["ViewPosition"]) == {"AP", "PA", "LATERAL", "LL", "XTABLE LATERAL", ""}
    blank = metadata[metadata["ViewPosition"] == ""]
    assert {"", "lateral"} < set(blank["ViewCodeSequence_CodeMeaning"])
    assert set(blank["ViewCodeSequence_CodeMeaning"]) & {"postero-anterior", "antero-posterior"}
    frontal = metadata["ViewPosition"].isin(["AP", "PA"])
    coded = {"AP": "antero-posterior", "PA": "postero-anterior"}
    told = metadata[frontal & (metadata["ViewCodeSequence_CodeMeaning"] != "")]
    assert (told["ViewCodeSequence_CodeMeaning"] == told["ViewPosition"].map(coded)).all()


def test_the_split_is_by_patient_and_has_three_parts(roots):
    split = table(roots, "mimic-cxr-2.0.0-split.csv.gz")
    assert list(split.columns) == ["dicom_id", "study_id", "subject_id", "split"]
    assert set(split["split"]) == {"train", "validate", "test"}
    assert (split.groupby("subject_id")["split"].nunique() == 1).all()


@pytest.mark.parametrize("labeller", ["chexpert", "negbio"])
def test_one_study_has_no_label_row_and_one_a_row_of_blanks(labeller, roots):
    labels = table(roots, f"mimic-cxr-2.0.0-{labeller}.csv.gz")
    names = list(labels.columns[2:])
    assert ",".join(labels.columns) == f"subject_id,study_id,{LABEL_NAMES}"
    studies = set(table(roots, "mimic-cxr-2.0.0-metadata.csv.gz")["study_id"])
    assert len(studies - set(labels["study_id"])) == 1
    assert labels["study_id"].is_unique
    assert labels[names].isna().all(axis=1).sum() == 1
    values = labels[names].to_numpy()
    assert set(values[~np.isnan(values)]) == {1.0, 0.0, -1.0}
    assert (labels["No Finding"] == 1).sum() > 1


def test_labels_are_of_what_is_drawn(roots):
    labels = table(roots, "mimic-cxr-2.0.0-chexpert.csv.gz").set_index("study_id")
    drawn = {item.facts["study_id"]: item.labels for item in plan_of(roots["mimic_cxr_jpg"])[0]}
    certain = 0
    for study, row in labels.iterrows():
        for column, name in LABELS.items():
            if row[column] in (0.0, 1.0):
                assert (name in drawn[study]) == bool(row[column]), column
                certain += 1
    assert certain > 50


def test_the_radiologists_test_set_names_no_patient_and_calls_one_column_otherwise(roots):
    read = table(roots, "mimic-cxr-2.1.0-test-set-labeled.csv")
    assert len(read.columns) == 15
    assert "subject_id" not in read and "Lung Opacity" not in read
    assert {"study_id", "Airspace Opacity"} < set(read.columns)
    split = table(roots, "mimic-cxr-2.0.0-split.csv.gz")
    assert set(read["study_id"]) <= set(split.loc[split["split"] == "test", "study_id"])


def test_downloads_leave_their_marks(roots):
    for name in ("mimic_cxr", "mimic_cxr_jpg"):
        root = roots[name]
        assert len(list(root.rglob("index.html"))) == 3
        listed = [line.split() for line in (root / "SHA256SUMS.txt").read_text().splitlines()]
        missing = [path for _, path in listed if not (root / path).is_file()]
        assert len(missing) == 1
    data = (roots["mimic_cxr_jpg"] / "mimic-cxr-2.0.0-split.csv.gz").read_bytes()
    assert data[4:8] == bytes(4), "a date in the archive would change its bytes"
    assert gzip.decompress(data).startswith(b"dicom_id")


def test_reflacx_names_images_that_are_there_with_several_readers(roots):
    root = roots["reflacx"]
    for phase in (1, 2, 3):
        rows = pd.read_csv(root / mimic_derived.REFLACX / "main_data" / f"metadata_phase_{phase}.csv")
        names = list(mimic_derived.PHASE_1 if phase == 1 else mimic_derived.PHASES_2_3)
        assert rows[names].isin(range(6)).all(axis=None)
        assert rows["id"].is_unique
        readings = rows.groupby("dicom_id").size()
        assert set(readings) == ({1} if phase == 3 else {5})
        assert ("Quality issue" in rows) == (phase == 1)
        assert rows["image"].str.fullmatch(r"physionet\.org/files/mimic-cxr/2\.0\.0/files/p1\d/p\d+/s\d+/.*\.dcm").all()
        found = [(root / path.removeprefix("physionet.org/files/")).is_file() for path in rows["image"]]
        assert np.mean(found) > 0.8
    drawn = {item.facts["dicom_id"]: item.labels for item in plan_of(roots["reflacx"])[0]}
    rows = pd.read_csv(root / mimic_derived.REFLACX / "main_data" / "metadata_phase_1.csv")
    sure = rows.groupby("dicom_id")["Enlarged cardiac silhouette"].median()
    assert all((sure[name] >= 4) == ("cardiomegaly" in drawn[name]) for name in sure.index)


def test_edema_grades_are_of_studies_and_of_test_images_and_say_how_much_is_drawn(roots):
    folder = roots["edema_severity"] / mimic_derived.EDEMA
    rules, experts, consensus = (
        pd.read_csv(folder / f"{name}_edema_severity.csv")
        for name in ("regex_report", "expert_report", "consensus_image")
    )
    assert list(rules.columns) == list(experts.columns) == ["subject_id", "study_id", "edema_severity"]
    assert list(consensus.columns) == ["subject_id", "study_id", "dicom_id", "edema_severity"]
    assert set(experts["study_id"]) < set(rules["study_id"])
    assert not set(rules["subject_id"]) & set(consensus["subject_id"])
    items, _ = plan_of(roots["edema_severity"])
    by_study = {item.facts["study_id"]: "edema" in item.findings for item in items}
    by_image = {item.facts["dicom_id"]: "edema" in item.findings for item in items}
    assert all((row.edema_severity > 0) == by_study[row.study_id] for row in rules.itertuples())
    assert all((row.edema_severity > 0) == by_image[row.dicom_id] for row in consensus.itertuples())
    assert set(rules["edema_severity"]) == {0, 1, 2, 3}
    images = pd.read_csv(roots["edema_severity"] / mimic_derived.IMAGES / "cxr-record-list.csv.gz")
    assert set(images["study_id"]) == set(rules["study_id"]) | set(consensus["study_id"])


def test_every_whole_file_shows_a_chest(roots):
    torn = 0
    for name, suffix in (("mimic_cxr", ".dcm"), ("mimic_cxr_jpg", ".jpg")):
        frontal = {
            item.facts["dicom_id"] for item in plan_of(roots["mimic_cxr_jpg"])[0] if item.projection != "lateral"
        }
        for image, path in images(roots[name], suffix).items():
            try:
                shown = read_radiograph(path).pixels
            except Exception:
                torn += 1
                continue
            spine, lungs = spine_and_lungs(shown)
            assert image not in frontal or spine > max(min(lungs), 0.5)
    assert torn == 2
