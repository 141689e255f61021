"""Collections of COVID-19 as they are downloaded."""

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


TREES = {
    "covid_chestxray": make_covid,
    "covid_chestxray/early": lambda root: make_covid(root, early=True),
}
