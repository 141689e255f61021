"""ChestX-ray14 as it is downloaded, and what others made of its images."""

import json
from pathlib import Path

import cv2
import numpy as np

from tests.trees.files import picture, table

NIH = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)


BOXES = "Image Index,Finding Label,Bbox [x,y,w,h],,,\n00000004_000.png,Infiltrate,225.08,547.01,86.77,79.18,,,\n"


def make_nih(root: Path, *, kaggle: bool = False, old: bool = False, resized: bool = False) -> int:
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
    images = "images-224/images-224" if resized else "images"
    name = "Data_Entry_2017.csv" if old else "Data_Entry_2017_v2020.csv"
    header, end = (NIH + ",", ",") if old else (NIH, "")
    root.mkdir(parents=True, exist_ok=True)
    (root / name).write_text("\ufeff" + header + "\n" + "".join(line + end + "\n" for line in lines), encoding="utf-8")
    for number, line in enumerate(lines[:-1]):
        if "00000005" not in line:
            folder = f"images_{1 + number % 2:03}/images" if kaggle else images
            picture(root / folder / line.split(",")[0])
    picture(root / ("images_001/images" if kaggle else images) / "00000099_000.png")
    _picture_with_alpha(root / ("images_001/images" if kaggle else images) / "00000001_000.png")
    picture(root / "__MACOSX/images/._00000001_000.png")
    (root / images if not kaggle else root / "images_001").joinpath("index.html").write_text("junk")
    (root / "BBox_List_2017.csv").write_text(BOXES)
    names = ["00000001_000.png", "00000001_001.png", "00000002_000.png", "00000005_000.png"]
    end = "_NIH" if resized else ""
    (root / f"train_val_list{end}.txt").write_text("\n".join(names))
    (root / f"test_list{end}.txt").write_text("00000003_000.png\n00000004_000.png\n")
    return len(lines) + 1


def _picture_with_alpha(path: Path) -> None:
    path.write_bytes(cv2.imencode(".png", np.random.default_rng(1).integers(0, 256, (8, 8, 4), np.uint8))[1].tobytes())


GOOGLE = [*NIH.split(","), "Fracture", "Pneumothorax", "Airspace opacity", "Nodule or mass", "Set Id"]
FOUR = GOOGLE[-5:-1]


def google_rows() -> dict[str, list[dict[str, str]]]:
    """Return the rows of Google's two tables: three images validate, one of them listed twice; three test."""

    def row(image: str, part: str, answers: str, view: str = "PA") -> dict[str, str]:
        told = {name: {"y": "YES", "n": "NO"}[answer] for name, answer in zip(FOUR, answers, strict=True)}
        more = {"Finding Labels": "No Finding", "Patient ID": str(int(image[:8])), "View Position": view}
        return {"Image Index": image, **more, "Patient Age": "61", "Patient Gender": "F", "Set Id": part} | told

    val = [row("00000007_000.png", "val", "nnyn"), row("00000007_001.png", "val", "nnnn", "AP")]
    test = [row("00000012_000.png", "test", "ynny"), row("00000013_000.png", "test", "nynn")]
    missing = row("00000014_000.png", "test", "nnnn")
    return {"validation": [*val, row("00000008_000.png", "val", "nnnn"), val[0]], "test": [*test, missing]}


def google_images(root: Path) -> None:
    """Write the NIH's images of Google's tables, all but one, and one that those do not list."""
    for name in ("00000007_000", "00000007_001", "00000008_000", "00000012_000", "00000013_000", "00000099_000"):
        picture(root / f"images_001/images/{name}.png")


def make_google(root: Path, *, one: bool = False) -> int:
    """Write the tables as Google gives them, or as one table without the NIH's columns, and the images beside."""
    rows = google_rows()
    if one:
        header = ["Image Index", *FOUR, "Set Id"]
        some = [{name: cells[name] for name in header} for part in ("test", "validation") for cells in rows[part]]
        table(root / "google2019_nih-chest-xray-labels.csv", header, some)
    else:
        for part, cells in rows.items():
            table(root / f"four_findings_expert_labels/{part}_labels.csv", GOOGLE, cells)
    google_images(root / "CXR8")
    return sum(map(len, rows.values()))


def google_readers(root: Path) -> None:
    """Write the votes of the single readers: three for one image, three for another."""
    votes = ["YNNN", "YNNN", "NNNH", "NNYN", "NYYN", "NYNH"]
    answers = {"Y": "YES", "N": "NO", "H": "HEDGE"}
    header = ["Reader ID", "Image ID", *FOUR[:3], "Nodule/mass", "Set ID"]
    rows = [
        dict(zip(header, [f"43{k}", image, *map(answers.get, vote), "test"], strict=True))
        for k, (image, vote) in enumerate(zip(["00000012_000.png"] * 3 + ["00000013_000.png"] * 3, votes, strict=True))
    ]
    table(root / "four_findings_expert_labels/individual_readers.csv", header, rows)


def make_chestx_det(root: Path, *, indent: int | None = None) -> int:
    """Write both tables: an entry per box, so classes repeat; an empty list; an image that is not on the disk."""

    def entry(number: int, *classes: str) -> dict[str, object]:
        boxes = [[10 * k, 5, 10 * k + 9, 40] for k in range(len(classes))]
        outlines = [[[x1, y1], [x2, y1], [x2, y2]] for x1, y1, x2, y2 in boxes]
        return {"file_name": f"{number}.png", "syms": list(classes), "boxes": boxes, "polygons": outlines}

    train = [entry(36200, "Effusion", "Effusion", "Diffuse Nodule"), entry(36201), entry(36202, "Mass", "Fracture")]
    test = [entry(40100, "Pleural Thickening", "Cardiomegaly"), entry(40101), entry(40102, "Nodule")]
    root.mkdir(parents=True, exist_ok=True)
    for part, entries in (("train", train), ("test", test)):
        (root / f"ChestX_Det_{part}.json").write_text(json.dumps(entries, indent=indent))
        for told in entries[: None if part == "train" else 2]:
            picture(root / f"{part}_data/{told['file_name']}")
    picture(root / "test_data/40999.png")  # in no table
    return len(train) + len(test) + 1


TREES = {
    "nih14": make_nih,
    "nih14/kaggle": lambda root: make_nih(root, kaggle=True, old=True),
    "nih14/resized": lambda root: make_nih(root, old=True, resized=True),
    "nih14_google": make_google,
    "nih14_google/one": lambda root: make_google(root, one=True),
    "chestx_det": make_chestx_det,
    "chestx_det/indented": lambda root: make_chestx_det(root, indent=2),
}
