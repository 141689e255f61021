"""CheXpert, CheXpert Plus and BRAX as they are downloaded."""

import json
from pathlib import Path

from tests.trees.files import picture, table

CHEXPERT_HEADER = (
    "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,"
    "Edema,Consolidation,Pneumonia,Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,Support Devices"
)
CHEXPERT = CHEXPERT_HEADER.split(",")
CHEX_LABELS = CHEXPERT[5:]


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


def make_test_alone(root: Path) -> int:
    """Write what CheXlocalize brings: the test patients, and the validation patients under other names."""
    home = root / "CheXlocalize/CheXpert"
    dense = dict.fromkeys(CHEX_LABELS, "0")
    test = [f"test/patient6474{number}/study1/view1_{view}.jpg" for number, view in ((1, "frontal"), (2, "lateral"))]
    val = ["CheXpert-v1.0/valid/patient64541/study1/view1_frontal.jpg"]
    table(home / "test_labels.csv", ["Path", *CHEX_LABELS], [{"Path": path} | dense | {"Edema": "1"} for path in test])
    table(home / "val_labels.csv", ["Path", *CHEX_LABELS], [{"Path": path} | dense for path in val])
    for path in [*test, "val/patient64541/study1/view1_frontal.jpg"]:
        picture(home / path)
    (root / "CheXlocalize/CheXlocalize").mkdir()
    (root / "CheXlocalize/CheXlocalize/gt_segmentations_test.json").write_text("{}")
    return 3


def write_other_labelers(home: Path) -> None:
    """Write the two further tables of training labels; everything else of them is as in train.csv."""
    first = "CheXpert-v1.0/train/patient00001/study1/view1_frontal.jpg"
    second = "CheXpert-v1.0/train/patient00002/study2/view1_frontal.jpg"
    rows = [chex(first, effusion="-1.0", mass="1.0"), chex(second, view="PA", normal="1.0")]
    table(home / "train_cheXbert.csv", CHEXPERT, rows)
    binary = [row | dict.fromkeys(CHEX_LABELS, "0") | {"Edema": "1"} for row in rows]
    table(home / "train_visualCheXbert.csv", CHEXPERT, binary)


# ---- CheXpert Plus

PLUS = (
    "path_to_image,path_to_dcm,frontal_lateral,ap_pa,deid_patient_id,patient_report_date_order,report,"
    "section_narrative,section_clinical_history,section_history,section_comparison,section_technique,"
    "section_procedure_comments,section_findings,section_impression,section_end_of_impression,section_summary,"
    "section_accession_number,age,sex,race,ethnicity,interpreter_needed,insurance_type,recent_bmi,deceased,split"
)


def make_plus(root: Path, *, dicom: bool = True, png: bool = False, top: bool = False) -> int:
    """Write 5 rows; return how many images they name or lie on disk.  `top`: labels beside the table."""

    def row(
        path: str, view: str = "AP", side: str = "Frontal", sex: str = "Female", age: str = "61.0"
    ) -> dict[str, str]:
        part, patient, *_ = path.split("/")
        cells = {"path_to_image": path, "path_to_dcm": path.replace(".jpg", ".dcm"), "frontal_lateral": side}
        cells |= {"ap_pa": view, "deid_patient_id": patient, "age": age, "sex": sex, "race": "Unknown"}
        return cells | {"report": 'NARRATIVE:\nan image, "read"\nIMPRESSION: none', "split": part}

    rows = [
        row("train/patient00001/study1/view1_frontal.jpg"),
        row("train/patient00001/study1/view2_lateral.jpg", "", "Lateral"),
        row("train/patient00002/study1/view1_frontal.jpg", "PA", sex="Unknown", age="0.0"),
        row("train/patient00003/study1/view1_frontal.jpg"),  # no labels
        row("valid/patient64541/study1/view1_frontal.jpg", age="90"),
    ]
    table(root / "df_chexpert_plus_240401.csv", PLUS.split(","), rows)
    none = dict.fromkeys(CHEX_LABELS)
    labels = [
        none | {"Pleural Effusion": 1.0, "Edema": 0.0, "Lung Lesion": -1.0},
        none | {"Pleural Effusion": 1.0, "Edema": 0.0, "Lung Lesion": -1.0},
        none | {"No Finding": 1.0},
        none,
        none | {"Pleural Effusion": 1.0},
    ]
    folder = root if top else root / "chexbert_labels"
    folder.mkdir(exist_ok=True)
    for section, more in (("impression", {}), ("findings", {"Fracture": 1.0}), ("report", {"Fracture": -1.0})):
        lines = [
            json.dumps({"path_to_image": cells["path_to_image"]} | found | more)
            for number, (cells, found) in enumerate(zip(rows, labels, strict=True))
            if number != 3
        ]
        (folder / f"{section}_fixed.json").write_text("\n".join(lines) + "\n")
    for home, suffix, there in (("DICOM/Uncompressed", ".dcm", dicom), ("PNG", ".png", png)):
        for cells in rows if there else []:
            picture(root / home / cells["path_to_image"].replace(".jpg", suffix))
        if there:
            picture(root / home / f"train/patient00009/study1/view1_frontal{suffix}")
            picture(root / home / "train/patient00001/study1/.azDownload-1-view1_frontal.dcm")
    return (len(rows) + 1) * (dicom + png)


# ---- BRAX

BRAX = [
    "",
    "DicomPath",
    "PngPath",
    "PatientID",
    "PatientSex",
    "PatientAge",
    "AccessionNumber",
    "StudyDate",
    *CHEX_LABELS,
]


def make_brax(root: Path, *, dicom: bool = True, png: bool = True, first: bool = False) -> int:
    """Write 6 rows; return how many images there are.  `first`: the first release, whose DICOM has no suffix."""

    def row(number: int, view: str, age: str = "60", **labels: str) -> dict[str, str]:
        patient = f"id_{number // 2:08d}-aaaa"
        tail = f"{patient}/Study_1.2.{number // 2}/Series_1.2.{number}/image-1.2.3.{number}"
        cells = {"DicomPath": f"Anonymized_DICOMs/{tail}.dcm", "PngPath": f"images/{tail}.png"}
        cells |= {"PatientID": patient, "PatientSex": "F", "PatientAge": age, "ViewPosition": view}
        cells |= {"AccessionNumber": f"acc{number}", "StudyDate": "21190205", "Manufacturer": "1"}
        return cells | {name.replace("_", " "): value for name, value in labels.items()}

    rows = [
        row(0, "PA", "85 or more", Pleural_Effusion="1.0", Edema="0.0", Pneumonia="-1.0"),
        row(1, "L", "85 or more", Pleural_Effusion="1.0", Edema="0.0", Pneumonia="-1.0"),
        row(2, "AP", No_Finding="1.0"),
        row(4, "", No_Finding="1.0"),
        row(6, "RLD"),
        row(8, "PA"),  # not on disk
    ]
    name = "master_spreadsheet.csv" if first else "master_spreadsheet_update.csv"
    table(root / name, [*BRAX, "ViewPosition", "Rows", "Columns", "Manufacturer"], rows)
    for cells in rows[:-1]:
        if dicom:
            picture(root / (cells["DicomPath"].removesuffix(".dcm") if first else cells["DicomPath"]))
        if png:
            picture(root / cells["PngPath"])
    folder = root / ("Anonymized_DICOMs" if dicom else "images") / "id_99999999-aaaa/Study_9/Series_9"
    picture(folder / "image-9.9.9")
    (folder / "index.html").write_text("junk")
    picture(root / "images/example.png")
    return len(rows) + 1


TREES = {
    "chexpert": make_chexpert,
    "chexpert/batches": lambda root: make_chexpert(root, batches=True),
    "chexpert/test": lambda root: make_chexpert(root, test=True),
    "chexpert/chexlocalize": make_test_alone,
    "chexpert_plus": make_plus,
    "chexpert_plus/png": lambda root: make_plus(root, dicom=False, png=True),
    "chexpert_plus/both": lambda root: make_plus(root, png=True, top=True),
    "brax": make_brax,
    "brax/png": lambda root: make_brax(root, dicom=False),
    "brax/first": lambda root: make_brax(root, first=True),
}
