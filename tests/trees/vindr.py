"""VinDr-CXR, its relatives and another Kaggle competition as they are downloaded."""

import gzip
from pathlib import Path

from tests.trees.files import picture, table

VINDR_LABELS = (
    "Aortic enlargement,Atelectasis,Calcification,Cardiomegaly,Clavicle fracture,Consolidation,Edema,Emphysema,"
    "Enlarged PA,ILD,Infiltration,Lung Opacity,Lung cavity,Lung cyst,Mediastinal shift,Nodule/Mass,Pleural effusion,"
    "Pleural thickening,Pneumothorax,Pulmonary fibrosis,Rib fracture,Other lesion,COPD,Lung tumor,Pneumonia,"
    "Tuberculosis,Other diseases,No finding"
)
VINDR = VINDR_LABELS.split(",")


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


# ---- VinBigData, VinDr-PCXR, RANZCR CLiP

CLASSES = (
    "Aortic enlargement,Atelectasis,Calcification,Cardiomegaly,Consolidation,ILD,Infiltration,Lung Opacity,Nodule/Mass,"
    "Other lesion,Pleural effusion,Pleural thickening,Pneumothorax,Pulmonary fibrosis,No finding"
)


def make_vinbigdata(root: Path) -> int:
    """Write boxes of four images, one without a file, and an image in no row; return how many images there are."""
    names = CLASSES.split(",")

    def boxes(image: str, *seen: list[str]) -> list[dict[str, str]]:
        return [
            {"image_id": image * 32, "class_name": name, "class_id": str(names.index(name)), "rad_id": f"R{8 + reader}"}
            | ({} if name == "No finding" else dict.fromkeys(("x_min", "y_min", "x_max", "y_max"), "1"))
            for reader, classes in enumerate(seen)
            for name in classes
        ]

    rows = [
        # Two boxes of one reader are one vote.
        *boxes(
            "a", ["Cardiomegaly", "Pleural effusion", "Pleural effusion"], ["Cardiomegaly"], ["Cardiomegaly", "ILD"]
        ),
        *boxes("b", ["No finding"], ["No finding"], ["No finding"]),
        *boxes("c", ["ILD"], ["Consolidation"], ["Infiltration"]),
        *boxes("d", ["No finding"], ["No finding"], ["No finding"]),  # not on disk
    ]
    rows = rows[::2] + rows[1::2]  # the rows of an image are not together
    table(
        root / "train.csv", ["image_id", "class_name", "class_id", "rad_id", "x_min", "y_min", "x_max", "y_max"], rows
    )
    table(root / "sample_submission.csv", ["image_id", "PredictionString"], [{"image_id": "e" * 32}])
    for image in "abc":
        picture(root / "train" / f"{image * 32}.dicom")
    picture(root / "test" / f"{'e' * 32}.dicom")  # without labels
    return 5


PCXR = (
    "No finding,Bronchitis,Brocho-pneumonia,Other disease,Bronchiolitis,Situs inversus,Pneumonia,Pleuro-pneumonia,"
    "Diagphramatic hernia,Tuberculosis,Congenital emphysema,CPAM,Hyaline membrane disease,Mediastinal tumor,Lung tumor"
)


def make_pcxr(root: Path, *, folder: str = ".", reader: str = "rad_ID") -> int:
    """Write three training rows, two test rows and an image in no row; return how many images there are."""

    def row(image: str, *diseases: str) -> dict[str, str]:
        return (
            {"image_id": image * 32, reader: "R1"}
            | dict.fromkeys(PCXR.split(","), "0.0")
            | dict.fromkeys(diseases, "1.0")
        )

    train = [row("a", "Brocho-pneumonia"), row("b", "No finding"), row("c", "Bronchitis")]  # c is not on disk
    test = [row("d", "Pneumonia", "Diagphramatic hernia"), row("e", "Other disease")]
    test[1]["CPAM"] = ""
    for name, rows in (("train", train), ("test", test)):
        table(root / folder / f"image_labels_{name}.csv", ["image_id", reader, *PCXR.split(",")], rows)
        table(root / folder / f"annotations_{name}.csv", ["image_id", reader, "class_name", "x_min"], [])
        for cells in rows:
            if not cells["image_id"].startswith("c"):
                picture(root / name / f"{cells['image_id']}.dicom")
    picture(root / "test" / f"{'f' * 32}.dicom")
    (root / "test/index.html").write_text("junk")
    return 6


CLIP = (
    "ETT - Abnormal,ETT - Borderline,ETT - Normal,NGT - Abnormal,NGT - Borderline,NGT - Incompletely Imaged,"
    "NGT - Normal,CVC - Abnormal,CVC - Borderline,CVC - Normal,Swan Ganz Catheter Present"
)
CLIP_UID = "1.2.826.0.1.3680043.8.498.1000000000000000000000000000000000000"


def make_clip(root: Path) -> int:
    """Write four rows and an image without labels; return how many images there are."""

    def row(number: int, patient: str, *lines: str) -> dict[str, str]:
        cells = {"StudyInstanceUID": f"{CLIP_UID}{number}", "PatientID": patient}
        return cells | dict.fromkeys(CLIP.split(","), "0") | dict.fromkeys(lines, "1")

    rows = [
        row(1, "ec89415d1", "NGT - Normal", "CVC - Borderline", "CVC - Normal"),
        row(2, "ec89415d1"),
        row(3, "bf4c6da3c", "Swan Ganz Catheter Present", "ETT - Abnormal"),
        row(4, "bf4c6da3c", "CVC - Normal"),  # not on disk
    ]
    table(root / "train.csv", ["StudyInstanceUID", *CLIP.split(","), "PatientID"], rows)
    table(root / "train_annotations.csv", ["StudyInstanceUID", "label", "data"], [])
    table(root / "sample_submission.csv", ["StudyInstanceUID", *CLIP.split(",")], [])
    for cells in rows[:-1]:
        picture(root / "train" / f"{cells['StudyInstanceUID']}.jpg")
    picture(root / "test" / f"{CLIP_UID}9.jpg")
    (root / "train_tfrecords").mkdir()
    (root / "train_tfrecords/00-1878.tfrec").write_bytes(b"")
    return 5


TREES = {
    "vindr_cxr": make_vindr,
    "vindr_cxr/gz": lambda root: make_vindr(root, gz=True),
    "vinbigdata": make_vinbigdata,
    "vindr_pcxr": make_pcxr,
    "vindr_pcxr/folder": lambda root: make_pcxr(root, folder="annotations", reader="rad_id"),
    "ranzcr_clip": make_clip,
}
