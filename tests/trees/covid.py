"""Collections of COVID-19 as they are downloaded."""

from collections.abc import Sequence
from pathlib import Path

from tests.trees.files import picture, table


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


RSNA = "003d8fa0-6bf1-40ed-b54c-ac657f8495{:02}"
B_TRAIN = [
    "COVID 949 COVID(949).png positive sirm",  # an id with a blank
    "3 SARS-10.1148rg.242035193-g04mr34g0-Fig8a-day0.jpeg negative cohen",
    "3 SARS-10.1148rg.242035193-g04mr34g0-Fig8b-day5.jpeg negative cohen",
    "419639-003251 MIDRC-RICORD-1C-419639-003251-46647-0.png positive ricord",
    f"{RSNA.format(1)} {RSNA.format(1)}.png negative rsna",
    f"{RSNA.format(2)} {RSNA.format(2)}.png negative rnsa",  # the list's own error of spelling
    f"{RSNA.format(3)} {RSNA.format(3)}.png negative rsna",  # not on the disk
]
B_TEST = [
    "SITE2-000265 MIDRC-RICORD-1C-SITE2-000265-99793-1.png positive ricord",
    f"{RSNA.format(4)} {RSNA.format(4)}.png negative rsna",
]
A_TRAIN = [
    "COVID-00001 COVID-00001.jpg COVID-19 fig1",
    f"{RSNA.format(1)} {RSNA.format(1)}.png normal rsna",
    f"{RSNA.format(2)} {RSNA.format(2)}.png pneumonia rsna",
    f"{RSNA.format(2)} {RSNA.format(2)}.png pneumonia rsna",  # a line per box
]
A_TEST = [f"{RSNA.format(4)} {RSNA.format(4)}.png normal rsna"]


def make_covidx(
    root: Path,
    *,
    form: str = "kaggle",
    train: Sequence[str] = B_TRAIN,
    test: Sequence[str] = B_TEST,
    val: Sequence[str] = (),
) -> int:
    """Write the lists and the images of one form: ``kaggle``, or that of COVID-Net with lists of several versions."""
    names = {"kaggle": "{}.txt", "covidnet": "labels/{}_COVIDx9B.txt", "first": "{}_COVIDx.txt", "A": "{}_COVIDx9A.txt"}
    lists = {"train": train, "test": test, "val": val}
    files: list[str] = []
    for part, lines in lists.items():
        if not lines:
            continue
        path = root / names[form].format(part)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n")
        for line in lines:
            count = 2 if line.split()[-1] in ("normal", "pneumonia", "COVID-19") else 3
            name = line.split()[-count]
            files.append(f"{part}/{name}")
            if name != f"{RSNA.format(3)}.png":
                picture(root / ("data" if form == "covidnet" else "") / part / name)
    if form == "covidnet":  # older lists beside
        (root / "labels/train_COVIDx7B.txt").write_text(B_TRAIN[0] + "\n")
        (root / "labels/train_COVIDx9A.txt").write_text("\n".join(A_TRAIN))
        (root / "labels/test_COVIDx9A.txt").write_text("\n".join(A_TEST))
    if form == "kaggle":  # no labels; and names that other folders have, too
        picture(root / "competition_test/1.png")
        picture(root / f"competition_test/{RSNA.format(4)}.png")
    return len(files) + 2 * (form == "kaggle")


def make_covid_qu_ex(root: Path, *, parts: tuple[str, ...] = ("Lung", "Infection"), nested: bool = True) -> int:
    """Write images and masks of both parts; the images of the one are among those of the other."""
    for part in parts:
        folder = f"{part} Segmentation Data"
        home = root / folder / folder if nested else root / folder
        for pool in ("Train", "Val", "Test"):
            for kind in ("COVID-19", "Non-COVID", "Normal"):
                for number in range(2 if part == "Lung" else 1):
                    name = f"{kind.lower()}_{pool}{number}.png"
                    for inside in ("images", "lung masks", *(["infection masks"] if part == "Infection" else [])):
                        picture(home / pool / kind / inside / name)
    (root / "COVID-QU-Ex dataset.txt").write_text("read me")
    return 18 if "Lung" in parts else 9


TREES = {
    "covid_chestxray": make_covid,
    "covid_chestxray/early": lambda root: make_covid(root, early=True),
    "covidx": make_covidx,
    "covidx/covidnet": lambda root: make_covidx(root, form="covidnet"),
    "covid_qu_ex": make_covid_qu_ex,
    "covid_qu_ex/infection": lambda root: make_covid_qu_ex(root, parts=("Infection",), nested=False),
}
