"""JSRT and object-CXR as they are downloaded."""

from pathlib import Path

from tests.trees.files import picture, table

NODULES = [  # tabs; a blank inside a word, an unknown age
    "JPCLN001.IMG\t5\t15\t53\tmale\t1634\t692\tmalignant\tl.upper lobe\tlung cancer\t\t",
    "JPCLN002.IMG\t4\t30\t?\tfemale\t1598\t992\tbenign\tr.middl e lobe\tgranuloma\t\t",
    "JPCLN003.IMG\t1\t8\t94\tfemale\t500\t992\tmalignant\tr.lower lobe\tmetastasis\t\t",
]
CLEAR = [  # blanks, as many as fill the column
    "JPCNN001.IMG   59   female   non-nodule",
    "JPCNN002.IMG   ?    male     non-nodule",
    "JPCNN003.IMG\t61\tmale\tnon-nodule",
]


def make_jsrt(root: Path, *, one_folder: bool = False, end: str = "\r\n") -> int:
    """Write both tables with their line ends, and files in both cases; one image is missing, one is in no table."""
    tables = root / "Clinical_Information"
    tables.mkdir(parents=True)
    (tables / "CLNDAT_EN.txt").write_bytes((end.join(NODULES) + end + end).encode())
    (tables / "CNNDAT_EN.TXT").write_bytes((end.join(CLEAR) + end + "\x1a").encode())
    for name in ("JPCLN001.IMG", "JPCLN002.img", "JPCNN001.IMG", "JPCNN002.IMG", "JPCNN003.IMG", "JPCNN093.IMG"):
        folder = "All247images" if one_folder else "Nodule154images" if "LN" in name else "NonNodule93images"
        (root / folder).mkdir(exist_ok=True)
        (root / folder / name).write_bytes(bytes(64))
    picture(root / "png/JPCLN001.png")  # somebody's copy, of unknown polarity
    return 6 + 1


def make_object_cxr(root: Path, *, image: str = "image_name") -> int:
    """Write both tables; the test images have no labels."""
    train = {
        "00001.jpg": "0 1035 1042 1197 1192;2 10 20 30 40 50 60",
        "00002.jpg": "",
        "00003.jpg": "1 5 6 7 8",
        "00004.jpg": "",
    }
    dev = {"08001.jpg": "", "08002.jpg": "2 1 2 3 4 5 6"}
    for part, told in (("train", train), ("dev", dev)):
        rows = [{image: name, "annotation": cell} for name, cell in told.items()]
        table(root / f"{part}.csv", [image, "annotation"], rows)
        for name in told:
            if name != "00004.jpg":  # not on the disk
                picture(root / part / name)
    picture(root / "test/09001.jpg")
    picture(root / "test/00001.jpg")  # a number that another part has
    return len(train) + len(dev) + 2


TREES = {
    "jsrt": make_jsrt,
    "jsrt/mac": lambda root: make_jsrt(root, one_folder=True, end="\r"),
    "object_cxr": make_object_cxr,
    "object_cxr/kaggle": lambda root: make_object_cxr(root, image="image"),
}
