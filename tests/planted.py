"""A dataset with a name wherever a name can stand: what its owner must never find outside of it.

Every marker is a word like ``zq0042x`` that says where it was planted; what can hold digits only (dates, times, UIDs)
has one of `DIGITS`.
"""

import gzip
import io
import random
import re
import zlib
from copy import deepcopy
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydicom.datadict import DicomDictionary, RepeatersDictionary, keyword_for_tag
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEG2000Lossless

from cxrdist.dicom.header import ALLOWED
from tests.damage import damaged, jpeg_segment, png

WORD = re.compile(rb"zq\d+x")
DATE, TIME, NUMBER, UID_ROOT = "19370211", "233547.918273", "918273645", "1.2.826.0.1.3680043.77665544332"
DIGITS = (DATE, "1937-02-11", "233547.9182", NUMBER, "77665544332")
TEXT_VRS = {
    "AE": 16,
    "CS": 16,
    "LO": 64,
    "LT": 10240,
    "PN": 64,
    "SH": 16,
    "ST": 1024,
    "UC": 1000,
    "UR": 200,
    "UT": 1000,
}
DIGIT_VRS = {"DA": DATE, "TM": TIME, "DT": DATE + TIME, "IS": NUMBER, "DS": NUMBER, "AS": "087Y"}

FACTS = """
name: toy
title: Toy
home: nowhere
licence: none
coding: words
markers: [{paths: [exams.csv]}]
layout:
  kind: table
  tables: [{files: [exams.csv]}]
  image: file
  joins:
    - {files: ["reports*.json"], on: [accession], required: false}
columns: {patient: mrn, study: accession, projection: view, sex: sex, age: age}
projections: {PA: PA, AP: AP}
sexes: {woman: F, man: M}
keep: {region: [chest]}
labels: {coding: tokens, columns: [labels, more labels], separators: ["|"], unlisted: 0}
findings: {effusion: Effusion, cardiomegaly: Heart, no_finding: Normal}
origin: {column: clinic, words: {North: north, South: south}}
splits: {column: part, values: {training: train, tuning: val, testing: test}}
namespace: toy
"""


class Words:
    """Gives out markers and remembers where they were planted."""

    def __init__(self) -> None:
        self.places: dict[str, str] = {}
        self.texts = {
            place: _texts(self, place) for place in ("tag", "nested tag", "tag nested twice", "private nested tag")
        }

    def __call__(self, place: str) -> str:
        word = f"zq{len(self.places):04d}x"
        self.places[word] = place
        return word

    def found_in(self, told: bytes) -> set[str]:
        """Return the places whose markers are in `told`, in any case, also as UTF-16."""
        folded = b"\n".join([told, told.replace(b"\0", b"")]).lower()
        words = {match.decode() for match in WORD.findall(folded)}
        digits = {text for text in DIGITS if text.encode() in folded}
        return {self.places.get(word, word) for word in words} | digits


def plant(root: Path, words: Words) -> list[str]:
    """Write the dataset below `root`; return the names of its images, all of which can be read."""
    rng = np.random.default_rng(5)
    folder = root / words("folder") / words("folder below")
    folder.mkdir(parents=True)
    good: list[str] = []

    def grey() -> np.ndarray:
        return np.clip(np.add.outer(np.arange(40), np.arange(36)) * 40 + rng.integers(0, 999, (40, 36)), 0, 4095)

    def keep(kind: str, data: bytes) -> None:
        path = folder / f"{words(f'file name {kind}')}_{kind}"
        path.write_bytes(data)
        good.append(path.name)

    for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, JPEG2000Lossless):
        for every in (True, False):
            keep("tags.dcm", _dicom(grey().astype(np.uint16), words, syntax=syntax, every=every))
    packed = io.BytesIO()
    with gzip.GzipFile(words("gzip name"), "wb", fileobj=packed, mtime=0) as file:
        file.write(_dicom(grey().astype(np.uint16), words))
    keep("gzip.dcm.gz", packed.getvalue())
    for mode in ("L", "RGB", "L", "L"):
        keep("text.png", _png(Image.fromarray((grey() // 16).astype(np.uint8)).convert(mode), words))
        keep("segments.jpg", _jpeg(Image.fromarray((grey() // 16).astype(np.uint8)).convert(mode), words))
    return good


def plant_damage(folder: Path, good: list[str], words: Words) -> list[str]:
    """Write damaged copies and images that are refused; return their names."""
    source = next(folder.rglob(good[0])).parent
    rng = random.Random(9)
    whole = [(source / name).read_bytes() for name in good]
    bad = {}
    for name, data in zip(good, whole, strict=True):
        bad[f"cut_{name}"] = data[: len(data) // 2]
        bad[f"head_{name}"] = data[:150]
        bad[f"worse_{name}"] = damaged(data, whole, rng)[1]
    grey = np.arange(1600, dtype=np.uint16).reshape(40, 40)
    for place, tags in {
        "photometric": {"PhotometricInterpretation": words("PhotometricInterpretation").upper(), "SamplesPerPixel": 2},
        "frames": {"NumberOfFrames": 3},
        "burned": {"BurnedInAnnotation": "YES"},
        "lut": {"VOILUTFunction": words("VOILUTFunction").upper(), "PresentationLUTShape": words("shape").upper()},
        "view": {"ViewPosition": words("ViewPosition").upper(), "PatientSex": words("PatientSex").upper()},
        "age": {"PatientAge": "0A7Y", "ConversionType": words("ConversionType").upper()},
        "class": {"SOPClassUID": f"{UID_ROOT}.1", "Modality": words("Modality").upper()},
        "huge": {"Rows": 60000, "Columns": 60000},
    }.items():
        bad[f"{place}.dcm"] = _dicom(grey + len(bad), words, **tags)
    bad["syntax.dcm"] = _dicom(grey, words).replace(b"1.2.840.10008.1.2.1\0", f"{UID_ROOT}"[:19].encode() + b"\0")
    bad["words.png"] = f"no image at all, but a letter about {words('text as image')}".encode()
    bad["page.jpg"] = f"<html>{words('html as image')}</html>".encode()
    names = []
    for name, data in bad.items():
        names.append(f"{words(f'file name {name}')}_{name}")
        (source / names[-1]).write_bytes(data)
    (source / f"{words('no label row')}.png").write_bytes(whole[-1])
    (source / f"{words('folder as image')}.png").mkdir()
    return names


def plant_tables(root: Path, images: list[str], words: Words) -> pd.DataFrame:
    """Write tables that name `images`, with markers in every cell that is read, and in those that are not."""
    lines = []
    for number, name in enumerate(images):
        patient = words("mrn")
        lines.append({
            "file": f"C:\\{words('folder in a table')}\\{name}", "mrn": patient, "accession": words("accession"),
            "view": words("view") if number % 7 == 6 else "PA", "sex": words("sex") if number % 3 else "woman",
            "age": words("age") if number % 5 == 4 else "97", "labels": "Effusion" if number % 2 else "Normal",
            "part": words("part") if number % 11 == 10 else ("training", "tuning", "testing")[number % 3],
            "clinic": words("clinic") if number % 4 else "North",
            "region": words("region") if number % 13 == 12 else "chest",
            "name": words("name"), "birth": DATE, "uid": f"{UID_ROOT}.{number}", words("column"): words("free text"),
        })  # fmt: skip
    lines.append({**lines[0], "file": f"{words('missing file')}.png", "mrn": words("mrn of a missing file")})
    table = pd.DataFrame(lines)
    table.to_csv(root / "exams.csv", index=False)
    reports = [
        {"accession": line["accession"], "report": words("report"), "more labels": "Heart"} for line in lines[:6]
    ]
    pd.DataFrame(reports).to_json(root / f"reports_{words('table name')}.json", orient="records")
    (root / f"{words('stray file')}.txt").write_text(words("stray text"))
    return table


def _dicom(
    grey: np.ndarray, words: Words, *, syntax: str = ExplicitVRLittleEndian, every: bool = False, **tags: object
) -> bytes:
    """Return a DICOM file with a marker in some texts, or in every one that is not read, nested and private too."""
    ds = deepcopy(words.texts["tag"]) if every else Dataset()
    ds.PatientName, ds.PatientID, ds.StudyDate = words("PatientName"), words("PatientID"), DATE
    ds.StudyInstanceUID, ds.InstitutionName = f"{UID_ROOT}.6", words("InstitutionName")
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPInstanceUID = f"{UID_ROOT}.3"
    ds.file_meta.ImplementationClassUID = f"{UID_ROOT}.4"
    ds.file_meta.ImplementationVersionName = words("(0002,0013)")
    for keyword in ("SourceApplicationEntityTitle", "SendingApplicationEntityTitle"):
        setattr(ds.file_meta, keyword, words(keyword))
    ds.file_meta.PrivateInformationCreatorUID = f"{UID_ROOT}.5"
    ds.file_meta.PrivateInformation = words("(0002,0102)").encode() + b" "
    ds.preamble = words("preamble").encode().ljust(128, b" ")
    if every:
        inner = deepcopy(words.texts["nested tag"])
        inner.ReferencedStudySequence = Sequence([words.texts["tag nested twice"]])
        ds.RequestAttributesSequence = Sequence([inner])
    for group in (0x0009, 0x0029):
        block = ds.private_block(group, words("private creator"), create=True)
        block.add_new(0x01, "LO", words("private text"))
        block.add_new(0x02, "UN", words("private bytes").encode() + b" ")
        block.add_new(0x03, "SQ", Sequence([words.texts["private nested tag"]] if every else []))
    ds.add_new(0x60000022, "LO", words("overlay"))
    ds.add_new(0x60003000, "OW", words("overlay data").encode() + b" ")
    ds.add_new(0x50002500, "LO", words("curve"))
    ds.add_new(0x50003000, "OW", words("curve data").encode() + b" ")
    ds.add_new(0xFFFCFFFC, "OB", words("trailing padding").encode() + b" ")
    ds.Rows, ds.Columns = grey.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = 1, "MONOCHROME2", 0
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 12, 11
    ds.PatientSex, ds.PatientAge, ds.ViewPosition, ds.Modality = "F", "097Y", "PA", "DX"
    ds.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    ds.PixelData = grey.tobytes()
    for keyword, value in tags.items():
        setattr(ds, keyword, value)
    if syntax == JPEG2000Lossless:
        ds.compress(syntax, generate_instance_uid=False)
    ds.file_meta.TransferSyntaxUID = syntax
    out = io.BytesIO()
    ds.save_as(out, enforce_file_format=True)
    return out.getvalue()


def _texts(words: Words, place: str) -> Dataset:
    """Return a data set with a marker in each element of the dictionary that holds text and is not read."""
    ds = Dataset()
    repeated = [int(mask.replace("x", "0"), 16) for mask in RepeatersDictionary]
    for tag, (vr, *_) in [*DicomDictionary.items(), *((tag, ("LO", "1")) for tag in repeated)]:
        if tag in ALLOWED or tag >> 16 in (0x0000, 0x0002, 0x0004, 0x7FE0) or tag == 0x00080005 or tag & 0xFFFF == 0:
            continue
        if tag >> 16 in (0x0028, 0x5000, 0x6000, 0x7F00) and vr not in TEXT_VRS:
            continue
        if vr in TEXT_VRS:
            word = words(f"{place} {keyword_for_tag(tag) or hex(tag)}")
            ds.add_new(tag, vr, word.upper() if vr == "CS" else word)
        elif vr in DIGIT_VRS:
            ds.add_new(tag, vr, DIGIT_VRS[vr])
        elif vr == "UI":
            ds.add_new(tag, vr, f"{UID_ROOT}.2")
    return ds


def _png(image: Image.Image, words: Words) -> bytes:
    text, out = PngInfo(), io.BytesIO()
    text.add_text("Author", words("tEXt"))
    text.add_text("Comment", words("zTXt") * 30, zip=True)
    text.add_itxt("Title", words("iTXt"), lang="en", zip=False)
    text.add_itxt("Note", words("compressed iTXt") * 30, zip=True)
    text.add(b"eXIf", _exif(words)[6:])
    text.add(b"iCCP", words("iCCP name").encode() + b"\0\0" + zlib.compress(words("iCCP").encode()))
    text.add(b"tIME", b"\x07\x91\x02\x0b\x00\x00\x00")
    text.add(b"prVt", words("private chunk").encode())
    image.save(out, "png", pnginfo=text)
    data = out.getvalue()
    assert data.startswith(png())
    return data + words("bytes after the end").encode()


def _jpeg(image: Image.Image, words: Words) -> bytes:
    out = io.BytesIO()
    image.save(out, "jpeg", exif=_exif(words), comment=words("COM").encode())
    data = out.getvalue()
    xmp = b"http://ns.adobe.com/xap/1.0/\0" + f"<x:xmpmeta>{words('XMP')}</x:xmpmeta>".encode()
    iptc = b"Photoshop 3.0\0" + b"8BIM\x04\x04\0\0" + words("IPTC").encode()
    more = [jpeg_segment(0xE1, xmp), jpeg_segment(0xED, iptc), jpeg_segment(0xEF, words("APP15").encode())]
    return data[:2] + b"".join(more) + data[2:] + words("bytes after the end").encode()


def _exif(words: Words) -> bytes:
    exif = Image.Exif()
    for tag in (0x010E, 0x010F, 0x0110, 0x0131, 0x013B, 0x8298):
        exif[tag] = words(f"EXIF {tag:#x}")
    exif[0x0132] = "1937:02:11 23:35:47"
    return exif.tobytes()
