"""ChestX-ray14 as it is downloaded."""

from pathlib import Path

from tests.trees.files import picture

NIH = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)


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


TREES = {
    "nih14": make_nih,
    "nih14/kaggle": lambda root: make_nih(root, kaggle=True, old=True),
}
