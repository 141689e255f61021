"""VinDr-CXR and its relatives as they are downloaded."""

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


TREES = {
    "vindr_cxr": make_vindr,
    "vindr_cxr/gz": lambda root: make_vindr(root, gz=True),
}
