"""PadChest, UKA-CXR, RSNA Pneumonia, SIIM-ACR Pneumothorax and BRAX as drawn, with what makes the real ones hard."""

import ast
import re
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pydicom
import pytest

from cxrdist.dicom import read_radiograph
from cxrdist.phantom import LAYOUTS, write_phantoms
from cxrdist.phantom.layouts import brax, padchest, rsna_pneumonia, siim_ptx, uka_cxr
from cxrdist.phantom.layouts.chex14 import LABELS
from tests.phantoms import plan_of

SIDE, SEED = 64, 3
PATIENTS = {"padchest": 16, "uka_cxr": 14, "rsna_pneumonia": 30, "siim_ptx": 30, "brax": 14}

PADCHEST_HEADER = (
    "ImageID,ImageDir,StudyDate_DICOM,StudyID,PatientID,PatientBirth,PatientSex_DICOM,ViewPosition_DICOM,"
    "Projection,MethodProjection,Pediatric,Modality_DICOM,Manufacturer_DICOM,PhotometricInterpretation_DICOM,"
    "PixelRepresentation_DICOM,PixelAspectRatio_DICOM,SpatialResolution_DICOM,BitsStored_DICOM,WindowCenter_DICOM,"
    "WindowWidth_DICOM,Rows_DICOM,Columns_DICOM,XRayTubeCurrent_DICOM,Exposure_DICOM,ExposureInuAs_DICOM,"
    "ExposureTime,RelativeXRayExposure_DICOM,ReportID,Report,MethodLabel,Labels,Localizations,"
    "LabelsLocalizationsBySentence,labelCUIS,LocalizationsCUIS"
)


@pytest.fixture(scope="module")
def roots(tmp_path_factory) -> dict[str, Path]:
    top = tmp_path_factory.mktemp("tables")
    for name, patients in PATIENTS.items():
        write_phantoms(name, top / name, patients=patients, size=SIDE, seed=SEED, shown=False)
    return {name: top / name for name in PATIENTS}


# ---- PadChest


@pytest.fixture(scope="module")
def chest(roots) -> pd.DataFrame:
    return pd.read_csv(roots["padchest"] / padchest.TABLE, dtype=str, keep_default_na=False)


def test_padchest_has_the_columns_of_the_real_one_and_ids_that_no_float_holds(chest):
    assert ",".join(chest.columns) == f"Unnamed: 0,{PADCHEST_HEADER}"
    assert chest["PatientID"].str.fullmatch(r"\d{30,}").all()
    assert chest["StudyID"].str.fullmatch(r"\d{30,}").all()
    assert chest["ImageID"].str.fullmatch(r"\d{40,}_\d\d-\d{3}-\d{3}\.png").all()
    assert (chest.groupby("StudyID")["PatientID"].nunique() == 1).all()
    assert chest["ImageDir"].str.endswith(".0").any() and not chest["ImageDir"].str.endswith(".0").all()


def test_padchest_pngs_lie_in_their_folder_with_sixteen_bits(chest, roots):
    top = 0
    for row in chest.itertuples():
        path = roots["padchest"] / str(int(float(row.ImageDir))) / row.ImageID
        pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED) if path.is_file() else None
        if pixels is not None:
            assert pixels.dtype == np.uint16 and pixels.ndim == 2
            top = max(top, int(pixels.max()))
    assert 60_000 < top <= 65_519, "white is 4095/4096 of the range"


def test_padchest_lists_have_blanks_and_every_odd_word(chest):
    cells = set(chest["Labels"])
    assert {"", "[]", "['unchanged']"} <= cells
    words = [word for cell in cells if cell for word in ast.literal_eval(cell)]
    assert any(word.startswith(" ") for word in words)
    assert "" in words
    plain = {word.strip() for word in words}
    assert {"normal", "exclude", "suboptimal study", "unchanged"} <= plain
    assert {"pericardial effusion", "pseudonodule", "subcutaneous emphysema"} <= plain
    sentences = chest.loc[~chest["Labels"].isin(["", "[]"]), "LabelsLocalizationsBySentence"]
    assert sentences.str.contains("'normal'").all(), "sentences are normal where images are not"


def test_padchest_labels_are_those_of_the_report_and_of_what_is_drawn(chest, roots):
    assert (chest.groupby("StudyID")["Labels"].agg(lambda cells: len({_words(cell) for cell in cells})) == 1).all()
    items, _ = plan_of(roots["padchest"])
    names = {
        "cardiomegaly": "cardiomegaly",
        "effusion": "pleural effusion",
        "emphysema": "emphysema",
        "nodule": "nodule",
    }
    for item, cell in zip(items, chest["Labels"], strict=True):
        words = _words(cell)
        if not words or "unchanged" in words:
            continue
        for finding, word in names.items():
            assert (finding in item.findings) == (word in words)
        assert ("normal" in words) <= ("no_finding" in item.labels)


def _words(cell: str) -> frozenset[str]:
    return frozenset(word.strip() for word in ast.literal_eval(cell)) if cell else frozenset()


def test_padchest_has_rare_projections_children_and_births_to_come(chest):
    assert {"PA", "L", "AP", "AP_horizontal", "COSTAL"} == set(chest["Projection"])
    assert set(chest["Pediatric"]) == {"No", "PED"}
    ages = chest["StudyDate_DICOM"].str[:4].astype(int) - chest["PatientBirth"].astype(int)
    assert (ages < 0).any()
    assert (ages[(chest["Pediatric"] == "PED") & (ages >= 0)] < 18).all()
    assert (ages[(chest["Pediatric"] == "No") & (ages >= 0)] >= 18).all()


def test_padchest_monochrome1_was_not_inverted(chest, roots):
    inverse = chest["PhotometricInterpretation_DICOM"] == "MONOCHROME1"
    assert inverse.any()
    for row in chest[inverse].itertuples():
        shown = read_radiograph(roots["padchest"] / str(int(float(row.ImageDir))) / row.ImageID).pixels
        rows, columns = shown.shape
        assert shown[rows // 2, int(0.47 * columns) : int(0.53 * columns)].mean() < 0.5, "the spine is dark"


# ---- UKA-CXR


def test_uka_has_grades_by_side_of_what_is_drawn(roots):
    rows = pd.read_csv(roots["uka_cxr"] / uka_cxr.TABLE, dtype={"patient_id": str})
    assert list(rows.columns) == list(uka_cxr.HEADER)
    grades = rows.columns[6:-1]
    assert rows[grades].isin([1, 2, 3, 4]).mean().mean() > 0.97
    assert (rows[grades] > 4).any(axis=None)
    assert set(rows["gender"]) == {0, 1} and set(rows["healthy"]) == {0, 1}
    assert set(rows["split"]) == {"train", "valid", "test"}
    assert (rows.groupby("patient_id")["split"].nunique() == 1).all()
    items, _ = plan_of(roots["uka_cxr"])
    for item, row in zip(items, rows.to_dict("records"), strict=True):
        sides = [row["pleural_effusion_right"], row["pleural_effusion_left"]]
        assert (max(sides) >= 3) == ("effusion" in item.findings)
        assert (row["cardiomegaly"] >= 3) == ("cardiomegaly" in item.findings)
        assert row["healthy"] == ("no_finding" in item.labels)
        assert (roots["uka_cxr"] / "images" / row["subset"] / f"{row['image_id']}.jpg") == roots["uka_cxr"] / item.path
    one_sided = (rows["pneumothorax_right"] >= 3) != (rows["pneumothorax_left"] >= 3)
    assert one_sided.any()


def test_uka_sides_are_those_of_the_picture(tmp_path):
    write_phantoms(
        "uka_cxr", tmp_path, patients=24, size=96, difficulty=0, prevalence={"effusion": 0.5}, traps=False, shown=False
    )
    rows = pd.read_csv(tmp_path / uka_cxr.TABLE)
    right = (rows["pleural_effusion_right"] >= 3) & (rows["pleural_effusion_left"] < 3)
    left = (rows["pleural_effusion_left"] >= 3) & (rows["pleural_effusion_right"] < 3)
    assert right.sum() > 2 and left.sum() > 2
    tilt = {
        name: np.mean([_base_tilt(tmp_path, row) for row in rows[which].itertuples()])
        for name, which in (("right", right), ("left", left))
    }
    assert tilt["right"] > tilt["left"] + 0.1, "fluid on the patient's right is white on the picture's left"


def _base_tilt(root: Path, row) -> float:
    grey = read_radiograph(root / "images" / row.subset / f"{row.image_id}.jpg").pixels
    rows, columns = grey.shape
    low, middle = slice(int(0.55 * rows), int(0.72 * rows)), columns // 2
    side = int(0.3 * min(rows, columns)), int(0.12 * min(rows, columns))
    return float(
        grey[low, middle - side[0] : middle - side[1]].mean() - grey[low, middle + side[1] : middle + side[0]].mean()
    )


# ---- RSNA Pneumonia


def test_rsna_has_a_row_per_box_and_the_class_of_each_row_again(roots):
    labels = pd.read_csv(roots["rsna_pneumonia"] / "stage_2_train_labels.csv")
    classes = pd.read_csv(roots["rsna_pneumonia"] / "stage_2_detailed_class_info.csv")
    assert list(labels.columns) == ["patientId", "x", "y", "width", "height", "Target"]
    assert list(classes.columns) == ["patientId", "class"]
    assert labels["patientId"].equals(classes["patientId"])
    assert labels["patientId"].duplicated().any()
    assert set(classes["class"]) == {"Normal", "Lung Opacity", "No Lung Opacity / Not Normal"}
    assert ((classes["class"] == "Lung Opacity") == (labels["Target"] == 1)).all()
    assert labels.loc[labels["Target"] == 0, ["x", "y", "width", "height"]].isna().all(axis=None)
    boxes = labels[labels["Target"] == 1]
    assert (boxes["x"] + boxes["width"] <= SIDE).all() and (boxes["y"] + boxes["height"] <= SIDE).all()
    items, _ = plan_of(roots["rsna_pneumonia"])
    drawn = {item.facts["name"] for item in items if "pneumonia" in item.findings and item.facts["part"] == "train"}
    assert set(boxes["patientId"]) == drawn


def test_rsna_boxes_hold_what_is_drawn(tmp_path):
    options = {"patients": 16, "size": 128, "difficulty": 0, "seed": 1, "traps": False, "shown": False}
    write_phantoms("rsna_pneumonia", tmp_path / "ill", prevalence={"pneumonia": 0.7}, **options)
    write_phantoms("rsna_pneumonia", tmp_path / "well", prevalence={}, **options)
    labels = pd.read_csv(tmp_path / "ill" / "stage_2_train_labels.csv").dropna()
    brighter = []
    for row in labels.itertuples():
        pictures = [
            read_radiograph(tmp_path / kind / "stage_2_train_images" / f"{row.patientId}.dcm").pixels.astype(float)
            for kind in ("ill", "well")
        ]
        change = pictures[0] - pictures[1]
        inside = np.zeros(change.shape, bool)
        inside[int(row.y) : int(row.y + row.height), int(row.x) : int(row.x + row.width)] = True
        brighter.append(change[inside].mean() - np.median(change))
    assert len(brighter) > 8
    assert np.mean(np.array(brighter) > 0.02) > 0.9


def test_rsna_files_are_eight_bit_jpegs_with_a_view_and_an_age_without_a_unit(roots):
    root = roots["rsna_pneumonia"]
    ages, views = [], set()
    for path in sorted((root / "stage_2_train_images").glob("*.dcm")):
        header = pydicom.dcmread(path, stop_before_pixels=True)
        if "BitsStored" not in header:
            continue  # the torn one
        assert header.file_meta.TransferSyntaxUID.name == "JPEG Baseline (Process 1)"
        assert (header.BitsStored, header.ConversionType, header.Modality) == (8, "WSD", "CR")
        assert header.PatientID == path.stem
        ages.append(int(header.get_item("PatientAge").value))
        views.add(header.ViewPosition)
    assert views == {"PA", "AP"}
    assert max(ages) > 100 and sorted(ages)[-2] < 100
    labelled = set(pd.read_csv(root / "stage_2_train_labels.csv")["patientId"])
    test = {path.stem for path in (root / "stage_2_test_images").glob("*.dcm")}
    assert test and not test & labelled


# ---- SIIM-ACR Pneumothorax


def decode(code: str, side: int) -> np.ndarray:
    """As the competition's own script does: offsets from the end of the last run, column by column."""
    mask = np.zeros(side * side, bool)
    numbers = [int(part) for part in code.split()]
    position = 0
    for gap, length in zip(numbers[::2], numbers[1::2], strict=True):
        position += gap
        mask[position : position + length] = True
        position += length
    return mask.reshape(side, side).T


def test_siim_masks_are_relative_runs_of_the_drawn_pneumothorax(roots):
    root = roots["siim_ptx"]
    assert (root / "train-rle.csv").read_text().splitlines()[0] == "ImageId, EncodedPixels"
    first = pd.read_csv(root / "train-rle.csv", skipinitialspace=True)
    both = pd.read_csv(root / "stage_2_train.csv")
    assert list(both.columns) == ["ImageId", "EncodedPixels"]
    assert set(first["ImageId"]) < set(both["ImageId"])
    items, order = plan_of(roots["siim_ptx"])
    by_name = {item.facts["uids"][2]: item for item in items}
    several = 0
    for name, rows in both.groupby("ImageId"):
        codes = [code.strip() for code in rows["EncodedPixels"]]
        masks = siim_ptx.masks_of(by_name[name], order)
        assert (codes == ["-1"]) == (not masks) == ("pneumothorax" not in by_name[name].findings)
        several += len(masks) > 1
        for code, mask in zip(codes if masks else [], masks, strict=True):
            assert np.array_equal(decode(code, SIDE), mask) and mask.any()
    assert several
    assert {code for code in both["EncodedPixels"] if code.strip() == "-1"} == {"-1", " -1"}


def test_siim_masks_lie_where_the_pneumothorax_is_dark(tmp_path):
    options = {"patients": 16, "size": 128, "difficulty": 0, "seed": 1, "traps": False, "shown": False}
    write_phantoms("siim_ptx", tmp_path / "ill", prevalence={"pneumothorax": 0.7}, **options)
    write_phantoms("siim_ptx", tmp_path / "well", prevalence={}, **options)
    rows = pd.read_csv(tmp_path / "ill" / "stage_2_train.csv")
    rows = rows[rows["EncodedPixels"].str.strip() != "-1"]
    darker = []
    for name, group in rows.groupby("ImageId"):
        mask = np.any([decode(code, 128) for code in group["EncodedPixels"]], axis=0)
        change = [read_radiograph(next((tmp_path / kind).rglob(f"{name}.dcm"))).pixels for kind in ("ill", "well")]
        darker.append((change[0] - change[1])[mask].mean() < -0.02)
    assert len(darker) > 5
    assert np.mean(darker) > 0.8


def test_siim_files_lie_in_folders_of_uids_and_two_are_the_same_picture(roots):
    root = roots["siim_ptx"]
    files = sorted(root.rglob("*.dcm"))
    pixels: dict[bytes, list[str]] = {}
    for path in files:
        part, study, series, _ = path.relative_to(root).parts
        assert part in {"dicom-images-train", "dicom-images-test"}
        assert all(re.fullmatch(r"2\.25\.\d+", uid) for uid in (study, series, path.stem))
        header = pydicom.dcmread(path)
        pixels.setdefault(bytes(header.get("PixelData", b"")), []).append(path.stem)
    twins = [names for data, names in pixels.items() if data and len(names) > 1]
    assert len(twins) == 1
    rows = pd.read_csv(root / "stage_2_train.csv")
    assert len({tuple(rows.loc[rows["ImageId"] == name, "EncodedPixels"]) for name in twins[0]}) == 2
    assert len({path.stem for path in files} - set(rows["ImageId"])) == 1, "one image has no annotation"


# ---- BRAX


def test_brax_has_both_trees_and_the_labels_of_a_study(roots):
    rows = pd.read_csv(roots["brax"] / brax.TABLE, dtype=str, keep_default_na=False)
    assert list(rows.columns[:7]) == [
        *("DicomPath", "PngPath", "PatientID", "PatientSex", "PatientAge", "AccessionNumber", "StudyDate")
    ]
    assert list(rows.columns[7:21]) == list(LABELS)
    assert list(rows.columns[21:]) == ["ViewPosition", "Rows", "Columns", "Manufacturer"]
    folder = r"/id_[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}/Study_2\.25\.\d+/Series_2\.25\.\d+/image-2\.25\.\d+"
    assert rows["DicomPath"].str.fullmatch("Anonymized_DICOMs" + folder + r"\.dcm").all()
    assert rows["PngPath"].str.fullmatch("images" + folder + r"\.png").all()
    assert set(rows["ViewPosition"]) >= {"PA", "AP", "L", ""}
    assert set(rows[list(LABELS)].to_numpy().ravel()) == {"1.0", "0.0", "-1.0", ""}
    study = rows["DicomPath"].str.extract(r"(Study_[\d.]+)")[0]
    assert (rows.groupby(study)[list(LABELS)].nunique() == 1).all(axis=None)
    assert rows["PatientAge"].map(lambda age: age == "85 or more" or int(age) % 5 == 0).all()


def test_brax_pictures_are_the_same_in_both_trees(roots):
    rows = pd.read_csv(roots["brax"] / brax.TABLE, dtype=str)
    kinds, close = set(), 0
    for row in rows.itertuples():
        dicom = roots["brax"] / row.DicomPath
        if not dicom.is_file():
            continue
        header = pydicom.dcmread(dicom)
        kinds.add((header.PhotometricInterpretation, header.file_meta.TransferSyntaxUID.name))
        if "PixelData" in header:
            try:
                shown = read_radiograph(dicom).pixels
            except Exception:
                continue
            png = cv2.imread(str(roots["brax"] / row.PngPath), cv2.IMREAD_UNCHANGED)
            assert png.dtype == np.uint8
            close += np.abs(shown - png / 255).mean() < 0.06
    assert close >= len(rows) - 2
    assert {photometric for photometric, _ in kinds} == {"MONOCHROME1", "MONOCHROME2"}
    assert {syntax for _, syntax in kinds} == {"Explicit VR Little Endian", "RLE Lossless"}


def test_all_positive_labels_are_of_what_is_drawn(roots):
    rows = pd.read_csv(roots["brax"] / brax.TABLE)
    items, _ = plan_of(roots["brax"])
    for item, row in zip(items, rows.to_dict("records"), strict=True):
        for column, name in LABELS.items():
            if row[column] in (0.0, 1.0):
                assert (name in item.labels) == bool(row[column])


def test_names_of_the_modules_are_those_of_the_registry():
    for module in (padchest, uka_cxr, rsna_pneumonia, siim_ptx, brax):
        assert LAYOUTS[module.LAYOUT.name] is module.LAYOUT
