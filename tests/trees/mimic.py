"""MIMIC-CXR, MIMIC-CXR-JPG, and the two projects that read its images, as they are downloaded."""

import gzip
from pathlib import Path

from tests.trees.chexpert import CHEX_LABELS
from tests.trees.files import picture, table

DICOM_HOME = "mimic-cxr/2.1.0"
JPG_HOME = "mimic-cxr-jpg/2.1.0"
_METADATA = (
    "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns,StudyDate,StudyTime,"
    "ProcedureCodeSequence_CodeMeaning,ViewCodeSequence_CodeMeaning,PatientOrientationCodeSequence_CodeMeaning"
)
METADATA = _METADATA.split(",")
PATIENTS = [("10000032", "F", "52", "2180"), ("10000764", "M", "86", "2132"), ("10001176", "F", "91", "2190")]
"""Of MIMIC-IV: id, gender, anchor_age, anchor_year."""

IMAGES = {
    # letter: subject, study, ViewPosition, ViewCodeSequence, split
    "a": ("10000032", "50414267", "PA", "postero-anterior", "train"),
    "b": ("10000032", "50414267", "LATERAL", "lateral", "train"),
    "c": ("10000764", "57375967", "", "antero-posterior", "train"),  # a study with a row of blanks
    "d": ("10000898", "50771383", "", "", "train"),  # a projection that nobody tells
    "e": ("10000935", "50578979", "AP", "antero-posterior", "train"),  # a study without a row
    "f": ("10001038", "58224503", "PA", "postero-anterior", "validate"),
    "g": ("10001122", "53447138", "PA", "postero-anterior", "test"),  # not on disk
    "h": ("10001176", "53186264", "AP", "antero-posterior", "test"),
    "i": ("10001176", "53186264", "XTABLE LATERAL", "", "test"),
    "j": ("10001217", "52067803", "AP", "antero-posterior", ""),  # in no split
}
LABELS = {
    "50414267": {"Pleural Effusion": "1.0", "Edema": "0.0", "Pneumonia": "-1.0"},
    "57375967": {},
    "50771383": {"Edema": "1.0"},
    "58224503": {"No Finding": "1.0"},
    "53447138": {"No Finding": "1.0"},
    "53186264": {"Lung Opacity": "1.0", "Support Devices": "1.0"},
    "52067803": {"No Finding": "1.0"},
}


def dicom_id(letter: str) -> str:
    return "-".join([letter * 8] * 5)


def path_of(letter: str, suffix: str) -> str:
    subject, study, *_ = IMAGES[letter]
    return f"files/p{subject[:2]}/p{subject}/s{study}/{dicom_id(letter)}{suffix}"


def write_images(home: Path, suffix: str, *, besides: int = 1) -> int:
    """Write all images but g and one in no list; return how many there are with those."""
    for letter in IMAGES:
        if letter != "g":
            picture(home / path_of(letter, suffix))
    picture(home / path_of("a", suffix).replace("a" * 8, "0" * 8))
    study = (home / path_of("a", suffix)).parent
    (study / "index.html").write_text("junk")
    study.with_suffix(".txt").write_text("FINAL REPORT")
    return len(IMAGES) + besides


def write_lists(home: Path) -> None:
    rows = [
        {"subject_id": subject, "study_id": study, "dicom_id": dicom_id(letter), "path": path_of(letter, ".dcm")}
        for letter, (subject, study, *_) in IMAGES.items()
    ]
    table(home / "cxr-record-list.csv", list(rows[0]), rows)
    pack(home / "cxr-record-list.csv")


def write_tables(home: Path, *, gz: bool = True) -> None:
    """Write the tables of the JPG project."""
    ids = [
        {"dicom_id": dicom_id(letter), "subject_id": subject, "study_id": study}
        for letter, (subject, study, *_) in IMAGES.items()
    ]
    told = [
        row
        | {
            "ViewPosition": view,
            "ViewCodeSequence_CodeMeaning": coded,
            "PerformedProcedureStepDescription": "CHEST (PA AND LAT)",
            "StudyDate": "21820401",
        }
        for row, (_, _, view, coded, _) in zip(ids, IMAGES.values(), strict=True)
    ]
    table(home / "mimic-cxr-2.0.0-metadata.csv", METADATA, told)
    split = [row | {"split": split} for row, (*_, split) in zip(ids, IMAGES.values(), strict=True) if split]
    table(home / "mimic-cxr-2.0.0-split.csv", ["dicom_id", "study_id", "subject_id", "split"], split)
    subjects = {study: subject for subject, study, *_ in IMAGES.values()}
    labels = [{"subject_id": subjects[study], "study_id": study} | cells for study, cells in LABELS.items()]
    table(home / "mimic-cxr-2.0.0-chexpert.csv", ["subject_id", "study_id", *sorted(CHEX_LABELS)], labels)
    others = [row | ({"Edema": "-1.0"} if row["study_id"] == "50414267" else {}) for row in labels]
    table(home / "mimic-cxr-2.0.0-negbio.csv", ["subject_id", "study_id", *sorted(CHEX_LABELS)], others)
    if gz:
        for path in list(home.glob("*.csv")):
            pack(path)
    human = [name.replace("Lung Opacity", "Airspace Opacity") for name in CHEX_LABELS]
    rows = [{"study_id": "53186264", "Airspace Opacity": "1", "Edema": "0", "Pneumonia": "-1"}]
    table(home / "mimic-cxr-2.1.0-test-set-labeled.csv", ["study_id", *human], rows)
    (home / "IMAGE_FILENAMES").write_text("\n".join(path_of(letter, ".jpg") for letter in IMAGES))


def write_patients(home: Path) -> None:
    """Write the table of MIMIC-IV that has sex and age."""
    header = ["subject_id", "gender", "anchor_age", "anchor_year", "anchor_year_group", "dod"]
    table(home / "hosp/patients.csv", header, [dict(zip(header, row, strict=False)) for row in PATIENTS])


def pack(path: Path) -> None:
    path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()


def make_jpg(root: Path, *, gz: bool = True) -> int:
    write_tables(root / JPG_HOME, gz=gz)
    return write_images(root / JPG_HOME, ".jpg")


def make_dicom(root: Path, *, suffix: str = ".dcm") -> int:
    """Write the DICOM project, and beside it the tables of the JPG project."""
    write_tables(root / JPG_HOME)
    write_lists(root / DICOM_HOME)
    return write_images(root / DICOM_HOME, suffix)


# ---- REFLACX

_PHASE_1 = (
    "Airway wall thickening,Atelectasis,Consolidation,Emphysema,Enlarged cardiac silhouette,Fibrosis,Fracture,"
    "Groundglass opacity,Mass,Nodule,Pleural effusion,Pleural thickening,Pneumothorax,Pulmonary edema,Wide mediastinum"
)
_PHASE_2 = (
    "Abnormal mediastinal contour,Acute fracture,Atelectasis,Consolidation,Enlarged cardiac silhouette,Enlarged hilum,"
    "Groundglass opacity,Hiatal hernia,High lung volume / emphysema,Interstitial lung disease,Lung nodule or mass,"
    "Pleural abnormality,Pneumothorax,Pulmonary edema"
)
PHASE_1, PHASE_2 = _PHASE_1.split(","), _PHASE_2.split(",")
REFLACX_HOME = "reflacx-xray-localization/1.0.0"


def write_reflacx(home: Path) -> int:
    """Write three tables: of a five readers, of h two, of f one, of g (not on disk) one; return how many images."""

    def reading(number: int, letter: str, findings: list[str], **sure: int) -> dict[str, str]:
        subject, _, _, _, split = IMAGES[letter]
        cells = {"id": f"P1{number:02}R{number:06}", "split": split, "eye_tracking_data_discarded": "False"}
        cells |= {"image": f"physionet.org/files/mimic-cxr/2.0.0/{path_of(letter, '.dcm')}"}
        cells |= {"dicom_id": dicom_id(letter), "subject_id": subject, "image_size_x": "8", "image_size_y": "8"}
        cells |= dict.fromkeys(findings, "0") | {"Support devices": "True" if letter == "a" else "False"}
        return cells | {name.replace("_", " ").capitalize(): str(value) for name, value in sure.items()}

    first = [
        reading(1, "a", PHASE_1, Pleural_effusion=5, Atelectasis=4, Nodule=3),
        reading(2, "a", PHASE_1, Pleural_effusion=4, Atelectasis=1, Nodule=5),
        reading(3, "a", PHASE_1, Pleural_effusion=5, Atelectasis=2, Nodule=4),
        reading(4, "a", PHASE_1, Pleural_effusion=0, Atelectasis=5, Nodule=5),
        reading(5, "a", PHASE_1, Pleural_effusion=3),
    ]
    second = [
        reading(6, "h", PHASE_2, Pleural_abnormality=5, Pulmonary_edema=5),
        reading(7, "h", PHASE_2, Pleural_abnormality=0, Pulmonary_edema=4),
    ]
    third = [reading(8, "f", PHASE_2, Pneumothorax=3, Lung_nodule_or_mass=4), reading(9, "g", PHASE_2)]
    start = list(first[0])[:8]
    for number, rows, names in ((1, first, PHASE_1), (2, second, PHASE_2), (3, third, PHASE_2)):
        quality = ["Quality issue"] if number == 1 else []
        header = [*start, *names, *quality, "Support devices", "Other"]
        table(home / f"main_data/metadata_phase_{number}.csv", header, rows)
    table(home / "main_data/P101R000001/fixations.csv", ["timestamp_start_fixation"], [])
    return 4


def make_reflacx(root: Path) -> int:
    """Write REFLACX with MIMIC-CXR's images below the same root, and no tables of theirs."""
    write_images(root / DICOM_HOME, ".dcm")
    return write_reflacx(root / REFLACX_HOME)


# ---- edema severity

EDEMA_HOME = "mimic-cxr-pe-severity/1.0.1"


def write_edema(home: Path) -> int:
    """Write the tables; return how many images they name with the table of MIMIC-CXR-JPG."""
    header = ["subject_id", "study_id", "dicom_id", "edema_severity"]

    def row(letter: str, grade: int) -> dict[str, str]:
        subject, study, *_ = IMAGES[letter]
        return dict(zip(header, [subject, study, dicom_id(letter), str(grade)], strict=True))

    table(home / "consensus_image_edema_severity.csv", header, [row("h", 2), row("c", 0)])
    # By study; the patient of the consensus' image h must not train.  The lateral of a's study is an image, too.
    by_rules = [row("a", 3), row("d", 1), row("e", 1), row("g", 0), row("i", 1)]
    studies = [{name: cells[name] for name in header if name != "dicom_id"} for cells in by_rules]
    table(home / "regex_report_edema_severity.csv", [header[0], header[1], header[3]], studies)
    table(home / "expert_report_edema_severity.csv", [header[0], header[1], header[3]], studies[:1])
    return 2 + 2 + 1 + 1 + 1 + 2  # the rules' h is named twice


def make_edema(root: Path) -> int:
    """Write the grades with MIMIC-CXR-JPG below the same root."""
    write_tables(root / JPG_HOME)
    write_images(root / JPG_HOME, ".jpg")
    return write_edema(root / EDEMA_HOME)


TREES = {
    "mimic_cxr": make_dicom,
    "mimic_cxr/gz": lambda root: make_dicom(root, suffix=".dcm.gz"),
    "mimic_cxr_jpg": make_jpg,
    "mimic_cxr_jpg/csv": lambda root: make_jpg(root, gz=False),
    "reflacx": make_reflacx,
    "edema_severity": make_edema,
}
