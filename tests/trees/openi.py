"""OpenI as it is downloaded: reports, DICOM and PNG apart; or Kaggle's tables."""

from collections.abc import Callable
from pathlib import Path

from tests.trees.files import picture, table

REPORTS: dict[int, tuple[list[str], list[str]]] = {
    1: (["normal"], ["CXR1_1_IM-0001-3001", "CXR1_1_IM-0001-4001"]),
    2: (["Cardiomegaly/borderline", "Pulmonary Artery/enlarged"], ["CXR2_IM-0652-1001"]),
    10: (
        ["Opacity/lung/base/left", "Pulmonary Atelectasis/base", "Density/mass"],
        ["CXR10_IM-0002-1001", "CXR10_IM-0002-2001-0002"],  # a third number
    ),
    11: (["No Indexing"], ["CXR11_IM-0067-1001"]),
    12: (["Technical Quality of Image Unsatisfactory "], ["CXR12_IM-0100-1001"]),
    13: (["normal", "Hernia, Hiatal"], ["CXR13_IM-0101-1001"]),
    14: ([], ["CXR14_IM-0102-1001"]),
    15: (["Pleural Effusion/right", "Costophrenic Angle"], ["CXR15_IM-0103-1001"]),  # not on the disk
    16: (["normal"], []),  # a report without an image
}


def dicom_name(image: str) -> str:
    """Return the path of an image's DICOM file: the report's number as folder and in front of the name."""
    number, rest = image.removeprefix("CXR").split("_IM-", 1)
    number = number.split("_")[0]
    return f"{number}/{number}_IM-{rest}.dcm"


def make_openi(root: Path, *, png: bool = False, dicom: bool = True, image: Callable[[Path], object] = picture) -> int:
    """Write the reports and the images as DICOM, PNG or both."""
    folder = root / "NLMCXR_reports/ecgen-radiology"
    folder.mkdir(parents=True)
    for number, (headings, images) in REPORTS.items():
        told = "".join(f"<major>{heading}</major>" for heading in headings) + "<automatic>opacity</automatic>"
        parents = "".join(
            f'<parentImage id="{name}"><figureId>F{figure}</figureId></parentImage>'
            for figure, name in enumerate(images, 1)
        )
        uid = f'<uId id="CXR{number}"/>'
        (folder / f"{number}.xml").write_text(f"<eCitation>{uid}<MeSH>{told}</MeSH>{parents}</eCitation>")
    for _, images in REPORTS.values():
        for name in images:
            paths = [f"NLMCXR_png/{name}.png"] * png + [f"NLMCXR_dcm/{dicom_name(name)}"] * dicom
            for path in paths:
                if name != "CXR15_IM-0103-1001":
                    (root / path).parent.mkdir(parents=True, exist_ok=True)
                    image(root / path)
    picture(root / "NLMCXR_png/CXR99_IM-9999-1001.png")  # in no report
    return sum(len(images) for _, images in REPORTS.values()) + 1


def make_openi_kaggle(root: Path) -> int:
    """Write Kaggle's two tables and its images."""
    reports = [
        {"uid": str(number), "MeSH": ";".join(headings), "Problems": "", "findings": "A normal heart; no effusion."}
        for number, (headings, _) in REPORTS.items()
    ]
    table(root / "indiana_reports.csv", list(reports[0]), reports)
    rows = [
        {"uid": str(number), "filename": f"{Path(dicom_name(name)).name}.png", "projection": projection}
        for number, (_, images) in REPORTS.items()
        for name, projection in zip(images, ("Frontal", "Lateral"), strict=False)
    ]
    table(root / "indiana_projections.csv", list(rows[0]), rows)
    for row in rows:
        if row["uid"] != "15":
            picture(root / "images/images_normalized" / row["filename"])
    return len(rows)


TREES = {
    "openi": make_openi,
    "openi/png": lambda root: make_openi(root, png=True, dicom=False),
    "openi/both": lambda root: make_openi(root, png=True),
    "openi/kaggle": make_openi_kaggle,
}
