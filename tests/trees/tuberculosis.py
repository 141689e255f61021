"""Shenzhen, Montgomery, TBX11K and TB Portals as they are downloaded."""

import json
from pathlib import Path

from tests.trees.files import picture, table

SHENZHEN = {
    "CHNCXR_0001_0": "male 45yrs\r\nnormal",
    "CHNCXR_0002_0": "female 16month\r\nnormal",
    "CHNCXR_0003_0": "Female , 24yrs  \t\r\nnormal",
    "CHNCXR_0327_1": "male45yrs\r\n1. bilateral PTB, 2 m",
    "CHNCXR_0328_1": "femal 30yrs\r\nSTB",
    "CHNCXR_0329_1": "male 64days\r\nPTB",
    "CHNCXR_0330_1": "Female 91",
    "CHNCXR_0331_1": "",
}
"""The texts' first lines are as irregular as the real ones; one image has no text."""


def make_shenzhen(root: Path, *, flat: bool = False) -> int:
    """Write images and texts, `flat`: the images alone in one folder, with other people's masks beside."""
    home = root / ("images/images" if flat else "ChinaSet_AllFiles")
    for name, text in SHENZHEN.items():
        picture(home / ("" if flat else "CXR_png") / f"{name}.png")
        if not flat and text:
            (home / "ClinicalReadings").mkdir(exist_ok=True)
            (home / f"ClinicalReadings/{name}.txt").write_bytes(text.encode())
    if flat:
        picture(home / "CHNCXR_0001_0_mask.png")
    else:
        (home / "CXR_png/Thumbs.db").write_bytes(b"junk")
        picture(home / "Annotations-2/masks/CHNCXR_0327_1_Pleural_Effusion_2.png")
        picture(home / "mask/CHNCXR_0001_0_mask.png")
        (home / "NLM-ChinaCXRSet-ReadMe.docx").write_bytes(b"no image")
    return len(SHENZHEN)


MONTGOMERY = {
    "MCUCXR_0001_0": "Patient's Sex: F\nPatient's Age: 027Y\nnormal\n",
    "MCUCXR_0002_0": "Patient's Sex: O \nPatient's Age: 005Y\nnormal\n",
    "MCUCXR_0162_1": "Patient's Sex: M \nPatient's Age: 049Y\ncavitary right upper infiltrate\n",
    "MCUCXR_0170_1": "Patient's Sex: M\nPatient's Age: 049Y\nNO REPORT (same pt as MCUCXR_0162_1)\n",
}


def make_montgomery(root: Path) -> int:
    """Write images, texts and masks; the masks have the images' names."""
    home = root / "NLM-MontgomeryCXRSet/MontgomerySet"
    (home / "ClinicalReadings").mkdir(parents=True)
    for name, text in MONTGOMERY.items():
        (home / f"ClinicalReadings/{name}.txt").write_text(text)
        for folder in ("CXR_png", "ManualMask/leftMask", "ManualMask/rightMask"):
            picture(home / folder / f"{name}.png")
    (home / "CXR_png/Thumbs.db").write_bytes(b"junk")
    return len(MONTGOMERY)


def make_tbx11k(root: Path, *, indent: int | None = None) -> int:
    """Write lists, boxes and images; the test images have no labels, the folder extra holds another dataset's."""
    home = root / "TBX11K"
    train = ["tb/tb0001.png", "tb/tb0002.png", "tb/tb0003.png", "tb/tb0004.png", "health/h0001.png", "sick/s0001.png"]
    val = ["tb/tb0101.png", "health/h0101.png", "sick/s0101.png"]
    kinds = {"tb0001": [1, 1], "tb0002": [2], "tb0003": [1, 2], "tb0004": [3], "tb0101": [1]}
    names = {1: "ActiveTuberculosis", 2: "ObsoletePulmonaryTuberculosis", 3: "PulmonaryTuberculosis"}
    categories = [{"id": k, "name": name, "supercategory": "Tuberculosis"} for k, name in names.items()]
    (home / "lists").mkdir(parents=True)
    (home / "annotations/json").mkdir(parents=True)
    for part, images in (("train", train), ("val", val), ("trainval", train + val)):
        (home / f"lists/TBX11K_{part}.txt").write_text("\n".join(images) + "\n")
        listed = [{"file_name": name, "id": k, "width": 512, "height": 512} for k, name in enumerate(images)]
        boxes = [
            {"id": 0, "image_id": image["id"], "category_id": kind, "bbox": [1, 2, 3, 4]}
            for image in listed
            for kind in kinds.get(Path(str(image["file_name"])).stem, [])
        ]
        tree = {"images": listed, "annotations": boxes, "categories": categories}
        (home / f"annotations/json/TBX11K_{part}.json").write_text(json.dumps(tree, indent=indent))
    (home / "lists/all_test.txt").write_text("test/test_0001.png\n")
    for name in [*train, *val, "test/test_0001.png", "tb/tb9999.png"]:  # the last is in no list
        picture(home / "imgs" / name)
    picture(home / "imgs/extra/shenzhen/CHNCXR_0001_0.png")
    picture(home / "imgs/extra/shenzhen/CHNCXR_0327_1.png")
    (home / "annotations/xml").mkdir()
    return len(train) + len(val) + 4


PORTALS = ("patient_id", "condition_id", "imagingstudy_id", "series_instance_content_url", "series_modality_cd")
REMARKS = ("pleural_effusion_percent_of_hemithorax_involved", "smallcavities", "largecavities", "smallnodules")


def make_tb_portals(root: Path) -> int:
    """Write tables in folders of their own, as the releases have them, and DICOM files by patient, study and series."""
    images = [  # number, patient, modality, remark of the publisher
        (1, 1, "CR", "normal"), (2, 1, "DX", "normal"), (3, 2, "XC", ""), (4, 3, "CR", "outlier"),
        (5, 4, "XA", "normal"), (6, 5, "CR", "normal"), (7, 6, "CR", "normal"),
    ]  # fmt: skip
    rows = []
    for number, patient, modality, remark in images:
        url = f"p{patient}/1.2.{number}/1.3.{number}/1.4.{number}.dcm"
        ids = dict(zip(PORTALS, (f"p{patient}", f"c{patient}", f"s{number}", url, modality), strict=True))
        rows.append(ids | {"cxr_outlier": remark, "country": "Georgia"})
        if number != 7:  # one is not on the disk
            picture(root / "TB_Portals_Published_CXRs_August_2023/GlobalBucket" / url)
    rows.append(rows[0] | {"imagingstudy_id": "s99", "series_instance_content_url": ""})  # withdrawn: names no image
    data = root / "TB_Portals_Published_Imaging_Data_August_2023"
    table(data / "TB_Portals_CXRs_August_2023.csv", list(rows[0]), rows)
    told = [  # a row for the whole image, one for each sixth that was looked at
        ("s1", "", "25 0 0 0"), ("s1", "Upper Left", "- 1 - -"), ("s1", "Upper Right", "0 0 0 0"),
        ("s2", "", "0 0 0 2"), ("s3", "", "0 0 0 0"),
    ]  # fmt: skip
    remarks = [
        {"condition_id": "c1", "imagingstudy_id": study, "sextant": part}
        | dict(zip(REMARKS, seen.replace("-", "").split(" "), strict=True))
        for study, part, seen in told
    ]
    table(data / "TB_Portals_CXR_Manual_Annotations_August_2023.csv", list(remarks[0]), remarks)
    cases = [
        {
            "patient_id": f"p{k}",
            "condition_id": f"c{k}",
            "age_of_onset": str(30 + k),
            "gender": "Female" if k % 2 else "Male",
        }
        for k in range(1, 7)
    ]
    clinical = root / "TB_Portals_Published_Clinical_Data_August_2023"
    table(clinical / "TB_Portals_Patient_Cases_August_2023.csv", list(cases[0]), cases)
    return len(images)


TREES = {
    "shenzhen": make_shenzhen,
    "shenzhen/flat": lambda root: make_shenzhen(root, flat=True),
    "montgomery": make_montgomery,
    "tbx11k": make_tbx11k,
    "tb_portals": make_tb_portals,
}
