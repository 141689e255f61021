"""CheXpert as it is downloaded."""

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


TREES = {
    "chexpert": make_chexpert,
    "chexpert/batches": lambda root: make_chexpert(root, batches=True),
    "chexpert/test": lambda root: make_chexpert(root, test=True),
}
