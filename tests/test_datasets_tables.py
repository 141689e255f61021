"""Datasets that are tables: CheXpert, ChestX-ray14, VinDr-CXR and covid-chestxray, each with its layout's traps."""

import csv
import gzip
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from cxrdist.datasets import detect, import_dataset, read_facts
from cxrdist.datasets.importer import UnknownLabelsError
from cxrdist.errors import UserError

CHEXPERT_HEADER = (
    "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,"
    "Edema,Consolidation,Pneumonia,Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,Support Devices"
)
CHEXPERT = CHEXPERT_HEADER.split(",")
CHEX_LABELS = CHEXPERT[5:]
NIH = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)
VINDR_LABELS = (
    "Aortic enlargement,Atelectasis,Calcification,Cardiomegaly,Clavicle fracture,Consolidation,Edema,Emphysema,"
    "Enlarged PA,ILD,Infiltration,Lung Opacity,Lung cavity,Lung cyst,Mediastinal shift,Nodule/Mass,Pleural effusion,"
    "Pleural thickening,Pneumothorax,Pulmonary fibrosis,Rib fracture,Other lesion,COPD,Lung tumor,Pneumonia,"
    "Tuberculosis,Other diseases,No finding"
)
VINDR = VINDR_LABELS.split(",")


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
    suffix = ".jpg" if path.suffix.lower() in (".jpg", ".jpeg") else ".png"
    path.write_bytes(cv2.imencode(suffix, image)[1].tobytes())


def table(path: Path, header: list[str], rows: list[dict[str, str]], *, encoding: str = "utf-8") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding=encoding) as file:
        writer = csv.DictWriter(file, header, restval="")
        writer.writeheader()
        writer.writerows(rows)


def by_name(found):
    return {Path(row.source).name if "view" not in row.source else row.source: row for row in found.rows}


def reasons(found):
    return Counter(reject.reason for reject in found.rejects)


# ---- CheXpert


def chex(path, *, sex="Male", age="60", side="Frontal", view="AP", **labels):
    names = {"effusion": "Pleural Effusion", "edema": "Edema", "normal": "No Finding", "mass": "Lung Lesion"}
    cells = {"Path": path, "Sex": sex, "Age": age, "Frontal/Lateral": side, "AP/PA": view}
    return cells | {names[name]: value for name, value in labels.items()}


def make_chexpert(root: Path, *, batches: bool = False, test: bool = False) -> int:
    """Write 5 train rows, 2 valid rows (and 1 test row); return how many images the tables name or lie on disk."""
    prefix = "CheXpert-v1.0/" if batches else "CheXpert-v1.0-small/"
    train = [
        chex(f"{prefix}train/patient00001/study1/view1_frontal.jpg", effusion="1.0", edema="0.0", mass="-1.0"),
        chex(f"{prefix}train/patient00001/study1/view2_lateral.jpg", side="Lateral", view="", effusion="1.0"),
        chex(f"{prefix}train/patient00002/study1/view1_frontal.jpg", view="LL", age="0", normal="1.0"),
        chex(f"{prefix}train/patient00002/study2/view1_frontal.jpg", view="PA", age="0", sex="Unknown"),
        chex(f"{prefix}train/patient00003/study1/view1_frontal.jpg", sex="Female", age="90"),  # not on disk
    ]
    dense = dict.fromkeys(CHEX_LABELS, "0.0")
    valid = [
        chex(f"{prefix}valid/patient64541/study1/view1_frontal.jpg") | dense | {"Edema": "1.0"},
        chex(f"{prefix}valid/patient64542/study1/view1_frontal.jpg") | dense,
    ]
    home = root / "data" / prefix
    folders = {"train": home / "train", "valid": home / "valid"}
    if batches:
        folders = {
            "train": root / "data/CheXpert-v1.0 batch 2 (train 1)",
            "valid": root / "data/CheXpert-v1.0 batch 1 (validate & csv)/valid",
        }
        home = folders["valid"].parent
    table(home / "train.csv", CHEXPERT, train)
    table(home / "valid.csv", CHEXPERT, valid)
    for row in train[:-1] + valid:
        tail = "/".join(row["Path"].split("/")[-3:])
        picture(folders["train" if "train/" in row["Path"] else "valid"] / tail)
    picture(folders["train"] / "patient00009/study1/view1_frontal.jpg")  # in no table
    picture(home / "example.png")  # none of the dataset's images
    (folders["train"] / "patient00001/study1/.azDownload-1-view1_frontal.jpg").write_bytes(b"half")
    if test:
        path = "test/patient64741/study1/view1_frontal.jpg"
        table(home / "test_labels.csv", ["Path", *CHEX_LABELS], [{"Path": path} | dense])
        picture(home / path)
    return len(train) + len(valid) + 1 + test


@pytest.mark.parametrize("batches", [False, True])
def test_chexpert_is_imported_from_one_folder_and_from_batches(tmp_path, batches):
    named = make_chexpert(tmp_path, batches=batches)
    facts = detect(tmp_path)
    assert facts.name == "chexpert"
    found = import_dataset(facts, tmp_path)
    assert len(found.rows) + len(found.rejects) == named
    assert reasons(found) == {"projection_filtered": 2, "missing_file": 1, "no_label_row": 1}
    rows = {row.patient + "/" + row.study: row for row in found.rows}
    first = rows["patient00001/patient00001/study1"]
    # All four values: present, absent, uncertain, not mentioned.
    values = [first.findings[name] for name in ("effusion", "edema", "lung_lesion", "fracture")]
    assert values == [1, 0, -1, None]
    assert (first.projection, first.sex, first.age) == ("AP", "M", 60)
    assert first.path.is_file() and tmp_path / first.source == first.path
    second = rows["patient00002/patient00002/study2"]
    assert (second.projection, second.sex, second.age) == ("PA", "unknown", None)
    test = [row for row in found.rows if row.split == "test"]
    assert {row.patient for row in test} == {"patient64541", "patient64542"}
    assert set(test[0].findings.values()) == {0, 1}


def test_chexpert_laterals_include_the_ll_rows_marked_frontal(tmp_path):
    make_chexpert(tmp_path)
    found = import_dataset(read_facts("chexpert"), tmp_path, projection="all")
    assert Counter(row.projection for row in found.rows) == {"AP": 3, "lateral": 2, "PA": 1}
    assert reasons(found) == {"missing_file": 1, "no_label_row": 1}


def test_chexpert_valid_becomes_validation_where_the_test_patients_are_there(tmp_path):
    named = make_chexpert(tmp_path, test=True)
    found = import_dataset(read_facts("chexpert"), tmp_path)
    assert len(found.rows) + len(found.rejects) == named
    splits = {row.patient: row.split for row in found.rows}
    assert splits["patient64741"] == "test" and splits["patient64541"] == splits["patient64542"] == "val"
    assert splits["patient00001"] == splits["patient00002"] == "train"  # nothing is carved when there is a split
    row = next(row for row in found.rows if row.split == "test")
    # Its table has no projection columns: the file's name says frontal, nobody says PA or AP.
    assert (row.projection, row.notes) == ("unknown", {"frontal": True})


def test_an_unknown_label_code_stops_the_import_and_is_kept_out_of_the_message(tmp_path):
    path = "CheXpert-v1.0/train/patient00001/study1/view1_frontal.jpg"
    table(tmp_path / "train.csv", CHEXPERT, [chex(path, edema="7")])
    picture(tmp_path / path)
    with pytest.raises(UnknownLabelsError, match="1 unknown ones") as caught:
        import_dataset(read_facts("chexpert"), tmp_path)
    assert dict(caught.value.words) == {"7": 1}


# ---- ChestX-ray14


def make_nih(root: Path, *, kaggle: bool = False, old: bool = False) -> int:
    lines = [
        "00000001_000.png,Cardiomegaly|Emphysema,0,1,058,M,PA,2682,2749,0.143,0.143",
        "00000001_001.png,Pleural_Thickening|Mass,1,1,58,M,AP,2682,2749,0.143,0.143",
        "00000002_000.png,No Finding,0,2,81,M,PA,2500,2048,0.171,0.171",
        "00000003_000.png,Hernia,0,3,414,F,PA,2582,2991,0.143,0.143",
        "00000004_000.png,Infiltration,0,4,094Y,F,PA,2582,2991,0.143,0.143",
        "00000005_000.png,Effusion,0,5,50,F,PA,2582,2991,0.143,0.143",  # not on disk
        "00000006_000.png,Effusion,0,6,50,F,PA,2582,2991,0.143,0.143",  # in no list
        "00000001_000.png,Cardiomegaly|Emphysema,0,1,058,M,PA,2682,2749,0.143,0.143",  # twice
    ]
    name = "Data_Entry_2017.csv" if old else "Data_Entry_2017_v2020.csv"
    header, end = (NIH + ",", ",") if old else (NIH, "")
    root.mkdir(parents=True, exist_ok=True)
    (root / name).write_text("\ufeff" + header + "\n" + "".join(line + end + "\n" for line in lines), encoding="utf-8")
    for number, line in enumerate(lines[:-1]):
        if "00000005" not in line:
            folder = f"images_{1 + number % 2:03}/images" if kaggle else "images"
            picture(root / folder / line.split(",")[0])
    picture(root / ("images_001/images" if kaggle else "images") / "00000099_000.png")
    picture(root / "__MACOSX/images/._00000001_000.png")
    (root / "images" if not kaggle else root / "images_001").joinpath("index.html").write_text("junk")
    names = ["00000001_000.png", "00000001_001.png", "00000002_000.png", "00000005_000.png"]
    (root / "train_val_list.txt").write_text("\n".join(names))
    (root / "test_list.txt").write_text("00000003_000.png\n00000004_000.png\n")
    return len(lines) + 1


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("kaggle", [False, True])
def test_nih14_is_imported_from_both_releases_and_both_folder_forms(tmp_path, kaggle, old):
    named = make_nih(tmp_path / "CXR8", kaggle=kaggle, old=old)
    facts = detect(tmp_path)
    assert facts.name == "nih14"
    found = import_dataset(facts, tmp_path)
    assert len(found.rows) + len(found.rejects) == named
    assert reasons(found) == {
        "missing_file": 1, "excluded_by_source": 1, "duplicate_row": 1, "no_label_row": 1,
    }  # fmt: skip
    rows = by_name(found)
    listed = {name for name, value in rows["00000001_001.png"].findings.items() if value == 1}
    assert listed == {"pleural_thickening", "mass", "nodule_or_mass"}
    # Closed world: what is not listed is absent, and nothing is unknown.
    assert {value for row in found.rows for value in row.findings.values()} == {0, 1}
    assert rows["00000002_000.png"].findings["no_finding"] == 1
    assert rows["00000001_000.png"].patient == rows["00000001_001.png"].patient == "1"
    assert rows["00000001_000.png"].study != rows["00000001_001.png"].study
    assert (rows["00000001_000.png"].age, rows["00000003_000.png"].age, rows["00000004_000.png"].age) == (58, None, 90)
    assert {rows["00000003_000.png"].split, rows["00000004_000.png"].split} == {"test"}
    assert rows["00000002_000.png"].split in ("train", "val")


def test_nih14_without_its_lists_is_refused(tmp_path):
    make_nih(tmp_path)
    (tmp_path / "test_list.txt").unlink()
    with pytest.raises(UserError, match=r"must have the list test_list\.txt or test_list_NIH\.txt"):
        import_dataset(read_facts("nih14"), tmp_path)


def test_labels_are_never_read_by_substring(tmp_path):
    make_nih(tmp_path)
    path = tmp_path / "Data_Entry_2017_v2020.csv"
    path.write_text(path.read_text(encoding="utf-8").replace("Hernia", "Pseudonodule"), encoding="utf-8")
    with pytest.raises(UnknownLabelsError) as caught:
        import_dataset(read_facts("nih14"), tmp_path)
    assert set(caught.value.words) == {"pseudonodule"} and "pseudonodule" not in str(caught.value)


# ---- VinDr-CXR


def make_vindr(root: Path, *, gz: bool = False) -> int:
    def rows(image, *seen):
        return [
            {"image_id": image, "rad_id": f"R{number}"} | dict.fromkeys(VINDR, "0") | dict.fromkeys(names, "1")
            for number, names in enumerate(seen)
        ]

    train = [
        *rows("a" * 32, ["Cardiomegaly", "Pleural effusion"], ["Cardiomegaly"], ["Cardiomegaly", "Nodule/Mass"]),
        *rows("b" * 32, ["No finding"], ["No finding"], ["No finding"]),
        *rows("c" * 32, ["Edema"], ["Consolidation"], ["Infiltration"]),  # not normal, no majority
        *rows("d" * 32, ["No finding"], ["No finding"], ["No finding"]),  # not on disk
    ]
    train[0]["Edema"] = ""  # NaN
    names = [name if name != "Other diseases" else "Other disease" for name in VINDR]
    test = [{"image_id": "e" * 32} | dict.fromkeys(names, "0") | {"Other disease": "1", "Rib fracture": "1"}]
    folder = root / "annotations"
    table(folder / "image_labels_train.csv", ["image_id", "rad_id", *VINDR], train)
    table(folder / "image_labels_test.csv", ["image_id", *names], test)
    if gz:
        for path in list(folder.iterdir()):
            (folder / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
    for image in "abc":
        picture(root / "train" / f"{image * 32}.dicom")
    picture(root / "test" / f"{'e' * 32}.dicom")
    picture(root / "test" / f"{'f' * 32}.dicom")  # in no table
    (root / "train/index.html").write_text("junk")
    return 4 + 1 + 1


@pytest.mark.parametrize("gz", [False, True])
def test_vindr_readers_become_one_row_by_majority(tmp_path, gz):
    root = tmp_path / "physionet.org/files/vindr-cxr/1.0.0"
    named = make_vindr(root, gz=gz)
    facts = detect(root)
    assert facts.name == "vindr_cxr" and not facts.has_patient_ids
    found = import_dataset(facts, root)
    assert len(found.rows) + len(found.rejects) == named
    assert reasons(found) == {"missing_file": 1, "no_label_row": 1}
    rows = {row.patient[0]: row for row in found.rows}
    assert {name for name, value in rows["a"].findings.items() if value} == {"cardiomegaly"}
    assert rows["a"].findings["edema"] == 0
    assert {name for name, value in rows["b"].findings.items() if value} == {"no_finding"}
    assert not any(rows["c"].findings.values()) and rows["c"].notes["no_majority"] is True
    assert "no_majority" not in rows["a"].notes
    ones = {name for name, value in rows["e"].findings.items() if value}
    assert ones == {"other_disease", "rib_fracture", "fracture"}
    assert (rows["e"].split, rows["e"].projection, rows["e"].source[-6:]) == ("test", "PA", ".dicom")
    assert len({row.patient for row in found.rows}) == 4


@pytest.mark.parametrize(("how", "effusion"), [("any", 1), ("all", 0), ("majority", 0)])
def test_vindr_readers_can_be_combined_otherwise_by_another_fact_file(tmp_path, how, effusion):
    make_vindr(tmp_path)
    facts = read_facts("vindr_cxr")
    changed = facts.model_copy(update={"layout": facts.layout.model_copy(update={"readers": how})})
    row = next(row for row in import_dataset(changed, tmp_path).rows if row.patient.startswith("a"))
    assert row.findings["effusion"] == effusion and row.findings["cardiomegaly"] == 1


def test_the_split_of_a_patient_does_not_depend_on_where_the_root_is(tmp_path):
    make_vindr(tmp_path / "deep/er")
    facts = read_facts("vindr_cxr")
    places = [import_dataset(facts, root) for root in (tmp_path, tmp_path / "deep/er")]
    patients, others = ([(row.patient, row.study, row.split) for row in found.rows] for found in places)
    assert patients == others


# ---- covid-chestxray


def make_covid(root: Path, *, encoding: str = "utf-8", early: bool = False) -> int:
    def row(patient, finding, view, filename, modality="X-ray", **more):
        cells = {"patientid": patient, "finding": finding, "view": view, "filename": filename, "modality": modality}
        return cells | {"offset": " ", "sex": "F", "age": "61.0", "folder": "images", "location": "Málaga"} | more

    rows = [
        row("2", "Pneumonia/Viral/COVID-19", "PA", "a.jpg"),
        row("2", "COVID-19, ARDS", "AP Supine", "b.JPG", age="94"),
        row("3", "No Finding", "AP", "c.png", sex=""),
        row("4", "Pneumonia/Bacterial/Streptococcus", "AP erect", "d.jpeg"),
        row("5", "Tuberculosis", "PA", "e.jpg"),
        row("6", "todo", "PA", "f.jpg"),
        row("7", "Unknown", "PA", "g.jpg"),
        row("8", "Pneumonia", "L", "h.jpg"),
        row("9", "COVID-19", "Axial", "i.nii.gz", modality="CT", folder="volumes"),
        row("10", "COVID-19", "PA", "j.jpg"),  # not on disk
        row("11", "ARDS", "PA", "k.jpg"),
    ]
    header = ["patientid", "offset", "sex", "age", "finding", "view", "modality", "location", "folder", "filename"]
    if early:
        header = [name for name in header if name != "modality"]
        rows = [{name: value for name, value in cells.items() if name != "modality"} for cells in rows]
    root.mkdir(parents=True, exist_ok=True)
    table(root / "metadata.csv", header, rows, encoding=encoding)
    if early:
        text = (root / "metadata.csv").read_text(encoding=encoding)
        (root / "metadata.csv").write_text(text.replace("patientid", "Patientid").replace(",view", ", view"), encoding)
    for name in ["a.jpg", "b.jpg", "c.png", "d.jpeg", "e.jpg", "f.jpg", "g.jpg", "h.jpg", "k.JPG", "extra.png"]:
        picture(root / "images" / name)
    return len(rows) + 1


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1"])
def test_covid_chestxray_is_open_world_and_drops_the_unlabelled(tmp_path, encoding):
    named = make_covid(tmp_path / "repo", encoding=encoding)
    facts = detect(tmp_path)
    assert facts.name == "covid_chestxray"
    found = import_dataset(facts, tmp_path)
    assert len(found.rows) + len(found.rejects) == named
    assert reasons(found) == {
        "excluded_by_source": 3, "projection_filtered": 1, "missing_file": 1, "no_label_row": 1,
    }  # fmt: skip
    rows = by_name(found)
    order = ("covid19", "pneumonia", "viral_pneumonia", "bacterial_pneumonia", "tuberculosis", "no_finding")
    values = {name: [row.findings[finding] for finding in order] for name, row in rows.items()}
    assert values["a.jpg"] == [1, 1, 1, None, None, 0]
    assert values["b.jpg"] == [1, 1, 1, None, None, 0]
    assert values["c.png"] == [0, 0, 0, 0, 0, 1]
    assert values["d.jpeg"] == [None, 1, None, 1, None, 0]
    assert values["e.jpg"] == [None, None, None, None, 1, 0]
    assert values["k.JPG"] == [None, None, None, None, None, 0]
    assert (rows["b.jpg"].projection, rows["b.jpg"].age, rows["b.jpg"].patient) == ("AP", 90, "2")
    assert (rows["c.png"].sex, rows["c.png"].age) == ("unknown", 61)


def test_covid_chestxray_of_an_early_commit_is_read(tmp_path):
    named = make_covid(tmp_path, early=True)
    found = import_dataset(detect(tmp_path), tmp_path)
    assert len(found.rows) + len(found.rejects) == named
    assert by_name(found)["a.jpg"].patient == "2"
