"""UKA-CXR and TAIX-Ray, one hospital's private and public data, as they lie on a disk."""

from pathlib import Path

from tests.trees.files import picture, table

SIDED = ("pleural_effusion", "pneumonic_infiltrates", "atelectasis", "pneumothorax", "disturbances")
UKA = ["cardiomegaly", "congestion", *(f"{name}_{side}" for name in SIDED for side in ("right", "left"))]


def make_uka(root: Path, *, name: str = "original_UKA_master_list.csv") -> int:
    """Write 5 rows and one image in no row; return how many images there are."""

    def row(
        image: int, patient: int, split: str, gender: str, age: str, *, healthy: int = 0, **grades: int
    ) -> dict[str, str]:
        cells = {"image_id": str(image), "patient_id": str(patient), "subset": f"subset{image % 2}", "split": split}
        cells |= {"age": age, "gender": gender, "healthy": str(healthy)}
        return cells | {name: str(grades.get(name, 1)) for name in UKA}

    rows = [
        row(100, 7, "train", "0", "64", pleural_effusion_left=3, atelectasis_right=2, cardiomegaly=4, congestion=5),
        row(
            101,
            7,
            "train",
            "0",
            "64.0",
            pleural_effusion_left=4,
            pleural_effusion_right=3,
            pneumonic_infiltrates_right=3,
        ),
        row(102, 8, "valid", "1", "93", pneumothorax_left=5, pneumothorax_right=1),
        row(103, 9, "test", "1", "0", healthy=1),
        row(104, 9, "test", "1", "0", healthy=1),  # not on disk
    ]
    rows[2]["congestion"] = ""
    header = ["image_id", "patient_id", "subset", "split", "age", "gender", *UKA, "healthy"]
    table(root / name, header, rows)
    for cells in rows[:-1]:
        picture(root / "UKA_preprocessed" / cells["subset"] / f"{cells['image_id']}.jpg")
    picture(root / "UKA_preprocessed/subset0/999.jpg")
    (root / "UKA_preprocessed/Thumbs.db").write_text("junk")
    return len(rows) + 1


TAIX = (
    "HeartSize,PulmonaryCongestion,PleuralEffusion_Right,PleuralEffusion_Left,PulmonaryOpacities_Right,"
    "PulmonaryOpacities_Left,Atelectasis_Right,Atelectasis_Left"
)


def make_taix(root: Path, *, name: str = "metadata/annotation.csv", images: str = "data", folds: str = "") -> int:
    """Write 5 images' rows and one image in no row; return how many images there are.

    `folds`: where the five folds are, in ``annotation`` or in ``split``; nowhere, the split is in a table of its own.
    """

    def row(letter: str, patient: str, split: str, age: int, grades: str, sex: str = "F") -> dict[str, str]:
        cells = {"UID": letter * 64, "PatientID": patient, "PhysicianID": "p1", "StudyDate": "2015-03-02", "Sex": sex}
        cells |= {"Age": str(age), "Split": split}
        return cells | dict(zip(TAIX.split(","), grades.split(), strict=True))

    rows = [
        row("a", "1" * 64, "train", 22645, "0 0 0 0 0 0 0 0", "M"),
        row("b", "1" * 64, "train", 22650, "1 1 0 2 0 0 0 1"),
        row("c", "2" * 64, "val", 33500, "3 0 0 0 4 0 0 0"),
        row("d", "3" * 64, "test", 20000, "-1 2 0 0 0 0 0 0"),
        row("e", "3" * 64, "test", 20000, "0 0 0 0 0 0 0 0"),  # not on disk
    ]
    split = [
        {"UID": cells["UID"], "Fold": str(fold), "Split": cells["Split"] if fold == 0 else "train"}
        for cells in rows
        for fold in range(5 if folds else 1)
    ]
    start = ["UID", "PatientID", "PhysicianID", "StudyDate", "Age", "Sex"]
    if folds == "annotation":
        whole = {cells["UID"]: cells for cells in rows}
        table(
            root / name,
            ["UID", "Fold", "Split", *start[1:], *TAIX.split(",")],
            [whole[each["UID"]] | each for each in split],
        )
    else:
        plain = [{column: cells[column] for column in [*start, *TAIX.split(",")]} for cells in rows]
        table(root / name, [*start, *TAIX.split(",")], plain)
        plain_split = split if folds else [{"UID": each["UID"], "Split": each["Split"]} for each in split]
        table((root / name).with_name("split.csv"), list(plain_split[0]), plain_split)
    for letter in "abcdz":
        picture(root / images / f"{letter * 64}.png", sixteen=True)
    return len(rows) + 1


TREES = {
    "uka_cxr": make_uka,
    "uka_cxr/valid": lambda root: make_uka(root, name="5000_final_UKA_master_list.csv"),
    "taix_ray": make_taix,
    "taix_ray/typo": lambda root: make_taix(root, name="metadata/annoation.csv", images="images"),
    "taix_ray/folds": lambda root: make_taix(root, name="annotations.csv", images="data_png_resize_512", folds="split"),
    "taix_ray/one": lambda root: make_taix(root, folds="annotation"),
}
