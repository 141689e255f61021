"""SIIM-ACR Pneumothorax and CANDID-PTX as they are downloaded."""

from pathlib import Path

from tests.trees.files import picture, table

UID = "1.2.276.0.7230010.3.1.4.8323329.{}.1517875162.275800"
RLE = "213 3 1020 5 1019 4"


def siim_uid(number: int) -> str:
    return UID.format(number)


def make_siim(root: Path, *, flat: bool = False, first: bool = False) -> int:
    """Write two masks of one image, one of another, four images without; two files have no row.

    `flat`: stage 2, all in one folder, with its table; `first`: stage 1, with the community's table of all rows; else
    the folders of stage 1 with the table of stage 2, and another table beside it that lacks most rows.
    """
    masks = [(1, RLE), (1, "5 1 1023 2"), (2, RLE), (3, " -1"), (4, "-1"), (5, "-1"), (6, "-1")]
    rows = [{"ImageId": siim_uid(number), "EncodedPixels": mask} for number, mask in masks]
    header = ["ImageId", "EncodedPixels"]
    if first:
        rows = [{"ImageId": cells["ImageId"], " EncodedPixels": f" {cells['EncodedPixels']}"} for cells in rows]
        table(root / "train-rle.csv", ["ImageId", " EncodedPixels"], rows)
    else:
        table(root / "stage_2_train.csv", header, rows)
        table(root / "train-rle-sample.csv", header, rows[:1])
    table(root / "stage_2_sample_submission.csv", header, [{"ImageId": siim_uid(9), "EncodedPixels": "-1"}])
    for number in (1, 2, 3, 4, 5, 7, 8):  # 6 is not on the disk; 7 and 8 have no row
        part = "test" if number in (2, 5, 8) else "train"
        study, series = UID.format(f"{number}1"), UID.format(f"{number}2")
        folder = "stage_2_images" if flat else f"dicom-images-{part}/{study}/{series}"
        picture(root / folder / f"{siim_uid(number)}.dcm")
    return 6 + 2


def make_candid(root: Path, *, folder: str = "dataset") -> int:
    """Write reports with outlines, an image of two patients, files without suffix, tables of tubes and fractures."""
    header = ["filename", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "EncodedPixels", "Report"]
    told = [
        (1, "P12_1.txt", RLE), (1, "P12_1.txt", "99 2"), (2, "P12_2.txt", "-1"), (3, "P13_1.txt", "-1"),
        (4, "P14_1.txt", "-1"), (4, "P15_1.txt", "-1"),  # two patients
        (5, "P16_1.txt", ""), (6, "P17_1.txt", "-1"),  # unknown; not on the disk
    ]  # fmt: skip
    rows = [
        dict(zip(header, (name, UID.format(f"{n}7"), UID.format(f"{n}8"), siim_uid(n), mask, "text"), strict=True))
        for n, name, mask in told
    ]
    table(root / "Pneumothorax_reports.csv", header, rows, encoding="utf-8-sig")
    key = ["anon_SOPUID", "annotation_ref", "mask_rle"]
    for name, images in (("chest_tube", (1, 1, 3)), ("acute_rib_fracture", (2,))):
        table(root / f"{name}.csv", key, [dict(zip(key, (siim_uid(n), "x", RLE), strict=True)) for n in images])
    for number in (1, 2, 3, 4, 5, 7):
        picture(root / folder / siim_uid(number))
    (root / "README").write_text("no image")
    return 6 + 1


TREES = {
    "siim_ptx": make_siim,
    "siim_ptx/flat": lambda root: make_siim(root, flat=True),
    "siim_ptx/first": lambda root: make_siim(root, first=True),
    "candid_ptx": make_candid,
    "candid_ptx/radiographs": lambda root: make_candid(root, folder="chest_radiographs"),
}
