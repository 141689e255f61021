"""Kermany's chest X-rays as they are downloaded."""

from collections.abc import Iterable
from pathlib import Path

from tests.trees.files import picture

KAGGLE = [
    "train/NORMAL/IM-0115-0001.jpeg",
    "train/NORMAL/NORMAL2-IM-1427-0001.jpeg",
    "train/NORMAL/NORMAL2-IM-1427-0002.jpeg",
    "train/PNEUMONIA/person1_bacteria_1.jpeg",
    "train/PNEUMONIA/person1_bacteria_2.jpeg",
    "train/PNEUMONIA/person2_virus_6.jpeg",
    "val/PNEUMONIA/person1_bacteria_9.jpeg",
    "val/NORMAL/NORMAL2-IM-1438-0001.jpeg",
    "test/NORMAL/IM-0115-0001.jpeg",
    "test/PNEUMONIA/person1_virus_7.jpeg",
]


def write(folder: Path, paths: Iterable[str]) -> None:
    for path in paths:
        picture(folder / path)


def make_kaggle(root: Path) -> int:
    write(root / "chest_xray", KAGGLE)
    write(root / "chest_xray/chest_xray", KAGGLE)  # the archive holds the tree twice
    write(root / "chest_xray/__MACOSX/chest_xray", KAGGLE)
    write(root / "chest_xray", ["train/NORMAL/.DS_Store", "train/NORMAL/._IM-0115-0001.jpeg", "README.jpeg"])
    return len(KAGGLE)


def make_mendeley(root: Path) -> int:
    paths = [
        "train/NORMAL/NORMAL-1003233-0001.jpeg",
        "train/PNEUMONIA/BACTERIA-1135262-0001.jpeg",
        "train/PNEUMONIA/BACTERIA-1135262-0002.jpeg",
        "test/PNEUMONIA/VIRUS-1980593-0001.jpeg",
    ]
    write(root / "CHEST XRAY", paths)
    return len(paths)


TREES = {"kermany": make_kaggle, "kermany/mendeley": make_mendeley}
